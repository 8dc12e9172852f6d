package io.github.multitower.client;

import java.time.Duration;
import java.util.Objects;

/** Monotonic time in nanoseconds since about the program's start: times can be compared, and there is a last one. */
final class Clock {
    static final long NEVER = Long.MAX_VALUE;

    private static final long START = System.nanoTime();
    private static final long LONGEST = Long.MAX_VALUE / 4;

    private Clock() {}

    static long now() {
        return System.nanoTime() - START;
    }

    /** A duration, at most some 70 years. */
    static long nanos(Duration duration) {
        try {
            return Math.min(duration.toNanos(), LONGEST);
        } catch (ArithmeticException tooLong) {
            return LONGEST;
        }
    }

    /**
     * Checks a time that a caller gave.
     *
     * @throws NullPointerException it is null
     * @throws IllegalArgumentException it is zero or negative
     */
    static Duration positive(String name, Duration duration) {
        Objects.requireNonNull(duration, name);
        if (duration.isZero() || duration.isNegative()) {
            throw new IllegalArgumentException(name + " must be positive, not " + duration);
        }
        return duration;
    }
}
