package io.github.multitower.client;

import java.util.Map;

/** Creates exceptions: each reason and code has its class. */
final class Errors {
    private Errors() {}

    /** The exception for a reason, of the matching class. */
    static MultitowerException make(Reason reason, String message) {
        return of(reason.code(), reason.toString(), message, Map.of());
    }

    /** The same, with the field at fault in the details. */
    static MultitowerException make(Reason reason, String message, String field) {
        return of(reason.code(), reason.toString(), message, Map.of("field", field));
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

    private static MultitowerException of(String code, String reason, String message, Map<String, Object> details) {
        if (reason.equals(Reason.POISONED.toString())) {
            return new MultitowerException.Poisoned(code, reason, message, details);
        }
        if (reason.equals(Reason.INTERNAL_ERROR.toString())) {
            return new MultitowerException.InternalError(code, reason, message, details);
        }
        switch (code) {
            case "INVALID_ARGUMENT":
            case "UNIMPLEMENTED":
                return new MultitowerException.InvalidRequest(code, reason, message, details);
            case "NOT_FOUND":
                return new MultitowerException.NotFound(code, reason, message, details);
            case "RESOURCE_EXHAUSTED":
                return new MultitowerException.Overloaded(code, reason, message, details);
            case "DEADLINE_EXCEEDED":
                return new MultitowerException.DeadlineExceeded(code, reason, message, details);
            case "CANCELLED":
                return new MultitowerException.Cancelled(code, reason, message, details);
            case "UNAVAILABLE":
                return new MultitowerException.Unavailable(code, reason, message, details);
            case "INTERNAL":
                return new MultitowerException.ModelError(code, reason, message, details);
            default:
                return new MultitowerException(code, reason, message, details);
        }
    }
}
