package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.reflect.Array;
import java.lang.reflect.Executable;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.Parameter;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** What applications build on: the interface and its fakes, values, exceptions, and nulls. */
class InterfaceTest {
    private static final String TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    private static final Map<String, Tensor> INPUTS = Map.of("x", Tensor.of(new float[] {1, 2}, 1, 2));

    // Fakes.

    /** As an application's test would write it: only what the application asks. */
    private static final class FakeClient implements InferenceClient {
        final List<InferRequest> asked = new ArrayList<>();
        MultitowerException error;

        @Override
        public Map<String, Tensor> infer(InferRequest request) {
            asked.add(request);
            if (error != null) {
                throw error;
            }
            return request.inputs();
        }

        @Override
        public CompletableFuture<Map<String, Tensor>> inferAsync(InferRequest request) {
            return CompletableFuture.completedFuture(infer(request));
        }

        @Override
        public boolean serverLive() {
            return true;
        }

        @Override
        public boolean serverReady() {
            return true;
        }

        @Override
        public Map<String, Object> serverMetadata() {
            return Map.of();
        }

        @Override
        public Map<String, Object> status() {
            return Map.of();
        }

        @Override
        public boolean modelReady(String model, String version) {
            return version.isEmpty();
        }

        @Override
        public ModelMetadata metadata(String model, String version) {
            TensorSpec x = TensorSpec.of("x", Datatype.FP32, -1, 2);
            return ModelMetadata.builder(model)
                    .versions(List.of("1"))
                    .platform("tensorflow_savedmodel")
                    .inputs(List.of(x))
                    .outputs(List.of(x))
                    .signatureName("serving_default")
                    .signature("serving_default", SignatureMetadata.builder().build())
                    .build();
        }

        @Override
        public Map<String, Object> modelConfig(String model, String version) {
            return Map.of();
        }

        @Override
        public Map<String, Object> statistics() {
            return Map.of();
        }

        @Override
        public Map<String, Object> statistics(String model, String version) {
            return Map.of("version", version);
        }

        @Override
        public void waitUntilReady(Duration within) {}

        @Override
        public void close() {}
    }

    @Test
    void anApplicationsFakeAnswersEveryShortForm() throws Exception {
        try (FakeClient client = new FakeClient()) {
            assertEquals(INPUTS, client.infer("m", INPUTS));
            assertEquals(INPUTS, client.infer("m", INPUTS, Duration.ofSeconds(1)));
            assertEquals(INPUTS, client.inferAsync("m", INPUTS).get());
            assertEquals(INPUTS, client.inferAsync("m", INPUTS, Duration.ofSeconds(1)).get());
            InferRequest request = InferRequest.of("m", INPUTS);
            InferRequest timed = request.withTimeout(Duration.ofSeconds(1));
            assertEquals(List.of(request, timed, request, timed), client.asked);
            assertTrue(client.modelReady("m"));
            assertEquals("", client.statistics("m").get("version"));
            assertEquals(client.metadata("m"), client.metadata("m", "1"));
            client.error = new MultitowerException.Overloaded(Reason.QUEUE_FULL, "full");
            assertThrows(MultitowerException.Overloaded.class, () -> client.infer("m", INPUTS));
            CompletableFuture<?> spent = client.inferAsync("m", INPUTS, Duration.ofSeconds(-1));
            assertInstanceOf(
                    IllegalArgumentException.class,
                    assertThrows(ExecutionException.class, spent::get).getCause());
        }
    }

    // Exceptions.

    @ParameterizedTest
    @EnumSource(Reason.class)
    void anApplicationsTestCanCreateTheExceptionOfEveryReason(Reason reason) throws Exception {
        Map<String, String> details = new HashMap<>(Map.of("limit", "timeout"));
        MultitowerException error = MultitowerException.of(reason, "as wanted", details);
        details.clear();
        assertTrue(error.is(reason));
        assertEquals(reason.code(), error.code());
        assertEquals(Map.of("limit", "timeout"), error.details());
        assertNotEquals(MultitowerException.class, error.getClass());
        MultitowerException same = error.getClass().getConstructor(Reason.class, String.class).newInstance(reason, "x");
        assertEquals(error.code() + error.reason(), same.code() + same.reason());
        assertEquals(Map.of(), same.details());
        // The class that the daemon's error would have, too.
        MultitowerException sent = Errors.fromWire(
                Json.write(Map.of("error", Map.of("code", reason.code(), "reason", reason.toString()))));
        assertEquals(error.getClass(), sent.getClass());
    }

    @Test
    void anExceptionOfTheWrongClassIsRefused() {
        IllegalArgumentException error = assertThrows(
                IllegalArgumentException.class, () -> new MultitowerException.Unavailable(Reason.POISONED, "x"));
        assertEquals("the reason poisoned belongs to Poisoned, not to Unavailable", error.getMessage());
    }

    // Values.

    @Test
    void tensorsAreEqualByDatatypeShapeAndBytes() {
        Tensor tensor = Tensor.of(new float[] {1, 2}, 1, 2);
        ByteBuffer heap = ByteBuffer.allocate(8).put(3, (byte) 0x3f).put(2, (byte) 0x80).put(7, (byte) 0x40);
        Tensor same = Tensor.of(Datatype.FP32, heap, 1, 2); // on the heap, and the other is not
        assertEquals(tensor, same);
        assertEquals(tensor.hashCode(), same.hashCode());
        tensor.data().get();
        assertEquals(tensor, same, "reading a view changes nothing");
        assertNotEquals(tensor, Tensor.of(new float[] {1, 2}, 2));
        assertNotEquals(tensor, Tensor.of(new float[] {1, 3}, 1, 2));
        assertNotEquals(tensor, Tensor.of(Datatype.UINT32, heap.duplicate(), 1, 2));
        assertNotEquals(Tensor.of(new float[] {0f}), Tensor.of(new float[] {-0f}), "their bytes differ");
        assertFalse(tensor.equals(null));
    }

    @Test
    void aRequestTellsItsPartsAndIsEqualByThem() {
        InferRequest request = InferRequest.of("m", INPUTS);
        assertEquals("m", request.model());
        assertEquals(INPUTS, request.inputs());
        assertThrows(UnsupportedOperationException.class, () -> request.inputs().clear());
        assertEquals(Optional.empty(), request.timeout());
        assertEquals("InferRequest[model=m, inputs={x=FP32[1, 2]}]", request.toString());
        InferRequest full = request.withOutputs("y", "z")
                .withVersion("3")
                .withSignature("other")
                .withTimeout(Duration.ofMillis(1500))
                .withPriority(1)
                .withTrace(TRACEPARENT, "a=1");
        assertEquals(List.of("y", "z"), full.outputs());
        assertEquals("3", full.version());
        assertEquals("other", full.signature());
        assertEquals(Optional.of(Duration.ofMillis(1500)), full.timeout());
        assertEquals(1, full.priority());
        assertEquals(TRACEPARENT, full.traceparent());
        assertEquals("a=1", full.tracestate());
        assertEquals(
                "InferRequest[model=m, inputs={x=FP32[1, 2]}, outputs=[y, z], version=3, signature=other,"
                        + " timeout=PT1.5S, priority=1, traceparent=" + TRACEPARENT + ", tracestate=a=1]",
                full.toString());
        assertEquals("stable", full.withVersionLabel("stable").versionLabel());
        List<InferRequest> different = List.of(
                request,
                request.withOutputs("y"),
                request.withVersion("3"),
                request.withVersionLabel("3"),
                request.withSignature("3"),
                request.withTimeout(Duration.ofSeconds(3)),
                request.withPriority(3),
                request.withTrace(TRACEPARENT),
                request.withTrace(TRACEPARENT, "a=1"),
                InferRequest.of("n", INPUTS),
                InferRequest.of("m", Map.of("y", INPUTS.get("x"))));
        for (int i = 0; i < different.size(); i++) {
            for (int j = 0; j < different.size(); j++) {
                assertEquals(i == j, different.get(i).equals(different.get(j)), i + " and " + j);
            }
        }
        assertEquals(request, InferRequest.of("m", Map.of("x", Tensor.of(new float[] {1, 2}, 1, 2))));
        assertEquals(request.hashCode(), InferRequest.of("m", new HashMap<>(INPUTS)).hashCode());
    }

    @Test
    void metadataHasTheSignaturesThatTheDaemonDescribes() {
        String x = "{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[-1,2]}";
        String optional = "{\"name\":\"k\",\"datatype\":\"INT32\",\"shape\":[],\"optional\":true}";
        String rest = "\"max_batch_size\":32,\"unbatched_because\":null,\"unverified_because\":\"no rows\","
                + "\"cause\":null";
        String broken = "{\"inputs\":[],\"outputs\":[],\"max_batch_size\":0,\"cause\":\"too many tensors\"}";
        String header = "{\"name\":\"m\",\"versions\":[\"1\",\"2\"],\"platform\":\"tensorflow_savedmodel\",\"inputs\":["
                + x + "],\"outputs\":[],\"signature_name\":\"serving_default\",\"signatures\":{\"serving_default\":"
                + "{\"inputs\":[" + x + "," + optional + "],\"outputs\":[" + x + "]," + rest + "},\"broken\":" + broken
                + "}}";
        ModelMetadata metadata = Codec.metadata(Json.read(FakeDaemon.bytes(header)));
        assertEquals("serving_default", metadata.signatureName());
        assertEquals(List.of("serving_default", "broken"), new ArrayList<>(metadata.signatures().keySet()));
        SignatureMetadata signature = metadata.signatures().get("serving_default");
        assertEquals(TensorSpec.of("x", Datatype.FP32, -1, 2), signature.inputs().get(0));
        assertTrue(signature.inputs().get(1).optional());
        assertNotEquals(TensorSpec.of("k", Datatype.INT32), signature.inputs().get(1));
        assertEquals(32, signature.maxBatchSize());
        assertEquals(Optional.of("no rows"), signature.unverifiedBecause());
        assertEquals(Optional.empty(), signature.unbatchedBecause());
        assertEquals(Optional.empty(), signature.unservableBecause());
        assertEquals(Optional.of("too many tensors"), metadata.signatures().get("broken").unservableBecause());
        assertEquals(metadata, fake("no rows", "too many tensors"), "a fake can be equal to each description");
        assertNotEquals(metadata, fake("no rows", "other"));
        // A handler has none.
        String handler = "{\"name\":\"m\",\"versions\":[\"1\"],\"platform\":\"handler\",\"inputs\":[],\"outputs\":[]}";
        assertEquals(Map.of(), Codec.metadata(Json.read(FakeDaemon.bytes(handler))).signatures());
        assertEquals("", Codec.metadata(Json.read(FakeDaemon.bytes(handler))).signatureName());
    }

    private static ModelMetadata fake(String unverified, String unservable) {
        TensorSpec x = TensorSpec.of("x", Datatype.FP32, -1, 2);
        SignatureMetadata serving = SignatureMetadata.builder()
                .inputs(List.of(x, TensorSpec.of("k", Datatype.INT32).asOptional()))
                .outputs(List.of(x))
                .maxBatchSize(32)
                .unverifiedBecause(unverified)
                .build();
        SignatureMetadata broken = SignatureMetadata.builder().unservableBecause(unservable).build();
        assertEquals(Optional.of("a"), SignatureMetadata.builder().unbatchedBecause("a").build().unbatchedBecause());
        return ModelMetadata.builder("m")
                .versions(List.of("1", "2"))
                .platform("tensorflow_savedmodel")
                .inputs(List.of(x))
                .signatureName("serving_default")
                .signature("serving_default", serving)
                .signature("broken", broken)
                .build();
    }

    @Test
    void queriesNameTheVersion() throws Exception {
        Map<String, String> replies = Map.of(
                "MT1:model_ready", "{\"ready\":true}",
                "MT1:statistics", "{\"model_stats\":[]}",
                "MT1:model_config", "{\"max_batch_size\":2}");
        try (FakeDaemon daemon = new FakeDaemon(request -> {
                    boolean three = request.header().equals("{\"model_name\":\"m\",\"model_version\":\"3\"}");
                    return three ? FakeDaemon.ok(request, replies.get(request.kind())) : null;
                });
                MultitowerClient client = MultitowerClient.connect(daemon.endpoint)) {
            assertTrue(client.modelReady("m", "3"));
            assertEquals(Map.of("model_stats", List.of()), client.statistics("m", "3"));
            assertEquals(Map.of("max_batch_size", 2L), client.modelConfig("m", "3"));
        }
    }

    // Nulls.

    private static final Map<Class<?>, Object> SAMPLES = Map.of(
            String.class, "x",
            Map.class, Map.of(),
            List.class, List.of(),
            Duration.class, Duration.ofSeconds(1),
            InferRequest.class, InferRequest.of("m", Map.of()),
            Datatype.class, Datatype.FP32,
            ByteBuffer.class, ByteBuffer.allocate(0),
            Reason.class, Reason.QUEUE_FULL,
            SignatureMetadata.class, SignatureMetadata.builder().build());

    private static Object sample(Class<?> type) {
        if (type.isArray()) {
            return Array.newInstance(type.getComponentType(), 0);
        }
        if (type.isPrimitive()) {
            return type == boolean.class ? (Object) false : type == int.class ? (Object) 1 : (Object) 1L;
        }
        return SAMPLES.get(type);
    }

    /** Every public method and constructor of the package that takes a reference, with each reference null in turn. */
    @TestFactory
    List<DynamicTest> everyNullIsRefusedWithTheNameOfItsParameter() {
        // Never connected: nothing may be asked before the arguments are checked.
        MultitowerClient client = MultitowerClient.connect("tcp://127.0.0.1:1");
        Map<Class<?>, Object> instances = Map.of(
                MultitowerClient.class, client,
                MultitowerClient.Builder.class, MultitowerClient.builder(),
                InferRequest.class, InferRequest.of("m", INPUTS),
                ModelMetadata.Builder.class, ModelMetadata.builder("m"),
                SignatureMetadata.Builder.class, SignatureMetadata.builder(),
                MultitowerException.class, MultitowerException.of(Reason.QUEUE_FULL, "x"));
        List<Class<?>> types = new ArrayList<>(instances.keySet());
        types.addAll(List.of(Tensor.class, TensorSpec.class, ModelMetadata.class, SignatureMetadata.class));
        types.addAll(Arrays.asList(MultitowerException.class.getClasses()));
        List<DynamicTest> tests = new ArrayList<>();
        for (Class<?> type : types) {
            List<Executable> all = new ArrayList<>(Arrays.asList(type.getConstructors()));
            for (Method method : type.getMethods()) {
                Class<?> declaring = method.getDeclaringClass();
                boolean ours = declaring == type || declaring == InferenceClient.class;
                if (ours && !method.isBridge() && !method.getName().equals("equals")) {
                    all.add(method);
                }
            }
            for (Executable executable : all) {
                Parameter[] parameters = executable.getParameters();
                for (int i = 0; i < parameters.length; i++) {
                    int position = i;
                    if (!parameters[i].getType().isPrimitive()) {
                        String name = type.getSimpleName() + "." + executable.getName() + " " + parameters[i];
                        tests.add(DynamicTest.dynamicTest(
                                name, () -> refused(executable, instances.get(type), position)));
                    }
                }
            }
        }
        assertTrue(tests.size() > 100, "only " + tests.size());
        tests.add(DynamicTest.dynamicTest("close", client::close));
        return tests;
    }

    private static void refused(Executable executable, Object instance, int position) throws Exception {
        Parameter[] parameters = executable.getParameters();
        Object[] arguments = Arrays.stream(parameters).map(each -> sample(each.getType())).toArray();
        arguments[position] = null;
        InvocationTargetException thrown = assertThrows(InvocationTargetException.class, () -> {
            if (executable instanceof Method) {
                boolean isStatic = Modifier.isStatic(executable.getModifiers());
                ((Method) executable).invoke(isStatic ? null : instance, arguments);
            } else {
                ((java.lang.reflect.Constructor<?>) executable).newInstance(arguments);
            }
        });
        assertInstanceOf(NullPointerException.class, thrown.getCause());
        assertEquals(parameters[position].getName(), thrown.getCause().getMessage());
    }

    @Test
    void nullsWithinArgumentsAreRefusedWithTheirPlace() {
        Map<String, Tensor> noTensor = new HashMap<>();
        noTensor.put("x", null);
        Map<String, Tensor> noName = new HashMap<>();
        noName.put(null, INPUTS.get("x"));
        List<String> messages = new ArrayList<>();
        List<Runnable> acts = List.of(
                () -> InferRequest.of("m", noTensor),
                () -> InferRequest.of("m", noName),
                () -> InferRequest.of("m", INPUTS).withOutputs("y", null),
                () -> Tensor.of(new String[] {"a", null}, 2),
                () -> Tensor.of(new byte[][] {null}, 1),
                () -> ModelMetadata.builder("m").versions(Arrays.asList("1", null)));
        for (Runnable act : acts) {
            messages.add(assertThrows(NullPointerException.class, act::run).getMessage());
        }
        assertEquals(
                "inputs: the tensor of x, inputs: a name, names[1], values[1], values[0], versions[1]",
                String.join(", ", messages));
        assertArrayEquals(new long[0], Tensor.of(new float[1]).shape());
    }
}
