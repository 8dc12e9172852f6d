package io.github.multitower.client;

import java.util.Arrays;

/** An input or output as a model declares it. */
public final class TensorSpec {
    private final String name;
    private final Datatype datatype;
    private final long[] shape;
    private final boolean optional;

    TensorSpec(String name, Datatype datatype, long[] shape, boolean optional) {
        this.name = name;
        this.datatype = datatype;
        this.shape = shape;
        this.optional = optional;
    }

    /**
     * The key of the tensor in the map of inputs or outputs.
     *
     * @return its name
     */
    public String name() {
        return name;
    }

    /**
     * The datatype of its elements.
     *
     * @return one of the protocol's
     */
    public Datatype datatype() {
        return datatype;
    }

    /**
     * The sizes of its dimensions; if the model is batched, dimension 0 is the rows.
     *
     * @return a copy; -1 for a dimension of any size
     */
    public long[] shape() {
        return shape.clone();
    }

    /**
     * Whether requests may leave this input out, since the model has a default for it.
     *
     * @return {@code false} for outputs
     */
    public boolean optional() {
        return optional;
    }

    /** Name, datatype and shape, for example {@code x: FP32[-1, 64]}. */
    @Override
    public String toString() {
        return name + ": " + datatype + Arrays.toString(shape);
    }
}
