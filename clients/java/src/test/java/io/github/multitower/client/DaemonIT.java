package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** A real daemon with handlers that need no TensorFlow. */
class DaemonIT {
    private static final String CONFIG = String.join("\n",
            "devices: {cpu: 2}",
            "models:",
            "  - {name: echo, handler: 'handlers:Echo'}",
            "  - {name: commanded, handler: 'commanded_handlers:Commanded', retry: 1}",
            "  - {name: cancelled, handler: 'commanded_handlers:Commanded'}",
            "  - {name: reckoner, handler: 'handlers:Reckoner', batching: {max_batch_size: 16}}",
            "max_message_size: 32MiB",
            "spares: 2",
            "");

    private static Daemon daemon;
    private static MultitowerClient client;

    @BeforeAll
    static void serve() throws Exception {
        Daemon.require("multitower", "numpy", "psutil");
        daemon = new Daemon("handlers", CONFIG);
        client = MultitowerClient.connect(daemon.endpoint());
        client.waitUntilReady(Duration.ofSeconds(50)); // less than a test may take, so that its message says why
    }

    @AfterAll
    static void end() {
        if (client != null) {
            client.close();
        }
        if (daemon != null) {
            daemon.close();
        }
    }

    private static Map<String, Tensor> command(String text) {
        return Map.of("do", Tensor.of(new String[] {text}, 1));
    }

    @Test
    void everyDatatypeComesBackAsItWasSent() {
        Map<String, Tensor> inputs = new LinkedHashMap<>();
        int number = 0;
        for (Map<String, Object> vector : Vectors.section("tensors")) {
            Tensor tensor = Vectors.tensor(vector);
            if (tensor.datatype() != Datatype.BF16) { // the handlers' Python would need ml_dtypes
                inputs.put("t" + number++, tensor);
            }
        }
        assertEquals(inputs.size(), number);
        Map<String, Tensor> outputs = client.infer("echo", inputs);
        inputs.forEach((name, tensor) -> {
            Tensor got = outputs.get(name);
            assertEquals(tensor.toString(), got.toString());
            assertEquals(Vectors.hexadecimal(tensor), Vectors.hexadecimal(got));
        });
        assertEquals(inputs.size(), outputs.size());
    }

    @Test
    void hugeTensorsTravelWhole() {
        byte[] bytes = new byte[24 << 20];
        new Random(1).nextBytes(bytes);
        Tensor direct = Tensor.of(Datatype.UINT8, bytes, 3, 8 << 20);
        Tensor onTheHeap = Tensor.of(Datatype.UINT8, ByteBuffer.wrap(bytes), 24 << 20);
        for (Tensor tensor : List.of(direct, onTheHeap)) {
            Tensor got = client.infer("echo", Map.of("x", tensor)).get("x");
            assertTrue(tensor.data().equals(got.data()));
            assertTrue(got.data().isDirect());
        }
    }

    @Test
    void whatIsTooLargeIsNotSentAndTheConnectionStays() {
        // Over twice the limit in one frame the daemon's libzmq would close the connection without a word.
        for (int size : new int[] {33 << 20, 80 << 20}) {
            Tensor tensor = Tensor.of(Datatype.UINT8, ByteBuffer.allocate(size), size);
            MultitowerException error = assertThrows(
                    MultitowerException.InvalidRequest.class, () -> client.infer("echo", Map.of("x", tensor)));
            assertTrue(error.is(Reason.TOO_LARGE), error.toString());
        }
        assertTrue(client.serverLive());
    }

    @Test
    void aThousandRequestsAtOnceEachGetTheirOwnAnswer() throws Exception {
        List<CompletableFuture<Map<String, Tensor>>> futures = new ArrayList<>();
        try (MultitowerClient asking =
                MultitowerClient.builder().endpoint(daemon.endpoint()).blockWhenFull(true).build()) {
            for (int i = 0; i < 3000; i++) { // more than may be outstanding
                futures.add(asking.inferAsync("reckoner", Map.of("x", Tensor.of(new double[] {i}, 1, 1))));
            }
            for (int i = 0; i < futures.size(); i++) {
                assertArrayEquals(new double[] {3 * i + 1}, futures.get(i).get().get("y").toDoubles());
            }
        }
    }

    @Test
    void whatTheModelRaisesIsAModelError() {
        MultitowerException error = assertThrows(
                MultitowerException.ModelError.class, () -> client.infer("commanded", command("raise oh dear")));
        assertTrue(error.getMessage().contains("oh dear"), error.getMessage());
    }

    @Test
    void aCancelledRequestIsCancelledAtTheDaemonToo() throws Exception {
        CompletableFuture<Map<String, Tensor>> future = client.inferAsync("cancelled", command("sleep 3"));
        while (depth(client) == 0) {
            Thread.sleep(2);
        }
        future.cancel(true);
        // It would have been answered well after three seconds; so it is answered as cancelled, which counts as failed.
        while (model("cancelled").get("failed").equals(0L)) {
            Thread.sleep(5);
        }
        assertEquals(0L, model("cancelled").get("completed"));
    }

    private static Map<String, Object> model(String name) {
        for (Object model : (List<?>) client.status().get("models")) {
            if (Json.object(model).get("name").equals(name)) {
                return Json.object(model);
            }
        }
        throw new AssertionError("no model " + name);
    }

    private static long depth(MultitowerClient asked) {
        long depth = 0;
        for (Object slot : (List<?>) asked.status().get("slots")) {
            depth += (Long) Json.object(slot).get("depth");
        }
        return depth;
    }

    @Test
    void timeRunsOutAtTheDaemonToo() {
        long begun = System.nanoTime();
        MultitowerException error = assertThrows(
                MultitowerException.DeadlineExceeded.class,
                () -> client.infer("commanded", command("sleep 3"), Duration.ofMillis(150)));
        assertTrue(error.is(Reason.DEADLINE));
        assertTrue(System.nanoTime() - begun < 2_900_000_000L);
    }

    @Test
    void aDaemonThatDiesFailsWhatIsOutstandingAndItsSuccessorIsFound() throws Exception {
        try (Daemon own = new Daemon("restarted", CONFIG.replace("spares: 2", "spares: 0"));
                MultitowerClient asking = MultitowerClient.builder()
                        .endpoint(own.endpoint())
                        .connectTimeout(Duration.ofSeconds(30))
                        .build()) {
            asking.waitUntilReady(Duration.ofSeconds(50));
            List<CompletableFuture<Map<String, Tensor>>> lost = new ArrayList<>();
            for (int i = 0; i < 4; i++) {
                lost.add(asking.inferAsync("commanded", command("sleep 20")));
            }
            while (depth(asking) == 0) {
                Thread.sleep(2);
            }
            own.kill();
            for (CompletableFuture<Map<String, Tensor>> future : lost) {
                ExecutionException failed =
                        assertThrows(ExecutionException.class, () -> future.get(10, TimeUnit.SECONDS));
                MultitowerException error = assertInstanceOf(MultitowerException.Unavailable.class, failed.getCause());
                assertTrue(error.is(Reason.CONNECTION_LOST), error.toString());
            }
            // Asked for while no daemon is there: it waits for the next one.
            CompletableFuture<Boolean> live = CompletableFuture.supplyAsync(asking::serverLive);
            own.start();
            assertTrue(live.get(30, TimeUnit.SECONDS));
            asking.waitUntilReady(Duration.ofSeconds(50));
            Tensor x = Tensor.of(new int[] {7}, 1);
            assertArrayEquals(new int[] {7}, asking.infer("echo", Map.of("x", x)).get("x").toInts());
        }
    }

    @Test
    void aDaemonThatDrainsAnswersWhatItHas() throws Exception {
        AtomicReference<Map<String, Tensor>> answer = new AtomicReference<>();
        try (Daemon own = new Daemon("drained", CONFIG.replace("spares: 2", "spares: 0"));
                MultitowerClient asking = MultitowerClient.connect(own.endpoint())) {
            asking.waitUntilReady(Duration.ofSeconds(50));
            CompletableFuture<Map<String, Tensor>> future = asking.inferAsync("commanded", command("sleep 1"));
            while (depth(asking) == 0) {
                Thread.sleep(2);
            }
            own.close();
            answer.set(future.get(20, TimeUnit.SECONDS));
        }
        assertEquals(1, answer.get().get("pid").elements());
    }
}
