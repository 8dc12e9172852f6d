import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
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
 * What an application can do without a daemon: one graph and one session for each device in its own process, with every
 * node of a graph on its device. Each request goes to the session with the fewest requests. The devices are logical CPUs
 * here, and the model has its weights as constants, see freeze.py. java.py runs it:
 *
 * <pre>java -cp 'CLASSES:target/lib/*' InProcess SAVED_MODEL DEVICES THREADS SECONDS WARM_UP</pre>
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

    private static InProcess leastLoaded(List<InProcess> devices) {
        InProcess least = devices.get(0);
        for (InProcess device : devices) {
            if (device.depth.get() < least.depth.get()) {
                least = device;
            }
        }
        return least;
    }

    public static void main(String[] arguments) throws Exception {
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
        float[] image = new float[COLUMNS];
        new Loop(arguments, 2).run(() -> {
            InProcess device = leastLoaded(devices);
            device.depth.incrementAndGet();
            float probability = device.predict(image);
            device.depth.decrementAndGet();
            if (!(probability >= 0 && probability <= 1)) {
                throw new IllegalStateException("wrong answer: " + probability);
            }
        });
    }
}
