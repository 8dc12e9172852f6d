package multitower;

import java.nio.ByteBuffer;
import java.util.List;
import java.util.concurrent.CompletableFuture;

/**
 * A request and where its outcome goes. But for {@link #future}, only the connection's thread touches it once it was
 * handed over.
 */
final class Call<T> {
    /** Makes the result of an {@code MT1:ok} reply. */
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
    final List<Tensor> body;
    final long deadline;

    /** When it fails if it could not be sent until then. */
    long connectBy;

    /** Unique in its connection; set each time that it is sent. */
    long id;

    /** How often it was refused and is sent again. */
    int retries;

    /** It has its outcome, or nobody waits for it. */
    volatile boolean over;

    private final Reader<T> reader;

    Call(byte[] kind, byte[] header, List<Tensor> body, long deadline, long connectBy, Reader<T> reader) {
        this.kind = kind;
        this.header = header;
        this.body = body;
        this.deadline = deadline;
        this.connectBy = connectBy;
        this.reader = reader;
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
            // No memory for its outputs, most likely: the outcome of this one, and not the end of the connection.
            MultitowerException unread =
                    Errors.make(Reason.OUTPUT_INVALID, "the daemon's reply cannot be read: " + error);
            unread.initCause(error);
            fail(unread);
            return;
        }
        over = true;
        future.complete(result);
    }

    void fail(MultitowerException error) {
        if (!over) {
            over = true;
            future.completeExceptionally(error);
        }
    }
}
