package io.github.multitower.client;

/**
 * What exactly went wrong. Stable: programs may rely on it. {@link #toString} is the word on the wire.
 *
 * <p>A daemon may send reasons that are not here, such as those of a later version: {@link MultitowerException#reason} has the word in any case.
 */
public enum Reason {
    /** Frames or JSON that cannot be parsed. */
    MALFORMED("INVALID_ARGUMENT"),
    /** A message over the daemon's {@code max_message_size}, or a header over its own limit. */
    TOO_LARGE("INVALID_ARGUMENT"),
    /** A kind of request or protocol version that the daemon does not support. */
    KIND_UNKNOWN("UNIMPLEMENTED"),
    /** There is no such model. */
    MODEL_UNKNOWN("NOT_FOUND"),
    /** The model is not served in this version. */
    VERSION_UNKNOWN("NOT_FOUND"),
    /** The model has no such signature, or one that cannot be served. */
    SIGNATURE_UNKNOWN("NOT_FOUND"),
    /** The model has no such input. */
    INPUT_UNKNOWN("INVALID_ARGUMENT"),
    /** The model needs another input. */
    INPUT_MISSING("INVALID_ARGUMENT"),
    /** The model has no such output. */
    OUTPUT_UNKNOWN("INVALID_ARGUMENT"),
    /** An unknown datatype, or not the one that the model declares. */
    DATATYPE_MISMATCH("INVALID_ARGUMENT"),
    /** Not a shape, or not one that the model accepts. */
    SHAPE_INVALID("INVALID_ARGUMENT"),
    /** The bytes of a tensor do not match its shape. */
    SIZE_MISMATCH("INVALID_ARGUMENT"),
    /** The model's queue is full, or the client has {@code maxOutstanding} requests outstanding. */
    QUEUE_FULL("RESOURCE_EXHAUSTED"),
    /** The request's time is over. */
    DEADLINE("DEADLINE_EXCEEDED"),
    /** The client cancelled the request. */
    CANCELLED("CANCELLED"),
    /** The daemon is stopping and accepts no new requests. */
    DRAINING("UNAVAILABLE"),
    /** No worker serves the model now. */
    NO_WORKER("UNAVAILABLE"),
    /** The request's worker died, and the model's {@code retry} is 0. */
    WORKER_DIED("UNAVAILABLE"),
    /** More workers died while executing the request than {@code retry} allows. */
    POISONED("INTERNAL"),
    /** The model raised an exception. */
    MODEL_ERROR("INTERNAL"),
    /** The model's outputs differ from its declaration, or the reply cannot be read. */
    OUTPUT_INVALID("INTERNAL"),
    /** The client left too many bytes of replies unread, and read nothing for a time, so that its reply was dropped. */
    REPLY_DROPPED("RESOURCE_EXHAUSTED"),
    /**
     * A defect of the daemon, whose log has the traceback. Or the client cannot work, with an error as the cause: it can
     * open no socket, or its thread was ended.
     */
    INTERNAL_ERROR("INTERNAL"),
    /** The daemon does not know who asks: no key, or none that it admits. */
    UNAUTHENTICATED("UNAUTHENTICATED"),
    /** The daemon knows who asks, and does not allow them this operation, or this model. */
    FORBIDDEN("PERMISSION_DENIED"),

    // Raised by the client only, never sent.

    /** No daemon listens at the endpoint. */
    NOT_LISTENING("UNAVAILABLE"),
    /** The connection ended while requests were outstanding. */
    CONNECTION_LOST("UNAVAILABLE"),
    /** The client was closed. */
    CLOSED("UNAVAILABLE");

    private final String code;
    private final String word = name().toLowerCase(java.util.Locale.ROOT);

    Reason(String code) {
        this.code = code;
    }

    /**
     * The gRPC status name that says what to do about it.
     *
     * @return for example {@code UNAVAILABLE}
     */
    public String code() {
        return code;
    }

    /** The word on the wire, for example {@code queue_full}. */
    @Override
    public String toString() {
        return word;
    }
}
