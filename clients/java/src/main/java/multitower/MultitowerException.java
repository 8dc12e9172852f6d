package multitower;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * The base of every error that the client gives an application.
 *
 * <p>{@link #code} is a gRPC status name and says what to do, {@link #reason} says what exactly happened; both are
 * stable and for programs. The message is one sentence for people and names the offending field.
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
     * Whether it is this that happened.
     *
     * @param reason one of those known to this release
     * @return true if it is
     */
    public final boolean is(Reason reason) {
        return this.reason.equals(reason.toString());
    }

    /**
     * What helps to act on it, where there is any: {@code field}, {@code queue_depth}, {@code retry_after_ms}, ...
     *
     * @return values as JSON has them: {@link String}, {@link Long}, {@link Double}, {@link Boolean}, lists and maps
     */
    public final Map<String, Object> details() {
        return details == null ? Map.of() : details;
    }

    /** Code, reason and message. */
    @Override
    public final String toString() {
        return getClass().getSimpleName() + ": " + code + "/" + reason + ": " + getMessage();
    }

    /** The request is wrong in itself; sending it again cannot help. */
    public static final class InvalidRequest extends MultitowerException {
        private static final long serialVersionUID = 1L;

        InvalidRequest(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** There is no such model, or not in that version. */
    public static final class NotFound extends MultitowerException {
        private static final long serialVersionUID = 1L;

        NotFound(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** Nothing could take the request: no daemon, no worker, a daemon that is stopping, a client that was closed. */
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

    /** No answer within the request's time. */
    public static final class DeadlineExceeded extends MultitowerException {
        private static final long serialVersionUID = 1L;

        DeadlineExceeded(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** The request was cancelled by its sender. */
    public static final class Cancelled extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Cancelled(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** The request was being executed when too many workers died: never send it again. */
    public static final class Poisoned extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Poisoned(String code, String reason, String message, Map<String, Object> details) {
            super(code, reason, message, details);
        }
    }

    /** The model raised an exception, or returned what it did not declare. */
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
