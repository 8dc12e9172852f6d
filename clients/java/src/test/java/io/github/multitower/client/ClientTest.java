package io.github.multitower.client;

import static io.github.multitower.client.Outcomes.assertReason;
import static io.github.multitower.client.Outcomes.failure;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Closing, and what callers pass. */
class ClientTest {
    private static final Map<String, Tensor> INPUTS = Map.of("x", Tensor.of(new float[] {1, 2}, 1, 2));
    private static final Duration LONG = Duration.ofSeconds(20);

    // Closing.

    @Test
    void closingFailsWhatIsOutstandingAndEverythingAfter() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon()) {
            MultitowerClient client = MultitowerClient.connect(daemon.endpoint);
            CompletableFuture<Map<String, Tensor>> future = client.inferAsync("m", INPUTS, LONG);
            daemon.next("MT1:infer");
            client.close();
            client.close();
            assertReason(Reason.CLOSED, failure(future));
            assertReason(Reason.CLOSED, assertThrows(MultitowerException.class, () -> client.infer("m", INPUTS)));
            assertReason(Reason.CLOSED, assertThrows(MultitowerException.class, client::serverLive));
            assertReason(Reason.CLOSED, assertThrows(MultitowerException.class, () -> client.waitUntilReady(LONG)));
        }
    }

    @Test
    void closingWhileManyThreadsAskLeavesNobodyWaiting() throws Exception {
        for (int round = 0; round < 20; round++) {
            try (FakeDaemon daemon = new FakeDaemon(FakeDaemon::two)) {
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint);
                AtomicInteger answered = new AtomicInteger();
                List<Throwable> failures = Collections.synchronizedList(new ArrayList<>());
                List<Thread> threads = new ArrayList<>();
                for (int i = 0; i < 8; i++) {
                    Thread thread = new Thread(() -> {
                        try {
                            while (true) {
                                client.infer("m", INPUTS, LONG);
                                answered.incrementAndGet();
                            }
                        } catch (MultitowerException error) {
                            failures.add(error);
                        }
                    });
                    threads.add(thread);
                    thread.start();
                }
                while (answered.get() < 20) {
                    Thread.onSpinWait();
                }
                client.close();
                for (Thread thread : threads) {
                    thread.join(10_000);
                    assertFalse(thread.isAlive(), "still waiting");
                }
                failures.forEach(error -> assertReason(Reason.CLOSED, (MultitowerException) error));
            }
        }
    }

    @Test
    void closingFromACallbackEndsTheThread() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon()) {
            MultitowerClient client = MultitowerClient.connect(daemon.endpoint);
            CompletableFuture<Void> closed =
                    client.inferAsync("m", INPUTS, LONG).thenRun(client::close);
            FakeDaemon.Received request = daemon.next("MT1:infer");
            daemon.reply(request, FakeDaemon.two(request));
            closed.get();
            client.close();
            for (Thread thread : Thread.getAllStackTraces().keySet()) {
                if (thread.getName().equals("multitower-client " + daemon.endpoint)) {
                    thread.join(10_000);
                    assertFalse(thread.isAlive());
                }
            }
        }
    }

    // Waiting until the daemon is ready.

    @Test
    void whatIsNotReadyBecauseNothingListensFailsAsRequestsDo() throws Exception {
        try (MultitowerClient client = MultitowerClient.connect("tcp://127.0.0.1:" + Outcomes.freePort())) {
            MultitowerException error;
            do { // the cause is found in the background
                error = assertThrows(
                        MultitowerException.Unavailable.class, () -> client.waitUntilReady(Duration.ofSeconds(1)));
                assertReason(Reason.NOT_LISTENING, error);
            } while (!error.details().equals(Map.of("connect_error", "connection_refused")));
            assertTrue(error.getMessage().startsWith("not ready after 1.0 s: no daemon listens"), error.getMessage());
            assertReason(Reason.NOT_LISTENING, assertInstanceOf(MultitowerException.class, error.getCause()));
        }
    }

    @Test
    void whatTheDaemonAnsweredIsNotForgottenInTheLastMoments() throws Exception {
        AtomicInteger asked = new AtomicInteger();
        String some = "{\"ready\":false,\"slots_ready\":1,\"slots_total\":2}";
        try (FakeDaemon daemon = new FakeDaemon(
                        request -> asked.incrementAndGet() == 1 ? FakeDaemon.ok(request, some) : null);
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            MultitowerException error;
            do { // on a slow machine the first answer may come too late
                asked.set(0);
                error = assertThrows(
                        MultitowerException.Unavailable.class, () -> client.waitUntilReady(Duration.ofMillis(900)));
            } while (!error.getMessage().contains("1 of 2 slots are ready"));
            assertReason(Reason.NO_WORKER, error);
        }
    }

    // What callers say.

    @ParameterizedTest
    @ValueSource(strings = {"ipc:///run/multitower/front.sock", "127.0.0.1:5555", "tcp://", "tcp://host",
        "tcp://host:0", "tcp://host:65536", "tcp://ho st:1", "http://host:1", "tcp://::1:5555", ""})
    void whatIsNoEndpointIsRefusedAtOnce(String endpoint) {
        IllegalArgumentException error =
                assertThrows(IllegalArgumentException.class, () -> MultitowerClient.connect(endpoint));
        assertTrue(error.getMessage().contains("tcp://"), error.getMessage());
    }

    @Test
    void timesAndNumbersMustMakeSense() throws Exception {
        MultitowerClient.Builder builder = MultitowerClient.builder();
        assertThrows(IllegalArgumentException.class, () -> builder.timeout(Duration.ZERO));
        assertThrows(IllegalArgumentException.class, () -> builder.connectTimeout(Duration.ofSeconds(-1)));
        assertThrows(IllegalArgumentException.class, () -> builder.maxOutstanding(0));
        assertThrows(IllegalArgumentException.class, () -> builder.retries(-1));
        assertThrows(IllegalArgumentException.class, () -> builder.peerTimeout(Duration.ofMillis(-1)));
        assertThrows(IllegalArgumentException.class, () -> builder.peerTimeout(Duration.ofMillis(199)));
        assertThrows(IllegalArgumentException.class, () -> builder.peerTimeout(Duration.ofDays(2)));
        assertThrows(IllegalArgumentException.class, () -> InferRequest.of("m", INPUTS).withPriority(-1));
        try (FakeDaemon daemon = new FakeDaemon(FakeDaemon::two);
                MultitowerClient client =
                        builder.endpoint(daemon.endpoint).timeout(Duration.ofSeconds(Long.MAX_VALUE)).build()) {
            assertThrows(IllegalArgumentException.class, () -> client.infer("m", INPUTS, Duration.ZERO));
            assertReason(Reason.MALFORMED, assertThrows(
                    MultitowerException.class, () -> client.infer("\ud834", INPUTS)));
            assertEquals(2, client.infer("m", INPUTS).get("y").elements()); // forever is long, but no overflow
        }
    }

    @Test
    void anExceptionTellsCodeReasonAndWhereItWasWaitedFor() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon(request ->
                        FakeDaemon.error(request, Reason.SHAPE_INVALID, Map.of("field", "x")));
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            MultitowerException error =
                    assertThrows(MultitowerException.InvalidRequest.class, () -> client.infer("m", INPUTS, LONG));
            assertEquals("InvalidRequest: INVALID_ARGUMENT/shape_invalid: as wanted", error.toString());
            assertEquals(Map.of("field", "x"), error.details());
            assertTrue(List.of(error.getStackTrace()).stream()
                    .anyMatch(frame -> frame.getClassName().equals(ClientTest.class.getName())));
        }
    }
}
