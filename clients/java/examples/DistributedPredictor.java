import io.github.multitower.client.InferenceClient;
import io.github.multitower.client.MultitowerClient;
import io.github.multitower.client.MultitowerException;
import io.github.multitower.client.Tensor;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/**
 * One object, called from many threads, that uses every GPU of the machine.
 *
 * <p>With TensorFlow alone, such a class would hold one session per GPU in one process, each with its own {@code
 * visible_device_list}, and give each request to the session with the least to do. But TensorFlow reads that option only
 * once per process: every session after the first uses the same GPU, until that GPU is out of memory. With multitower,
 * the daemon has one worker process per GPU and chooses a worker for each request. The application keeps its threads as
 * they are.
 *
 * <p>The configuration of the daemon says which GPUs it uses: {@code gpus.yaml} beside this file has a line for each.
 *
 * <p>With {@code make serve} in another terminal (two workers on CPUs), after {@code mvn package}:
 *
 * <pre>java -cp 'target/*:target/lib/*' examples/DistributedPredictor.java [ENDPOINT]</pre>
 */
public final class DistributedPredictor implements AutoCloseable {
    private final InferenceClient client;

    /** A predictor at the endpoint of a daemon, for as many threads as the application has. */
    public DistributedPredictor(String endpoint) {
        this(MultitowerClient.connect(endpoint));
    }

    /** A predictor with another client, such as a fake in a test of the application. */
    public DistributedPredictor(InferenceClient client) {
        this.client = client;
    }

    /** Ten probabilities for an image of 64 pixels; called from any thread. */
    public float[] predict(float[] image) {
        Map<String, Tensor> inputs = Map.of("x", Tensor.of(image, 1, image.length));
        return client.infer("digits", inputs, Duration.ofSeconds(5)).get("probabilities").toFloats();
    }

    @Override
    public void close() {
        client.close();
    }

    /** Sends a thousand random images from 64 threads, and prints how many of them each worker has answered. */
    public static void main(String[] arguments) throws Exception {
        String endpoint = arguments.length > 0 ? arguments[0] : "tcp://127.0.0.1:5555";
        ExecutorService threads = Executors.newFixedThreadPool(64);
        try (DistributedPredictor predictor = new DistributedPredictor(endpoint)) {
            predictor.client.waitUntilReady(Duration.ofSeconds(60));
            Random random = new Random(0);
            List<Future<float[]>> answers = new ArrayList<>();
            for (int i = 0; i < 1000; i++) {
                float[] image = new float[64];
                for (int pixel = 0; pixel < image.length; pixel++) {
                    image[pixel] = random.nextFloat();
                }
                answers.add(threads.submit(() -> predictor.predict(image)));
            }
            double sum = 0;
            for (Future<float[]> answer : answers) {
                for (float probability : answer.get()) {
                    sum += probability;
                }
            }
            System.out.printf("%d images, their probabilities add up to %.1f%n", answers.size(), sum);
            for (Object slot : (List<?>) predictor.client.status().get("slots")) {
                Map<?, ?> state = (Map<?, ?>) slot;
                Object rows = state.get("completed");
                System.out.printf("slot %s on %s: %s rows%n", state.get("slot"), state.get("device"), rows);
            }
        } catch (MultitowerException error) {
            System.err.println(error);
            System.exit(1);
        } finally {
            threads.shutdown();
        }
    }
}
