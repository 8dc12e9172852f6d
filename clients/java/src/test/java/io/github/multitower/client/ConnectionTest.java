package io.github.multitower.client;

import static io.github.multitower.client.Outcomes.assertReason;
import static io.github.multitower.client.Outcomes.failure;
import static io.github.multitower.client.Outcomes.freePort;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.ref.WeakReference;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

/** When requests are sent, and what a lost connection costs. */
class ConnectionTest {
    private static final Map<String, Tensor> INPUTS = Map.of("x", Tensor.of(new float[] {1, 2}, 1, 2));
    private static final Duration LONG = Duration.ofSeconds(20);
    private static final Duration SHORT = Duration.ofMillis(200);

    // Time.

    @Test
    void aRequestThatNobodyAnswersExpiresAndTheDaemonIsTold() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon(Outcomes::live);
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            assertTrue(client.serverLive()); // so that the time begins with a connection
            MultitowerException error = assertThrows(
                    MultitowerException.DeadlineExceeded.class, () -> client.infer("m", INPUTS, SHORT));
            assertReason(Reason.DEADLINE, error);
            FakeDaemon.Received request = daemon.next("MT1:infer");
            assertTrue(request.header().contains("\"timeout\":200000"), request.header());
            assertArrayEquals(request.id(), daemon.next("MT1:cancel").id());
            // The answer that comes too late is nobody's, and does no harm.
            daemon.reply(request, FakeDaemon.two(request));
            CompletableFuture<Map<String, Tensor>> next = client.inferAsync("m", INPUTS, LONG);
            FakeDaemon.Received other = daemon.next("MT1:infer");
            daemon.reply(other, FakeDaemon.two(other));
            assertArrayEquals(new byte[] {1, 2}, next.get().get("y").toBytes());
        }
    }

    @Test
    void withoutADaemonARequestFailsAfterTheConnectTimeout() throws Exception {
        String endpoint = "tcp://127.0.0.1:" + freePort();
        try (MultitowerClient client =
                MultitowerClient.builder().endpoint(endpoint).connectTimeout(Duration.ofMillis(300)).build()) {
            long begun = System.nanoTime();
            MultitowerException error =
                    assertThrows(MultitowerException.Unavailable.class, () -> client.infer("m", INPUTS, LONG));
            assertReason(Reason.NOT_LISTENING, error);
            assertTrue(error.getMessage().contains(endpoint), error.getMessage());
            assertReason(Reason.NOT_LISTENING, assertThrows(MultitowerException.class, client::status));
            double seconds = (System.nanoTime() - begun) / 1e9;
            assertTrue(seconds > 0.5 && seconds < 10, "two times the connect time-out took " + seconds);
        }
    }

    @Test
    void whatWaitedForADaemonInVainIsNotSentWhenOneComes() throws Exception {
        String endpoint = "tcp://127.0.0.1:" + freePort();
        try (MultitowerClient client =
                MultitowerClient.builder().endpoint(endpoint).connectTimeout(Duration.ofMillis(100)).build()) {
            assertThrows(MultitowerException.Unavailable.class, () -> client.infer("given-up", INPUTS, LONG));
            try (FakeDaemon daemon = new FakeDaemon(Outcomes::live, endpoint, "{}")) {
                // Had it been queued, it would come before any other.
                while (!Outcomes.live(client)) {
                    Thread.onSpinWait();
                }
                CompletableFuture<Map<String, Tensor>> next = client.inferAsync("next", INPUTS);
                FakeDaemon.Received request = daemon.next("MT1:infer");
                assertTrue(request.header().contains("next"), request.header());
                daemon.reply(request, FakeDaemon.two(request));
                next.get();
            }
        }
    }

    @Test
    void aRequestWaitsForADaemonThatComesInTime() throws Exception {
        String endpoint = "tcp://127.0.0.1:" + freePort();
        try (MultitowerClient client = MultitowerClient.builder().endpoint(endpoint).connectTimeout(LONG).build()) {
            CompletableFuture<Map<String, Tensor>> future = client.inferAsync("m", INPUTS);
            try (FakeDaemon daemon = new FakeDaemon(FakeDaemon::two, endpoint, "{}")) {
                assertArrayEquals(new byte[] {1, 2}, future.get().get("y").toBytes());
            }
        }
    }

    @Test
    void nothingIsSentToAProgramThatDoesNotAnswerAsADaemon() throws Exception {
        try (FakeDaemon silent = new FakeDaemon(request -> null, "tcp://127.0.0.1:*", null);
                MultitowerClient client =
                        MultitowerClient.builder().endpoint(silent.endpoint).connectTimeout(SHORT).build()) {
            MultitowerException error;
            do { // on a slow machine the connection may open late
                error = assertThrows(MultitowerException.Unavailable.class, () -> client.infer("m", INPUTS, LONG));
                assertReason(Reason.NOT_LISTENING, error);
            } while (!error.getMessage().contains("does not answer as a multitower daemon"));
            assertEquals(Map.of("connect_error", "no_answer"), error.details());
            assertTrue(silent.requests.isEmpty(), "nothing is sent before it has answered");
        }
    }

    @Test
    void whatWasCancelledWhileNoDaemonListensKeepsNoTensors() throws Exception {
        try (MultitowerClient client = MultitowerClient.builder()
                .endpoint("tcp://127.0.0.1:" + freePort())
                .connectTimeout(Duration.ofMinutes(10))
                .timeout(Duration.ofMinutes(10))
                .maxOutstanding(1)
                .build()) {
            List<WeakReference<Tensor>> tensors = new ArrayList<>();
            for (int i = 0; i < 20; i++) {
                tensors.add(askAndCancel(client));
            }
            while (tensors.stream().anyMatch(tensor -> tensor.get() != null)) {
                System.gc();
            }
        }
    }

    private static WeakReference<Tensor> askAndCancel(MultitowerClient client) {
        Tensor tensor = Tensor.of(new byte[1000], 1000);
        assertTrue(client.inferAsync("m", Map.of("x", tensor)).cancel(false));
        return new WeakReference<>(tensor);
    }

    @Test
    void anErrorThatEndsTheThreadIsTheCauseOfTheErrorsOfAllCalls() throws Exception {
        Connection connection =
                new Connection(Endpoint.parse("tcp://127.0.0.1:" + freePort()), Duration.ofSeconds(20), 0, 0, null);
        IllegalStateException wanted = new IllegalStateException("as wanted");
        Call<Void> waiting = call(Clock.NEVER, () -> {});
        connection.start(waiting);
        connection.start(call(0, () -> {
            throw wanted;
        }));
        MultitowerException error = failure(waiting.future);
        assertReason(Reason.INTERNAL_ERROR, error);
        assertEquals(wanted, error.getCause());
        assertTrue(error.getMessage().contains("as wanted"), error.getMessage());
        assertEquals(
                wanted,
                assertThrows(MultitowerException.InternalError.class, connection::check).getCause());
        Call<Void> late = call(Clock.NEVER, () -> {});
        connection.start(late);
        assertEquals(wanted, failure(late.future).getCause());
        connection.close();
    }

    private static Call<Void> call(long deadline, Runnable finished) {
        return new Call<>(Wire.STATUS, Wire.EMPTY_HEADER, List.of(), deadline, deadline, (h, frames) -> null, finished);
    }

    // The connection lost.

    @Test
    void whatIsOutstandingFailsWhenTheConnectionIsLostAndTheNextIsSentAnew() throws Exception {
        int port = freePort();
        String endpoint = "tcp://127.0.0.1:" + port;
        try (MultitowerClient client = MultitowerClient.builder().endpoint(endpoint).connectTimeout(LONG).build()) {
            CompletableFuture<Map<String, Tensor>> lost;
            try (FakeDaemon daemon = new FakeDaemon(request -> null, endpoint, "{}")) {
                lost = client.inferAsync("m", INPUTS, LONG);
                daemon.next("MT1:infer");
            }
            MultitowerException error = failure(lost);
            assertInstanceOf(MultitowerException.Unavailable.class, error);
            assertReason(Reason.CONNECTION_LOST, error);
            CompletableFuture<Map<String, Tensor>> next = client.inferAsync("m", INPUTS, LONG);
            try (FakeDaemon daemon = new FakeDaemon(FakeDaemon::two, endpoint, "{}")) {
                assertArrayEquals(new byte[] {1, 2}, next.get().get("y").toBytes());
            }
        }
    }

    @Test
    void aConnectionThatNeverShakesHandsIsGivenUpForAnother() throws Exception {
        List<Socket> silent = new ArrayList<>();
        try (ServerSocket listener = new ServerSocket(0, 50, InetAddress.getLoopbackAddress())) {
            String endpoint = "tcp://127.0.0.1:" + listener.getLocalPort();
            try (MultitowerClient client = MultitowerClient.builder().endpoint(endpoint).connectTimeout(LONG).build()) {
                CompletableFuture<Map<String, Tensor>> future = client.inferAsync("m", INPUTS, LONG);
                silent.add(listener.accept());
                silent.add(listener.accept());
                listener.close();
                // The others stay open, and silent.
                try (FakeDaemon daemon = new FakeDaemon(FakeDaemon::two, endpoint, "{}")) {
                    assertArrayEquals(new byte[] {1, 2}, future.get().get("y").toBytes());
                }
            }
        } finally {
            for (Socket socket : silent) {
                socket.close();
            }
        }
    }

    @Test
    void theLimitOfTheDaemonIsKept() throws Exception {
        try (FakeDaemon daemon =
                        new FakeDaemon(FakeDaemon::two, "tcp://127.0.0.1:*", "{\"max_message_size\":2000}");
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            client.infer("m", Map.of("x", Tensor.of(new byte[1000], 1000)), LONG);
            MultitowerException error = assertThrows(
                    MultitowerException.InvalidRequest.class,
                    () -> client.infer("m", Map.of("x", Tensor.of(new byte[2000], 2000)), LONG));
            assertReason(Reason.TOO_LARGE, error);
            assertEquals("frames", error.details().get("field"));
        }
    }

    @Test
    void aSwallowedConnectionFailsItsRequestsAndTheClientRecovers() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon();
                SwallowingProxy proxy = new SwallowingProxy(daemon.endpoint);
                MultitowerClient client = MultitowerClient.builder()
                        .endpoint(proxy.endpoint)
                        .connectTimeout(LONG)
                        .peerTimeout(Duration.ofMillis(400))
                        .build()) {
            CompletableFuture<Map<String, Tensor>> lost = client.inferAsync("m", INPUTS, Duration.ofMinutes(1));
            daemon.next("MT1:infer");
            proxy.swallow();
            assertReason(Reason.CONNECTION_LOST, failure(lost));
            proxy.restore();
            CompletableFuture<Map<String, Tensor>> next = client.inferAsync("m", INPUTS, LONG);
            FakeDaemon.Received request = daemon.next("MT1:infer");
            daemon.reply(request, FakeDaemon.two(request));
            assertArrayEquals(new byte[] {1, 2}, next.get(20, TimeUnit.SECONDS).get("y").toBytes());
        }
    }

    @Test
    void aHostWhoseFirstAddressIsDeadIsFoundAtItsSecond() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon(FakeDaemon::two)) {
            String port = daemon.endpoint.substring(daemon.endpoint.lastIndexOf(':'));
            // The addresses of the name stand in src/test/resources/hosts; nothing listens at the first one.
            try (MultitowerClient client =
                    MultitowerClient.builder().endpoint("tcp://two.test" + port).connectTimeout(LONG).build()) {
                assertArrayEquals(new byte[] {1, 2}, client.infer("m", INPUTS, LONG).get("y").toBytes());
            }
        }
    }

    @Test
    void aHostWithOnlyAnIpv6AddressIsFound() throws Exception {
        // The name stands in src/test/resources/hosts.
        try (ServerSocket listener = new ServerSocket(0, 1, InetAddress.getByName("::1"))) {
            listener.setSoTimeout(20_000);
            try (MultitowerClient client = MultitowerClient.connect("tcp://six.test:" + listener.getLocalPort());
                    Socket accepted = listener.accept()) {
                assertTrue(accepted.isConnected(), client.endpoint());
            }
        }
    }
}
