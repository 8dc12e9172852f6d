package io.github.multitower.client;

import java.util.Map;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;

/** Room for a number of outstanding requests. */
final class Room {
    /** The room of one request. */
    final class Place {
        private final AtomicBoolean left = new AtomicBoolean();

        /** Gives the room back; no-op after the first time. */
        void leave() {
            if (left.compareAndSet(false, true)) {
                free.release();
            }
        }
    }

    private final int most;
    private final Semaphore free;

    Room(int most) {
        this.most = most;
        this.free = new Semaphore(most, true);
    }

    /**
     * Takes the room of one request.
     *
     * @param wait whether to wait for it
     * @param nanos the longest wait
     * @return the room, to be given back
     * @throws MultitowerException.Overloaded {@code queue_full}: there is none, and the caller does not wait
     * @throws MultitowerException.DeadlineExceeded there was none in time
     * @throws MultitowerException.Cancelled the thread was interrupted while it waited; it stays so
     */
    Place enter(boolean wait, long nanos) {
        String full = "as many requests are outstanding as this client allows (maxOutstanding is " + most + ")";
        if (!wait) {
            if (free.tryAcquire()) {
                return new Place();
            }
            throw MultitowerException.of(Reason.QUEUE_FULL, full, limit());
        }
        try {
            if (free.tryAcquire(nanos, TimeUnit.NANOSECONDS)) {
                return new Place();
            }
        } catch (InterruptedException interrupt) {
            throw Errors.interrupted();
        }
        throw MultitowerException.of(Reason.DEADLINE, "no room within the request's time: " + full, limit());
    }

    private Map<String, Object> limit() {
        return Map.of("limit", "maxOutstanding", "limit_value", (long) most);
    }
}
