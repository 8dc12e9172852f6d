package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.function.Consumer;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;

/** The client's messages against docs/protocol-vectors.json, over a real socket. */
class VectorsTest {
    private static final Duration TIME = Duration.ofMillis(1500);

    private static InferRequest request() {
        Map<String, Tensor> inputs = new LinkedHashMap<>();
        inputs.put("x", Tensor.of(new float[] {1, 2, 3, 4}, 2, 2));
        inputs.put("label", Tensor.of(new String[] {"a", "bc"}, 2));
        return InferRequest.of("vectors", inputs).withTimeout(TIME);
    }

    /** What the client sends: the frames from the delimiter on, but for the id, which is its own. */
    private static void sends(String name, Consumer<MultitowerClient> act) throws Exception {
        List<byte[]> expected = Vectors.frames(Vectors.named("requests", name));
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            CompletableFuture<Void> acting = CompletableFuture.runAsync(() -> act.accept(client));
            FakeDaemon.Received request = daemon.next(FakeDaemon.text(expected.get(1)));
            List<byte[]> sent = request.frames.subList(1, request.frames.size());
            assertEquals(8, sent.get(2).length);
            for (int i = 0; i < expected.size(); i++) {
                if (i != 2) {
                    assertArrayEquals(expected.get(i), sent.get(i), "frame " + i);
                }
            }
            assertEquals(expected.size(), sent.size());
            daemon.reply(request, FakeDaemon.error(request, Reason.DRAINING, Map.of()));
            assertThrows(java.util.concurrent.ExecutionException.class, acting::get);
        }
    }

    @TestFactory
    List<DynamicTest> theClientSendsTheVectorsFrames() {
        Map<String, Consumer<MultitowerClient>> acts = new LinkedHashMap<>();
        acts.put(
                "infer with version, outputs, timeout and priority",
                client -> client.infer(request().withVersion("3").withOutputs("z", "y").withPriority(1)));
        acts.put("server_live", MultitowerClient::serverLive);
        acts.put("server_ready", MultitowerClient::serverReady);
        acts.put("model_ready", client -> client.modelReady("vectors"));
        acts.put("model_metadata", client -> client.metadata("vectors", "3"));
        acts.put("model_config", client -> client.modelConfig("vectors"));
        acts.put("statistics of one model", client -> client.statistics("vectors"));
        acts.put("statistics of all models", MultitowerClient::statistics);
        acts.put("status", MultitowerClient::status);
        List<DynamicTest> tests = new ArrayList<>();
        acts.forEach((name, act) -> tests.add(DynamicTest.dynamicTest(name, () -> sends(name, act))));
        return tests;
    }

    @Test
    void signatureAndLabelAreParameters() {
        InferRequest request = request().withVersion("3").withSignature("other").withVersionLabel("stable");
        Map<String, Object> header = Json.read(Codec.inferHeader(request, 1_500_000));
        assertEquals(
                Map.of("timeout", 1_500_000L, "signature_name", "other", "version_label", "stable"),
                header.get("parameters"));
        assertEquals(null, header.get("model_version"), "a label takes its place");
        header = Json.read(Codec.inferHeader(request.withVersion("3").withPriority(1), 1_500_000));
        assertEquals(
                Map.of("timeout", 1_500_000L, "priority", 1L, "signature_name", "other"), header.get("parameters"));
        assertEquals("3", header.get("model_version"));
    }

    @Test
    void aSampledTraceIsTheEndOfTheHeader() {
        String sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        String plain = header(request());
        String before = plain.substring(0, plain.length() - 2);
        assertEquals(before + ",\"traceparent\":\"" + sampled + "\"}}", header(request().withTrace(sampled)));
        assertEquals(
                before + ",\"traceparent\":\"" + sampled + "\",\"tracestate\":\"a=1,b=2\"}}",
                header(request().withTrace(sampled, "a=1,b=2")));
        String later = "7a" + sampled.substring(2);
        assertEquals(header(request().withTrace(later)), header(request().withTrace(later + "-more")));
        assertEquals(header(request().withTrace(sampled)), header(request().withTrace(sampled, "\u00e9")));
        assertEquals(header(request().withTrace(sampled)), header(request().withTrace(sampled, "a".repeat(513))));
        String[] none = {
            "",
            "no trace",
            sampled.substring(0, 53) + "00",
            sampled + "-more",
            "ff" + sampled.substring(2),
            sampled.toUpperCase(java.util.Locale.ROOT),
            "00-" + "0".repeat(32) + sampled.substring(35),
            sampled.substring(0, 36) + "0".repeat(16) + "-01",
        };
        for (String each : none) {
            assertEquals(plain, header(request().withTrace(each, "a=1")), each);
        }
    }

    private static String header(InferRequest request) {
        return new String(Codec.inferHeader(request, 1_500_000), java.nio.charset.StandardCharsets.UTF_8);
    }

    @Test
    void aRequestWithoutMoreDiffersFromItsVectorByItsTimeAlone() {
        Map<String, Object> vector = Vectors.named("requests", "infer");
        Map<String, Object> header = new LinkedHashMap<>(Json.read(Codec.inferHeader(request(), 1_500_000)));
        assertEquals(Map.of("timeout", 1_500_000L), header.remove("parameters"));
        assertEquals(vector.get("header"), header);
    }

    @Test
    void aCancelNamesTheRequestThatItCancels() throws Exception {
        List<byte[]> expected = Vectors.frames(Vectors.named("requests", "cancel"));
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            CompletableFuture<Map<String, Tensor>> future = client.inferAsync(request());
            FakeDaemon.Received request = daemon.next("MT1:infer");
            future.cancel(true);
            FakeDaemon.Received cancel = daemon.next("MT1:cancel");
            assertArrayEquals(request.id(), cancel.id());
            assertArrayEquals(expected.get(3), cancel.frames.get(4));
            assertEquals(5, cancel.frames.size());
        }
    }

    @TestFactory
    List<DynamicTest> theClientUnderstandsTheVectorsReplies() {
        List<DynamicTest> tests = new ArrayList<>();
        for (Map<String, Object> vector : Vectors.section("replies")) {
            tests.add(DynamicTest.dynamicTest((String) vector.get("name"), () -> understands(vector)));
        }
        return tests;
    }

    private static void understands(Map<String, Object> vector) throws Exception {
        List<byte[]> frames = Vectors.frames(vector);
        // The client chooses its ids, so the vector's is put into its place; one that cannot be read stays empty.
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client = MultitowerClient.builder().endpoint(daemon.endpoint).retries(0).build()) {
            CompletableFuture<Map<String, Tensor>> future =
                    client.inferAsync(request().withTimeout(Duration.ofSeconds(10)));
            FakeDaemon.Received request = daemon.next("MT1:infer");
            List<byte[]> reply = new ArrayList<>(frames.subList(1, frames.size()));
            boolean named = reply.get(1).length > 0;
            if (named) {
                reply.set(1, request.id());
            }
            daemon.reply(request, reply);
            if (vector.containsKey("outputs")) {
                check(vector, future.get());
            } else if (vector.containsKey("error") && named) {
                Map<String, Object> wanted = Json.object(vector.get("error"));
                MultitowerException error = (MultitowerException) assertThrows(
                        java.util.concurrent.ExecutionException.class, future::get).getCause();
                assertEquals(wanted.get("code"), error.code());
                assertEquals(wanted.get("reason"), error.reason());
                assertEquals(wanted.get("message"), error.getMessage());
                assertEquals(wanted.get("details"), error.details());
            } else {
                // Nobody's: the request goes on, and gets the answer that comes after it.
                if (named) {
                    assertEquals(vector.get("header"), Json.read(frames.get(3)));
                    return;
                }
                daemon.reply(request, FakeDaemon.two(request));
                assertArrayEquals(new byte[] {1, 2}, future.get().get("y").toBytes());
            }
        }
    }

    private static void check(Map<String, Object> vector, Map<String, Tensor> outputs) {
        List<String> names = new ArrayList<>();
        for (Object item : (List<?>) vector.get("outputs")) {
            Map<String, Object> output = Json.object(item);
            names.add((String) output.get("name"));
            Tensor got = outputs.get(output.get("name"));
            assertEquals(output.get("datatype"), got.datatype().toString());
            assertArrayEquals(Vectors.shape(output), got.shape());
            assertEquals(Vectors.hexadecimal(Vectors.tensor(output)), Vectors.hexadecimal(got));
        }
        assertEquals(names, new ArrayList<>(outputs.keySet()));
    }

    @Test
    void anOutputThatDoesNotFitIsAnError() {
        String header = "{\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\",\"shape\":[2]}]}";
        Codec codec = new Codec();
        List<List<ByteBuffer>> wrong = List.of(List.of(), List.of(ByteBuffer.allocate(7)));
        for (List<ByteBuffer> frames : wrong) {
            MultitowerException error = assertThrows(
                    MultitowerException.ModelError.class, () -> codec.outputs(FakeDaemon.bytes(header), frames));
            assertEquals("output_invalid", error.reason());
        }
        List<String> headers = new ArrayList<>(List.of("", "[]", "{}", "{", "nul"));
        headers.addAll(List.of("{\"outputs\":3}", "{\"outputs\":[{}]}"));
        headers.add("{\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP8\",\"shape\":[]}]}");
        headers.add("{\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\",\"shape\":[1.5]}]}");
        headers.add("{\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\",\"shape\":[1e99]}]}");
        for (String bad : headers) {
            MultitowerException error = assertThrows(
                    MultitowerException.ModelError.class,
                    () -> codec.outputs(FakeDaemon.bytes(bad), List.of(ByteBuffer.allocate(4))), bad);
            assertEquals("output_invalid", error.reason());
        }
    }
}
