package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** The connection's rules, against a daemon that says what the test wants. */
class ConnectionTest {
    private static final Map<String, Tensor> INPUTS = Map.of("x", Tensor.of(new float[] {1, 2}, 1, 2));
    private static final Duration LONG = Duration.ofSeconds(20);
    private static final Duration SHORT = Duration.ofMillis(200);

    private static MultitowerException failure(CompletableFuture<?> future) {
        ExecutionException failed = assertThrows(ExecutionException.class, () -> future.get(20, TimeUnit.SECONDS));
        return assertInstanceOf(MultitowerException.class, failed.getCause());
    }

    private static void assertReason(Reason reason, MultitowerException error) {
        assertTrue(error.is(reason), error.toString());
        assertEquals(reason.code(), error.code());
    }

    private static int freePort() throws IOException {
        try (ServerSocket socket = new ServerSocket(0)) {
            return socket.getLocalPort();
        }
    }

    private static List<byte[]> live(FakeDaemon.Received request) {
        return request.kind().equals("MT1:server_live") ? FakeDaemon.ok(request, "{\"live\":true}") : null;
    }

    private static boolean live(MultitowerClient client) {
        try {
            return client.serverLive();
        } catch (MultitowerException.Unavailable error) {
            return false;
        }
    }

    // Time.

    @Test
    void aRequestThatNobodyAnswersExpiresAndTheDaemonIsTold() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon(ConnectionTest::live);
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
            try (FakeDaemon daemon = new FakeDaemon(ConnectionTest::live, endpoint, "{}")) {
                // Had it been queued, it would come before any other.
                while (!live(client)) {
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

    // What cannot be read.

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void whateverReadingThrowsIsTheCallsOutcome(boolean memory) {
        Call.Reader<Void> reader =
                (header, frames) -> {
                    if (memory) {
                        throw new OutOfMemoryError("none left");
                    }
                    throw new IllegalStateException("none left");
                };
        Call<Void> call = new Call<>(new byte[0], new byte[0], List.of(), 0, 0, reader, () -> {});
        call.answer(new byte[0], List.of());
        MultitowerException error = failure(call.future);
        assertReason(Reason.OUTPUT_INVALID, error);
        assertTrue(error.getMessage().contains("none left"), error.getMessage());
        assertTrue(call.over);
    }

    // Cancelling.

    @Test
    void whatWasCancelledBeforeItWasSentIsNeverSent() throws Exception {
        String endpoint = "tcp://127.0.0.1:" + freePort();
        try (MultitowerClient client = MultitowerClient.builder().endpoint(endpoint).connectTimeout(LONG).build()) {
            CompletableFuture<Map<String, Tensor>> first = client.inferAsync("cancelled", INPUTS);
            assertTrue(first.cancel(true));
            CompletableFuture<Map<String, Tensor>> second = client.inferAsync("kept", INPUTS);
            try (FakeDaemon daemon = new FakeDaemon(request -> null, endpoint, "{}")) {
                FakeDaemon.Received request = daemon.next("MT1:infer");
                assertTrue(request.header().contains("kept"), request.header());
                daemon.reply(request, FakeDaemon.two(request));
                second.get();
                assertTrue(daemon.requests.isEmpty());
            }
        }
    }

    @Test
    void anInterruptedThreadCancelsItsRequestAndStaysInterrupted() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            AtomicReference<MultitowerException> error = new AtomicReference<>();
            AtomicReference<Boolean> interrupted = new AtomicReference<>();
            Thread thread = new Thread(() -> {
                error.set(assertThrows(MultitowerException.class, () -> client.infer("m", INPUTS, LONG)));
                interrupted.set(Thread.currentThread().isInterrupted());
                // What an interrupted thread does must not break the connection for others.
                assertThrows(MultitowerException.class, () -> client.infer("m", INPUTS, LONG));
            });
            thread.start();
            FakeDaemon.Received request = daemon.next("MT1:infer");
            thread.interrupt();
            thread.join(20_000);
            assertReason(Reason.CANCELLED, error.get());
            assertTrue(interrupted.get());
            assertArrayEquals(request.id(), daemon.next("MT1:cancel").id());
            CompletableFuture<Map<String, Tensor>> next = client.inferAsync("next", INPUTS, LONG);
            FakeDaemon.Received other = daemon.next("MT1:infer");
            while (!other.header().contains("next")) {
                // The second request of the interrupted thread may have been sent before it was cancelled.
                daemon.next("MT1:cancel");
                other = daemon.next("MT1:infer");
            }
            daemon.reply(other, FakeDaemon.two(other));
            assertEquals(List.of("y"), new ArrayList<>(next.get().keySet()));
        }
    }

    @Test
    void completingAFutureInAnyWayCancelsTheRequest() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            CompletableFuture<Map<String, Tensor>> future = client.inferAsync("m", INPUTS, LONG);
            FakeDaemon.Received request = daemon.next("MT1:infer");
            future.orTimeout(1, TimeUnit.MILLISECONDS);
            assertArrayEquals(request.id(), daemon.next("MT1:cancel").id());
        }
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

    // Retries.

    @Test
    void aRefusedRequestIsSentAgainWithANewIdAndTheSameBytes() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            CompletableFuture<Map<String, Tensor>> future = client.inferAsync("m", INPUTS, LONG);
            FakeDaemon.Received first = daemon.next("MT1:infer");
            daemon.reply(first, FakeDaemon.error(first, Reason.QUEUE_FULL, Map.of("retry_after_ms", 1)));
            FakeDaemon.Received second = daemon.next("MT1:infer");
            assertEquals(first.header(), second.header());
            assertArrayEquals(first.tensors().get(0), second.tensors().get(0));
            assertNotEquals(Vectors.hexadecimal(first.id()), Vectors.hexadecimal(second.id()));
            daemon.reply(second, FakeDaemon.error(second, Reason.NO_WORKER, Map.of("retry_after_ms", 1)));
            FakeDaemon.Received third = daemon.next("MT1:infer");
            daemon.reply(third, FakeDaemon.error(third, Reason.QUEUE_FULL, Map.of("retry_after_ms", 7)));
            MultitowerException error = failure(future);
            assertInstanceOf(MultitowerException.Overloaded.class, error);
            assertEquals(7L, error.details().get("retry_after_ms"));
            assertTrue(daemon.requests.isEmpty());
        }
    }

    @Test
    void whatMayHaveRunIsNeverSentAgain() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            for (Reason reason : List.of(Reason.POISONED, Reason.WORKER_DIED, Reason.DRAINING, Reason.MODEL_ERROR)) {
                CompletableFuture<Map<String, Tensor>> future = client.inferAsync("m", INPUTS, LONG);
                FakeDaemon.Received request = daemon.next("MT1:infer");
                daemon.reply(request, FakeDaemon.error(request, reason, Map.of("retry_after_ms", 1)));
                assertReason(reason, failure(future));
                assertTrue(daemon.requests.isEmpty());
            }
        }
    }

    // Room.

    @Test
    void aFullClientFailsAtOnceByDefaultAndInferWaits() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client =
                        MultitowerClient.builder().endpoint(daemon.endpoint).maxOutstanding(1).build()) {
            CompletableFuture<Map<String, Tensor>> first = client.inferAsync("m", INPUTS, LONG);
            FakeDaemon.Received request = daemon.next("MT1:infer");
            CompletableFuture<Map<String, Tensor>> refused = client.inferAsync("m", INPUTS, LONG);
            assertTrue(refused.isCompletedExceptionally());
            MultitowerException full = failure(refused);
            assertInstanceOf(MultitowerException.Overloaded.class, full);
            assertReason(Reason.QUEUE_FULL, full);
            assertEquals(Map.of("limit", "maxOutstanding", "limit_value", 1L), full.details());
            // What waits does so within its time.
            MultitowerException late =
                    assertThrows(MultitowerException.DeadlineExceeded.class, () -> client.infer("m", INPUTS, SHORT));
            assertEquals("maxOutstanding", late.details().get("limit"));
            CompletableFuture<Map<String, Tensor>> waiting =
                    CompletableFuture.supplyAsync(() -> client.infer("second", INPUTS, LONG));
            daemon.reply(request, FakeDaemon.two(request));
            first.get();
            FakeDaemon.Received second = daemon.next("MT1:infer");
            assertTrue(second.header().contains("second"), second.header());
            daemon.reply(second, FakeDaemon.two(second));
            waiting.get();
            // The questions about the daemon need no room.
            client.inferAsync("m", INPUTS, LONG);
            CompletableFuture<Map<String, Object>> status = CompletableFuture.supplyAsync(client::status);
            daemon.next("MT1:infer");
            FakeDaemon.Received asked = daemon.next("MT1:status");
            daemon.reply(asked, FakeDaemon.ok(asked, "{\"slots\":[]}"));
            assertEquals(Map.of("slots", List.of()), status.get());
        }
    }

    @Test
    void aFullClientMayBlockAndNeverDoesInItsOwnThread() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client = MultitowerClient.builder()
                        .endpoint(daemon.endpoint)
                        .maxOutstanding(1)
                        .blockWhenFull(true)
                        .build()) {
            CompletableFuture<Map<String, Tensor>> first = client.inferAsync("first", INPUTS, LONG);
            FakeDaemon.Received request = daemon.next("MT1:infer");
            MultitowerException late = failure(client.inferAsync("late", INPUTS, SHORT));
            assertReason(Reason.DEADLINE, late);
            CompletableFuture<CompletableFuture<Map<String, Tensor>>> waiting =
                    CompletableFuture.supplyAsync(() -> client.inferAsync("second", INPUTS, LONG));
            AtomicReference<MultitowerException> full = new AtomicReference<>();
            daemon.reply(request, FakeDaemon.two(request));
            first.get();
            FakeDaemon.Received second = daemon.next("MT1:infer");
            CompletableFuture<Void> chained = waiting.get().thenAccept(outputs -> {
                // Its own room is free again. The next one finds none, and would wait for its own thread.
                client.inferAsync("third", INPUTS, LONG);
                full.set(failure(client.inferAsync("fourth", INPUTS, LONG)));
            });
            daemon.reply(second, FakeDaemon.two(second));
            daemon.next("MT1:infer");
            chained.get(20, TimeUnit.SECONDS);
            assertReason(Reason.QUEUE_FULL, full.get());
        }
    }

    @Test
    void whateverIsWrongWithAnAsynchronousRequestIsTheOutcomeOfItsFuture() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon()) {
            MultitowerClient client = MultitowerClient.connect(daemon.endpoint);
            assertReason(Reason.MALFORMED, failure(client.inferAsync("\ud834", INPUTS)));
            ExecutionException spent = assertThrows(
                    ExecutionException.class, () -> client.inferAsync("m", INPUTS, Duration.ZERO).get());
            assertInstanceOf(IllegalArgumentException.class, spent.getCause());
            client.close();
            assertReason(Reason.CLOSED, failure(client.inferAsync("m", INPUTS)));
        }
    }

    // Callbacks.

    @Test
    void whatDependsOnAFutureMayAskAgainButNotWait() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            AtomicReference<Throwable> waited = new AtomicReference<>();
            CompletableFuture<Map<String, Tensor>> chained = client.inferAsync("first", INPUTS, LONG)
                    .thenCompose(outputs -> {
                        waited.set(assertThrows(IllegalStateException.class, () -> client.infer("no", INPUTS, LONG)));
                        Thread.currentThread().interrupt(); // carelessly: it is the client's thread
                        return client.inferAsync("second", INPUTS, LONG);
                    });
            FakeDaemon.Received first = daemon.next("MT1:infer");
            daemon.reply(first, FakeDaemon.two(first));
            FakeDaemon.Received second = daemon.next("MT1:infer");
            assertTrue(second.header().contains("second"), second.header());
            daemon.reply(second, FakeDaemon.two(second));
            assertArrayEquals(new byte[] {1, 2}, chained.get().get("y").toBytes());
            assertInstanceOf(IllegalStateException.class, waited.get());
        }
    }

    // Closing.

    @Test
    void closingFailsWhatIsOutstandingAtOnceAndEverythingAfter() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon()) {
            MultitowerClient client = MultitowerClient.connect(daemon.endpoint);
            CompletableFuture<Map<String, Tensor>> future = client.inferAsync("m", INPUTS, LONG);
            daemon.next("MT1:infer");
            long begun = System.nanoTime();
            client.close();
            client.close();
            assertTrue(System.nanoTime() - begun < 4_000_000_000L);
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
                    .anyMatch(frame -> frame.getClassName().equals(ConnectionTest.class.getName())));
        }
    }
}
