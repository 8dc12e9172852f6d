package io.github.multitower.client;

import java.util.List;

/** A daemon's description of a model. */
public final class ModelMetadata {
    private final String name;
    private final List<String> versions;
    private final String platform;
    private final List<TensorSpec> inputs;
    private final List<TensorSpec> outputs;

    ModelMetadata(
            String name, List<String> versions, String platform, List<TensorSpec> inputs, List<TensorSpec> outputs) {
        this.name = name;
        this.versions = List.copyOf(versions);
        this.platform = platform;
        this.inputs = List.copyOf(inputs);
        this.outputs = List.copyOf(outputs);
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
     * @return their names
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
     * The model's inputs.
     *
     * @return its inputs; empty for a handler that declares nothing
     */
    public List<TensorSpec> inputs() {
        return inputs;
    }

    /**
     * The model's outputs.
     *
     * @return its outputs; empty for a handler that declares nothing
     */
    public List<TensorSpec> outputs() {
        return outputs;
    }

    /** Name, inputs and outputs. */
    @Override
    public String toString() {
        return name + " " + inputs + " -> " + outputs;
    }
}
