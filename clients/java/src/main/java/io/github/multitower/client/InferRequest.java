package io.github.multitower.client;

import java.time.Duration;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/** What to run: a model, its inputs, and options. Immutable: each {@code with} returns a changed copy. */
public final class InferRequest {
    private final String model;
    private final Map<String, Tensor> inputs;
    private final List<String> outputs;
    private final String version;
    private final String label;
    private final String signature;
    private final Duration timeout;
    private final long priority;

    private InferRequest(
            String model,
            Map<String, Tensor> inputs,
            List<String> outputs,
            String version,
            String label,
            String signature,
            Duration timeout,
            long priority) {
        this.model = model;
        this.inputs = inputs;
        this.outputs = outputs;
        this.version = version;
        this.label = label;
        this.signature = signature;
        this.timeout = timeout;
        this.priority = priority;
    }

    /**
     * A request for all outputs, of the version that is served, with the client's time-out.
     *
     * @param model its name
     * @param inputs by name. Where the model is batched, dimension 0 of each is the rows. Maps with a fixed order give
     *     equal headers for equal requests, which costs the daemon least; {@link Map#of} has one within a process
     * @return the request
     */
    public static InferRequest of(String model, Map<String, Tensor> inputs) {
        // A copy: an unmodifiable view would change with its map.
        Map<String, Tensor> copy = new LinkedHashMap<>(inputs);
        copy.forEach((name, tensor) -> Objects.requireNonNull(tensor, name));
        Objects.requireNonNull(model, "model");
        return new InferRequest(model, Collections.unmodifiableMap(copy), List.of(), "", "", "", null, 0);
    }

    /**
     * A copy for some outputs only.
     *
     * @param names of the outputs wanted, in the order of the reply; none for all
     * @return the request
     */
    public InferRequest withOutputs(String... names) {
        return new InferRequest(model, inputs, List.of(names), version, label, signature, timeout, priority);
    }

    /**
     * A copy for one version, which replaces a label.
     *
     * @param version of the model; empty for the highest that is served
     * @return the request
     */
    public InferRequest withVersion(String version) {
        Objects.requireNonNull(version, "version");
        return new InferRequest(model, inputs, outputs, version, "", signature, timeout, priority);
    }

    /**
     * A copy for the version with a label, which replaces {@link #withVersion}.
     *
     * @param label one of the model's {@code version_labels}; empty for none
     * @return the request
     */
    public InferRequest withVersionLabel(String label) {
        Objects.requireNonNull(label, "label");
        return new InferRequest(model, inputs, outputs, "", label, signature, timeout, priority);
    }

    /**
     * A copy for another signature of the model.
     *
     * @param signature its name; empty for the one that the model is served with
     * @return the request
     */
    public InferRequest withSignature(String signature) {
        Objects.requireNonNull(signature, "signature");
        return new InferRequest(model, inputs, outputs, version, label, signature, timeout, priority);
    }

    /**
     * A copy with its own time-out.
     *
     * @param timeout positive; {@code null} for the client's
     * @return the request
     */
    public InferRequest withTimeout(Duration timeout) {
        return new InferRequest(model, inputs, outputs, version, label, signature, timeout, priority);
    }

    /**
     * A copy with a priority.
     *
     * @param priority 1 is the most urgent; 0, the default, counts as 2. Waiting requests of a lower number come first
     * @return the request
     * @throws IllegalArgumentException it is negative
     */
    public InferRequest withPriority(long priority) {
        if (priority < 0) {
            throw new IllegalArgumentException("priority must be 0 or more, not " + priority);
        }
        return new InferRequest(model, inputs, outputs, version, label, signature, timeout, priority);
    }

    String model() {
        return model;
    }

    Map<String, Tensor> inputs() {
        return inputs;
    }

    List<String> outputs() {
        return outputs;
    }

    String version() {
        return version;
    }

    String label() {
        return label;
    }

    String signature() {
        return signature;
    }

    Duration timeout() {
        return timeout;
    }

    long priority() {
        return priority;
    }
}
