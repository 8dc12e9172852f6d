package io.github.multitower.client;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * The base class of all errors that the client raises.
 *
 * <p>{@link #code} is a gRPC status name, {@link #reason} says what exactly happened; both are stable, and programs
 * may rely on them. The message is one sentence for people, which names the field at fault.
 */
public class MultitowerException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    /** The code on the wire. */
    private final String code;

    /** The reason on the wire. */
    private final String reason;

    /** Numbers, strings and such; not part of the serial form. */
    private final transient Map<String, Object> details;

    MultitowerException(String code, String reason, String message, Map<String, Object> details) {
        super(message);
        this.code = code;
        this.reason = reason;
        this.details = Collections.unmodifiableMap(new LinkedHashMap<>(details));
    }

    /**
     * What kind of thing happened.
     *
     * @return a gRPC status name, for example {@code RESOURCE_EXHAUSTED}
     */
    public final String code() {
        return code;
    }

    /**
     * What exactly happened.
     *
     * @return the word on the wire, for example {@code queue_full}; {@link Reason} lists them
     */
    public final String reason() {
        return reason;
    }

    /**
     * Whether this is the reason.
     *
     * @param reason one of those known to this release
     * @return true if it is
     */
    public final boolean is(Reason reason) {
        return this.reason.equals(reason.toString());
    }

    /**
     * Values for programs, such as {@code field}, {@code queue_depth} or {@code retry_after_ms}; may be empty.
     *
     * @return values as in JSON: {@link String}, {@link Long}, {@link Double}, {@link Boolean}, lists and maps
     */
    public final Map<String, Object> details() {
        return details == null ? Map.of() : details;
    }

    /** Code, reason and message. */
    @Override
    public final String toString() {
        return getClass().getSimpleName() + ": " + code + "/" + reason + ": " + getMessage();
    }

    /** The request is wrong; sending it again cannot help. */
    public static final class InvalidRequest extends MultitowerException {
        private static final long serialVersionUID = 1L;

        InvalidRequest(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** There is no such model, version or signature. */
    public static final class NotFound extends MultitowerException {
        private static final long serialVersionUID = 1L;

        NotFound(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** Nothing can serve the request: no daemon, no worker, a daemon that is stopping, or a client that was closed. */
    public static final class Unavailable extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Unavailable(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** The daemon has no room: queue_full, with {@code retry_after_ms} in the details, or reply_dropped. */
    public static final class Overloaded extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Overloaded(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** There was no answer within the request's time. */
    public static final class DeadlineExceeded extends MultitowerException {
        private static final long serialVersionUID = 1L;

        DeadlineExceeded(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** The client cancelled the request. */
    public static final class Cancelled extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Cancelled(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** Too many workers died while executing the request: do not send it again. */
    public static final class Poisoned extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Poisoned(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** The model raised an exception, or returned outputs that differ from its declaration. */
    public static final class ModelError extends MultitowerException {
        private static final long serialVersionUID = 1L;

        ModelError(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** A defect of the daemon; its log has the traceback. */
    public static final class InternalError extends MultitowerException {
        private static final long serialVersionUID = 1L;

        InternalError(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }
}
