package io.github.multitower.client;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;
import java.nio.ShortBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Objects;

/**
 * A tensor: a datatype, a shape, and little-endian, row-major, unpadded bytes. Immutable, and safe to share between
 * threads and requests.
 *
 * <p>The factories {@code of} copy an array into a direct buffer, once, from which it is sent. The one that takes
 * a {@link ByteBuffer} copies nothing. A shape with no dimensions is that of a scalar. Shape and size are checked
 * here, before anything is sent. Two tensors are equal if datatype, shape and bytes are.
 *
 * <table>
 * <caption>The arrays that each datatype is made from and read as</caption>
 * <tr><th>array</th><th>datatypes; the first is that of the short factory</th><th>view without a copy</th></tr>
 * <tr><td>{@code boolean[]}</td><td>BOOL</td><td>{@link #data}</td></tr>
 * <tr><td>{@code byte[]}</td><td>INT8, UINT8</td><td>{@link #data}</td></tr>
 * <tr><td>{@code short[]}</td><td>INT16, UINT16; the bits of FP16 and BF16</td><td>{@link #asShortBuffer}</td></tr>
 * <tr><td>{@code int[]}</td><td>INT32, UINT32</td><td>{@link #asIntBuffer}</td></tr>
 * <tr><td>{@code long[]}</td><td>INT64, UINT64</td><td>{@link #asLongBuffer}</td></tr>
 * <tr><td>{@code float[]}</td><td>FP32; FP16 and BF16, rounded to the nearest; COMPLEX64, real and imaginary part in
 *     turn</td><td>{@link #asFloatBuffer}, not for FP16 and BF16</td></tr>
 * <tr><td>{@code double[]}</td><td>FP64; COMPLEX128, real and imaginary part in turn</td>
 *     <td>{@link #asDoubleBuffer}</td></tr>
 * <tr><td>{@code String[]}, {@code byte[][]}</td><td>BYTES</td><td>{@link #data}</td></tr>
 * </table>
 *
 * <p>Unsigned integers are the bits of Java's signed ones: {@link Byte#toUnsignedInt} and its like read them.
 */
public final class Tensor {
    private final Datatype datatype;
    private final long[] shape;
    private final ByteBuffer data;
    private final int elements;

    private Tensor(Datatype datatype, ByteBuffer data, long[] shape) {
        this.datatype = datatype;
        this.shape = shape;
        // From 0 to the capacity: JeroMQ writes a large buffer as it is, up to its capacity.
        this.data = data.slice().asReadOnlyBuffer().order(ByteOrder.LITTLE_ENDIAN);
        this.elements = Sizes.check(datatype, shape, this.data);
    }

    // Factories.

    /**
     * A tensor of any datatype from its bytes, which are not copied: they must not change while the tensor is in use,
     * which for a request that failed or was cancelled is until the client is closed.
     *
     * @param datatype of the elements
     * @param data from its position to its limit: the elements, little-endian, whatever its byte order is; a direct
     *     buffer travels without a further copy
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code shape_invalid}, or {@code size_mismatch}: the bytes are not
     *     those of the shape
     */
    public static Tensor of(Datatype datatype, ByteBuffer data, long... shape) {
        Objects.requireNonNull(datatype, "datatype");
        Objects.requireNonNull(data, "data");
        return new Tensor(datatype, data, Objects.requireNonNull(shape, "shape").clone());
    }

    /**
     * A tensor of BOOL.
     *
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code shape_invalid} or {@code size_mismatch}
     */
    public static Tensor of(boolean[] values, long... shape) {
        return new Tensor(Datatype.BOOL, Encoder.booleans(values, shape), shape.clone());
    }

    /**
     * A tensor of INT8.
     *
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code shape_invalid} or {@code size_mismatch}
     */
    public static Tensor of(byte[] values, long... shape) {
        return of(Datatype.INT8, values, shape);
    }

    /**
     * A tensor of INT8 or UINT8.
     *
     * @param datatype one of these
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code datatype_mismatch}, {@code shape_invalid} or
     *     {@code size_mismatch}
     */
    public static Tensor of(Datatype datatype, byte[] values, long... shape) {
        return new Tensor(datatype, Encoder.bytes(datatype, values, shape), shape.clone());
    }

    /**
     * A tensor of INT16.
     *
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code shape_invalid} or {@code size_mismatch}
     */
    public static Tensor of(short[] values, long... shape) {
        return of(Datatype.INT16, values, shape);
    }

    /**
     * A tensor of INT16 or UINT16, or of FP16 or BF16 from their bits.
     *
     * @param datatype one of these
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code datatype_mismatch}, {@code shape_invalid} or
     *     {@code size_mismatch}
     */
    public static Tensor of(Datatype datatype, short[] values, long... shape) {
        return new Tensor(datatype, Encoder.shorts(datatype, values, shape), shape.clone());
    }

    /**
     * A tensor of INT32.
     *
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code shape_invalid} or {@code size_mismatch}
     */
    public static Tensor of(int[] values, long... shape) {
        return of(Datatype.INT32, values, shape);
    }

    /**
     * A tensor of INT32 or UINT32.
     *
     * @param datatype one of these
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code datatype_mismatch}, {@code shape_invalid} or
     *     {@code size_mismatch}
     */
    public static Tensor of(Datatype datatype, int[] values, long... shape) {
        return new Tensor(datatype, Encoder.ints(datatype, values, shape), shape.clone());
    }

    /**
     * A tensor of INT64.
     *
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code shape_invalid} or {@code size_mismatch}
     */
    public static Tensor of(long[] values, long... shape) {
        return of(Datatype.INT64, values, shape);
    }

    /**
     * A tensor of INT64 or UINT64.
     *
     * @param datatype one of these
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code datatype_mismatch}, {@code shape_invalid} or
     *     {@code size_mismatch}
     */
    public static Tensor of(Datatype datatype, long[] values, long... shape) {
        return new Tensor(datatype, Encoder.longs(datatype, values, shape), shape.clone());
    }

    /**
     * A tensor of FP32.
     *
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code shape_invalid} or {@code size_mismatch}
     */
    public static Tensor of(float[] values, long... shape) {
        return of(Datatype.FP32, values, shape);
    }

    /**
     * A tensor of FP32; of FP16 or BF16, each value rounded to the nearest, ties to even; or of
     * COMPLEX64.
     *
     * @param datatype one of these
     * @param values row-major; for COMPLEX64 real and imaginary part in turn, two values an element
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code datatype_mismatch}, {@code shape_invalid} or
     *     {@code size_mismatch}
     */
    public static Tensor of(Datatype datatype, float[] values, long... shape) {
        return new Tensor(datatype, Encoder.floats(datatype, values, shape), shape.clone());
    }

    /**
     * A tensor of FP64.
     *
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code shape_invalid} or {@code size_mismatch}
     */
    public static Tensor of(double[] values, long... shape) {
        return of(Datatype.FP64, values, shape);
    }

    /**
     * A tensor of FP64 or COMPLEX128.
     *
     * @param datatype one of these
     * @param values row-major; for COMPLEX128 real and imaginary part in turn, two values an element
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code datatype_mismatch}, {@code shape_invalid} or
     *     {@code size_mismatch}
     */
    public static Tensor of(Datatype datatype, double[] values, long... shape) {
        return new Tensor(datatype, Encoder.doubles(datatype, values, shape), shape.clone());
    }

    /**
     * A tensor of BYTES from text, as UTF-8.
     *
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code shape_invalid}, {@code size_mismatch}, or {@code malformed}:
     *     half a surrogate pair, which UTF-8 cannot express
     */
    public static Tensor of(String[] values, long... shape) {
        return of(Encoder.utf8(values), shape);
    }

    /**
     * A tensor of BYTES.
     *
     * @param values row-major
     * @param shape sizes of the dimensions
     * @return the tensor
     * @throws MultitowerException.InvalidRequest {@code shape_invalid} or {@code size_mismatch}
     */
    public static Tensor of(byte[][] values, long... shape) {
        return new Tensor(Datatype.BYTES, Encoder.byteArrays(values, shape), shape.clone());
    }

    // Properties.

    /**
     * The datatype of the elements.
     *
     * @return the same for all
     */
    public Datatype datatype() {
        return datatype;
    }

    /**
     * The sizes of the dimensions.
     *
     * @return a copy; empty for a scalar
     */
    public long[] shape() {
        return shape.clone();
    }

    /** The shape itself, which nobody may change. */
    long[] sizes() {
        return shape;
    }

    /**
     * How many elements there are.
     *
     * @return the product of the shape
     */
    public int elements() {
        return elements;
    }

    /**
     * The bytes on the wire.
     *
     * @return a read-only view, little-endian, from 0 to its capacity; direct if this client allocated it, and for
     *     large outputs
     */
    public ByteBuffer data() {
        return data.duplicate().order(ByteOrder.LITTLE_ENDIAN);
    }

    // Views, without a copy.

    /**
     * A read-only view.
     *
     * @return the elements of INT16 or UINT16, or the bits of FP16 or BF16
     * @throws IllegalStateException the tensor is of another datatype
     */
    public ShortBuffer asShortBuffer() {
        expect(short[].class);
        return data().asShortBuffer();
    }

    /**
     * A read-only view.
     *
     * @return the elements of INT32 or UINT32
     * @throws IllegalStateException the tensor is of another datatype
     */
    public IntBuffer asIntBuffer() {
        expect(int[].class);
        return data().asIntBuffer();
    }

    /**
     * A read-only view.
     *
     * @return the elements of INT64 or UINT64
     * @throws IllegalStateException the tensor is of another datatype
     */
    public LongBuffer asLongBuffer() {
        expect(long[].class);
        return data().asLongBuffer();
    }

    /**
     * A read-only view.
     *
     * @return the elements of FP32, or the parts of COMPLEX64
     * @throws IllegalStateException the tensor is of another datatype; {@link #toFloats} widens FP16 and BF16
     */
    public FloatBuffer asFloatBuffer() {
        if (datatype.size() == 2) {
            throw new IllegalStateException(this + " has no view as float[]; toFloats() copies and widens");
        }
        expect(float[].class);
        return data().asFloatBuffer();
    }

    /**
     * A read-only view.
     *
     * @return the elements of FP64, or the parts of COMPLEX128
     * @throws IllegalStateException the tensor is of another datatype
     */
    public DoubleBuffer asDoubleBuffer() {
        expect(double[].class);
        return data().asDoubleBuffer();
    }

    // Copies.

    /**
     * A copy.
     *
     * @return the elements of BOOL, row-major
     * @throws IllegalStateException the tensor is of another datatype
     */
    public boolean[] toBooleans() {
        expect(boolean[].class);
        boolean[] values = new boolean[elements];
        for (int i = 0; i < elements; i++) {
            values[i] = data.get(i) != 0;
        }
        return values;
    }

    /**
     * A copy.
     *
     * @return the elements of INT8 or UINT8, row-major
     * @throws IllegalStateException the tensor is of another datatype; {@link #data} has the bytes of any
     */
    public byte[] toBytes() {
        expect(byte[].class);
        byte[] values = new byte[elements];
        data().get(values);
        return values;
    }

    /**
     * A copy.
     *
     * @return the elements of INT16 or UINT16, or the bits of FP16 or BF16, row-major
     * @throws IllegalStateException the tensor is of another datatype
     */
    public short[] toShorts() {
        short[] values = new short[elements];
        asShortBuffer().get(values);
        return values;
    }

    /**
     * A copy.
     *
     * @return the elements of INT32 or UINT32, row-major
     * @throws IllegalStateException the tensor is of another datatype
     */
    public int[] toInts() {
        int[] values = new int[elements];
        asIntBuffer().get(values);
        return values;
    }

    /**
     * A copy.
     *
     * @return the elements of INT64 or UINT64, row-major
     * @throws IllegalStateException the tensor is of another datatype
     */
    public long[] toLongs() {
        long[] values = new long[elements];
        asLongBuffer().get(values);
        return values;
    }

    /**
     * A copy.
     *
     * @return the elements of FP32, FP16 or BF16, row-major; of COMPLEX64 real and imaginary part in turn
     * @throws IllegalStateException the tensor is of another datatype
     */
    public float[] toFloats() {
        expect(float[].class);
        float[] values = new float[elements * datatype.parts()];
        if (datatype == Datatype.FP16) {
            for (int i = 0; i < elements; i++) {
                values[i] = Halves.fromFp16(data.getShort(i * 2));
            }
        } else if (datatype == Datatype.BF16) {
            for (int i = 0; i < elements; i++) {
                values[i] = Halves.fromBf16(data.getShort(i * 2));
            }
        } else {
            asFloatBuffer().get(values);
        }
        return values;
    }

    /**
     * A copy.
     *
     * @return the elements of FP64, row-major; of COMPLEX128 real and imaginary part in turn
     * @throws IllegalStateException the tensor is of another datatype
     */
    public double[] toDoubles() {
        double[] values = new double[elements * datatype.parts()];
        asDoubleBuffer().get(values);
        return values;
    }

    /**
     * A copy.
     *
     * @return the elements of BYTES, row-major
     * @throws IllegalStateException the tensor is of another datatype
     */
    public byte[][] toByteArrays() {
        expect(byte[][].class);
        byte[][] values = new byte[elements][];
        ByteBuffer rest = data();
        for (int i = 0; i < elements; i++) {
            values[i] = new byte[rest.getInt()];
            rest.get(values[i]);
        }
        return values;
    }

    /**
     * A copy.
     *
     * @return the elements of BYTES as text, row-major; bytes that are not UTF-8 become U+FFFD; {@link #toByteArrays}
     *     returns them unchanged
     * @throws IllegalStateException the tensor is of another datatype
     */
    public String[] toStrings() {
        expect(String[].class);
        byte[][] encoded = toByteArrays();
        String[] values = new String[elements];
        for (int i = 0; i < elements; i++) {
            values[i] = new String(encoded[i], StandardCharsets.UTF_8);
        }
        return values;
    }

    private void expect(Class<?> array) {
        if (!datatype.holds(array)) {
            throw new IllegalStateException(this + " cannot be read as " + array.getSimpleName());
        }
    }

    /**
     * Whether the other object is a tensor of the same datatype and shape with the same bytes. So two NaNs of the same
     * bits are equal, and 0.0 and -0.0 are not.
     */
    @Override
    public boolean equals(Object other) {
        if (!(other instanceof Tensor)) {
            return false;
        }
        Tensor that = (Tensor) other;
        return datatype == that.datatype && Arrays.equals(shape, that.shape) && data.equals(that.data);
    }

    /** Of datatype, shape and all bytes, so that its time grows with the tensor. */
    @Override
    public int hashCode() {
        return Objects.hash(datatype, Arrays.hashCode(shape), data);
    }

    /** Datatype and shape, for example {@code FP32[1, 64]}. */
    @Override
    public String toString() {
        return datatype + Arrays.toString(shape);
    }
}
