package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** A real daemon with a real TensorFlow model, trained here, on two workers. */
class DigitsIT {
    private static final int FEATURES = 64;
    private static final int CLASSES = 10;
    private static final int THREADS = 64;

    private static Daemon daemon;
    private static MultitowerClient client;
    private static float[][] images;
    private static float[][] answers;

    @BeforeAll
    @Timeout(500)
    static void serve() throws Exception {
        Daemon.require("multitower", "numpy", "psutil", "tensorflow", "sklearn");
        String models = "models:\n  - {name: digits, path: models/digits, batching: {}}\n";
        String config = "devices: {cpu: 2}\nspares: 1\n" + models;
        Path folder = Daemon.WORK.resolve("digits");
        Files.createDirectories(folder);
        if (!Files.exists(folder.resolve("held_out.npz"))) {
            Daemon.python(folder, "-m", "multitower.tools.demo.model", folder.toString());
        }
        daemon = new Daemon("digits", config);
        client = MultitowerClient.connect(daemon.endpoint());
        client.waitUntilReady(Duration.ofSeconds(300));
        Path asks = Vectors.ROOT.resolve("clients/java/src/test/python/answers.py").toAbsolutePath();
        Daemon.python(folder, asks.toString(), daemon.endpoint(), "held_out.npz", ".");
        images = rows(folder.resolve("images.bin"), FEATURES);
        answers = rows(folder.resolve("answers.bin"), CLASSES);
        assertEquals(images.length, answers.length);
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

    private static float[][] rows(Path file, int width) throws Exception {
        ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(file)).order(ByteOrder.LITTLE_ENDIAN);
        float[][] rows = new float[bytes.remaining() / 4 / width][width];
        for (float[] row : rows) {
            for (int i = 0; i < width; i++) {
                row[i] = bytes.getFloat();
            }
        }
        return rows;
    }

    private static float[] ask(int image) {
        Map<String, Tensor> inputs = Map.of("x", Tensor.of(images[image], 1, FEATURES));
        return client.infer("digits", inputs, Duration.ofSeconds(20)).get("probabilities").toFloats();
    }

    @Test
    void theAnswersAreThePythonClientsToTheBit() {
        for (int i = 0; i < images.length; i++) {
            assertArrayEquals(answers[i], ask(i), "image " + i);
        }
    }

    @Test
    void manyRowsInOneRequestAreAnsweredInTheirOrder() {
        float[] all = new float[images.length * FEATURES];
        for (int i = 0; i < images.length; i++) {
            System.arraycopy(images[i], 0, all, i * FEATURES, FEATURES);
        }
        Tensor tensor = Tensor.of(all, images.length, FEATURES);
        Tensor got = client.infer("digits", Map.of("x", tensor)).get("probabilities");
        assertArrayEquals(new long[] {images.length, CLASSES}, got.shape());
        for (int i = 0; i < images.length; i++) {
            float[] row = Arrays.copyOfRange(got.toFloats(), i * CLASSES, (i + 1) * CLASSES);
            assertArrayEquals(answers[i], row, 1e-5f); // TensorFlow adds in another order in batches of another size
        }
    }

    @Test
    void theModelTellsWhatItTakes() {
        ModelMetadata metadata = client.metadata("digits");
        assertEquals("digits [x: FP32[-1, 64]] -> [probabilities: FP32[-1, 10]]", metadata.toString());
        assertEquals(List.of("1"), metadata.versions());
        assertEquals(metadata.toString(), client.metadata("digits", "1").toString());
        assertEquals("serving_default", metadata.signatureName());
        assertEquals(metadata.inputs(), metadata.signatures().get("serving_default").inputs());
        assertTrue(client.modelReady("digits"));
        assertTrue(client.modelReady("digits", "1"));
        assertThrows(MultitowerException.NotFound.class, () -> client.modelReady("digits", "99"));
        assertThrows(MultitowerException.NotFound.class, () -> client.statistics("digits", "99"));
        assertEquals(client.statistics("digits").keySet(), client.statistics("digits", "1").keySet());
        assertTrue(((Number) client.modelConfig("digits").get("max_batch_size")).longValue() > 0);
        assertTrue(client.statistics().containsKey("model_stats"));
        assertTrue(client.statistics("digits").containsKey("model_stats"));
        assertTrue(client.serverLive());
        assertTrue(client.serverReady());
        assertEquals("multitower", client.serverMetadata().get("name"));
    }

    @Test
    void whatTheModelDoesNotTakeIsRefusedWithTheFieldsName() {
        assertRefused(Reason.SHAPE_INVALID, "x", Map.of("x", Tensor.of(new float[63], 1, 63)));
        assertRefused(Reason.DATATYPE_MISMATCH, "x", Map.of("x", Tensor.of(new double[64], 1, 64)));
        assertRefused(Reason.INPUT_MISSING, "x", Map.of());
        Tensor good = Tensor.of(new float[64], 1, 64);
        assertRefused(Reason.INPUT_UNKNOWN, "y", Map.of("x", good, "y", good));
        MultitowerException unknown =
                assertThrows(MultitowerException.NotFound.class, () -> client.infer("nobody", Map.of("x", good)));
        assertTrue(unknown.is(Reason.MODEL_UNKNOWN));
        InferRequest request = InferRequest.of("digits", Map.of("x", good));
        MultitowerException version =
                assertThrows(MultitowerException.NotFound.class, () -> client.infer(request.withVersion("99")));
        assertTrue(version.is(Reason.VERSION_UNKNOWN));
        MultitowerException output =
                assertThrows(MultitowerException.InvalidRequest.class, () -> client.infer(request.withOutputs("z")));
        assertTrue(output.is(Reason.OUTPUT_UNKNOWN));
    }

    private static void assertRefused(Reason reason, String field, Map<String, Tensor> inputs) {
        MultitowerException error =
                assertThrows(MultitowerException.InvalidRequest.class, () -> client.infer("digits", inputs));
        assertTrue(error.is(reason), error.toString());
        assertTrue(String.valueOf(error.details().get("field")).contains(field), error.details().toString());
    }

    /** Sixty-four threads share the client; meanwhile something happens; every answer must be the right one. */
    private static int underLoad(Duration time, Act act) throws Exception {
        Queue<Throwable> wrong = new ConcurrentLinkedQueue<>();
        AtomicInteger answered = new AtomicInteger();
        long until = System.nanoTime() + time.toNanos();
        List<Thread> threads = new ArrayList<>();
        for (int t = 0; t < THREADS; t++) {
            int first = t;
            Thread thread = new Thread(() -> {
                try {
                    for (int i = first; System.nanoTime() < until; i = (i + 1) % images.length) {
                        assertArrayEquals(answers[i], ask(i), 1e-5f, "image " + i);
                        answered.incrementAndGet();
                    }
                } catch (MultitowerException | AssertionError error) {
                    wrong.add(error);
                }
            });
            threads.add(thread);
            thread.start();
        }
        act.run(answered);
        for (Thread thread : threads) {
            thread.join(30_000);
        }
        assertEquals(List.of(), new ArrayList<>(wrong));
        return answered.get();
    }

    private interface Act {
        void run(AtomicInteger answered) throws Exception;
    }

    @Test
    void sixtyFourThreadsShareOneClientAndBothWorkersAreUsed() throws Exception {
        int answered = underLoad(Duration.ofSeconds(2), soFar -> {});
        assertTrue(answered > 10 * THREADS, "only " + answered);
        for (Object slot : (List<?>) client.status().get("slots")) {
            assertTrue((Long) Json.object(slot).get("completed") > 0, slot.toString());
        }
    }

    @Test
    void aWorkerThatIsKilledUnderLoadCostsNoRequest() throws Exception {
        client.waitUntilReady(Duration.ofSeconds(50));
        underLoad(Duration.ofSeconds(3), answered -> {
            while (answered.get() < 2 * THREADS) {
                Thread.onSpinWait();
            }
            Map<String, Object> slot = slot(0);
            ProcessHandle worker = ProcessHandle.of((Long) slot.get("pid")).orElseThrow();
            assertTrue(worker.destroyForcibly());
            long restarts = (Long) slot.get("restarts");
            while ((Long) slot(0).get("restarts") == restarts) {
                Thread.sleep(5);
            }
        });
    }

    @Test
    void theExampleAnswersTheSame() throws Exception {
        // It stands in no package, as a file that `java` runs.
        Class<?> example = Class.forName("DistributedPredictor");
        try (AutoCloseable predictor =
                (AutoCloseable) example.getConstructor(String.class).newInstance(daemon.endpoint())) {
            Object got = example.getMethod("predict", float[].class).invoke(predictor, images[0]);
            assertArrayEquals(answers[0], (float[]) got, 1e-5f);
        }
        example.getMethod("main", String[].class).invoke(null, (Object) new String[] {daemon.endpoint()});
    }

    @Test
    void theExamplesConfigurationIsOne() throws Exception {
        Path config = daemon.folder().resolve("gpus.yaml");
        Files.copy(
                Vectors.ROOT.resolve("clients/java/examples/gpus.yaml"), config, StandardCopyOption.REPLACE_EXISTING);
        Daemon.python(daemon.folder(), "-m", "multitower", "check", config.toString());
    }

    private static Map<String, Object> slot(int number) {
        return Json.object(((List<?>) client.status().get("slots")).get(number));
    }
}
