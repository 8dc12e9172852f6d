package io.github.multitower.client;

import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * A connection to a daemon, for any number of threads: make one, share it, close it.
 *
 * <p>Requests are pipelined over one connection, and answers come in any order. It opens by itself, and again after it
 * was lost; the logger {@code io.github.multitower.client} tells so. No call takes more than about a second longer than
 * its timeout. Every failure is a {@link MultitowerException}; {@link InferenceClient} lists them.
 *
 * <pre>{@code
 * try (MultitowerClient client = MultitowerClient.connect("tcp://127.0.0.1:5555")) {
 *     Tensor image = Tensor.of(new float[64], 1, 64);
 *     Map<String, Tensor> answer = client.infer("digits", Map.of("x", image), Duration.ofSeconds(2));
 *     float[] probabilities = answer.get("probabilities").toFloats();
 * }
 * }</pre>
 */
public final class MultitowerClient implements InferenceClient {
    private static final long ASK_AGAIN_MS = 50;

    /** A shorter attempt to ask the daemon may fail for lack of time alone. */
    private static final long SHORT_ATTEMPT_MS = 1000;

    /** How much later than its time a request gets its outcome, at most, from a client's thread that runs. */
    private static final long LATE_MS = 1000;

    private final Endpoint endpoint;
    private final Duration timeout;
    private final Duration connectTimeout;
    private final boolean blockWhenFull;
    private final Room room;
    private final Codec codec = new Codec();
    private final Connection connection;

    private MultitowerClient(Builder builder, Keys keys) {
        this.endpoint = Endpoint.parse(builder.endpoint);
        this.timeout = builder.timeout;
        this.connectTimeout = builder.connectTimeout;
        this.blockWhenFull = builder.blockWhenFull;
        this.room = new Room(builder.maxOutstanding);
        int peerTimeoutMs = (int) builder.peerTimeout.toMillis();
        this.connection = new Connection(endpoint, connectTimeout, builder.retries, peerTimeoutMs, keys);
    }

    /**
     * A client of the daemon at the environment's {@code MULTITOWER_ENDPOINT}, else {@code tcp://127.0.0.1:5555}.
     *
     * @return a client that connects in the background
     * @throws IllegalArgumentException the variable is not an endpoint that Java can reach
     */
    public static MultitowerClient connect() {
        return builder().build();
    }

    /**
     * A client of the daemon at an endpoint.
     *
     * @param endpoint {@code tcp://HOST:PORT}; {@code ipc://} cannot be reached from Java
     * @return a client that connects in the background
     * @throws IllegalArgumentException it is not an endpoint that Java can reach
     */
    public static MultitowerClient connect(String endpoint) {
        return builder().endpoint(endpoint).build();
    }

    /**
     * A builder for a client with other settings.
     *
     * @return a builder with the defaults
     */
    public static Builder builder() {
        return new Builder();
    }

    /** The settings of a client. */
    public static final class Builder {
        private String endpoint;
        private Duration timeout = Duration.ofSeconds(30);
        private Duration connectTimeout = Duration.ofSeconds(5);
        private int maxOutstanding = 1000;
        private boolean blockWhenFull;
        private int retries = Retries.DEFAULT;
        private Duration peerTimeout = Duration.ofSeconds(30);
        private byte[] key; // null for the environment's
        private byte[] serverKey;

        private Builder() {
            String named = System.getenv(Wire.ENDPOINT_VARIABLE);
            endpoint = named == null || named.isEmpty() ? Wire.DEFAULT_ENDPOINT : named;
        }

        /**
         * The daemon's endpoint.
         *
         * @param endpoint {@code tcp://HOST:PORT}; {@code ipc://} cannot be reached from Java
         * @return this
         */
        public Builder endpoint(String endpoint) {
            this.endpoint = Objects.requireNonNull(endpoint, "endpoint");
            return this;
        }

        /**
         * The time-out of requests that have none of their own.
         *
         * @param timeout 30 s by default
         * @return this
         * @throws IllegalArgumentException it is zero or negative
         */
        public Builder timeout(Duration timeout) {
            this.timeout = Clock.positive("timeout", timeout);
            return this;
        }

        /**
         * How long a request waits for a daemon to listen before it fails with {@link MultitowerException.Unavailable}.
         *
         * @param connectTimeout 5 s by default
         * @return this
         * @throws IllegalArgumentException it is zero or negative
         */
        public Builder connectTimeout(Duration connectTimeout) {
            this.connectTimeout = Clock.positive("connectTimeout", connectTimeout);
            return this;
        }

        /**
         * How many inferences may be outstanding. A further {@code infer} waits for one of them to
         * finish, within its time-out; a further {@code inferAsync} fails, or waits with {@link #blockWhenFull}.
         *
         * @param maxOutstanding 1000 by default
         * @return this
         * @throws IllegalArgumentException it is less than 1
         */
        public Builder maxOutstanding(int maxOutstanding) {
            if (maxOutstanding < 1) {
                throw new IllegalArgumentException("maxOutstanding must be 1 or more, not " + maxOutstanding);
            }
            this.maxOutstanding = maxOutstanding;
            return this;
        }

        /**
         * Whether {@code inferAsync} blocks the calling thread, within the request's time, while {@code maxOutstanding}
         * requests are outstanding: for programs that produce requests faster than they are answered. By default it
         * does not wait, and the future fails with {@link MultitowerException.Overloaded}, {@code queue_full}.
         *
         * @param blockWhenFull {@code false} by default
         * @return this
         */
        public Builder blockWhenFull(boolean blockWhenFull) {
            this.blockWhenFull = blockWhenFull;
            return this;
        }

        /**
         * How often a request that the daemon refused without running it, because the queue was full or the model was
         * loading, is sent again within its time.
         *
         * @param retries 2 by default; 0 for never
         * @return this
         * @throws IllegalArgumentException it is negative
         */
        public Builder retries(int retries) {
            if (retries < 0) {
                throw new IllegalArgumentException("retries must be 0 or more, not " + retries);
            }
            this.retries = retries;
            return this;
        }

        /**
         * The time without a sign of the daemon, not even the answer to a heartbeat, after which the connection counts as
         * lost: outstanding requests fail with {@code connection_lost}, and it opens again.
         *
         * @param peerTimeout 30 s by default; from 200 ms to a day, or zero for never
         * @return this
         * @throws IllegalArgumentException it is none of these
         */
        public Builder peerTimeout(Duration peerTimeout) {
            Objects.requireNonNull(peerTimeout, "peerTimeout");
            if (!peerTimeout.isZero()
                    && (peerTimeout.compareTo(Duration.ofMillis(200)) < 0
                            || peerTimeout.compareTo(Duration.ofDays(1)) > 0)) {
                throw new IllegalArgumentException("peerTimeout must be 200 ms to a day, or zero, not " + peerTimeout);
            }
            this.peerTimeout = peerTimeout;
            return this;
        }

        /**
         * This client's secret key, for a daemon with {@code security}. By default it is what the environment's
         * {@code MULTITOWER_KEY} has: the path of its file, or the key in Z85.
         *
         * @param file as {@code multitower keys new} writes it; others may not be allowed to read it
         * @return this
         * @throws IllegalArgumentException it cannot be read, admits others, or holds no secret key
         */
        public Builder key(Path file) {
            Objects.requireNonNull(file, "file");
            this.key = Keys.named("key", () -> Keys.secretFile(file));
            return this;
        }

        /**
         * This client's pair of keys, for a daemon with {@code security}.
         *
         * @param publicKey in Z85
         * @param secretKey in Z85
         * @return this
         * @throws IllegalArgumentException they are not in Z85, or no pair
         */
        public Builder key(String publicKey, String secretKey) {
            Objects.requireNonNull(publicKey, "publicKey");
            Objects.requireNonNull(secretKey, "secretKey");
            this.key = Keys.named("key", () -> Keys.pair(publicKey, secretKey));
            return this;
        }

        /**
         * The public key of a daemon with {@code security}, by which this client recognizes it. By default it is
         * what the environment's {@code MULTITOWER_SERVER_KEY} has.
         *
         * @param serverKey in Z85, or the path of a file that holds it
         * @return this
         * @throws IllegalArgumentException it is neither
         */
        public Builder serverKey(String serverKey) {
            Objects.requireNonNull(serverKey, "serverKey");
            this.serverKey = Keys.named("serverKey", () -> Keys.publicKey(serverKey));
            return this;
        }

        /**
         * The same, from a file.
         *
         * @param file as {@code multitower keys new} writes it
         * @return this
         * @throws IllegalArgumentException it cannot be read, or holds no public key
         */
        public Builder serverKey(Path file) {
            Objects.requireNonNull(file, "file");
            this.serverKey = Keys.named("serverKey", () -> Keys.publicFile(file));
            return this;
        }

        /**
         * Creates the client.
         *
         * @return a client that connects in the background
         * @throws IllegalArgumentException the endpoint is not one that Java can reach, or of the client's key and the
         *     daemon's key only one is given, here or in the environment, or the one there cannot be used
         * @throws MultitowerException.InternalError no socket can be opened, for example as too many files are open
         */
        public MultitowerClient build() {
            return new MultitowerClient(this, Keys.find(key, serverKey, System::getenv));
        }
    }

    /**
     * The daemon's endpoint.
     *
     * @return {@code tcp://HOST:PORT}
     */
    public String endpoint() {
        return endpoint.toString();
    }

    // Inference.

    /**
     * {@inheritDoc}
     *
     * <p>If {@code maxOutstanding} requests are outstanding, it waits for room within the request's time.
     *
     * @throws IllegalStateException an action that depends on a future calls it in the client's thread
     */
    @Override
    public Map<String, Tensor> infer(InferRequest request) {
        Objects.requireNonNull(request, "request");
        refuseInClientsThread();
        long deadline = Clock.now() + nanos(request);
        return await(start(request, true), deadline);
    }

    /**
     * {@inheritDoc}
     *
     * <p>If {@code maxOutstanding} requests are outstanding, the future fails with
     * {@link MultitowerException.Overloaded}; with {@code blockWhenFull} the calling thread waits for room instead.
     */
    @Override
    public CompletableFuture<Map<String, Tensor>> inferAsync(InferRequest request) {
        return start(request, blockWhenFull);
    }

    private long nanos(InferRequest request) {
        return Clock.nanos(request.timeout().orElse(timeout));
    }

    /** Starts a request. Whatever goes wrong is the outcome of the future. */
    private CompletableFuture<Map<String, Tensor>> start(InferRequest request, boolean wait) {
        Objects.requireNonNull(request, "request");
        long nanos = nanos(request);
        long begun = Clock.now();
        byte[] header;
        Room.Place place;
        try {
            connection.check();
            // At least one microsecond: the protocol does not allow a time-out of 0. Always the whole time, so that
            // headers repeat.
            header = Codec.inferHeader(request, (nanos + 999) / 1000);
            // The connection's thread would wait for itself.
            place = room.enter(wait && !connection.inItsThread(), nanos);
        } catch (MultitowerException error) {
            return CompletableFuture.failedFuture(error);
        }
        List<Tensor> body = new ArrayList<>(request.inputs().values());
        CompletableFuture<Map<String, Tensor>> future =
                start(Wire.INFER, header, body, begun, nanos, codec::outputs, place::leave);
        // Completed by the application. An outcome gives the room back before: what depends on it may need the room.
        future.whenComplete((outputs, error) -> place.leave());
        return future;
    }

    private <T> CompletableFuture<T> start(
            byte[] kind,
            byte[] header,
            List<Tensor> body,
            long begun,
            long nanos,
            Call.Reader<T> reader,
            Runnable finished) {
        long connectBy = Clock.now() + Clock.nanos(connectTimeout);
        long deadline = begun + nanos;
        Call<T> call = new Call<>(kind, header, body, deadline, Math.min(deadline, connectBy), reader, finished);
        // Completed by the application: the answer is not wanted.
        call.future.whenComplete(
                (result, error) -> {
                    if (!call.over) {
                        connection.cancel(call);
                    }
                });
        connection.start(call);
        return call.future;
    }

    /**
     * Refuses to wait in the client's thread, to which the answer would come.
     *
     * @throws IllegalStateException this is that thread
     */
    private void refuseInClientsThread() {
        if (connection.inItsThread()) {
            throw new IllegalStateException(
                    "this is the client's thread: the answer would come to it; use an executor (thenApplyAsync)");
        }
    }

    private <T> T await(CompletableFuture<T> future, long deadline) {
        try {
            long left = deadline - Clock.now() + TimeUnit.MILLISECONDS.toNanos(LATE_MS);
            return future.get(left, TimeUnit.NANOSECONDS);
        } catch (TimeoutException occupied) {
            String message = "no outcome within the timeout given to this client: its thread is occupied, most likely"
                    + " by an action that depends on a future and takes long; use an executor (thenApplyAsync)";
            MultitowerException error = Errors.make(Reason.DEADLINE, message);
            future.completeExceptionally(error); // which cancels the request
            throw error;
        } catch (InterruptedException interrupt) {
            future.cancel(false);
            throw Errors.interrupted();
        } catch (ExecutionException failed) {
            if (failed.getCause() instanceof MultitowerException) {
                // No other thread has this exception; the trace of the waiting thread is more useful than the client's.
                failed.getCause().fillInStackTrace();
                throw (MultitowerException) failed.getCause();
            }
            throw new IllegalStateException(failed.getCause());
        }
    }

    // Queries.

    private Map<String, Object> ask(byte[] kind, Map<String, Object> header, Duration time) {
        refuseInClientsThread();
        connection.check();
        byte[] bytes = header.isEmpty() ? Wire.EMPTY_HEADER : Json.write(header);
        Call.Reader<Map<String, Object>> reader = (reply, frames) -> Json.read(reply);
        long begun = Clock.now();
        long nanos = Clock.nanos(time);
        return await(start(kind, bytes, List.of(), begun, nanos, reader, () -> {}), begun + nanos);
    }

    private static Map<String, Object> model(String model, String version) {
        Map<String, Object> header = new LinkedHashMap<>();
        header.put("model_name", Objects.requireNonNull(model, "model"));
        if (!Objects.requireNonNull(version, "version").isEmpty()) {
            header.put("model_version", version);
        }
        return header;
    }

    @Override
    public boolean serverLive() {
        return Boolean.TRUE.equals(ask(Wire.SERVER_LIVE, Map.of(), timeout).get("live"));
    }

    @Override
    public boolean serverReady() {
        return Boolean.TRUE.equals(ask(Wire.SERVER_READY, Map.of(), timeout).get("ready"));
    }

    @Override
    public Map<String, Object> serverMetadata() {
        return ask(Wire.SERVER_METADATA, Map.of(), timeout);
    }

    @Override
    public Map<String, Object> status() {
        return ask(Wire.STATUS, Map.of(), timeout);
    }

    @Override
    public boolean modelReady(String model, String version) {
        return Boolean.TRUE.equals(ask(Wire.MODEL_READY, model(model, version), timeout).get("ready"));
    }

    @Override
    public ModelMetadata metadata(String model, String version) {
        return Codec.metadata(ask(Wire.MODEL_METADATA, model(model, version), timeout));
    }

    @Override
    public Map<String, Object> modelConfig(String model, String version) {
        return ask(Wire.MODEL_CONFIG, model(model, version), timeout);
    }

    @Override
    public Map<String, Object> statistics() {
        return ask(Wire.STATISTICS, Map.of(), timeout);
    }

    @Override
    public Map<String, Object> statistics(String model, String version) {
        return ask(Wire.STATISTICS, model(model, version), timeout);
    }

    @Override
    public void waitUntilReady(Duration within) {
        Objects.requireNonNull(within, "within");
        long until = Clock.now() + Clock.nanos(within);
        String why = null;
        MultitowerException last = null; // what `why` is from; null if the daemon has answered
        while (true) {
            long left = Math.max(until - Clock.now(), TimeUnit.MILLISECONDS.toNanos(1));
            try {
                Map<String, Object> state = ask(Wire.SERVER_READY, Map.of(), Duration.ofNanos(left));
                if (Boolean.TRUE.equals(state.get("ready"))) {
                    return;
                }
                Object ready = state.get("slots_ready");
                Object total = state.get("slots_total");
                String missing = Objects.equals(ready, total) ? ", but some model is on none of them" : "";
                why = ready + " of " + total + " slots are ready" + missing + "; `multitower status` tells why";
                last = null;
            } catch (MultitowerException.Unavailable | MultitowerException.DeadlineExceeded error) {
                if (error.is(Reason.CLOSED)) {
                    throw error;
                }
                boolean tooShort = left < TimeUnit.MILLISECONDS.toNanos(SHORT_ATTEMPT_MS);
                if (why == null || !(tooShort && error instanceof MultitowerException.DeadlineExceeded)) {
                    why = error.getMessage();
                    last = error;
                }
            }
            if (Clock.now() + TimeUnit.MILLISECONDS.toNanos(ASK_AGAIN_MS) >= until) {
                throw Errors.notReady("not ready after " + Clock.nanos(within) / 1e9 + " s: " + why, last);
            }
            try {
                Thread.sleep(ASK_AGAIN_MS);
            } catch (InterruptedException interrupt) {
                throw Errors.interrupted();
            }
        }
    }

    @Override
    public void close() {
        connection.close();
    }

    /** The endpoint. */
    @Override
    public String toString() {
        return "MultitowerClient(" + endpoint + ")";
    }
}
