package io.github.multitower.client;

import java.time.Duration;
import java.util.Map;
import java.util.concurrent.CompletableFuture;

/**
 * What applications ask a daemon: {@link MultitowerClient} implements it, and so may a fake in an application's tests.
 * Safe for any number of threads. Later releases add methods only as {@code default} ones, so that implementations
 * compile as before.
 *
 * <p>Every failure is a {@link MultitowerException}:
 *
 * <ul>
 *   <li>{@link MultitowerException.InvalidRequest}: the request is wrong; the message names the field.
 *   <li>{@link MultitowerException.NotFound}: there is no such model or version.
 *   <li>{@link MultitowerException.Overloaded}: the model's queue was full at each attempt, or the next one would
 *       come after the deadline; or the client has as many requests outstanding as it allows; or the client has left
 *       too many replies unread.
 *   <li>{@link MultitowerException.DeadlineExceeded}: no answer in time.
 *   <li>{@link MultitowerException.Unavailable}: no daemon listens, the connection was lost, no worker serves the
 *       model, or the client was closed.
 *   <li>{@link MultitowerException.Unauthenticated}: the daemon does not know who asks: no key, or none that it admits.
 *   <li>{@link MultitowerException.Forbidden}: the daemon knows who asks, and does not allow them this operation, or this
 *       model.
 *   <li>{@link MultitowerException.Poisoned}: workers died while they executed the request.
 *   <li>{@link MultitowerException.ModelError}: the model raised an exception.
 *   <li>{@link MultitowerException.InternalError}: a defect of the daemon, or an error that ended the client.
 *   <li>{@link MultitowerException.Cancelled}: the waiting thread was interrupted; it stays so.
 * </ul>
 */
public interface InferenceClient extends AutoCloseable {
    // Inference.

    /**
     * Runs a model and waits for its outputs, with the client's time-out.
     *
     * @param model its name
     * @param inputs by name; where the model is batched, dimension 0 of each is the rows
     * @return the outputs by name, in the model's order; not to be changed
     * @throws MultitowerException what went wrong, see the class
     */
    default Map<String, Tensor> infer(String model, Map<String, Tensor> inputs) {
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
    default Map<String, Tensor> infer(String model, Map<String, Tensor> inputs, Duration timeout) {
        return infer(InferRequest.of(model, inputs).withTimeout(timeout));
    }

    /**
     * Runs a model and waits for its outputs.
     *
     * @param request what to run
     * @return the outputs by name, in the model's order or that of the request; not to be changed
     * @throws MultitowerException what went wrong, see the class
     */
    Map<String, Tensor> infer(InferRequest request);

    /**
     * Starts what {@link #infer(String, Map)} does.
     *
     * @param model its name
     * @param inputs by name
     * @return see {@link #inferAsync(InferRequest)}
     */
    default CompletableFuture<Map<String, Tensor>> inferAsync(String model, Map<String, Tensor> inputs) {
        return inferAsync(InferRequest.of(model, inputs));
    }

    /**
     * Starts what {@link #infer(String, Map, Duration)} does.
     *
     * @param model its name
     * @param inputs by name
     * @param timeout how long it may take; the future fails with {@link IllegalArgumentException} if it is zero or
     *     negative
     * @return see {@link #inferAsync(InferRequest)}
     */
    default CompletableFuture<Map<String, Tensor>> inferAsync(
            String model, Map<String, Tensor> inputs, Duration timeout) {
        InferRequest request = InferRequest.of(model, inputs);
        try {
            request = request.withTimeout(timeout);
        } catch (IllegalArgumentException spent) {
            return CompletableFuture.failedFuture(spent);
        }
        return inferAsync(request);
    }

    /**
     * Starts what {@link #infer(InferRequest)} does, and does not wait for the outcome. It may wait for room only if the
     * client was built to do so. It throws nothing but {@link NullPointerException}: every other error is the outcome of
     * the future, also if the request cannot be sent.
     *
     * <p>Completing the future before its outcome is there, as {@link CompletableFuture#cancel} does, cancels the
     * request: the daemon is told, and does not run it if it has not begun. Actions that depend on the future without
     * an executor run in the client's thread: they must be short, may start other requests, and must not wait for them.
     *
     * @param request what to run
     * @return a future of the outputs, or of a {@link MultitowerException}
     */
    CompletableFuture<Map<String, Tensor>> inferAsync(InferRequest request);

    // Queries.

    /**
     * Whether the daemon answers.
     *
     * @return always true; otherwise an exception is thrown
     * @throws MultitowerException.Unavailable no daemon listens
     * @throws MultitowerException.DeadlineExceeded it does not answer within the client's time-out
     */
    boolean serverLive();

    /**
     * Whether each model has a ready worker.
     *
     * @return true if so
     * @throws MultitowerException.Unavailable no daemon listens
     * @throws MultitowerException.DeadlineExceeded it does not answer within the client's time-out
     */
    boolean serverReady();

    /**
     * Name, version, extensions and {@code max_message_size} (bytes) of the daemon.
     *
     * @return values as in JSON, see {@link #status}
     * @throws MultitowerException no daemon answers
     */
    Map<String, Object> serverMetadata();

    /**
     * The daemon's state: {@code daemon}, {@code slots} and {@code models}; docs/protocol.md lists the fields.
     *
     * @return values as in JSON: {@link String}, {@link Long}, {@link Double}, {@link Boolean}, {@code null},
     *     {@link java.util.List} and {@link Map}
     * @throws MultitowerException no daemon answers
     */
    Map<String, Object> status();

    /**
     * Whether a worker serves the model.
     *
     * @param model its name
     * @return true if so
     * @throws MultitowerException.NotFound there is no such model
     * @throws MultitowerException no daemon answers
     */
    default boolean modelReady(String model) {
        return modelReady(model, "");
    }

    /**
     * Whether a worker serves a version of the model.
     *
     * @param model its name
     * @param version empty for any
     * @return true if so
     * @throws MultitowerException.NotFound there is no such model or version
     * @throws MultitowerException no daemon answers
     */
    boolean modelReady(String model, String version);

    /**
     * The model's versions, its inputs and outputs, and its signatures.
     *
     * @param model its name
     * @return names, datatypes and shapes
     * @throws MultitowerException.NotFound there is no such model
     * @throws MultitowerException.Unavailable no worker has loaded it, or no daemon listens
     * @throws MultitowerException no daemon answers
     */
    default ModelMetadata metadata(String model) {
        return metadata(model, "");
    }

    /**
     * The same for one version.
     *
     * @param model its name
     * @param version empty for the highest that is served
     * @return names, datatypes and shapes
     * @throws MultitowerException.NotFound there is no such model or version
     * @throws MultitowerException.Unavailable no worker has loaded it, or no daemon listens
     * @throws MultitowerException no daemon answers
     */
    ModelMetadata metadata(String model, String version);

    /**
     * The model's configuration with Triton's names, such as {@code max_batch_size}.
     *
     * @param model its name
     * @return values as in JSON, see {@link #status}
     * @throws MultitowerException.NotFound there is no such model
     * @throws MultitowerException.Unavailable no worker has loaded it, or no daemon listens
     * @throws MultitowerException no daemon answers
     */
    default Map<String, Object> modelConfig(String model) {
        return modelConfig(model, "");
    }

    /**
     * The same for one version.
     *
     * @param model its name
     * @param version empty for the highest that is served
     * @return values as in JSON, see {@link #status}
     * @throws MultitowerException.NotFound there is no such model or version
     * @throws MultitowerException.Unavailable no worker has loaded it, or no daemon listens
     * @throws MultitowerException no daemon answers
     */
    Map<String, Object> modelConfig(String model, String version);

    /**
     * Counts and nanoseconds of success, failure, queue and compute of all models.
     *
     * @return values as in JSON, see {@link #status}
     * @throws MultitowerException no daemon answers
     */
    Map<String, Object> statistics();

    /**
     * The same for all versions of one model.
     *
     * @param model its name
     * @return values as in JSON, see {@link #status}
     * @throws MultitowerException.NotFound there is no such model
     * @throws MultitowerException no daemon answers
     */
    default Map<String, Object> statistics(String model) {
        return statistics(model, "");
    }

    /**
     * The same for one version of one model.
     *
     * @param model its name
     * @param version empty for all
     * @return values as in JSON, see {@link #status}
     * @throws MultitowerException.NotFound there is no such model or version
     * @throws MultitowerException no daemon answers
     */
    Map<String, Object> statistics(String model, String version);

    /**
     * Waits until the daemon listens and each model has a ready worker.
     *
     * @param within how long
     * @throws MultitowerException.Unavailable not ready in time; the message says what is missing. {@code no_worker} if
     *     the daemon was reached; else the reason and the details of the last attempt, such as {@code not_listening} with
     *     {@code connect_error}. Or {@code closed}
     * @throws MultitowerException.Unauthenticated the keys prevent a connection; it does not wait then
     * @throws MultitowerException.Cancelled the thread was interrupted
     */
    void waitUntilReady(Duration within);

    /**
     * Closes the connection; requests without an outcome fail with {@link MultitowerException.Unavailable},
     * {@code closed}. May be called again, and from any thread. It waits up to five seconds for an action that depends on
     * a future and still runs in the client's thread, and returns without an error if it has not ended by then.
     */
    @Override
    void close();
}
