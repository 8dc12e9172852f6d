package io.github.multitower.client;

import java.util.List;

/**
 * The datatypes of the protocol. A tensor's bytes are little-endian, row-major and unpadded.
 *
 * <p>{@link Tensor} lists the arrays that each is made from and read as.
 */
public enum Datatype {
    /** 1 byte, 0 or 1. */
    BOOL(1, boolean[].class),
    /** 1 byte. */
    UINT8(1, byte[].class),
    /** 2 bytes. */
    UINT16(2, short[].class),
    /** 4 bytes. */
    UINT32(4, int[].class),
    /** 8 bytes. */
    UINT64(8, long[].class),
    /** 1 byte, two's complement. */
    INT8(1, byte[].class),
    /** 2 bytes, two's complement. */
    INT16(2, short[].class),
    /** 4 bytes, two's complement. */
    INT32(4, int[].class),
    /** 8 bytes, two's complement. */
    INT64(8, long[].class),
    /** 2 bytes, IEEE 754 half precision. */
    FP16(2, float[].class, short[].class),
    /** 2 bytes, the upper half of an {@link #FP32}. */
    BF16(2, float[].class, short[].class),
    /** 4 bytes, IEEE 754 single precision. */
    FP32(4, float[].class),
    /** 8 bytes, IEEE 754 double precision. */
    FP64(8, double[].class),
    /** 8 bytes: real and imaginary part as {@link #FP32}. */
    COMPLEX64(8, float[].class),
    /** 16 bytes: real and imaginary part as {@link #FP64}. */
    COMPLEX128(16, double[].class),
    /** 4 bytes of length, as an unsigned integer, and that many bytes. Text is UTF-8. */
    BYTES(0, String[].class, byte[][].class);

    private final int size;
    private final List<Class<?>> arrays;

    Datatype(int size, Class<?>... arrays) {
        this.size = size;
        this.arrays = List.of(arrays);
    }

    /**
     * Bytes per element.
     *
     * @return 1 to 16; 0 for {@link #BYTES}, whose elements differ in size
     */
    public int size() {
        return size;
    }

    /** Whether tensors of this datatype are made from and read as arrays of this class. */
    boolean holds(Class<?> array) {
        return arrays.contains(array);
    }

    /** How many elements of a primitive array make one of the tensor's. */
    int parts() {
        return this == COMPLEX64 || this == COMPLEX128 ? 2 : 1;
    }
}
