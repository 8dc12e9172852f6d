import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.atomic.AtomicLong;

/** A closed loop: threads that send a request and wait for the answer, until the time is over. Prints a line of JSON. */
final class Loop {
    private final int threads;
    private final double seconds;
    private final double warmUp;

    /** Parses THREADS SECONDS WARM_UP of the command line, which begin at index `from`. */
    Loop(String[] arguments, int from) {
        threads = Integer.parseInt(arguments[from]);
        seconds = Double.parseDouble(arguments[from + 1]);
        warmUp = Double.parseDouble(arguments[from + 2]);
    }

    /** Runs a request again and again in each thread. A thread that fails ends the process. */
    void run(Runnable ask) throws InterruptedException {
        long begin = System.nanoTime() + (long) (warmUp * 1e9);
        long end = begin + (long) (seconds * 1e9);
        List<long[]> latencies = new ArrayList<>();
        AtomicLong answered = new AtomicLong();
        List<Thread> running = new ArrayList<>();
        for (int t = 0; t < threads; t++) {
            Thread thread = new Thread(() -> {
                long[] took = new long[1 << 16];
                int count = 0;
                for (long sent = System.nanoTime(); sent < end; ) {
                    ask.run();
                    long now = System.nanoTime();
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
            running.add(thread);
            thread.start();
        }
        for (Thread thread : running) {
            thread.join();
        }
        if (latencies.size() != threads) {
            System.exit(1); // a thread failed and printed why
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
