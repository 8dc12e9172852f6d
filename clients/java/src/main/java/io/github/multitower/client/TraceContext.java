package io.github.multitower.client;

import java.util.Objects;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * The trace that a request belongs to, as W3C Trace Context writes it. Only a valid one whose span is sampled is sent:
 * each such header differs from all others, which costs the daemon a little.
 */
final class TraceContext {
    /** No trace. */
    static final TraceContext NONE = new TraceContext("", "");

    private static final int KNOWN_LENGTH = 55; // of version 00; later versions begin with its fields
    private static final Pattern TRACEPARENT =
            Pattern.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!#-\\[\\]-~]*)?");
    private static final Pattern TRACESTATE = Pattern.compile("[ -~]{0,512}");

    private final String traceparent;
    private final String tracestate;

    private TraceContext(String traceparent, String tracestate) {
        this.traceparent = traceparent;
        this.tracestate = tracestate;
    }

    /** The trace of these headers; {@link #NONE} where they are invalid, or name a span that is not sampled. */
    static TraceContext of(String traceparent, String tracestate) {
        Objects.requireNonNull(traceparent, "traceparent");
        Objects.requireNonNull(tracestate, "tracestate");
        if (!isSampled(traceparent)) {
            return NONE;
        }
        String state = TRACESTATE.matcher(tracestate).matches() ? tracestate : "";
        return new TraceContext(traceparent.substring(0, KNOWN_LENGTH), state);
    }

    private static boolean isSampled(String traceparent) {
        Matcher found = TRACEPARENT.matcher(traceparent);
        if (!found.matches() || found.group(1).equals("ff")) {
            return false;
        }
        boolean isOfKnownVersion = !found.group(1).equals("00") || found.group(5) == null;
        boolean hasIds = !isZero(found.group(2)) && !isZero(found.group(3));
        return isOfKnownVersion && hasIds && (Integer.parseInt(found.group(4), 16) & 1) == 1;
    }

    private static boolean isZero(String digits) {
        return digits.chars().allMatch(digit -> digit == '0');
    }

    /** The header {@code traceparent}; empty for no trace. */
    String traceparent() {
        return traceparent;
    }

    /** The header {@code tracestate}; empty for none. */
    String tracestate() {
        return tracestate;
    }

    /** Adds the parameters behind others. They come last, where the daemon looks for them before it parses a header. */
    void addTo(StringBuilder parameters) {
        if (!traceparent.isEmpty()) {
            parameters.append(",\"traceparent\":\"").append(traceparent).append('"');
        }
        if (!tracestate.isEmpty()) {
            parameters.append(",\"tracestate\":").append(Json.quote(tracestate));
        }
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof TraceContext
                && traceparent.equals(((TraceContext) other).traceparent)
                && tracestate.equals(((TraceContext) other).tracestate);
    }

    @Override
    public int hashCode() {
        return Objects.hash(traceparent, tracestate);
    }
}
