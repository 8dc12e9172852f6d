package io.github.multitower.client;

import java.util.ArrayList;
import java.util.List;
import java.util.PriorityQueue;
import java.util.function.DoubleSupplier;

/**
 * The calls that were refused and wait to be sent again: only if no worker ran them, not before the daemon says, and
 * with jitter. Reads no clock and uses no socket.
 */
final class Retries {
    /** How often a request is sent again by default. */
    static final int DEFAULT = 2;

    /** The result of {@link #delayAfter} when the error is the outcome. */
    static final long NONE = -1;

    private static final double MS = 1e6;

    /** The shortest wait before the first retry; it doubles with each further one. */
    private static final double FLOOR_MS = 50;

    private static final double MAX_DELAY_MS = 5000;

    /** A wait is lengthened by a random share of up to this, so that refused clients do not return together. */
    private static final double JITTER = 0.5;

    private static final int MAX_DOUBLINGS = 10;

    private static final class Waiting {
        final long due;
        final Call<?> call;

        Waiting(long due, Call<?> call) {
            this.due = due;
            this.call = call;
        }
    }

    private final int most;
    private final DoubleSupplier random;
    private final PriorityQueue<Waiting> waiting = new PriorityQueue<>((a, b) -> Long.compare(a.due, b.due));

    /**
     * Creates an empty set.
     *
     * @param most how often one call is sent again
     * @param random from 0 to 1
     */
    Retries(int most, DoubleSupplier random) {
        this.most = most;
        this.random = random;
    }

    /**
     * How long a refused request waits before it is sent again.
     *
     * @param error the daemon's answer to it
     * @param retries how often it was already sent again
     * @param left nanoseconds until its deadline
     * @param random from 0 to 1
     * @return nanoseconds, or {@link #NONE}: the request may have run, the daemon named no {@code retry_after_ms}, or
     *     the retry would come after the deadline
     */
    static long delayAfter(MultitowerException error, int retries, long left, double random) {
        // Errors of requests that no worker has received.
        if (!error.is(Reason.QUEUE_FULL) && !error.is(Reason.NO_WORKER)) {
            return NONE;
        }
        Object told = error.details().get("retry_after_ms");
        // It came over the wire: any JSON value.
        if (!(told instanceof Number) || !(((Number) told).doubleValue() >= 0)) {
            return NONE;
        }
        double floor = Math.min(FLOOR_MS * (1 << Math.min(retries, MAX_DOUBLINGS)), MAX_DELAY_MS);
        double wait = Math.max(Math.min(((Number) told).doubleValue(), MAX_DELAY_MS), floor);
        long delay = (long) (wait * (1 + JITTER * random) * MS);
        return delay < left ? delay : NONE;
    }

    /** When the first of them is to be sent; {@link Clock#NEVER} while there is none. */
    long due() {
        return waiting.isEmpty() ? Clock.NEVER : waiting.peek().due;
    }

    /**
     * Schedules a retry of a call that the daemon has answered with an error.
     *
     * @return whether it is sent again; if not, the error is its outcome
     */
    boolean add(Call<?> call, MultitowerException error, long now) {
        if (call.retries >= most) {
            return false;
        }
        long delay = delayAfter(error, call.retries, call.deadline - now, random.getAsDouble());
        if (delay == NONE) {
            return false;
        }
        call.retries++;
        // The wait does not count as time without a connection.
        call.connectBy = Math.min(call.deadline, call.connectBy + delay);
        waiting.add(new Waiting(now + delay, call));
        return true;
    }

    /** Removes and returns the calls that are due, earliest first. Some may be over. */
    List<Call<?>> take(long now) {
        List<Call<?>> taken = new ArrayList<>();
        while (!waiting.isEmpty() && waiting.peek().due <= now) {
            taken.add(waiting.remove().call);
        }
        return taken;
    }
}
