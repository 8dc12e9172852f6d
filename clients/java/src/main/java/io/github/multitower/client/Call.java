package io.github.multitower.client;

import java.nio.ByteBuffer;
import java.util.List;
import java.util.concurrent.CompletableFuture;

/**
 * A request and the future of its outcome. Once it is handed over, only the connection's thread uses it, apart from
 * {@link #future}.
 */
final class Call<T> {
    /** Reads {@code MT1:ok} replies. */
    interface Reader<T> {
        /**
         * Reads a reply.
         *
         * @throws MultitowerException.ModelError it cannot be read
         */
        T read(byte[] header, List<ByteBuffer> frames);
    }

    final CompletableFuture<T> future = new CompletableFuture<>();
    final byte[] kind;
    final byte[] header;
    final long deadline;

    /** The tensors; none when nobody waits for it. */
    private List<Tensor> body;

    /** When it fails if it could not be sent by then. */
    long connectBy;

    /** Unique within the connection; assigned each time it is sent. */
    long id;

    /** How often it was refused and sent again. */
    int retries;

    /** It has its outcome, or nobody waits for it. */
    volatile boolean over;

    private final Reader<T> reader;
    private final Runnable finished;

    /**
     * Creates a call that was not sent yet.
     *
     * @param kind of the request
     * @param header of the request, JSON
     * @param body the tensors
     * @param deadline when it fails without an outcome
     * @param connectBy when it fails if it could not be sent by then
     * @param reader reads the reply
     * @param finished called when there is an outcome, before anything that depends on the future
     */
    Call(
            byte[] kind,
            byte[] header,
            List<Tensor> body,
            long deadline,
            long connectBy,
            Reader<T> reader,
            Runnable finished) {
        this.kind = kind;
        this.header = header;
        this.body = body;
        this.deadline = deadline;
        this.connectBy = connectBy;
        this.reader = reader;
        this.finished = finished;
    }

    /** The tensors. */
    List<Tensor> body() {
        return body;
    }

    /** Nobody waits for it: it must not be sent, and keeps no tensors. */
    void drop() {
        over = true;
        body = List.of();
    }

    /** Header and tensors, in bytes. */
    long size() {
        long size = header.length;
        for (Tensor tensor : body) {
            size += tensor.data().capacity();
        }
        return size;
    }

    void answer(byte[] replyHeader, List<ByteBuffer> frames) {
        if (over) {
            return;
        }
        T result;
        try {
            result = reader.read(replyHeader, frames);
        } catch (MultitowerException error) {
            fail(error);
            return;
        } catch (Throwable error) {
            // Most likely no memory for its outputs, which concerns this call only.
            MultitowerException unread =
                    Errors.make(Reason.OUTPUT_INVALID, "the daemon's reply cannot be read: " + error);
            unread.initCause(error);
            fail(unread);
            return;
        }
        over = true;
        finished.run();
        future.complete(result);
    }

    void fail(MultitowerException error) {
        if (!over) {
            over = true;
            finished.run();
            future.completeExceptionally(error);
        }
    }
}
