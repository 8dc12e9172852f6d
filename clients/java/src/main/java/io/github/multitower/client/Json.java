package io.github.multitower.client;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonParseException;
import com.google.gson.Strictness;
import com.google.gson.ToNumberPolicy;
import com.google.gson.reflect.TypeToken;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/** Headers: JSON objects in UTF-8, as plain maps, so that no JSON library is part of the client's interface. */
final class Json {
    private static final TypeToken<Map<String, Object>> OBJECT = new TypeToken<>() {};
    private static final Gson GSON =
            new GsonBuilder()
                    .disableHtmlEscaping()
                    .setStrictness(Strictness.STRICT)
                    .setObjectToNumberStrategy(ToNumberPolicy.LONG_OR_DOUBLE)
                    .create();

    private Json() {}

    /**
     * Compact JSON, keys in the map's order: equal maps give equal bytes, as the daemon's cache of headers needs.
     *
     * @throws MultitowerException.InvalidRequest {@code malformed}: a name that UTF-8 cannot express
     */
    static byte[] write(Map<String, Object> value) {
        return utf8(GSON.toJson(value));
    }

    /** A JSON string with its quotes. */
    static String quote(String text) {
        for (int i = 0; i < text.length(); i++) {
            char letter = text.charAt(i);
            if (letter < ' ' || letter > '~' || letter == '"' || letter == '\\') {
                return GSON.toJson(text);
            }
        }
        return '"' + text + '"'; // as nearly all names are: a tenth of the work
    }

    /**
     * Text as UTF-8.
     *
     * @throws MultitowerException.InvalidRequest {@code malformed}: half a surrogate pair
     */
    static byte[] utf8(String text) {
        for (int i = 0; i < text.length(); i++) {
            // The two halves of a pair are one code point, and a half alone is its own.
            int point = text.codePointAt(i);
            if (point >= Character.MIN_SURROGATE && point <= Character.MAX_SURROGATE) {
                String message = "the text holds half a surrogate pair, which UTF-8 cannot hold";
                throw Errors.make(Reason.MALFORMED, message);
            }
            i += Character.charCount(point) - 1;
        }
        return text.getBytes(StandardCharsets.UTF_8);
    }

    /**
     * The header of a reply.
     *
     * @throws MultitowerException.ModelError {@code output_invalid}: it is not a JSON object
     */
    static Map<String, Object> read(byte[] header) {
        Map<String, Object> value;
        try {
            value = GSON.fromJson(new String(header, StandardCharsets.UTF_8), OBJECT);
        } catch (JsonParseException | NumberFormatException error) {
            value = null;
        }
        if (value == null) {
            throw Errors.make(Reason.OUTPUT_INVALID, "the reply's header is not a JSON object");
        }
        return value;
    }

    /** The value as an object; an empty one if it is something else. */
    @SuppressWarnings("unchecked") // GSON makes maps with strings as keys
    static Map<String, Object> object(Object value) {
        return value instanceof Map ? (Map<String, Object>) value : Map.of();
    }
}
