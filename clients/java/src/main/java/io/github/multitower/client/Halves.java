package io.github.multitower.client;

/** Conversions of 16-bit floating point, for which Java 11 has no type. Rounds to nearest, ties to even, as numpy. */
final class Halves {
    private Halves() {}

    /** The FP16 nearest to a float. */
    static short toFp16(float value) {
        int bits = Float.floatToRawIntBits(value);
        int sign = bits >>> 16 & 0x8000;
        int magnitude = bits & 0x7fff_ffff;
        if (magnitude > 0x7f80_0000) {
            return (short) (sign | 0x7e00 | magnitude >>> 13 & 0x1ff); // NaN stays NaN
        }
        if (magnitude >= 0x4780_0000) {
            return (short) (sign | 0x7c00); // 65536 and more
        }
        if (magnitude >= 0x3880_0000) { // 2^-14: normal; a carry out of the mantissa correctly raises the exponent
            return (short) (sign | nearest(magnitude - 0x3800_0000, 13));
        }
        if (magnitude < 0x3300_0000) {
            return (short) sign; // under 2^-25, half of the least
        }
        int mantissa = magnitude & 0x007f_ffff | 0x0080_0000;
        return (short) (sign | nearest(mantissa, 126 - (magnitude >>> 23)));
    }

    /** The value of an FP16. */
    static float fromFp16(short half) {
        int sign = (half & 0x8000) << 16;
        int exponent = half >>> 10 & 0x1f;
        int mantissa = half & 0x3ff;
        if (exponent == 0) {
            float value = mantissa * 0x1p-24f;
            return sign == 0 ? value : -value;
        }
        int raised = exponent == 0x1f ? 0xff : exponent + 112;
        return Float.intBitsToFloat(sign | raised << 23 | mantissa << 13);
    }

    /** The BF16 nearest to a float. */
    static short toBf16(float value) {
        int bits = Float.floatToRawIntBits(value);
        if (value != value) {
            return (short) (bits >>> 16 | 0x40);
        }
        return (short) (bits >>> 31 << 15 | nearest(bits & 0x7fff_ffff, 16));
    }

    /** The value of a BF16. */
    static float fromBf16(short half) {
        return Float.intBitsToFloat(half << 16);
    }

    /** {@code value / 2^shift}, rounded to the nearest integer, ties to even. */
    private static int nearest(int value, int shift) {
        int down = value >>> shift;
        int rest = value - (down << shift);
        int half = 1 << shift - 1;
        return rest > half || rest == half && (down & 1) == 1 ? down + 1 : down;
    }
}
