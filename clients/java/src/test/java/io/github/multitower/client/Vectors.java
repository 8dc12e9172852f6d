package io.github.multitower.client;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;

/** docs/protocol-vectors.json, which every client's tests read. */
final class Vectors {
    /** The project's root; Maven passes the folder of the pom. */
    static final Path ROOT = Path.of(System.getProperty("basedir"), "../..").normalize();

    private Vectors() {}

    static List<Map<String, Object>> section(String name) {
        Map<String, Object> file;
        try {
            file = Json.read(Files.readAllBytes(ROOT.resolve("docs/protocol-vectors.json")));
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        List<Map<String, Object>> entries = new ArrayList<>();
        for (Object entry : (List<?>) file.get(name)) {
            entries.add(Json.object(entry));
        }
        return entries;
    }

    static Map<String, Object> named(String section, String name) {
        return section(section).stream().filter(entry -> entry.get("name").equals(name)).findFirst().orElseThrow();
    }

    /** A vector's frames, from the empty delimiter on. */
    static List<byte[]> frames(Map<String, Object> vector) {
        List<byte[]> frames = new ArrayList<>();
        for (Object frame : (List<?>) vector.get("frames")) {
            frames.add(bytes((String) frame));
        }
        return frames;
    }

    static byte[] bytes(String hexadecimal) {
        byte[] bytes = new byte[hexadecimal.length() / 2];
        for (int i = 0; i < bytes.length; i++) {
            bytes[i] = (byte) Integer.parseInt(hexadecimal.substring(2 * i, 2 * i + 2), 16);
        }
        return bytes;
    }

    static String hexadecimal(byte[] bytes) {
        StringBuilder text = new StringBuilder();
        for (byte value : bytes) {
            text.append(String.format("%02x", value));
        }
        return text.toString();
    }

    static String hexadecimal(Tensor tensor) {
        byte[] bytes = new byte[tensor.data().remaining()];
        tensor.data().get(bytes);
        return hexadecimal(bytes);
    }

    static long[] shape(Map<String, Object> vector) {
        return ((List<?>) vector.get("shape")).stream().mapToLong(size -> ((Number) size).longValue()).toArray();
    }

    /** The tensor that a vector's values make, through the factory for the array that holds them best. */
    static Tensor tensor(Map<String, Object> vector) {
        Datatype datatype = Datatype.valueOf((String) vector.get("datatype"));
        List<?> values = (List<?>) vector.get("values");
        long[] shape = shape(vector);
        int size = values.size();
        switch (datatype) {
            case BOOL:
                boolean[] booleans = new boolean[size];
                for (int i = 0; i < size; i++) {
                    booleans[i] = (Boolean) values.get(i);
                }
                return Tensor.of(booleans, shape);
            case INT8:
            case UINT8:
                byte[] bytes = new byte[size];
                for (int i = 0; i < size; i++) {
                    bytes[i] = ((Number) values.get(i)).byteValue();
                }
                return Tensor.of(datatype, bytes, shape);
            case INT16:
            case UINT16:
                short[] shorts = new short[size];
                for (int i = 0; i < size; i++) {
                    shorts[i] = ((Number) values.get(i)).shortValue();
                }
                return Tensor.of(datatype, shorts, shape);
            case INT32:
            case UINT32:
                int[] ints = new int[size];
                for (int i = 0; i < size; i++) {
                    ints[i] = ((Number) values.get(i)).intValue();
                }
                return Tensor.of(datatype, ints, shape);
            case INT64:
            case UINT64:
                long[] longs = new long[size];
                for (int i = 0; i < size; i++) {
                    Number value = (Number) values.get(i);
                    // Numbers over 2^63 - 1 come as doubles; the only one is 2^64 - 1.
                    longs[i] = value instanceof Double && value.doubleValue() > 0x1p63 ? -1 : value.longValue();
                }
                return Tensor.of(datatype, longs, shape);
            case BYTES:
                byte[][] elements = new byte[size][];
                for (int i = 0; i < size; i++) {
                    elements[i] = bytes((String) values.get(i));
                }
                return Tensor.of(elements, shape);
            case FP64:
            case COMPLEX128:
                return Tensor.of(datatype, doubles(values), shape);
            default:
                double[] wide = doubles(values);
                float[] floats = new float[wide.length];
                for (int i = 0; i < wide.length; i++) {
                    floats[i] = (float) wide[i];
                }
                return Tensor.of(datatype, floats, shape);
        }
    }

    private static double[] doubles(List<?> values) {
        return values.stream()
                .flatMap(value -> value instanceof List ? ((List<?>) value).stream() : Stream.of(value))
                .mapToDouble(value -> ((Number) value).doubleValue())
                .toArray();
    }
}
