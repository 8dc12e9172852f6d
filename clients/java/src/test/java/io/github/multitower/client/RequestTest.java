package io.github.multitower.client;

import static io.github.multitower.client.Outcomes.assertReason;
import static io.github.multitower.client.Outcomes.failure;
import static io.github.multitower.client.Outcomes.freePort;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** What becomes of requests: unreadable replies, cancelling, retries, room, and what depends on futures. */
class RequestTest {
    private static final Map<String, Tensor> INPUTS = Map.of("x", Tensor.of(new float[] {1, 2}, 1, 2));
    private static final Duration LONG = Duration.ofSeconds(20);
    private static final Duration SHORT = Duration.ofMillis(200);

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

    @Test
    void waitingInTheClientsThreadIsRefusedWhetherOrNotThereIsRoom() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client =
                        MultitowerClient.builder().endpoint(daemon.endpoint).maxOutstanding(1).build()) {
            CompletableFuture<Void> chained = client.inferAsync("first", INPUTS, LONG).thenAccept(outputs -> {
                client.inferAsync("second", INPUTS, LONG); // takes the only room
                assertThrows(IllegalStateException.class, () -> client.infer("third", INPUTS, LONG));
                assertThrows(IllegalStateException.class, client::serverLive);
            });
            FakeDaemon.Received first = daemon.next("MT1:infer");
            daemon.reply(first, FakeDaemon.two(first));
            chained.get(20, TimeUnit.SECONDS);
        }
    }

    @Test
    void anActionThatOccupiesTheClientsThreadKeepsNoOtherThreadWaiting() throws Exception {
        CountDownLatch begun = new CountDownLatch(1);
        CountDownLatch released = new CountDownLatch(1);
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            CompletableFuture<Void> occupied = client.inferAsync("first", INPUTS, LONG).thenAccept(outputs -> {
                begun.countDown();
                Outcomes.await(released);
            });
            FakeDaemon.Received first = daemon.next("MT1:infer");
            daemon.reply(first, FakeDaemon.two(first));
            Outcomes.await(begun);
            MultitowerException error = assertThrows(
                    MultitowerException.DeadlineExceeded.class, () -> client.infer("second", INPUTS, SHORT));
            assertReason(Reason.DEADLINE, error);
            assertTrue(error.getMessage().contains("an action"), error.getMessage());
            released.countDown();
            occupied.get(20, TimeUnit.SECONDS);
        } finally {
            released.countDown();
        }
    }
}
