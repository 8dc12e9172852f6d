package io.github.multitower.client;

import java.util.List;
import java.util.Objects;
import java.util.Optional;

/** A daemon's description of a signature of a model. Tests of applications create one with {@link #of}. */
public final class SignatureMetadata {
    private final List<TensorSpec> inputs;
    private final List<TensorSpec> outputs;
    private final long maxBatchSize;
    private final String unbatchedBecause;
    private final String unverifiedBecause;
    private final String cause;

    SignatureMetadata(
            List<TensorSpec> inputs,
            List<TensorSpec> outputs,
            long maxBatchSize,
            String unbatchedBecause,
            String unverifiedBecause,
            String cause) {
        this.inputs = List.copyOf(inputs);
        this.outputs = List.copyOf(outputs);
        this.maxBatchSize = maxBatchSize;
        this.unbatchedBecause = unbatchedBecause;
        this.unverifiedBecause = unverifiedBecause;
        this.cause = cause;
    }

    /**
     * The description of a signature that can be served.
     *
     * @param inputs in their order
     * @param outputs in their order
     * @param maxBatchSize the most rows of a batch; 0 if requests run one by one
     * @return the description
     */
    public static SignatureMetadata of(List<TensorSpec> inputs, List<TensorSpec> outputs, long maxBatchSize) {
        return new SignatureMetadata(
                Nulls.list("inputs", inputs), Nulls.list("outputs", outputs), maxBatchSize, null, null, null);
    }

    /**
     * The inputs of the signature.
     *
     * @return in their order
     */
    public List<TensorSpec> inputs() {
        return inputs;
    }

    /**
     * The outputs of the signature.
     *
     * @return in their order
     */
    public List<TensorSpec> outputs() {
        return outputs;
    }

    /**
     * The most rows of a batch.
     *
     * @return 0 if requests run one by one
     */
    public long maxBatchSize() {
        return maxBatchSize;
    }

    /**
     * Why requests run one by one although batching is configured.
     *
     * @return the reason; empty if they are batched, or if batching is not configured
     */
    public Optional<String> unbatchedBecause() {
        return Optional.ofNullable(unbatchedBecause);
    }

    /**
     * Why the warm-up could not show that the signature may be batched.
     *
     * @return the reason; empty if it could
     */
    public Optional<String> unverifiedBecause() {
        return Optional.ofNullable(unverifiedBecause);
    }

    /**
     * Why the signature cannot be served.
     *
     * @return the reason; empty if it can be served
     */
    public Optional<String> cause() {
        return Optional.ofNullable(cause);
    }

    /** Whether the other object is a description with the same values. */
    @Override
    public boolean equals(Object other) {
        if (!(other instanceof SignatureMetadata)) {
            return false;
        }
        SignatureMetadata that = (SignatureMetadata) other;
        return inputs.equals(that.inputs)
                && outputs.equals(that.outputs)
                && maxBatchSize == that.maxBatchSize
                && Objects.equals(unbatchedBecause, that.unbatchedBecause)
                && Objects.equals(unverifiedBecause, that.unverifiedBecause)
                && Objects.equals(cause, that.cause);
    }

    @Override
    public int hashCode() {
        return Objects.hash(inputs, outputs, maxBatchSize, unbatchedBecause, unverifiedBecause, cause);
    }

    /** Inputs and outputs, or the reason why the signature cannot be served. */
    @Override
    public String toString() {
        return inputs + " -> " + outputs + (cause == null ? "" : " (" + cause + ")");
    }
}
