package io.github.multitower.client;

import java.time.Duration;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;

/**
 * What to run: a model, its inputs, and options. Immutable: each {@code with} returns a changed copy. Requests are
 * equal if all their values are.
 */
public final class InferRequest {
    private final String model;
    private final Map<String, Tensor> inputs;
    private final List<String> outputs;
    private final String version;
    private final String label;
    private final String signature;
    private final Duration timeout; // null: the client's
    private final long priority;
    private final TraceContext trace;

    private InferRequest(
            String model,
            Map<String, Tensor> inputs,
            List<String> outputs,
            String version,
            String label,
            String signature,
            Duration timeout,
            long priority,
            TraceContext trace) {
        this.model = model;
        this.inputs = inputs;
        this.outputs = outputs;
        this.version = version;
        this.label = label;
        this.signature = signature;
        this.timeout = timeout;
        this.priority = priority;
        this.trace = trace;
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
        Objects.requireNonNull(model, "model");
        Objects.requireNonNull(inputs, "inputs");
        // A copy: an unmodifiable view would change with its map.
        Map<String, Tensor> copy = new LinkedHashMap<>(inputs);
        copy.forEach(
                (name, tensor) -> {
                    Objects.requireNonNull(name, "inputs: a name");
                    Objects.requireNonNull(tensor, "inputs: the tensor of " + name);
                });
        return new InferRequest(model, Collections.unmodifiableMap(copy), List.of(), "", "", "", null, 0, TraceContext.NONE);
    }

    /**
     * A copy for some outputs only.
     *
     * @param names of the outputs wanted, in the order of the reply; none for all
     * @return the request
     */
    public InferRequest withOutputs(String... names) {
        List<String> wanted = List.of(Nulls.array("names", names));
        return new InferRequest(model, inputs, wanted, version, label, signature, timeout, priority, trace);
    }

    /**
     * A copy for one version, which replaces a label.
     *
     * @param version of the model; empty for the highest that is served
     * @return the request
     */
    public InferRequest withVersion(String version) {
        Objects.requireNonNull(version, "version");
        return new InferRequest(model, inputs, outputs, version, "", signature, timeout, priority, trace);
    }

    /**
     * A copy for the version with a label, which replaces {@link #withVersion}.
     *
     * @param label one of the model's {@code version_labels}; empty for none
     * @return the request
     */
    public InferRequest withVersionLabel(String label) {
        Objects.requireNonNull(label, "label");
        return new InferRequest(model, inputs, outputs, "", label, signature, timeout, priority, trace);
    }

    /**
     * A copy for another signature of the model.
     *
     * @param signature its name; empty for the one that the model is served with
     * @return the request
     */
    public InferRequest withSignature(String signature) {
        Objects.requireNonNull(signature, "signature");
        return new InferRequest(model, inputs, outputs, version, label, signature, timeout, priority, trace);
    }

    /**
     * A copy with its own time-out.
     *
     * @param timeout how long it may take
     * @return the request
     * @throws IllegalArgumentException it is zero or negative
     */
    public InferRequest withTimeout(Duration timeout) {
        Clock.positive("timeout", timeout);
        return new InferRequest(model, inputs, outputs, version, label, signature, timeout, priority, trace);
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
        return new InferRequest(model, inputs, outputs, version, label, signature, timeout, priority, trace);
    }

    /**
     * A copy that belongs to a trace. The daemon's spans join it, if the daemon traces requests.
     *
     * @param traceparent the header of W3C Trace Context. An invalid one, or one of a span that is not sampled, counts
     *     as none
     * @return the request
     */
    public InferRequest withTrace(String traceparent) {
        return withTrace(traceparent, "");
    }

    /**
     * A copy that belongs to a trace with a state.
     *
     * @param traceparent as for {@link #withTrace(String)}
     * @param tracestate the header beside it; left out if it is longer than 512 characters or not printable ASCII
     * @return the request
     */
    public InferRequest withTrace(String traceparent, String tracestate) {
        TraceContext trace = TraceContext.of(traceparent, tracestate);
        return new InferRequest(model, inputs, outputs, version, label, signature, timeout, priority, trace);
    }

    /**
     * The model to run.
     *
     * @return its name
     */
    public String model() {
        return model;
    }

    /**
     * The inputs.
     *
     * @return tensors by name, in the order in which they are sent; not to be changed
     */
    public Map<String, Tensor> inputs() {
        return inputs;
    }

    /**
     * The outputs wanted.
     *
     * @return their names; empty for all
     */
    public List<String> outputs() {
        return outputs;
    }

    /**
     * The version to run.
     *
     * @return its number; empty for the highest that is served, or for that of {@link #versionLabel}
     */
    public String version() {
        return version;
    }

    /**
     * The label of the version to run.
     *
     * @return the label; empty for none
     */
    public String versionLabel() {
        return label;
    }

    /**
     * The signature to run.
     *
     * @return its name; empty for the default one
     */
    public String signature() {
        return signature;
    }

    /**
     * How long it may take.
     *
     * @return its own time-out; empty for the client's
     */
    public Optional<Duration> timeout() {
        return Optional.ofNullable(timeout);
    }

    /**
     * How urgent it is.
     *
     * @return 1 for the most urgent; 0, the default, counts as 2
     */
    public long priority() {
        return priority;
    }

    /**
     * The trace that it belongs to.
     *
     * @return its {@code traceparent}; empty for none that is sampled
     */
    public String traceparent() {
        return trace.traceparent();
    }

    /**
     * The state of its trace.
     *
     * @return its {@code tracestate}; empty for none
     */
    public String tracestate() {
        return trace.tracestate();
    }

    TraceContext trace() {
        return trace;
    }

    /** Whether the other object is a request with the same values. */
    @Override
    public boolean equals(Object other) {
        if (!(other instanceof InferRequest)) {
            return false;
        }
        InferRequest that = (InferRequest) other;
        return model.equals(that.model)
                && inputs.equals(that.inputs)
                && outputs.equals(that.outputs)
                && version.equals(that.version)
                && label.equals(that.label)
                && signature.equals(that.signature)
                && Objects.equals(timeout, that.timeout)
                && priority == that.priority
                && trace.equals(that.trace);
    }

    @Override
    public int hashCode() {
        return Objects.hash(model, inputs, outputs, version, label, signature, timeout, priority, trace);
    }

    /** Model, datatypes and shapes of the inputs, and the options that were set; no values of tensors. */
    @Override
    public String toString() {
        StringBuilder text = new StringBuilder("InferRequest[model=").append(model).append(", inputs=").append(inputs);
        if (!outputs.isEmpty()) {
            text.append(", outputs=").append(outputs);
        }
        append(text, "version", version);
        append(text, "versionLabel", label);
        append(text, "signature", signature);
        append(text, "timeout", timeout == null ? "" : timeout.toString());
        append(text, "priority", priority == 0 ? "" : Long.toString(priority));
        append(text, "traceparent", trace.traceparent());
        append(text, "tracestate", trace.tracestate());
        return text.append(']').toString();
    }

    private static void append(StringBuilder text, String name, String value) {
        if (!value.isEmpty()) {
            text.append(", ").append(name).append('=').append(value);
        }
    }
}
