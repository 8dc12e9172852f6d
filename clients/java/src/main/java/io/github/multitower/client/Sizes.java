package io.github.multitower.client;

import java.nio.ByteBuffer;
import java.util.Arrays;

/** The rules for the shape of a tensor and the number of its bytes. */
final class Sizes {
    private static final int MAX_RANK = 64;

    private Sizes() {}

    /**
     * Checks that bytes are those of a datatype and a shape.
     *
     * @param data little-endian, from 0 to its capacity
     * @return the number of elements
     * @throws MultitowerException.InvalidRequest {@code shape_invalid} or {@code size_mismatch}
     */
    static int check(Datatype datatype, long[] shape, ByteBuffer data) {
        long wanted = count(shape);
        int has = data.capacity();
        if (datatype == Datatype.BYTES) {
            if (wanted > has / 4 || !holdsElements(data, wanted)) {
                throw mismatch(datatype, shape, wanted + " elements, each with its length before it", has);
            }
        } else if (wanted > Integer.MAX_VALUE || wanted * datatype.size() != has) {
            throw mismatch(datatype, shape, wanted + " elements of " + datatype.size() + " bytes", has);
        }
        return (int) wanted;
    }

    /**
     * Checks that an array has as many values as a shape.
     *
     * @param length of the array
     * @param parts the values of the array that make one element
     * @throws MultitowerException.InvalidRequest {@code shape_invalid} or {@code size_mismatch}
     */
    static void checkLength(Datatype datatype, long[] shape, int length, int parts) {
        long wanted = count(shape);
        if (wanted > Integer.MAX_VALUE || wanted * parts != length) {
            String message =
                    datatype + Arrays.toString(shape) + " takes " + wanted + (parts == 2 ? " pairs" : "") + ", not "
                            + length + " values";
            throw Errors.make(Reason.SIZE_MISMATCH, message);
        }
    }

    private static MultitowerException mismatch(Datatype datatype, long[] shape, String takes, int has) {
        String message = datatype + Arrays.toString(shape) + " takes " + takes + "; the data has " + has + " bytes";
        return Errors.make(Reason.SIZE_MISMATCH, message);
    }

    /** The number of elements of a shape. */
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
    private static boolean holdsElements(ByteBuffer data, long wanted) {
        long at = 0;
        for (long seen = 0; seen < wanted; seen++) {
            if (at + 4 > data.capacity()) {
                return false;
            }
            at += 4 + Integer.toUnsignedLong(data.getInt((int) at));
        }
        return at == data.capacity();
    }
}
