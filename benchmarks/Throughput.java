import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.atomic.AtomicLong;
import multitower.MultitowerClient;
import multitower.Tensor;

/**
 * A closed loop of the Java client: threads that share one client and ask until the time is over; prints a line of
 * JSON. java.py runs it:
 *
 * <pre>java -cp CLIENT Throughput.java ENDPOINT MODEL INPUT COLUMNS OUTPUT THREADS SECONDS WARM_UP</pre>
 */
final class Throughput {
    private Throughput() {}

    public static void main(String[] arguments) throws Exception {
        String model = arguments[1];
        String input = arguments[2];
        int columns = Integer.parseInt(arguments[3]);
        String output = arguments[4];
        int outstanding = Integer.parseInt(arguments[5]);
        double seconds = Double.parseDouble(arguments[6]);
        long begin = System.nanoTime() + (long) (Double.parseDouble(arguments[7]) * 1e9);
        long end = begin + (long) (seconds * 1e9);
        List<long[]> latencies = new ArrayList<>();
        AtomicLong answered = new AtomicLong();
        try (MultitowerClient client = MultitowerClient.connect(arguments[0])) {
            List<Thread> threads = new ArrayList<>();
            for (int t = 0; t < outstanding; t++) {
                Thread thread = new Thread(() -> {
                    long[] took = new long[1 << 16];
                    int count = 0;
                    float[] values = new float[columns];
                    for (long sent = System.nanoTime(); sent < end; ) {
                        // Made anew each time, as an application would.
                        Tensor x = Tensor.of(values, 1, columns);
                        Tensor y = client.infer(model, Map.of(input, x)).get(output);
                        long now = System.nanoTime();
                        if (y.shape()[0] != 1) {
                            throw new IllegalStateException("a wrong answer: " + y);
                        }
                        if (now >= begin && now < end) {
                            took[count++ % took.length] = now - sent;
                        }
                        sent = now;
                    }
                    answered.addAndGet(count);
                    synchronized (latencies) {
                        latencies.add(Arrays.copyOf(took, Math.min(count, took.length)));
                    }
                });
                threads.add(thread);
                thread.start();
            }
            for (Thread thread : threads) {
                thread.join();
            }
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
