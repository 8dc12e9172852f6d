package io.github.multitower.client;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/** A daemon's description of a model. Tests of applications create one with {@link #builder}. */
public final class ModelMetadata {
    private final String name;
    private final List<String> versions;
    private final String platform;
    private final List<TensorSpec> inputs;
    private final List<TensorSpec> outputs;
    private final String signatureName;
    private final Map<String, SignatureMetadata> signatures;

    private ModelMetadata(Builder builder) {
        this.name = builder.name;
        this.versions = builder.versions;
        this.platform = builder.platform;
        this.inputs = builder.inputs;
        this.outputs = builder.outputs;
        this.signatureName = builder.signatureName;
        this.signatures = Collections.unmodifiableMap(new LinkedHashMap<>(builder.signatures));
    }

    /**
     * A builder for the description of a model: no versions, inputs, outputs and signatures at first.
     *
     * @param name of the model
     * @return a builder
     */
    public static Builder builder(String name) {
        return new Builder(name);
    }

    /** The parts of a description. */
    public static final class Builder {
        private final String name;
        private List<String> versions = List.of();
        private String platform = "";
        private List<TensorSpec> inputs = List.of();
        private List<TensorSpec> outputs = List.of();
        private String signatureName = "";
        private final Map<String, SignatureMetadata> signatures = new LinkedHashMap<>();

        private Builder(String name) {
            this.name = Objects.requireNonNull(name, "name");
        }

        /**
         * The versions that are served.
         *
         * @param versions ascending
         * @return this
         */
        public Builder versions(List<String> versions) {
            this.versions = Nulls.list("versions", versions);
            return this;
        }

        /**
         * What executes the model.
         *
         * @param platform for example {@code tensorflow_savedmodel}
         * @return this
         */
        public Builder platform(String platform) {
            this.platform = Objects.requireNonNull(platform, "platform");
            return this;
        }

        /**
         * The inputs of the default signature.
         *
         * @param inputs in their order
         * @return this
         */
        public Builder inputs(List<TensorSpec> inputs) {
            this.inputs = Nulls.list("inputs", inputs);
            return this;
        }

        /**
         * The outputs of the default signature.
         *
         * @param outputs in their order
         * @return this
         */
        public Builder outputs(List<TensorSpec> outputs) {
            this.outputs = Nulls.list("outputs", outputs);
            return this;
        }

        /**
         * The name of the default signature.
         *
         * @param signatureName empty if the model has no signatures
         * @return this
         */
        public Builder signatureName(String signatureName) {
            this.signatureName = Objects.requireNonNull(signatureName, "signatureName");
            return this;
        }

        /**
         * Adds a signature.
         *
         * @param signatureName its name
         * @param signature its description
         * @return this
         */
        public Builder signature(String signatureName, SignatureMetadata signature) {
            Objects.requireNonNull(signatureName, "signatureName");
            signatures.put(signatureName, Objects.requireNonNull(signature, "signature"));
            return this;
        }

        /**
         * Creates the description.
         *
         * @return a description with the parts given so far
         */
        public ModelMetadata build() {
            return new ModelMetadata(this);
        }
    }

    /**
     * The model's name.
     *
     * @return as in the daemon's configuration
     */
    public String name() {
        return name;
    }

    /**
     * The versions that are served.
     *
     * @return their names, ascending
     */
    public List<String> versions() {
        return versions;
    }

    /**
     * What executes it.
     *
     * @return for example {@code tensorflow_savedmodel}
     */
    public String platform() {
        return platform;
    }

    /**
     * The inputs of the model, or of its default signature.
     *
     * @return its inputs; empty for a handler that declares nothing
     */
    public List<TensorSpec> inputs() {
        return inputs;
    }

    /**
     * The outputs of the model, or of its default signature.
     *
     * @return its outputs; empty for a handler that declares nothing
     */
    public List<TensorSpec> outputs() {
        return outputs;
    }

    /**
     * The name of the default signature, to which {@link #inputs} and {@link #outputs} belong.
     *
     * @return its name; empty if the model has no signatures, as a handler
     */
    public String signatureName() {
        return signatureName;
    }

    /**
     * All signatures, the default one as well; {@link InferRequest#withSignature} chooses one.
     *
     * @return their descriptions by name, not to be changed; empty if the model has none, as a handler
     */
    public Map<String, SignatureMetadata> signatures() {
        return signatures;
    }

    /** Whether the other object is a description with the same values. */
    @Override
    public boolean equals(Object other) {
        if (!(other instanceof ModelMetadata)) {
            return false;
        }
        ModelMetadata that = (ModelMetadata) other;
        return name.equals(that.name)
                && versions.equals(that.versions)
                && platform.equals(that.platform)
                && inputs.equals(that.inputs)
                && outputs.equals(that.outputs)
                && signatureName.equals(that.signatureName)
                && signatures.equals(that.signatures);
    }

    @Override
    public int hashCode() {
        return Objects.hash(name, versions, platform, inputs, outputs, signatureName, signatures);
    }

    /** Name, inputs and outputs. */
    @Override
    public String toString() {
        return name + " " + inputs + " -> " + outputs;
    }
}
