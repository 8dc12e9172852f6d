package io.github.multitower.client;

import java.util.Objects;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Where a daemon listens: {@code tcp://HOST:PORT}. */
final class Endpoint {
    private static final Pattern TCP = Pattern.compile("tcp://(\\[[^\\[\\]]+\\]|[^\\[\\]:/\\s]+):(\\d{1,5})");

    private final String text;

    /** A name, an IPv4 address, or an IPv6 address in brackets. */
    final String host;

    final int port;

    private Endpoint(String text, String host, int port) {
        this.text = text;
        this.host = host;
        this.port = port;
    }

    /**
     * Reads an endpoint.
     *
     * @throws IllegalArgumentException it is not one that Java can reach
     */
    static Endpoint parse(String text) {
        Objects.requireNonNull(text, "endpoint");
        if (text.startsWith("ipc://")) {
            // JeroMQ's ipc is tcp on a port computed from the path: it would find no daemon, without an error.
            String message =
                    text + ": ipc sockets cannot be reached from Java (JeroMQ has none that libzmq understands);"
                            + " let the daemon listen on tcp://127.0.0.1:PORT as well";
            throw new IllegalArgumentException(message);
        }
        Matcher parts = TCP.matcher(text);
        if (parts.matches()) {
            int port = Integer.parseInt(parts.group(2));
            if (port >= 1 && port <= 65535) {
                return new Endpoint(text, parts.group(1), port);
            }
        }
        String message = "'" + text + "' is not an endpoint: it is not tcp://HOST:PORT, with a port from 1 to 65535";
        throw new IllegalArgumentException(message);
    }

    @Override
    public String toString() {
        return text;
    }
}
