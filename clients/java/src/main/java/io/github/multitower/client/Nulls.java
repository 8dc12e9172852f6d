package io.github.multitower.client;

import java.util.List;
import java.util.Objects;

/** Checks of collections that callers pass: a null is refused with the name of its parameter and its place. */
final class Nulls {
    private Nulls() {}

    /**
     * A copy of a list.
     *
     * @throws NullPointerException the list, or one of its elements, is null
     */
    static <T> List<T> list(String name, List<T> values) {
        Objects.requireNonNull(values, name);
        int index = 0;
        for (T value : values) {
            Objects.requireNonNull(value, name + "[" + index + "]");
            index++;
        }
        return List.copyOf(values);
    }

    /**
     * Checks an array.
     *
     * @throws NullPointerException the array, or one of its elements, is null
     */
    static <T> T[] array(String name, T[] values) {
        Objects.requireNonNull(values, name);
        for (int i = 0; i < values.length; i++) {
            if (values[i] == null) {
                throw new NullPointerException(name + "[" + i + "]");
            }
        }
        return values;
    }
}
