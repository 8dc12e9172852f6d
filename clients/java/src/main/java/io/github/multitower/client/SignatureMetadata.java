package io.github.multitower.client;

import java.util.List;
import java.util.Objects;
import java.util.Optional;

/** A daemon's description of a signature of a model. Tests of applications create one with {@link #builder}. */
public final class SignatureMetadata {
    private final List<TensorSpec> inputs;
    private final List<TensorSpec> outputs;
    private final long maxBatchSize;
    private final String unbatchedBecause;
    private final String unverifiedBecause;
    private final String unservableBecause;

    private SignatureMetadata(Builder builder) {
        this.inputs = builder.inputs;
        this.outputs = builder.outputs;
        this.maxBatchSize = builder.maxBatchSize;
        this.unbatchedBecause = builder.unbatchedBecause;
        this.unverifiedBecause = builder.unverifiedBecause;
        this.unservableBecause = builder.unservableBecause;
    }

    /**
     * A builder for the description of a signature: it can be served, has no inputs and outputs at first, and its
     * requests run one by one.
     *
     * @return a builder
     */
    public static Builder builder() {
        return new Builder();
    }

    /** The parts of a description. */
    public static final class Builder {
        private List<TensorSpec> inputs = List.of();
        private List<TensorSpec> outputs = List.of();
        private long maxBatchSize;
        private String unbatchedBecause;
        private String unverifiedBecause;
        private String unservableBecause;

        private Builder() {}

        /**
         * The inputs of the signature.
         *
         * @param inputs in their order
         * @return this
         */
        public Builder inputs(List<TensorSpec> inputs) {
            this.inputs = Nulls.list("inputs", inputs);
            return this;
        }

        /**
         * The outputs of the signature.
         *
         * @param outputs in their order
         * @return this
         */
        public Builder outputs(List<TensorSpec> outputs) {
            this.outputs = Nulls.list("outputs", outputs);
            return this;
        }

        /**
         * The most rows of a batch.
         *
         * @param maxBatchSize 0 if requests run one by one
         * @return this
         */
        public Builder maxBatchSize(long maxBatchSize) {
            this.maxBatchSize = maxBatchSize;
            return this;
        }

        /**
         * Why requests run one by one although batching is configured.
         *
         * @param unbatchedBecause the reason
         * @return this
         */
        public Builder unbatchedBecause(String unbatchedBecause) {
            this.unbatchedBecause = Objects.requireNonNull(unbatchedBecause, "unbatchedBecause");
            return this;
        }

        /**
         * Why the warm-up could not show that the signature may be batched.
         *
         * @param unverifiedBecause the reason
         * @return this
         */
        public Builder unverifiedBecause(String unverifiedBecause) {
            this.unverifiedBecause = Objects.requireNonNull(unverifiedBecause, "unverifiedBecause");
            return this;
        }

        /**
         * Why the signature cannot be served.
         *
         * @param unservableBecause the reason
         * @return this
         */
        public Builder unservableBecause(String unservableBecause) {
            this.unservableBecause = Objects.requireNonNull(unservableBecause, "unservableBecause");
            return this;
        }

        /**
         * Creates the description.
         *
         * @return a description with the parts given so far
         */
        public SignatureMetadata build() {
            return new SignatureMetadata(this);
        }
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
    public Optional<String> unservableBecause() {
        return Optional.ofNullable(unservableBecause);
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
                && Objects.equals(unservableBecause, that.unservableBecause);
    }

    @Override
    public int hashCode() {
        return Objects.hash(inputs, outputs, maxBatchSize, unbatchedBecause, unverifiedBecause, unservableBecause);
    }

    /** Inputs and outputs, or the reason why the signature cannot be served. */
    @Override
    public String toString() {
        return inputs + " -> " + outputs + (unservableBecause == null ? "" : " (" + unservableBecause + ")");
    }
}
