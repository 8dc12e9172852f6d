package io.github.multitower.client;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Objects;

/**
 * The base class of all errors that the client raises.
 *
 * <p>{@link #code} is a gRPC status name, {@link #reason} says what exactly happened; both are stable, and programs
 * may rely on them. The message is one sentence for people, which names the field at fault.
 *
 * <p>Tests of applications create exceptions with the constructors of the subclasses, or with {@link #of(Reason,
 * String, Map)}, which chooses the subclass.
 */
public class MultitowerException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    /** The code on the wire. */
    private final String code;

    /** The reason on the wire. */
    private final String reason;

    /** Numbers, strings and such; not part of the serial form. */
    private final transient Map<String, Object> details;

    MultitowerException(String code, String reason, String message, Map<String, ?> details) {
        super(message);
        this.code = code;
        this.reason = reason;
        this.details = Collections.unmodifiableMap(new LinkedHashMap<>(details));
    }

    /** For the constructors of subclasses: checks that they are those of the reason. */
    private MultitowerException(Reason reason, String message) {
        this(Objects.requireNonNull(reason, "reason").code(), reason.toString(), message, Map.of());
        Class<?> expected = Errors.classOf(code, this.reason);
        if (getClass() != expected) {
            String belongs = "the reason " + reason + " belongs to " + expected.getSimpleName();
            throw new IllegalArgumentException(belongs + ", not to " + getClass().getSimpleName());
        }
    }

    /**
     * An exception as the client raises it for a reason, of the subclass that belongs to the reason.
     *
     * @param reason what happened
     * @param message one sentence for people
     * @return an exception without details
     */
    public static MultitowerException of(Reason reason, String message) {
        return of(reason, message, Map.of());
    }

    /**
     * An exception as the client raises it for a reason, of the subclass that belongs to the reason.
     *
     * @param reason what happened
     * @param message one sentence for people
     * @param details values for programs, for example {@code Map.of("retry_after_ms", 200L)}
     * @return an exception with a copy of the details
     */
    public static MultitowerException of(Reason reason, String message, Map<String, ?> details) {
        Objects.requireNonNull(reason, "reason");
        Objects.requireNonNull(message, "message");
        Objects.requireNonNull(details, "details");
        return Errors.of(reason.code(), reason.toString(), message, details);
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
        return this.reason.equals(Objects.requireNonNull(reason, "reason").toString());
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

        InvalidRequest(String code, String reason, String message, Map<String, ?> details) {
            super(code, reason, message, details);
        }

        /**
         * An exception for a test of an application.
         *
         * @param reason one of this class, for example {@link Reason#SHAPE_INVALID}
         * @param message one sentence for people
         * @throws IllegalArgumentException the reason belongs to another class
         */
        public InvalidRequest(Reason reason, String message) {
            super(reason, Objects.requireNonNull(message, "message"));
        }
    }

    /** There is no such model, version or signature. */
    public static final class NotFound extends MultitowerException {
        private static final long serialVersionUID = 1L;

        NotFound(String code, String reason, String message, Map<String, ?> details) {
            super(code, reason, message, details);
        }

        /**
         * An exception for a test of an application.
         *
         * @param reason one of this class, for example {@link Reason#MODEL_UNKNOWN}
         * @param message one sentence for people
         * @throws IllegalArgumentException the reason belongs to another class
         */
        public NotFound(Reason reason, String message) {
            super(reason, Objects.requireNonNull(message, "message"));
        }
    }

    /** Nothing can serve the request: no daemon, no worker, a daemon that is stopping, or a client that was closed. */
    public static final class Unavailable extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Unavailable(String code, String reason, String message, Map<String, ?> details) {
            super(code, reason, message, details);
        }

        /**
         * An exception for a test of an application.
         *
         * @param reason one of this class, for example {@link Reason#NO_WORKER}
         * @param message one sentence for people
         * @throws IllegalArgumentException the reason belongs to another class
         */
        public Unavailable(Reason reason, String message) {
            super(reason, Objects.requireNonNull(message, "message"));
        }
    }

    /**
     * There is no room: {@code queue_full}, with {@code retry_after_ms} in the details if the daemon refused it, or
     * {@code reply_dropped}.
     */
    public static final class Overloaded extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Overloaded(String code, String reason, String message, Map<String, ?> details) {
            super(code, reason, message, details);
        }

        /**
         * An exception for a test of an application.
         *
         * @param reason one of this class, for example {@link Reason#QUEUE_FULL}
         * @param message one sentence for people
         * @throws IllegalArgumentException the reason belongs to another class
         */
        public Overloaded(Reason reason, String message) {
            super(reason, Objects.requireNonNull(message, "message"));
        }
    }

    /** There was no answer within the request's time. */
    public static final class DeadlineExceeded extends MultitowerException {
        private static final long serialVersionUID = 1L;

        DeadlineExceeded(String code, String reason, String message, Map<String, ?> details) {
            super(code, reason, message, details);
        }

        /**
         * An exception for a test of an application.
         *
         * @param reason one of this class, for example {@link Reason#DEADLINE}
         * @param message one sentence for people
         * @throws IllegalArgumentException the reason belongs to another class
         */
        public DeadlineExceeded(Reason reason, String message) {
            super(reason, Objects.requireNonNull(message, "message"));
        }
    }

    /** The client cancelled the request. */
    public static final class Cancelled extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Cancelled(String code, String reason, String message, Map<String, ?> details) {
            super(code, reason, message, details);
        }

        /**
         * An exception for a test of an application.
         *
         * @param reason one of this class, for example {@link Reason#CANCELLED}
         * @param message one sentence for people
         * @throws IllegalArgumentException the reason belongs to another class
         */
        public Cancelled(Reason reason, String message) {
            super(reason, Objects.requireNonNull(message, "message"));
        }
    }

    /** Too many workers died while executing the request: do not send it again. */
    public static final class Poisoned extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Poisoned(String code, String reason, String message, Map<String, ?> details) {
            super(code, reason, message, details);
        }

        /**
         * An exception for a test of an application.
         *
         * @param reason one of this class, for example {@link Reason#POISONED}
         * @param message one sentence for people
         * @throws IllegalArgumentException the reason belongs to another class
         */
        public Poisoned(Reason reason, String message) {
            super(reason, Objects.requireNonNull(message, "message"));
        }
    }

    /** The daemon does not know who asks: no key, or none that it admits (any more). */
    public static final class Unauthenticated extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Unauthenticated(String code, String reason, String message, Map<String, ?> details) {
            super(code, reason, message, details);
        }

        /**
         * An exception for a test of an application.
         *
         * @param reason one of this class, for example {@link Reason#UNAUTHENTICATED}
         * @param message one sentence for people
         * @throws IllegalArgumentException the reason belongs to another class
         */
        public Unauthenticated(Reason reason, String message) {
            super(reason, Objects.requireNonNull(message, "message"));
        }
    }

    /** The daemon knows who asks, and does not allow them this operation, or this model. */
    public static final class Forbidden extends MultitowerException {
        private static final long serialVersionUID = 1L;

        Forbidden(String code, String reason, String message, Map<String, ?> details) {
            super(code, reason, message, details);
        }

        /**
         * An exception for a test of an application.
         *
         * @param reason one of this class, for example {@link Reason#FORBIDDEN}
         * @param message one sentence for people
         * @throws IllegalArgumentException the reason belongs to another class
         */
        public Forbidden(Reason reason, String message) {
            super(reason, Objects.requireNonNull(message, "message"));
        }
    }

    /** The model raised an exception, or returned outputs that differ from its declaration. */
    public static final class ModelError extends MultitowerException {
        private static final long serialVersionUID = 1L;

        ModelError(String code, String reason, String message, Map<String, ?> details) {
            super(code, reason, message, details);
        }

        /**
         * An exception for a test of an application.
         *
         * @param reason one of this class, for example {@link Reason#MODEL_ERROR}
         * @param message one sentence for people
         * @throws IllegalArgumentException the reason belongs to another class
         */
        public ModelError(Reason reason, String message) {
            super(reason, Objects.requireNonNull(message, "message"));
        }
    }

    /**
     * A defect of the daemon, whose log has the traceback. Or the client cannot work, with an error as the cause: it can
     * open no socket, or its thread was ended.
     */
    public static final class InternalError extends MultitowerException {
        private static final long serialVersionUID = 1L;

        InternalError(String code, String reason, String message, Map<String, ?> details) {
            super(code, reason, message, details);
        }

        /**
         * An exception for a test of an application.
         *
         * @param reason one of this class, for example {@link Reason#INTERNAL_ERROR}
         * @param message one sentence for people
         * @throws IllegalArgumentException the reason belongs to another class
         */
        public InternalError(Reason reason, String message) {
            super(reason, Objects.requireNonNull(message, "message"));
        }
    }
}
