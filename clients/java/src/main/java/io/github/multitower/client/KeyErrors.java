package io.github.multitower.client;

import java.io.IOException;
import java.io.InputStream;
import java.net.Socket;
import java.nio.charset.StandardCharsets;

/**
 * Finds out whether the keys prevent a connection. JeroMQ reports a key that was refused, but not that only one
 * side uses CURVE, nor that the daemon has another key. So a plain socket reads the daemon's greeting, which names the
 * mechanism that the daemon uses.
 */
final class KeyErrors {
    static final String KEY_REFUSED = "key_refused";

    /**
     * If so many handshakes in a row fail with a daemon that uses CURVE, the daemon has another key than the one that was
     * given. With a daemon that has too many connections, or is ending, only one or two fail.
     */
    private static final int FAILED_HANDSHAKES = 3;

    /**
     * The first bytes of a greeting, up to the version of the protocol. The peer answers them with its whole greeting. If
     * the client sent a mechanism as well, the peer might close the connection instead.
     */
    private static final byte[] SIGNATURE = {-1, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3};

    private static final int MECHANISM_AT = 12;
    private static final int MECHANISM_BYTES = 20;

    private KeyErrors() {}

    /** The daemon does not admit this client's key. */
    static Reachability.Finding keyRefused(Endpoint endpoint, Keys keys) {
        String shown = keys == null ? "" : ", whose public part is " + keys.shownPublicKey();
        String message = "the daemon at " + endpoint + " does not admit this client's key" + shown
                + ": is it (still) in the daemon's file of principals, and was that reloaded?";
        return new Reachability.Finding(KEY_REFUSED, message);
    }

    /**
     * Reads the daemon's greeting.
     *
     * @param socket connected to the daemon
     * @return null if the keys do not explain that no connection opens
     */
    static Reachability.Finding examine(
            Endpoint endpoint, Keys keys, Socket socket, int withinMs, int failedHandshakes) {
        String mechanism;
        try {
            socket.setSoTimeout(withinMs);
            socket.getOutputStream().write(SIGNATURE);
            mechanism = mechanism(socket.getInputStream());
        } catch (IOException error) {
            return null;
        }
        String variables = Keys.KEY_VARIABLE + " and " + Keys.SERVER_KEY_VARIABLE;
        if (mechanism.equals("CURVE") && keys == null) {
            String message = "the daemon at " + endpoint + " admits only clients with a key: pass key and serverKey to the"
                    + " builder, or set " + variables;
            return new Reachability.Finding("key_needed", message);
        }
        if (mechanism.equals("NULL") && keys != null) {
            String message = "what listens at " + endpoint + " does not use CURVE and so cannot prove which daemon it is;"
                    + " nothing was sent. Is this the right endpoint, and has that daemon `security.curve`? A client"
                    + " without key and serverKey (" + variables + ") would connect, unencrypted";
            return new Reachability.Finding("no_curve", message);
        }
        if (mechanism.equals("CURVE") && failedHandshakes >= FAILED_HANDSHAKES) {
            String message = "the daemon at " + endpoint + " has another key than serverKey (" + Keys.SERVER_KEY_VARIABLE
                    + "): ask its operator for its public key, which `multitower keys show FILE` prints";
            return new Reachability.Finding("server_key_wrong", message);
        }
        return null;
    }

    private static String mechanism(InputStream input) throws IOException {
        byte[] greeting = input.readNBytes(MECHANISM_AT + MECHANISM_BYTES);
        if (greeting.length < MECHANISM_AT + MECHANISM_BYTES || greeting[0] != -1 || greeting[10] < 3) {
            return "";
        }
        return new String(greeting, MECHANISM_AT, MECHANISM_BYTES, StandardCharsets.US_ASCII).replace("\0", "");
    }
}
