package io.github.multitower.client;

import java.util.Arrays;
import java.util.Objects;

/** An input or output as a model declares it. Tests of applications create one with {@link #of}. */
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
     * An input that requests must have, or an output.
     *
     * @param name of the tensor
     * @param datatype of its elements
     * @param shape sizes of the dimensions; -1 for one of any size
     * @return the description
     */
    public static TensorSpec of(String name, Datatype datatype, long... shape) {
        Objects.requireNonNull(name, "name");
        Objects.requireNonNull(datatype, "datatype");
        return new TensorSpec(name, datatype, Objects.requireNonNull(shape, "shape").clone(), false);
    }

    /**
     * The same as an input that requests may leave out.
     *
     * @return a description whose {@link #optional} is {@code true}
     */
    public TensorSpec asOptional() {
        return new TensorSpec(name, datatype, shape, true);
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

    /** Whether the other object is a description with the same values. */
    @Override
    public boolean equals(Object other) {
        if (!(other instanceof TensorSpec)) {
            return false;
        }
        TensorSpec that = (TensorSpec) other;
        return name.equals(that.name)
                && datatype == that.datatype
                && Arrays.equals(shape, that.shape)
                && optional == that.optional;
    }

    @Override
    public int hashCode() {
        return Objects.hash(name, datatype, Arrays.hashCode(shape), optional);
    }

    /** Name, datatype and shape, for example {@code x: FP32[-1, 64]}. */
    @Override
    public String toString() {
        return name + ": " + datatype + Arrays.toString(shape);
    }
}
