package multitower;

import java.util.ArrayList;
import java.util.List;
import java.util.PriorityQueue;
import java.util.function.DoubleSupplier;

/**
 * The calls that were refused and are to be sent again: only what the daemon never ran, not before it says, and not in
 * step with other clients. It has no clock and no socket.
 */
final class Retries {
    /** How often a request is sent again, unless the client says otherwise. */
    static final int DEFAULT = 2;

    /** The result of {@link #delayAfter} when the error is the outcome. */
    static final long NONE = -1;

    private static final double MS = 1e6;

    /** The shortest wait before the first retry; each further one at least doubles it. */
    private static final double FLOOR_MS = 50;

    private static final double MAX_DELAY_MS = 5000;

    /** The wait is drawn from itself to that much more, so that clients refused together do not come back together. */
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
     * None yet.
     *
     * @param most how often one call is sent again
     * @param random from 0 to 1
     */
    Retries(int most, DoubleSupplier random) {
        this.most = most;
        this.random = random;
    }

    /**
     * How long a request waits before it is sent again.
     *
     * @param error the daemon's answer to it
     * @param retries how often it was sent again already
     * @param left nanoseconds until its deadline
     * @param random from 0 to 1
     * @return nanoseconds, or {@link #NONE}: the error is of another kind, says no {@code retry_after_ms}, or the retry
     *     would come too late
     */
    static long delayAfter(MultitowerException error, int retries, long left, double random) {
        // What the daemon answers to a request that no worker has had, where it says when to come back.
        if (!error.is(Reason.QUEUE_FULL) && !error.is(Reason.NO_WORKER)) {
            return NONE;
        }
        Object told = error.details().get("retry_after_ms");
        // It came over the wire: it may be anything that JSON can say.
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
     * Takes a call that the daemon has answered with an error.
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
        // It waits at the word of a daemon, not for one to listen.
        call.connectBy = Math.min(call.deadline, call.connectBy + delay);
        waiting.add(new Waiting(now + delay, call));
        return true;
    }

    /** Removes and returns the calls whose turn has come, in its order; some may be over. */
    List<Call<?>> take(long now) {
        List<Call<?>> taken = new ArrayList<>();
        while (!waiting.isEmpty() && waiting.peek().due <= now) {
            taken.add(waiting.remove().call);
        }
        return taken;
    }
}
