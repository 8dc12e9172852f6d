package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.ReadOnlyBufferException;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;

class TensorTest {
    @TestFactory
    List<DynamicTest> aTensorHasTheBytesOfItsVectorAndReadsThemBack() {
        List<DynamicTest> tests = new ArrayList<>();
        Set<Datatype> seen = EnumSet.noneOf(Datatype.class);
        for (Map<String, Object> vector : Vectors.section("tensors")) {
            Datatype datatype = Datatype.valueOf((String) vector.get("datatype"));
            seen.add(datatype);
            tests.add(
                    DynamicTest.dynamicTest(
                            vector.get("datatype") + " " + vector.get("shape"),
                            () -> {
                                String hex = (String) vector.get("hex");
                                Tensor written = Vectors.tensor(vector);
                                assertEquals(hex, Vectors.hexadecimal(written));
                                Tensor read =
                                        Tensor.of(datatype, ByteBuffer.wrap(Vectors.bytes(hex)), Vectors.shape(vector));
                                assertEquals(hex, Vectors.hexadecimal(again(read)));
                            }));
        }
        tests.add(DynamicTest.dynamicTest("all", () -> assertEquals(EnumSet.allOf(Datatype.class), seen)));
        return tests;
    }

    /** A tensor made anew from the array that another is read as. */
    private static Tensor again(Tensor tensor) {
        Datatype datatype = tensor.datatype();
        long[] shape = tensor.shape();
        switch (datatype) {
            case BOOL:
                return Tensor.of(tensor.toBooleans(), shape);
            case INT8:
            case UINT8:
                return Tensor.of(datatype, tensor.toBytes(), shape);
            case INT16:
            case UINT16:
                return Tensor.of(datatype, tensor.toShorts(), shape);
            case INT32:
            case UINT32:
                return Tensor.of(datatype, tensor.toInts(), shape);
            case INT64:
            case UINT64:
                return Tensor.of(datatype, tensor.toLongs(), shape);
            case FP64:
            case COMPLEX128:
                return Tensor.of(datatype, tensor.toDoubles(), shape);
            case BYTES:
                return Tensor.of(tensor.toByteArrays(), shape);
            default:
                return Tensor.of(datatype, tensor.toFloats(), shape);
        }
    }

    @Test
    void theShortFactoriesChooseTheSignedTypes() {
        assertEquals("INT8[2]", Tensor.of(new byte[2], 2).toString());
        assertEquals("INT16[2]", Tensor.of(new short[2], 2).toString());
        assertEquals("INT32[2]", Tensor.of(new int[2], 2).toString());
        assertEquals("INT64[2]", Tensor.of(new long[2], 2).toString());
        assertEquals("FP32[2]", Tensor.of(new float[2], 2).toString());
        assertEquals("FP64[1, 2]", Tensor.of(new double[2], 1, 2).toString());
        assertEquals("BYTES[]", Tensor.of(new String[] {"grün"}).toString());
    }

    @Test
    void textTravelsAsUtf8() {
        Tensor tensor = Tensor.of(new String[] {"grün", "", "𝄞"}, 3);
        assertArrayEquals(new String[] {"grün", "", "𝄞"}, tensor.toStrings());
        assertEquals(5, tensor.toByteArrays()[0].length);
        refused(Reason.MALFORMED, () -> Tensor.of(new String[] {"\ud834"}, 1));
    }

    @Test
    void viewsAreReadOnlyAndCopyNothing() {
        ByteBuffer data = ByteBuffer.allocateDirect(8).order(ByteOrder.LITTLE_ENDIAN);
        Tensor tensor = Tensor.of(Datatype.FP32, data, 2);
        data.putFloat(4, 2.5f); // seen through every view: it is the same memory
        assertEquals(2.5f, tensor.asFloatBuffer().get(1));
        assertEquals(2.5f, tensor.data().getFloat(4));
        assertThrows(ReadOnlyBufferException.class, () -> tensor.data().put(0, (byte) 1));
        assertThrows(ReadOnlyBufferException.class, () -> tensor.asFloatBuffer().put(0, 1f));
        tensor.data().get();
        assertEquals(0, tensor.data().position(), "a view moves nobody else's");
        assertEquals(3, Tensor.of(new short[] {1, 2, 3}, 3).asShortBuffer().get(2));
        assertEquals(3, Tensor.of(new int[] {1, 2, 3}, 3).asIntBuffer().get(2));
        assertEquals(3, Tensor.of(new long[] {1, 2, 3}, 3).asLongBuffer().get(2));
        assertEquals(3, Tensor.of(new double[] {1, 2, 3}, 3).asDoubleBuffer().get(2));
    }

    @Test
    void aPartOfABufferIsTaken() {
        ByteBuffer data = ByteBuffer.wrap(new byte[] {9, 1, 2, 9});
        data.position(1).limit(3);
        assertArrayEquals(new byte[] {1, 2}, Tensor.of(Datatype.INT8, data, 2).toBytes());
    }

    @Test
    void arraysAndShapesAreCopied() {
        float[] values = {1, 2};
        long[] shape = {2};
        Tensor tensor = Tensor.of(values, shape);
        values[0] = 9;
        shape[0] = 9;
        tensor.shape()[0] = 9;
        assertArrayEquals(new float[] {1, 2}, tensor.toFloats());
        assertArrayEquals(new long[] {2}, tensor.shape());
        assertTrue(tensor.data().isDirect());
    }

    @Test
    void unsignedIntegersAreTheBitsOfSignedOnes() {
        Tensor tensor = Tensor.of(Datatype.UINT8, new byte[] {(byte) 255}, 1);
        assertEquals(255, Byte.toUnsignedInt(tensor.toBytes()[0]));
    }

    @Test
    void halvesAreRoundedAndTheirBitsCanBeHad() {
        Tensor tensor = Tensor.of(Datatype.FP16, new float[] {1, 65504, 0.1f}, 3);
        assertArrayEquals(new short[] {0x3c00, 0x7bff, 0x2e66}, tensor.toShorts());
        assertArrayEquals(tensor.toFloats(), Tensor.of(Datatype.FP16, tensor.toShorts(), 3).toFloats());
        assertThrows(IllegalStateException.class, tensor::asFloatBuffer);
    }

    @Test
    void whatDoesNotFitItsShapeIsRefused() {
        refused(Reason.SIZE_MISMATCH, () -> Tensor.of(new float[63], 1, 64));
        refused(Reason.SIZE_MISMATCH, () -> Tensor.of(new float[2])); // a scalar
        refused(Reason.SIZE_MISMATCH, () -> Tensor.of(Datatype.COMPLEX64, new float[3], 3));
        refused(Reason.SIZE_MISMATCH, () -> Tensor.of(new String[] {"a"}, 2));
        refused(Reason.SIZE_MISMATCH, () -> Tensor.of(Datatype.INT64, ByteBuffer.allocate(15), 2));
        refused(Reason.SIZE_MISMATCH, () -> Tensor.of(Datatype.FP32, ByteBuffer.allocate(4), 1L << 40));
        refused(Reason.SHAPE_INVALID, () -> Tensor.of(new float[1], -1));
        refused(Reason.SHAPE_INVALID, () -> Tensor.of(new float[0], 0, 1L << 62, 4));
        refused(Reason.SHAPE_INVALID, () -> Tensor.of(new float[1], new long[65]));
        refused(Reason.DATATYPE_MISMATCH, () -> Tensor.of(Datatype.FP32, new int[1], 1));
    }

    @Test
    void bytesMustFillTheirFrameExactly() {
        refused(Reason.SIZE_MISMATCH, () -> bytes(1, 3, 0, 0, 0, 'a', 'b')); // one byte short
        refused(Reason.SIZE_MISMATCH, () -> bytes(1, 1, 0, 0, 0, 'a', 'b')); // one too many
        refused(Reason.SIZE_MISMATCH, () -> bytes(2, 1, 0, 0, 0, 'a', 0, 0)); // a length cut short
        refused(Reason.SIZE_MISMATCH, () -> bytes(1, 255, 255, 255, 255)); // a length over 2^31
        refused(Reason.SIZE_MISMATCH, () -> bytes(1L << 40, 0, 0, 0, 0));
        assertArrayEquals(new String[] {"a", ""}, bytes(2, 1, 0, 0, 0, 'a', 0, 0, 0, 0).toStrings());
    }

    private static Tensor bytes(long elements, int... values) {
        ByteBuffer data = ByteBuffer.allocate(values.length);
        for (int value : values) {
            data.put((byte) value);
        }
        return Tensor.of(Datatype.BYTES, data.flip(), elements);
    }

    @Test
    void aTensorIsReadOnlyAsWhatItIs() {
        Tensor tensor = Tensor.of(new float[1], 1);
        assertThrows(IllegalStateException.class, tensor::toInts);
        assertThrows(IllegalStateException.class, tensor::toDoubles);
        assertThrows(IllegalStateException.class, tensor::toStrings);
        assertThrows(IllegalStateException.class, tensor::toBooleans);
        assertThrows(IllegalStateException.class, tensor::toBytes);
        assertThrows(IllegalStateException.class, tensor::toShorts);
        assertThrows(IllegalStateException.class, tensor::toLongs);
    }

    @Test
    void everyHalfIsReadAndWrittenBack() {
        for (int bits = 0; bits <= 0xffff; bits++) {
            float fp16 = Halves.fromFp16((short) bits);
            float bf16 = Halves.fromBf16((short) bits);
            assertEquals(Float.isNaN(fp16), Float.isNaN(Halves.fromFp16(Halves.toFp16(fp16))));
            assertEquals(Float.isNaN(bf16), Float.isNaN(Halves.fromBf16(Halves.toBf16(bf16))));
            if (!Float.isNaN(fp16)) {
                assertEquals((short) bits, Halves.toFp16(fp16));
            }
            if (!Float.isNaN(bf16)) {
                assertEquals((short) bits, Halves.toBf16(bf16));
            }
        }
        assertEquals(65504f, Halves.fromFp16((short) 0x7bff));
        assertEquals(0x1p-24f, Halves.fromFp16((short) 1));
        assertEquals(Float.NEGATIVE_INFINITY, Halves.fromFp16((short) 0xfc00));
    }

    @Test
    void betweenTwoHalvesTheNearerIsTakenAndInTheMiddleTheEvenOne() {
        for (int bits = 0; bits < 0x7bff; bits++) { // every positive finite pair of neighbours
            float middle = (Halves.fromFp16((short) bits) + Halves.fromFp16((short) (bits + 1))) / 2;
            assertEquals((short) (bits & 1) == 0 ? bits : bits + 1, Halves.toFp16(middle));
            assertEquals(bits, Halves.toFp16(Math.nextDown(middle)));
            assertEquals(bits + 1, Halves.toFp16(Math.nextUp(middle)));
        }
        for (int bits = 0; bits < 0x7f7f; bits++) {
            float middle = Float.intBitsToFloat(bits << 16 | 0x8000);
            assertEquals((bits & 1) == 0 ? bits : bits + 1, Halves.toBf16(middle));
            assertEquals(bits, Halves.toBf16(Math.nextDown(middle)));
            assertEquals(bits + 1, Halves.toBf16(Math.nextUp(middle)));
        }
        assertEquals(0x7c00, Halves.toFp16(65520f), "the middle between the greatest and what comes after it");
        assertEquals(0x7bff, Halves.toFp16(Math.nextDown(65520f)));
        assertEquals((short) 0xfc00, Halves.toFp16(-1e9f));
        assertFalse(Float.isNaN(Halves.fromBf16(Halves.toBf16(Float.MAX_VALUE))));
    }

    private static void refused(Reason reason, org.junit.jupiter.api.function.Executable make) {
        MultitowerException error = assertThrows(MultitowerException.InvalidRequest.class, make);
        assertTrue(error.is(reason), error.toString());
    }
}
