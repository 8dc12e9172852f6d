package io.github.multitower.client;

import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * A connection to a daemon, for any number of threads: make one, share it, close it.
 *
 * <p>Requests are pipelined over one connection, and answers come in any order. It opens by itself, and again after it
 * was lost. No call waits longer than its time.
 *
 * <pre>{@code
 * try (MultitowerClient client = MultitowerClient.connect("tcp://127.0.0.1:5555")) {
 *     Tensor image = Tensor.of(new float[64], 1, 64);
 *     Map<String, Tensor> answer = client.infer("digits", Map.of("x", image), Duration.ofSeconds(2));
 *     float[] probabilities = answer.get("probabilities").toFloats();
 * }
 * }</pre>
 *
 * <p>Every failure is a {@link MultitowerException}:
 *
 * <ul>
 *   <li>{@link MultitowerException.InvalidRequest}: the request is wrong; the message names the field.
 *   <li>{@link MultitowerException.NotFound}: there is no such model or version.
 *   <li>{@link MultitowerException.Overloaded}: the model's queue was full at each attempt, or the next one would
 *       come after the deadline.
 *   <li>{@link MultitowerException.DeadlineExceeded}: no answer in time.
 *   <li>{@link MultitowerException.Unavailable}: no daemon listens, the connection was lost, no worker serves the
 *       model, or the client was closed.
 *   <li>{@link MultitowerException.Poisoned}: workers died while they executed the request.
 *   <li>{@link MultitowerException.ModelError}: the model raised an exception.
 *   <li>{@link MultitowerException.Cancelled}: the waiting thread was interrupted; it stays so.
 * </ul>
 */
public final class MultitowerClient implements AutoCloseable {
    private static final long ASK_AGAIN_MS = 50;
    private static final Pattern TCP = Pattern.compile("tcp://(\\[[^\\[\\]]+\\]|[^\\[\\]:/\\s]+):(\\d{1,5})");

    private final String endpoint;
    private final Duration timeout;
    private final Duration connectTimeout;
    private final int maxOutstanding;
    private final Semaphore room;
    private final Codec codec = new Codec();
    private final Connection connection;

    private MultitowerClient(Builder builder) {
        this.endpoint = checked(builder.endpoint);
        this.timeout = builder.timeout;
        this.connectTimeout = builder.connectTimeout;
        this.maxOutstanding = builder.maxOutstanding;
        this.room = new Semaphore(maxOutstanding);
        this.connection = new Connection(endpoint, builder.retries, (int) builder.peerTimeout.toMillis());
    }

    private static String checked(String endpoint) {
        if (endpoint.startsWith("ipc://")) {
            // JeroMQ's ipc is tcp on a port computed from the path: it would find no daemon, without an error.
            String message =
                    endpoint + ": ipc sockets cannot be reached from Java (JeroMQ has none that libzmq understands);"
                            + " let the daemon listen on tcp://127.0.0.1:PORT as well";
            throw new IllegalArgumentException(message);
        }
        Matcher parts = TCP.matcher(endpoint);
        if (!parts.matches() || Integer.parseInt(parts.group(2)) < 1 || Integer.parseInt(parts.group(2)) > 65535) {
            throw new IllegalArgumentException(endpoint + " is not an endpoint: tcp://HOST:PORT");
        }
        return endpoint;
    }

    /**
     * A client of the daemon at the environment's {@code MULTITOWER_ENDPOINT}, else {@code tcp://127.0.0.1:5555}.
     *
     * @return a client that connects in the background
     * @throws IllegalArgumentException the variable is not an endpoint that Java can reach
     * @throws MultitowerException.Unavailable {@code not_listening}: the host's name cannot be resolved
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
     * @throws MultitowerException.Unavailable {@code not_listening}: the host's name cannot be resolved
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
        private int retries = Retries.DEFAULT;
        private Duration peerTimeout = Duration.ofSeconds(30);

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
         * How many inferences may be outstanding; further ones wait for one of them to finish, within their time-out.
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
            if (!peerTimeout.isZero()
                    && (peerTimeout.compareTo(Duration.ofMillis(200)) < 0
                            || peerTimeout.compareTo(Duration.ofDays(1)) > 0)) {
                throw new IllegalArgumentException("peerTimeout must be 200 ms to a day, or zero, not " + peerTimeout);
            }
            this.peerTimeout = peerTimeout;
            return this;
        }

        /**
         * Creates the client.
         *
         * @return a client that connects in the background
         * @throws IllegalArgumentException the endpoint is not one that Java can reach
         * @throws MultitowerException.Unavailable {@code not_listening}: the host's name cannot be resolved
         */
        public MultitowerClient build() {
            return new MultitowerClient(this);
        }
    }

    /**
     * The daemon's endpoint.
     *
     * @return {@code tcp://HOST:PORT}
     */
    public String endpoint() {
        return endpoint;
    }

    // Inference.

    /**
     * Runs a model and waits for its outputs, with the client's time-out.
     *
     * @param model its name
     * @param inputs by name; where the model is batched, dimension 0 of each is the rows
     * @return the outputs by name, in the model's order; not to be changed
     * @throws MultitowerException what went wrong, see the class
     */
    public Map<String, Tensor> infer(String model, Map<String, Tensor> inputs) {
        return infer(InferRequest.of(model, inputs));
    }

    /**
     * Runs a model and waits for its outputs.
     *
     * @param model its name
     * @param inputs by name; where the model is batched, dimension 0 of each is the rows
     * @param timeout how long it may take
     * @return the outputs by name, in the model's order; not to be changed
     * @throws MultitowerException what went wrong, see the class
     * @throws IllegalArgumentException the time-out is zero or negative
     */
    public Map<String, Tensor> infer(String model, Map<String, Tensor> inputs, Duration timeout) {
        return infer(InferRequest.of(model, inputs).withTimeout(timeout));
    }

    /**
     * Runs a model and waits for its outputs.
     *
     * @param request what to run
     * @return the outputs by name, in the model's order or that of the request; not to be changed
     * @throws MultitowerException what went wrong, see the class
     * @throws IllegalArgumentException the time-out is zero or negative
     */
    public Map<String, Tensor> infer(InferRequest request) {
        return await(inferAsync(request));
    }

    /**
     * Starts what {@link #infer(String, Map)} does.
     *
     * @param model its name
     * @param inputs by name
     * @return see {@link #inferAsync(InferRequest)}
     * @throws MultitowerException it cannot be sent, see there
     */
    public CompletableFuture<Map<String, Tensor>> inferAsync(String model, Map<String, Tensor> inputs) {
        return inferAsync(InferRequest.of(model, inputs));
    }

    /**
     * Starts what {@link #infer(String, Map, Duration)} does.
     *
     * @param model its name
     * @param inputs by name
     * @param timeout how long it may take
     * @return see {@link #inferAsync(InferRequest)}
     * @throws MultitowerException it cannot be sent, see there
     * @throws IllegalArgumentException the time-out is zero or negative
     */
    public CompletableFuture<Map<String, Tensor>> inferAsync(
            String model, Map<String, Tensor> inputs, Duration timeout) {
        return inferAsync(InferRequest.of(model, inputs).withTimeout(timeout));
    }

    /**
     * Starts what {@link #infer(InferRequest)} does, and returns at once, or as soon as {@code maxOutstanding} allows.
     *
     * <p>Completing the future before its outcome is there, as {@link CompletableFuture#cancel} does, cancels the
     * request: the daemon is told, and does not run it if it has not begun. Actions that depend on the future without
     * an executor run in the client's thread: they must be short, may start other requests, and must not wait for them.
     *
     * @param request what to run
     * @return a future of the outputs, or of a {@link MultitowerException}
     * @throws MultitowerException.InvalidRequest {@code malformed}: a name that UTF-8 cannot express
     * @throws MultitowerException.DeadlineExceeded {@code maxOutstanding} requests were outstanding for the request's
     *     whole time
     * @throws MultitowerException.Unavailable {@code closed}: the client was closed
     * @throws MultitowerException.Cancelled the thread was interrupted while it waited for others
     * @throws IllegalArgumentException the time-out is zero or negative
     */
    public CompletableFuture<Map<String, Tensor>> inferAsync(InferRequest request) {
        connection.check();
        Duration time = request.timeout() == null ? timeout : Clock.positive("timeout", request.timeout());
        long nanos = Clock.nanos(time);
        long begun = Clock.now();
        // At least one microsecond: the protocol does not allow a time-out of 0. Always the whole time, so that headers
        // repeat.
        byte[] header = Codec.inferHeader(request, (nanos + 999) / 1000);
        List<Tensor> body = new ArrayList<>(request.inputs().values());
        enter(nanos);
        CompletableFuture<Map<String, Tensor>> future =
                start(Wire.INFER, header, body, begun, nanos, codec::outputs);
        future.whenComplete((outputs, error) -> room.release());
        return future;
    }

    private void enter(long nanos) {
        boolean entered;
        try {
            // The connection's thread would wait for itself.
            entered = room.tryAcquire() || !connection.inItsThread() && room.tryAcquire(nanos, TimeUnit.NANOSECONDS);
        } catch (InterruptedException interrupt) {
            throw interrupted();
        }
        if (!entered) {
            String message =
                    maxOutstanding + " requests were outstanding, and none got its outcome within this one's time"
                            + " (maxOutstanding)";
            throw Errors.make(Reason.DEADLINE, message);
        }
    }

    private <T> CompletableFuture<T> start(
            byte[] kind, byte[] header, List<Tensor> body, long begun, long nanos, Call.Reader<T> reader) {
        long connectBy = Clock.now() + Clock.nanos(connectTimeout);
        Call<T> call = new Call<>(kind, header, body, begun + nanos, Math.min(begun + nanos, connectBy), reader);
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

    private <T> T await(CompletableFuture<T> future) {
        if (connection.inItsThread() && !future.isDone()) {
            future.cancel(false);
            throw new IllegalStateException(
                    "this is the client's thread: the answer would come to it; use an executor (thenApplyAsync)");
        }
        try {
            return future.get();
        } catch (InterruptedException interrupt) {
            future.cancel(false);
            throw interrupted();
        } catch (ExecutionException failed) {
            if (failed.getCause() instanceof MultitowerException) {
                // No other thread has this exception; the trace of the waiting thread is more useful than the client's.
                failed.getCause().fillInStackTrace();
                throw (MultitowerException) failed.getCause();
            }
            throw new IllegalStateException(failed.getCause());
        }
    }

    private static MultitowerException interrupted() {
        Thread.currentThread().interrupt();
        return Errors.make(Reason.CANCELLED, "the thread was interrupted while it waited");
    }

    // Queries.

    private Map<String, Object> ask(byte[] kind, Map<String, Object> header, Duration time) {
        connection.check();
        byte[] bytes = header.isEmpty() ? Wire.EMPTY_HEADER : Json.write(header);
        Call.Reader<Map<String, Object>> reader = (reply, frames) -> Json.read(reply);
        return await(start(kind, bytes, List.of(), Clock.now(), Clock.nanos(time), reader));
    }

    private static Map<String, Object> model(String model, String version) {
        Map<String, Object> header = new LinkedHashMap<>();
        header.put("model_name", Objects.requireNonNull(model, "model"));
        if (!version.isEmpty()) {
            header.put("model_version", version);
        }
        return header;
    }

    /**
     * Whether the daemon answers.
     *
     * @return true; it is an exception otherwise
     * @throws MultitowerException.Unavailable no daemon listens
     * @throws MultitowerException.DeadlineExceeded it does not answer within the client's time-out
     */
    public boolean serverLive() {
        return Boolean.TRUE.equals(ask(Wire.SERVER_LIVE, Map.of(), timeout).get("live"));
    }

    /**
     * Whether each model has a ready worker.
     *
     * @return true if so
     * @throws MultitowerException.Unavailable no daemon listens
     * @throws MultitowerException.DeadlineExceeded it does not answer within the client's time-out
     */
    public boolean serverReady() {
        return Boolean.TRUE.equals(ask(Wire.SERVER_READY, Map.of(), timeout).get("ready"));
    }

    /**
     * Name, version, extensions and {@code max_message_size} (bytes) of the daemon.
     *
     * @return values as in JSON, see {@link #status}
     * @throws MultitowerException no daemon answers
     */
    public Map<String, Object> serverMetadata() {
        return ask(Wire.SERVER_METADATA, Map.of(), timeout);
    }

    /**
     * The daemon's state: {@code daemon}, {@code slots} and {@code models}; docs/protocol.md lists the fields.
     *
     * @return values as in JSON: {@link String}, {@link Long}, {@link Double}, {@link Boolean}, {@code null},
     *     {@link List} and {@link Map}
     * @throws MultitowerException no daemon answers
     */
    public Map<String, Object> status() {
        return ask(Wire.STATUS, Map.of(), timeout);
    }

    /**
     * Whether a worker serves the model.
     *
     * @param model its name
     * @return true if so
     * @throws MultitowerException.NotFound there is no such model
     * @throws MultitowerException no daemon answers
     */
    public boolean modelReady(String model) {
        return Boolean.TRUE.equals(ask(Wire.MODEL_READY, model(model, ""), timeout).get("ready"));
    }

    /**
     * The model's versions, and its inputs and outputs.
     *
     * @param model its name
     * @return names, datatypes and shapes
     * @throws MultitowerException.NotFound there is no such model
     * @throws MultitowerException.Unavailable no worker has loaded it, or no daemon listens
     * @throws MultitowerException no daemon answers
     */
    public ModelMetadata metadata(String model) {
        return metadata(model, "");
    }

    /**
     * The same for one version.
     *
     * @param model its name
     * @param version empty for the one that is served
     * @return names, datatypes and shapes
     * @throws MultitowerException.NotFound there is no such model or version
     * @throws MultitowerException.Unavailable no worker has loaded it, or no daemon listens
     * @throws MultitowerException no daemon answers
     */
    public ModelMetadata metadata(String model, String version) {
        return Codec.metadata(ask(Wire.MODEL_METADATA, model(model, version), timeout));
    }

    /**
     * The model's configuration with Triton's names, such as {@code max_batch_size}.
     *
     * @param model its name
     * @return values as in JSON, see {@link #status}
     * @throws MultitowerException.NotFound there is no such model
     * @throws MultitowerException.Unavailable no worker has loaded it, or no daemon listens
     * @throws MultitowerException no daemon answers
     */
    public Map<String, Object> modelConfig(String model) {
        return ask(Wire.MODEL_CONFIG, model(model, ""), timeout);
    }

    /**
     * Counts and nanoseconds of success, failure, queue and compute of all models.
     *
     * @return values as in JSON, see {@link #status}
     * @throws MultitowerException no daemon answers
     */
    public Map<String, Object> statistics() {
        return ask(Wire.STATISTICS, Map.of(), timeout);
    }

    /**
     * The same for one model.
     *
     * @param model its name
     * @return values as in JSON, see {@link #status}
     * @throws MultitowerException.NotFound there is no such model
     * @throws MultitowerException no daemon answers
     */
    public Map<String, Object> statistics(String model) {
        return ask(Wire.STATISTICS, model(model, ""), timeout);
    }

    /**
     * Waits until the daemon listens and each model has a ready worker.
     *
     * @param within how long
     * @throws MultitowerException.Unavailable not ready in time; the message says what is missing. Or
     *     {@code closed}
     * @throws MultitowerException.Cancelled the thread was interrupted
     */
    public void waitUntilReady(Duration within) {
        long until = Clock.now() + Clock.nanos(within);
        while (true) {
            String why;
            try {
                long left = Math.max(until - Clock.now(), TimeUnit.MILLISECONDS.toNanos(1));
                Map<String, Object> state = ask(Wire.SERVER_READY, Map.of(), Duration.ofNanos(left));
                if (Boolean.TRUE.equals(state.get("ready"))) {
                    return;
                }
                Object ready = state.get("slots_ready");
                Object total = state.get("slots_total");
                String missing = Objects.equals(ready, total) ? ", but some model is on none of them" : "";
                why = ready + " of " + total + " slots are ready" + missing + "; `multitower status` tells why";
            } catch (MultitowerException.Unavailable | MultitowerException.DeadlineExceeded error) {
                if (error.is(Reason.CLOSED)) {
                    throw error;
                }
                why = error.getMessage();
            }
            if (Clock.now() + TimeUnit.MILLISECONDS.toNanos(ASK_AGAIN_MS) >= until) {
                throw Errors.make(Reason.NO_WORKER, "not ready after " + within + ": " + why);
            }
            try {
                Thread.sleep(ASK_AGAIN_MS);
            } catch (InterruptedException interrupt) {
                throw interrupted();
            }
        }
    }

    /**
     * Closes the connection; requests without an outcome fail with {@link MultitowerException.Unavailable},
     * {@code closed}. May be called again, and from any thread.
     */
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
