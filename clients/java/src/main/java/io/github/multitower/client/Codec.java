package io.github.multitower.client;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.function.Consumer;

/** Writes the headers of requests, and reads replies into tensors. */
final class Codec {
    private static final int MAX_CACHED = 1024;
    private static final int MAX_CACHED_BYTES = 16 << 10;

    /** Parsed headers of replies; only the connection's thread reads replies. */
    private final Map<ByteBuffer, List<TensorSpec>> replies = new HashMap<>();

    /**
     * The header of an {@code MT1:infer} request. It is written by hand, which takes less time than a look-up by its
     * contents. Equal requests give equal bytes.
     *
     * @param micros the request's time in microseconds
     * @throws MultitowerException.InvalidRequest {@code malformed}: a name that UTF-8 cannot express
     */
    static byte[] inferHeader(InferRequest request, long micros) {
        StringBuilder header = new StringBuilder(256);
        header.append("{\"model_name\":").append(Json.quote(request.model()));
        if (!request.version().isEmpty()) {
            header.append(",\"model_version\":").append(Json.quote(request.version()));
        }
        header.append(",\"inputs\":[");
        String separator = "";
        for (Map.Entry<String, Tensor> input : request.inputs().entrySet()) {
            header.append(separator).append("{\"name\":").append(Json.quote(input.getKey()));
            header.append(",\"datatype\":\"").append(input.getValue().datatype()).append("\",\"shape\":[");
            separator = "";
            for (long size : input.getValue().sizes()) {
                header.append(separator).append(size);
                separator = ",";
            }
            header.append("]}");
            separator = ",";
        }
        header.append(']');
        if (!request.outputs().isEmpty()) {
            header.append(",\"outputs\":[");
            separator = "";
            for (String name : request.outputs()) {
                header.append(separator).append("{\"name\":").append(Json.quote(name)).append('}');
                separator = ",";
            }
            header.append(']');
        }
        header.append(",\"parameters\":{\"timeout\":").append(micros);
        if (request.priority() != 0) {
            header.append(",\"priority\":").append(request.priority());
        }
        if (!request.signature().isEmpty()) {
            header.append(",\"signature_name\":").append(Json.quote(request.signature()));
        }
        if (!request.versionLabel().isEmpty()) {
            header.append(",\"version_label\":").append(Json.quote(request.versionLabel()));
        }
        request.trace().addTo(header);
        return Json.utf8(header.append("}}").toString());
    }

    /**
     * The outputs of an {@code MT1:ok} reply to {@code MT1:infer}, by name, in their order; views of the frames.
     *
     * @throws MultitowerException.ModelError {@code output_invalid}: the reply cannot be read
     */
    Map<String, Tensor> outputs(byte[] header, List<ByteBuffer> frames) {
        List<TensorSpec> described = replies.get(ByteBuffer.wrap(header));
        if (described == null) {
            described = specs(Json.read(header).get("outputs"));
            if (header.length <= MAX_CACHED_BYTES) {
                if (replies.size() >= MAX_CACHED) {
                    replies.clear();
                }
                replies.put(ByteBuffer.wrap(header), described);
            }
        }
        if (described.size() != frames.size()) {
            throw unreadable("it names " + described.size() + " outputs and has " + frames.size());
        }
        Map<String, Tensor> outputs = new LinkedHashMap<>();
        for (int i = 0; i < frames.size(); i++) {
            TensorSpec spec = described.get(i);
            try {
                outputs.put(spec.name(), Tensor.of(spec.datatype(), frames.get(i), spec.shape()));
            } catch (MultitowerException error) {
                throw unreadable("output " + spec.name() + ": " + error.getMessage());
            }
        }
        return Collections.unmodifiableMap(outputs);
    }

    /**
     * The header of the reply to {@code MT1:model_metadata}.
     *
     * @throws MultitowerException.ModelError {@code output_invalid}: it cannot be read
     */
    static ModelMetadata metadata(Map<String, Object> header) {
        List<String> versions = new ArrayList<>();
        for (Object version : list(header.get("versions"))) {
            versions.add(String.valueOf(version));
        }
        ModelMetadata.Builder metadata =
                ModelMetadata.builder(text(header, "name"))
                        .versions(versions)
                        .platform(text(header, "platform"))
                        .inputs(specs(header.get("inputs")))
                        .outputs(specs(header.get("outputs")))
                        .signatureName(text(header, "signature_name"));
        Json.object(header.get("signatures"))
                .forEach((name, signature) -> metadata.signature(name, signature(Json.object(signature))));
        return metadata.build();
    }

    private static SignatureMetadata signature(Map<String, Object> entry) {
        Object size = entry.get("max_batch_size");
        SignatureMetadata.Builder signature =
                SignatureMetadata.builder()
                        .inputs(specs(entry.get("inputs")))
                        .outputs(specs(entry.get("outputs")))
                        .maxBatchSize(size instanceof Long ? (Long) size : 0);
        ifGiven(entry, "unbatched_because", signature::unbatchedBecause);
        ifGiven(entry, "unverified_because", signature::unverifiedBecause);
        ifGiven(entry, "cause", signature::unservableBecause);
        return signature.build();
    }

    private static String text(Map<String, Object> entry, String key) {
        return Objects.toString(entry.get(key), "");
    }

    /** Passes on the text of a key unless it is missing, null or empty. */
    private static void ifGiven(Map<String, Object> entry, String key, Consumer<String> part) {
        String value = text(entry, key);
        if (!value.isEmpty()) {
            part.accept(value);
        }
    }

    private static List<TensorSpec> specs(Object value) {
        List<TensorSpec> specs = new ArrayList<>();
        for (Object item : list(value)) {
            Map<String, Object> entry = Json.object(item);
            List<?> sizes = list(entry.get("shape"));
            long[] shape = new long[sizes.size()];
            for (int i = 0; i < shape.length; i++) {
                if (!(sizes.get(i) instanceof Long)) {
                    throw unreadable("a shape holds " + sizes.get(i));
                }
                shape[i] = (Long) sizes.get(i);
            }
            if (!(entry.get("name") instanceof String)) {
                throw unreadable("a tensor has no name");
            }
            boolean optional = Boolean.TRUE.equals(entry.get("optional"));
            specs.add(new TensorSpec((String) entry.get("name"), datatype(entry.get("datatype")), shape, optional));
        }
        return specs;
    }

    private static Datatype datatype(Object word) {
        try {
            return Datatype.valueOf(String.valueOf(word));
        } catch (IllegalArgumentException unknown) {
            throw unreadable("this client does not know the datatype " + word);
        }
    }

    private static List<?> list(Object value) {
        if (!(value instanceof List)) {
            throw unreadable("it has " + value + " where a list belongs");
        }
        return (List<?>) value;
    }

    private static MultitowerException unreadable(String why) {
        return Errors.make(Reason.OUTPUT_INVALID, "the daemon's reply cannot be read: " + why);
    }
}
