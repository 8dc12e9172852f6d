import io.github.multitower.client.MultitowerClient;
import io.github.multitower.client.Tensor;
import java.util.Map;

/**
 * The Java client in a closed loop: threads that share one client. java.py runs it:
 *
 * <pre>java -cp CLASSES:CLIENT Throughput ENDPOINT MODEL INPUT COLUMNS OUTPUT THREADS SECONDS WARM_UP</pre>
 */
final class Throughput {
    private Throughput() {}

    public static void main(String[] arguments) throws Exception {
        String model = arguments[1];
        String input = arguments[2];
        float[] values = new float[Integer.parseInt(arguments[3])];
        String output = arguments[4];
        try (MultitowerClient client = MultitowerClient.connect(arguments[0])) {
            new Loop(arguments, 5).run(() -> {
                // A new tensor for each request, as in an application.
                Tensor x = Tensor.of(values, 1, values.length);
                Tensor y = client.infer(model, Map.of(input, x)).get(output);
                if (y.shape()[0] != 1) {
                    throw new IllegalStateException("wrong answer: " + y);
                }
            });
        }
    }
}
