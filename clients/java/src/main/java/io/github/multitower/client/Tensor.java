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

/**
 * A tensor: a datatype, a shape, and little-endian, row-major, unpadded bytes. Immutable, and safe to share between
 * threads and requests.
 *
 * <p>The factories {@code of} copy an array into a direct buffer, once, from which it is sent. The one that takes
 * a {@link ByteBuffer} copies nothing. A shape with no dimensions is that of a scalar. Shape and size are checked
 * here, before anything is sent.
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
    private static final int MAX_RANK = 64;

    private final Datatype datatype;
    private final long[] shape;
    private final ByteBuffer data;
    private final int elements;

    private Tensor(Datatype datatype, ByteBuffer data, long[] shape) {
        this.datatype = datatype;
        this.shape = shape;
        // From 0 to the capacity: JeroMQ writes a large buffer as it is, up to its capacity.
        this.data = data.slice().asReadOnlyBuffer().order(ByteOrder.LITTLE_ENDIAN);
        this.elements = check();
    }

    private int check() {
        long wanted = count(shape);
        int has = data.capacity();
        if (datatype == Datatype.BYTES) {
            if (wanted > has / 4 || !holdsElements(wanted)) {
                throw sizeMismatch(wanted + " elements, each with its length before it");
            }
        } else if (wanted > Integer.MAX_VALUE || wanted * datatype.size() != has) {
            throw sizeMismatch(wanted + " elements of " + datatype.size() + " bytes");
        }
        return (int) wanted;
    }

    private MultitowerException sizeMismatch(String takes) {
        String message = this + " takes " + takes + "; the data has " + data.capacity() + " bytes";
        return Errors.make(Reason.SIZE_MISMATCH, message);
    }

    private static long count(long[] shape) {
        if (shape.length > MAX_RANK) {
            String message = "a shape has at most " + MAX_RANK + " dimensions, not " + shape.length;
            throw Errors.make(Reason.SHAPE_INVALID, message);
        }
        boolean none = false;
        long count = 1;
        try {
            for (long size : shape) {
                if (size < 0) {
                    String message = "the shape " + Arrays.toString(shape) + " has a dimension under 0";
                    throw Errors.make(Reason.SHAPE_INVALID, message);
                }
                none |= size == 0;
                count = Math.multiplyExact(count, Math.max(size, 1));
            }
        } catch (ArithmeticException overflow) {
            String message = "the shape " + Arrays.toString(shape) + " has more than 2^63 - 1 elements";
            throw Errors.make(Reason.SHAPE_INVALID, message);
        }
        return none ? 0 : count;
    }

    /** Whether the bytes are this many elements of BYTES, to their end. */
    private boolean holdsElements(long wanted) {
        long at = 0;
        for (long seen = 0; seen < wanted; seen++) {
            if (at + 4 > data.capacity()) {
                return false;
            }
            at += 4 + Integer.toUnsignedLong(data.getInt((int) at));
        }
        return at == data.capacity();
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
        return new Tensor(datatype, data, shape.clone());
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
        ByteBuffer data = room(Datatype.BOOL, boolean[].class, values.length, shape);
        for (boolean value : values) {
            data.put((byte) (value ? 1 : 0));
        }
        return filled(Datatype.BOOL, data, shape);
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
        return filled(datatype, room(datatype, byte[].class, values.length, shape).put(values), shape);
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
        ByteBuffer data = room(datatype, short[].class, values.length, shape);
        data.asShortBuffer().put(values);
        return new Tensor(datatype, data, shape.clone());
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
        ByteBuffer data = room(datatype, int[].class, values.length, shape);
        data.asIntBuffer().put(values);
        return new Tensor(datatype, data, shape.clone());
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
        ByteBuffer data = room(datatype, long[].class, values.length, shape);
        data.asLongBuffer().put(values);
        return new Tensor(datatype, data, shape.clone());
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
        ByteBuffer data = room(datatype, float[].class, values.length, shape);
        if (datatype == Datatype.FP16) {
            for (int i = 0; i < values.length; i++) {
                data.putShort(i * 2, Halves.toFp16(values[i]));
            }
        } else if (datatype == Datatype.BF16) {
            for (int i = 0; i < values.length; i++) {
                data.putShort(i * 2, Halves.toBf16(values[i]));
            }
        } else {
            data.asFloatBuffer().put(values);
        }
        return new Tensor(datatype, data, shape.clone());
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
        ByteBuffer data = room(datatype, double[].class, values.length, shape);
        data.asDoubleBuffer().put(values);
        return new Tensor(datatype, data, shape.clone());
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
        byte[][] encoded = new byte[values.length][];
        for (int i = 0; i < values.length; i++) {
            encoded[i] = Json.utf8(values[i]);
        }
        return of(encoded, shape);
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
        checkCount(Datatype.BYTES, values.length, 1, shape);
        long size = 4L * values.length;
        for (byte[] value : values) {
            size += value.length;
        }
        ByteBuffer data = direct(size);
        for (byte[] value : values) {
            data.putInt(value.length).put(value);
        }
        return filled(Datatype.BYTES, data, shape);
    }

    private static ByteBuffer room(Datatype datatype, Class<?> array, int length, long[] shape) {
        if (!datatype.holds(array)) {
            String message = datatype + " is not made of a " + array.getSimpleName();
            throw Errors.make(Reason.DATATYPE_MISMATCH, message);
        }
        checkCount(datatype, length, datatype.parts(), shape);
        return direct((long) length * datatype.size() / datatype.parts());
    }

    private static void checkCount(Datatype datatype, int length, int parts, long[] shape) {
        long wanted = count(shape);
        if (wanted > Integer.MAX_VALUE || wanted * parts != length) {
            String message =
                    datatype + Arrays.toString(shape) + " takes " + wanted + (parts == 2 ? " pairs" : "") + ", not "
                            + length + " values";
            throw Errors.make(Reason.SIZE_MISMATCH, message);
        }
    }

    private static ByteBuffer direct(long size) {
        if (size > Integer.MAX_VALUE) {
            String message = "a tensor has at most 2^31 - 1 bytes here, not " + size;
            throw Errors.make(Reason.TOO_LARGE, message);
        }
        return ByteBuffer.allocateDirect((int) size).order(ByteOrder.LITTLE_ENDIAN);
    }

    private static Tensor filled(Datatype datatype, ByteBuffer data, long[] shape) {
        return new Tensor(datatype, data.flip(), shape.clone());
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

    /** Datatype and shape, for example {@code FP32[1, 64]}. */
    @Override
    public String toString() {
        return datatype + Arrays.toString(shape);
    }
}
