import com.google.gson.Gson;
import io.github.multitower.client.MultitowerClient;
import io.github.multitower.client.MultitowerException;
import io.github.multitower.client.Tensor;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * A client of a daemon with CURVE, for tests. It prints a line of JSON for each request.
 *
 * <p>Arguments: the endpoint, the file of a key that the daemon knows, that of another one, the daemon's public key, and
 * another one. First it asks without keys, with the other key, and with the other public key of the daemon: each line has
 * the reason of the error, its `connect_error` and its message. Then it asks again and again with the right ones, each
 * time with a number of its own, until its standard input ends: each line has the number, and the number that came back
 * or the reason of the error.
 */
class AskAgain {
    private static final Duration LONG = Duration.ofSeconds(60);
    private static final Duration SHORT = Duration.ofSeconds(1);

    public static void main(String[] arguments) throws Exception {
        String endpoint = arguments[0];
        Path known = Path.of(arguments[1]);
        Path other = Path.of(arguments[2]);
        String serverKey = arguments[3];
        String otherServerKey = arguments[4];
        printRefusal(builder(endpoint, LONG));
        printRefusal(builder(endpoint, LONG).key(other).serverKey(serverKey));
        printRefusal(builder(endpoint, LONG).key(known).serverKey(otherServerKey));
        try (MultitowerClient client =
                builder(endpoint, SHORT).key(known).serverKey(serverKey).build()) {
            CountDownLatch ended = new CountDownLatch(1);
            Thread reader = new Thread(() -> readToItsEnd(ended));
            reader.setDaemon(true);
            reader.start();
            for (int number = 1; !ended.await(20, TimeUnit.MILLISECONDS); number++) {
                print(number, ask(client, number));
            }
        }
    }

    private static void readToItsEnd(CountDownLatch ended) {
        try {
            while (System.in.read() >= 0) {}
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        } finally {
            ended.countDown();
        }
    }

    private static MultitowerClient.Builder builder(String endpoint, Duration patience) {
        return MultitowerClient.builder()
                .endpoint(endpoint)
                .timeout(patience)
                .connectTimeout(patience)
                .peerTimeout(Duration.ofSeconds(2));
    }

    private static Object ask(MultitowerClient client, int number) {
        try {
            Tensor answer = client.infer("echo", Map.of("x", Tensor.of(new double[] {number}, 1))).get("x");
            return (int) answer.toDoubles()[0];
        } catch (MultitowerException error) {
            return error.reason();
        }
    }

    private static void printRefusal(MultitowerClient.Builder builder) {
        try (MultitowerClient client = builder.build()) {
            client.infer("echo", Map.of("x", Tensor.of(new double[] {0}, 1)));
            print("answered", "", "");
        } catch (MultitowerException error) {
            print(error.reason(), String.valueOf(error.details().get("connect_error")), error.getMessage());
        }
    }

    private static void print(Object... values) {
        System.out.println(new Gson().toJson(List.of(values)));
    }
}
