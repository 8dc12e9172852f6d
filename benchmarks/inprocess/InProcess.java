import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.tensorflow.Graph;
import org.tensorflow.Result;
import org.tensorflow.SavedModelBundle;
import org.tensorflow.Session;
import org.tensorflow.ndarray.Shape;
import org.tensorflow.ndarray.buffer.DataBuffers;
import org.tensorflow.proto.ConfigProto;
import org.tensorflow.proto.FunctionDef;
import org.tensorflow.proto.GraphDef;
import org.tensorflow.proto.MetaGraphDef;
import org.tensorflow.proto.NodeDef;
import org.tensorflow.proto.SignatureDef;
import org.tensorflow.types.TFloat32;

/**
 * What an application can do without a daemon: one graph and one session for each device in its own process, every node of a
 * graph put on its device, and each request given to the session with the least to do. The devices are logical CPUs here, as
 * many as asked for; the model has its weights as constants, see freeze.py. Prints the line of JSON that Throughput.java prints; java.py runs it:
 *
 * <pre>java -cp 'target/lib/*' InProcess.java SAVED_MODEL DEVICES THREADS SECONDS WARM_UP</pre>
 */
final class InProcess {
    private static final int COLUMNS = 64;

    private final Session session;
    private final String input;
    private final String output;
    private final AtomicInteger depth = new AtomicInteger();

    /** The model on one device. */
    private InProcess(MetaGraphDef meta, ConfigProto config, int device) {
        GraphDef.Builder graph = meta.getGraphDef().toBuilder();
        for (NodeDef.Builder node : graph.getNodeBuilderList()) {
            node.setDevice("/device:CPU:" + device);
        }
        for (FunctionDef.Builder function : graph.getLibraryBuilder().getFunctionBuilderList()) {
            for (NodeDef.Builder node : function.getNodeDefBuilderList()) {
                node.setDevice("/device:CPU:" + device);
            }
        }
        Graph placed = new Graph();
        placed.importGraphDef(graph.build());
        session = new Session(placed, config);
        SignatureDef signature = meta.getSignatureDefOrThrow("serving_default");
        input = signature.getInputsOrThrow("x").getName();
        output = signature.getOutputsOrThrow("probabilities").getName();
    }

    private float predict(float[] image) {
        try (TFloat32 x = TFloat32.tensorOf(Shape.of(1, COLUMNS), DataBuffers.of(image));
                Result result = session.runner().feed(input, x).fetch(output).run()) {
            return ((TFloat32) result.get(0)).getFloat(0, 0);
        }
    }

    private static InProcess least(List<InProcess> devices) {
        InProcess least = devices.get(0);
        for (InProcess device : devices) {
            if (device.depth.get() < least.depth.get()) {
                least = device;
            }
        }
        return least;
    }

    public static void main(String[] arguments) throws Exception {
        int outstanding = Integer.parseInt(arguments[2]);
        double seconds = Double.parseDouble(arguments[3]);
        MetaGraphDef meta;
        try (SavedModelBundle bundle = SavedModelBundle.load(arguments[0], "serve")) {
            meta = bundle.metaGraphDef();
        }
        int count = Integer.parseInt(arguments[1]);
        ConfigProto config = ConfigProto.newBuilder().putDeviceCount("CPU", count).build();
        List<InProcess> devices = new ArrayList<>();
        for (int device = 0; device < count; device++) {
            devices.add(new InProcess(meta, config, device));
        }
        long begin = System.nanoTime() + (long) (Double.parseDouble(arguments[4]) * 1e9);
        long end = begin + (long) (seconds * 1e9);
        List<long[]> latencies = new ArrayList<>();
        AtomicLong answered = new AtomicLong();
        List<Thread> threads = new ArrayList<>();
        for (int t = 0; t < outstanding; t++) {
            Thread thread = new Thread(() -> {
                long[] took = new long[1 << 16];
                int answers = 0;
                float[] image = new float[COLUMNS];
                for (long sent = System.nanoTime(); sent < end; ) {
                    InProcess device = least(devices);
                    device.depth.incrementAndGet();
                    float probability = device.predict(image);
                    device.depth.decrementAndGet();
                    long now = System.nanoTime();
                    if (!(probability >= 0 && probability <= 1)) {
                        throw new IllegalStateException("a wrong answer: " + probability);
                    }
                    if (now >= begin && now < end) {
                        took[answers++ % took.length] = now - sent;
                    }
                    sent = now;
                }
                answered.addAndGet(answers);
                synchronized (latencies) {
                    latencies.add(Arrays.copyOf(took, Math.min(answers, took.length)));
                }
            });
            threads.add(thread);
            thread.start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        if (latencies.size() != outstanding) {
            System.exit(1); // a thread failed, and said why
        }
        double[] sorted = latencies.stream().flatMapToLong(Arrays::stream).sorted().mapToDouble(t -> t / 1e6).toArray();
        System.out.printf(
                Locale.ROOT,
                "{\"rps\": %.1f, \"p50\": %.3f, \"p99\": %.3f}%n",
                answered.get() / seconds,
                sorted[sorted.length / 2],
                sorted[sorted.length * 99 / 100]);
    }
}
