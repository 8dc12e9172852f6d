package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.net.ServerSocket;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;

/** What tests say about the outcomes of requests. */
final class Outcomes {
    private Outcomes() {}

    static MultitowerException failure(CompletableFuture<?> future) {
        ExecutionException failed = assertThrows(ExecutionException.class, () -> future.get(20, TimeUnit.SECONDS));
        return assertInstanceOf(MultitowerException.class, failed.getCause());
    }

    static void assertReason(Reason reason, MultitowerException error) {
        assertTrue(error.is(reason), error.toString());
        assertEquals(reason.code(), error.code());
    }

    /** Waits for an event, for at most 30 s. */
    static void await(CountDownLatch event) {
        try {
            assertTrue(event.await(30, TimeUnit.SECONDS));
        } catch (InterruptedException interrupt) {
            throw new AssertionError(interrupt);
        }
    }

    static int freePort() throws IOException {
        try (ServerSocket socket = new ServerSocket(0)) {
            return socket.getLocalPort();
        }
    }

    static List<byte[]> live(FakeDaemon.Received request) {
        return request.kind().equals("MT1:server_live") ? FakeDaemon.ok(request, "{\"live\":true}") : null;
    }

    static boolean live(MultitowerClient client) {
        try {
            return client.serverLive();
        } catch (MultitowerException.Unavailable error) {
            return false;
        }
    }
}
