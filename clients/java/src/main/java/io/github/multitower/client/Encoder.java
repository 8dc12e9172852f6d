package io.github.multitower.client;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Objects;

/**
 * Copies arrays into direct buffers, as the bytes of tensors. All methods check datatype, shape and length first, and
 * throw {@link MultitowerException.InvalidRequest} ({@code datatype_mismatch}, {@code shape_invalid},
 * {@code size_mismatch} or {@code too_large}).
 */
final class Encoder {
    private Encoder() {}

    static ByteBuffer booleans(boolean[] values, long[] shape) {
        Objects.requireNonNull(values, "values");
        ByteBuffer data = room(Datatype.BOOL, boolean[].class, values.length, shape);
        for (boolean value : values) {
            data.put((byte) (value ? 1 : 0));
        }
        return data.flip();
    }

    static ByteBuffer bytes(Datatype datatype, byte[] values, long[] shape) {
        Objects.requireNonNull(values, "values");
        return room(datatype, byte[].class, values.length, shape).put(values).flip();
    }

    static ByteBuffer shorts(Datatype datatype, short[] values, long[] shape) {
        Objects.requireNonNull(values, "values");
        ByteBuffer data = room(datatype, short[].class, values.length, shape);
        data.asShortBuffer().put(values);
        return data;
    }

    static ByteBuffer ints(Datatype datatype, int[] values, long[] shape) {
        Objects.requireNonNull(values, "values");
        ByteBuffer data = room(datatype, int[].class, values.length, shape);
        data.asIntBuffer().put(values);
        return data;
    }

    static ByteBuffer longs(Datatype datatype, long[] values, long[] shape) {
        Objects.requireNonNull(values, "values");
        ByteBuffer data = room(datatype, long[].class, values.length, shape);
        data.asLongBuffer().put(values);
        return data;
    }

    static ByteBuffer floats(Datatype datatype, float[] values, long[] shape) {
        Objects.requireNonNull(values, "values");
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
        return data;
    }

    static ByteBuffer doubles(Datatype datatype, double[] values, long[] shape) {
        Objects.requireNonNull(values, "values");
        ByteBuffer data = room(datatype, double[].class, values.length, shape);
        data.asDoubleBuffer().put(values);
        return data;
    }

    static ByteBuffer byteArrays(byte[][] values, long[] shape) {
        Nulls.array("values", values);
        Objects.requireNonNull(shape, "shape");
        Sizes.checkLength(Datatype.BYTES, shape, values.length, 1);
        long size = 4L * values.length;
        for (byte[] value : values) {
            size += value.length;
        }
        ByteBuffer data = direct(size);
        for (byte[] value : values) {
            data.putInt(value.length).put(value);
        }
        return data.flip();
    }

    /**
     * Texts as UTF-8.
     *
     * @throws MultitowerException.InvalidRequest {@code malformed}: half a surrogate pair
     */
    static byte[][] utf8(String[] values) {
        Nulls.array("values", values);
        byte[][] encoded = new byte[values.length][];
        for (int i = 0; i < values.length; i++) {
            encoded[i] = Json.utf8(values[i]);
        }
        return encoded;
    }

    private static ByteBuffer room(Datatype datatype, Class<?> array, int length, long[] shape) {
        Objects.requireNonNull(datatype, "datatype");
        Objects.requireNonNull(shape, "shape");
        if (!datatype.holds(array)) {
            String message = datatype + " is not made of a " + array.getSimpleName();
            throw Errors.make(Reason.DATATYPE_MISMATCH, message);
        }
        Sizes.checkLength(datatype, shape, length, datatype.parts());
        return direct((long) length * datatype.size() / datatype.parts());
    }

    private static ByteBuffer direct(long size) {
        if (size > Integer.MAX_VALUE) {
            String message = "a tensor has at most 2^31 - 1 bytes here, not " + size;
            throw Errors.make(Reason.TOO_LARGE, message);
        }
        return ByteBuffer.allocateDirect((int) size).order(ByteOrder.LITTLE_ENDIAN);
    }
}
