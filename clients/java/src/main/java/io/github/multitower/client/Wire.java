package io.github.multitower.client;

import java.nio.charset.StandardCharsets;

/** The constants of the wire protocol MT1; docs/protocol.md is its specification. */
final class Wire {
    static final byte[] INFER = ascii("MT1:infer");
    static final byte[] SERVER_LIVE = ascii("MT1:server_live");
    static final byte[] SERVER_READY = ascii("MT1:server_ready");
    static final byte[] SERVER_METADATA = ascii("MT1:server_metadata");
    static final byte[] MODEL_READY = ascii("MT1:model_ready");
    static final byte[] MODEL_METADATA = ascii("MT1:model_metadata");
    static final byte[] MODEL_CONFIG = ascii("MT1:model_config");
    static final byte[] STATISTICS = ascii("MT1:statistics");
    static final byte[] STATUS = ascii("MT1:status");
    static final byte[] CANCEL = ascii("MT1:cancel");
    static final byte[] OK = ascii("MT1:ok");

    static final byte[] EMPTY_HEADER = ascii("{}");
    static final String DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555";
    static final String ENDPOINT_VARIABLE = "MULTITOWER_ENDPOINT";
    static final long DEFAULT_MAX_MESSAGE_SIZE = 64 << 20;

    private Wire() {}

    private static byte[] ascii(String text) {
        return text.getBytes(StandardCharsets.US_ASCII);
    }
}
