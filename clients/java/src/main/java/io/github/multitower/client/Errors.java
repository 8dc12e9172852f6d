package io.github.multitower.client;

import java.util.Map;

/** Creates exceptions: each reason and code has its class. */
final class Errors {
    /** Calls the constructor of a class. */
    private interface Constructor {
        MultitowerException create(String code, String reason, String message, Map<String, ?> details);
    }

    /** A class of exceptions and its constructor. */
    private static final class Kind {
        final Class<? extends MultitowerException> raised;
        final Constructor constructor;

        Kind(Class<? extends MultitowerException> raised, Constructor constructor) {
            this.raised = raised;
            this.constructor = constructor;
        }
    }

    private static final Kind POISONED =
            new Kind(MultitowerException.Poisoned.class, MultitowerException.Poisoned::new);
    private static final Kind INTERNAL_ERROR =
            new Kind(MultitowerException.InternalError.class, MultitowerException.InternalError::new);
    private static final Kind INVALID_REQUEST =
            new Kind(MultitowerException.InvalidRequest.class, MultitowerException.InvalidRequest::new);

    /** A code of a newer daemon. */
    private static final Kind UNKNOWN = new Kind(MultitowerException.class, MultitowerException::new);

    private static final Map<String, Kind> BY_CODE =
            Map.ofEntries(
                    Map.entry("INVALID_ARGUMENT", INVALID_REQUEST),
                    Map.entry("UNIMPLEMENTED", INVALID_REQUEST),
                    entry("NOT_FOUND", MultitowerException.NotFound.class, MultitowerException.NotFound::new),
                    entry("RESOURCE_EXHAUSTED", MultitowerException.Overloaded.class, MultitowerException.Overloaded::new),
                    entry(
                            "DEADLINE_EXCEEDED",
                            MultitowerException.DeadlineExceeded.class,
                            MultitowerException.DeadlineExceeded::new),
                    entry("CANCELLED", MultitowerException.Cancelled.class, MultitowerException.Cancelled::new),
                    entry("UNAVAILABLE", MultitowerException.Unavailable.class, MultitowerException.Unavailable::new),
                    entry("PERMISSION_DENIED", MultitowerException.Forbidden.class, MultitowerException.Forbidden::new),
                    entry(
                            "UNAUTHENTICATED",
                            MultitowerException.Unauthenticated.class,
                            MultitowerException.Unauthenticated::new),
                    entry("INTERNAL", MultitowerException.ModelError.class, MultitowerException.ModelError::new));

    private static Map.Entry<String, Kind> entry(
            String code, Class<? extends MultitowerException> raised, Constructor constructor) {
        return Map.entry(code, new Kind(raised, constructor));
    }

    private Errors() {}

    /** The exception for a reason, of the matching class. */
    static MultitowerException make(Reason reason, String message) {
        return of(reason.code(), reason.toString(), message, Map.of());
    }

    /** The same, with the field at fault in the details. */
    static MultitowerException make(Reason reason, String message, String field) {
        return of(reason.code(), reason.toString(), message, Map.of("field", field));
    }

    /** The exception of a thread that was interrupted while it waited; the thread stays interrupted. */
    static MultitowerException interrupted() {
        Thread.currentThread().interrupt();
        return make(Reason.CANCELLED, "the thread was interrupted while it waited");
    }

    /**
     * The exception of a daemon that is not ready in time: {@code no_worker}, or why it cannot be reached.
     *
     * @param last the last error; null if the daemon has answered
     */
    static MultitowerException notReady(String message, MultitowerException last) {
        MultitowerException error = last instanceof MultitowerException.Unavailable
                ? of(last.code(), last.reason(), message, last.details())
                : make(Reason.NO_WORKER, message);
        error.initCause(last);
        return error;
    }

    /** The exception of a client that cannot work any more, or never could. */
    static MultitowerException broken(String message, Throwable cause) {
        MultitowerException error = make(Reason.INTERNAL_ERROR, message + ": " + cause);
        error.initCause(cause);
        return error;
    }

    /**
     * The exception of an {@code MT1:error} header. An unknown code or reason, of a
     * newer daemon, is kept as it is; the class is the nearest one.
     */
    static MultitowerException fromWire(byte[] header) {
        Map<String, Object> error;
        try {
            error = Json.object(Json.read(header).get("error"));
        } catch (MultitowerException unreadable) {
            return unreadable;
        }
        return of(
                text(error, "code", Reason.MODEL_ERROR.code()),
                text(error, "reason", Reason.MODEL_ERROR.toString()),
                text(error, "message", "the daemon gave no message"),
                Json.object(error.get("details")));
    }

    private static String text(Map<String, Object> error, String key, String otherwise) {
        Object value = error.get(key);
        return value == null ? otherwise : value.toString();
    }

    /** The exception of the class that belongs to the reason and the code. */
    static MultitowerException of(String code, String reason, String message, Map<String, ?> details) {
        return kind(code, reason).constructor.create(code, reason, message, details);
    }

    /** The class that belongs to a reason and its code. */
    static Class<? extends MultitowerException> classOf(String code, String reason) {
        return kind(code, reason).raised;
    }

    private static Kind kind(String code, String reason) {
        if (reason.equals(Reason.POISONED.toString())) {
            return POISONED;
        }
        if (reason.equals(Reason.INTERNAL_ERROR.toString())) {
            return INTERNAL_ERROR;
        }
        return BY_CODE.getOrDefault(code, UNKNOWN);
    }
}
