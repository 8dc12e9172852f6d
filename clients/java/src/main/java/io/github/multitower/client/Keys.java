package io.github.multitower.client;

import java.io.IOException;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFileAttributes;
import java.nio.file.attribute.PosixFilePermission;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.PublicKey;
import java.security.spec.NamedParameterSpec;
import java.security.spec.XECPrivateKeySpec;
import java.security.spec.XECPublicKeySpec;
import java.util.EnumSet;
import java.util.Set;
import java.util.function.Function;
import java.util.function.Supplier;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.crypto.KeyAgreement;
import org.zeromq.ZMQ;

/**
 * What CURVE needs to connect to a daemon with {@code security}: the client's pair of keys, and the daemon's public key.
 * No message contains a secret key, or a text that was passed as one.
 */
final class Keys {
    static final String KEY_VARIABLE = "MULTITOWER_KEY";
    static final String SERVER_KEY_VARIABLE = "MULTITOWER_SERVER_KEY";

    private static final int BYTES = 32;
    private static final String FORM = "a key of 40 characters in Z85";
    private static final Pattern Z85 = Pattern.compile("[0-9a-zA-Z.\\-:+=^!/*?&<>()\\[\\]{}@%$#]{40}");

    /** A line of libzmq's certificate format. */
    private static final Pattern LINE =
            Pattern.compile("^\\s*(public|secret)-key\\s*=\\s*[\"']?([^\"'\\s]*)[\"']?\\s*$", Pattern.MULTILINE);

    private static final Set<PosixFilePermission> OTHERS = EnumSet.of(
            PosixFilePermission.OTHERS_READ, PosixFilePermission.OTHERS_WRITE, PosixFilePermission.OTHERS_EXECUTE);
    private static final Set<PosixFilePermission> GROUP = EnumSet.of(
            PosixFilePermission.GROUP_READ, PosixFilePermission.GROUP_WRITE, PosixFilePermission.GROUP_EXECUTE);

    final byte[] publicKey;
    final byte[] secretKey;
    final byte[] serverKey;

    private Keys(byte[] publicKey, byte[] secretKey, byte[] serverKey) {
        this.publicKey = publicKey;
        this.secretKey = secretKey;
        this.serverKey = serverKey;
    }

    /**
     * The keys of a client.
     *
     * @param key the client's, as {@link #secret} or {@link #secretFile} returns it; null for that of the environment
     * @param server the daemon's public key; null for that of the environment
     * @param environment returns a variable, or null; an empty one counts as given
     * @return null if neither key is given
     * @throws IllegalArgumentException a key cannot be used, or only one of the two is given
     */
    static Keys find(byte[] key, byte[] server, Function<String, String> environment) {
        String keyVariable = environment.apply(KEY_VARIABLE);
        String serverVariable = environment.apply(SERVER_KEY_VARIABLE);
        byte[] secret = key;
        if (secret == null && keyVariable != null) {
            secret = named(KEY_VARIABLE, () -> secret(keyVariable));
        }
        byte[] serverKey = server;
        if (serverKey == null && serverVariable != null) {
            serverKey = named(SERVER_KEY_VARIABLE, () -> publicKey(serverVariable));
        }
        if (secret == null && serverKey == null) {
            return null;
        }
        if (secret == null || serverKey == null) {
            throw new IllegalArgumentException(secret == null
                    ? "serverKey is given, and key is not: pass it, or set " + KEY_VARIABLE
                    : "key is given, and serverKey is not: pass it, or set " + SERVER_KEY_VARIABLE);
        }
        return new Keys(publicOf(secret), secret, serverKey);
    }

    /**
     * Reads a key, and names where it was given if it cannot be used.
     *
     * @param origin a parameter of the builder, or a variable of the environment
     * @param read returns the key
     * @throws IllegalArgumentException the key cannot be used; the message begins with the origin
     */
    static byte[] named(String origin, Supplier<byte[]> read) {
        try {
            return read.get();
        } catch (IllegalArgumentException error) {
            throw new IllegalArgumentException(origin + ": " + error.getMessage(), error);
        }
    }

    /** The client's public key, in Z85. */
    String shownPublicKey() {
        return ZMQ.Curve.z85Encode(publicKey);
    }

    /**
     * Reads a secret key: in Z85, or the path of its file.
     *
     * @throws IllegalArgumentException it is neither
     */
    static byte[] secret(String text) {
        Path file = existing(text);
        if (file != null) {
            return secretFile(file);
        }
        if (text.endsWith(".key_secret")) {
            throw new IllegalArgumentException("there is no file " + text);
        }
        // The message does not repeat it: it may be a secret key with a typing error.
        return decoded(text, text.isEmpty() ? "it is empty" : "it is neither a file that exists nor " + FORM);
    }

    /**
     * Reads a file of a secret key. Others may not use it, nor may its group if it belongs to this process's user.
     * (Kubernetes gives a process its secrets as files of root's that a group may read.)
     *
     * @throws IllegalArgumentException it cannot be read, admits others, or holds no secret key
     */
    static byte[] secretFile(Path file) {
        String text = read(file);
        checkMode(file);
        String secret = key(text, "secret");
        String none = file + " holds no secret key; `multitower keys new NAME` writes NAME.key_secret";
        byte[] key = decoded(secret == null ? text.strip() : secret, none);
        String open = key(text, "public");
        if (open != null && !open.equals(ZMQ.Curve.z85Encode(publicOf(key)))) {
            throw new IllegalArgumentException("the public and the secret key in " + file + " are no pair");
        }
        return key;
    }

    /**
     * Checks a pair, and returns its secret key.
     *
     * @throws IllegalArgumentException one is not in Z85, or they do not belong together
     */
    static byte[] pair(String publicKey, String secretKey) {
        byte[] secret = decoded(secretKey, "the secret key is not " + FORM);
        if (!publicKey.equals(ZMQ.Curve.z85Encode(publicOf(secret)))) {
            throw new IllegalArgumentException("the public and the secret key are no pair");
        }
        return secret;
    }

    /**
     * Reads a public key: in Z85, or the path of a file that holds it.
     *
     * @throws IllegalArgumentException it is neither
     */
    static byte[] publicKey(String text) {
        Path file = existing(text);
        if (file != null) {
            return publicFile(file);
        }
        String neither = "'" + text + "' is neither a file that exists nor " + FORM;
        return decoded(text, text.isEmpty() ? "it is empty" : neither);
    }

    /**
     * Reads the public key in a file.
     *
     * @throws IllegalArgumentException it cannot be read, or holds no public key
     */
    static byte[] publicFile(Path file) {
        String text = read(file);
        String open = key(text, "public");
        boolean alone = open == null && key(text, "secret") == null;
        String none = file + " holds no public key; `multitower keys new NAME` writes NAME.key";
        return decoded(open != null ? open : alone ? text.strip() : "", none);
    }

    private static byte[] decoded(String text, String problem) {
        if (!Z85.matcher(text).matches()) {
            throw new IllegalArgumentException(problem);
        }
        byte[] key = ZMQ.Curve.z85Decode(text);
        if (key == null || key.length != BYTES || !ZMQ.Curve.z85Encode(key).equals(text)) { // a group over 2^32
            throw new IllegalArgumentException(problem);
        }
        return key;
    }

    /** A secret key times the base point of Curve25519. */
    private static byte[] publicOf(byte[] secret) {
        try {
            KeyFactory keys = KeyFactory.getInstance("X25519");
            PublicKey base = keys.generatePublic(new XECPublicKeySpec(NamedParameterSpec.X25519, BigInteger.valueOf(9)));
            KeyAgreement agreement = KeyAgreement.getInstance("X25519");
            agreement.init(keys.generatePrivate(new XECPrivateKeySpec(NamedParameterSpec.X25519, secret)));
            agreement.doPhase(base, true);
            return agreement.generateSecret();
        } catch (GeneralSecurityException error) {
            throw new IllegalStateException("this Java has no X25519", error);
        }
    }

    private static String key(String text, String half) {
        for (Matcher lines = LINE.matcher(text); lines.find(); ) {
            if (lines.group(1).equals(half)) {
                return lines.group(2);
            }
        }
        return null;
    }

    private static Path existing(String text) {
        try {
            return !text.isEmpty() && Files.exists(Path.of(text)) ? Path.of(text) : null;
        } catch (InvalidPathException noPath) {
            return null;
        }
    }

    private static String read(Path file) {
        if (!Files.isRegularFile(file)) {
            String what = Files.exists(file) ? " is not a regular file" : " does not exist";
            throw new IllegalArgumentException(file + what);
        }
        try {
            return new String(Files.readAllBytes(file), StandardCharsets.UTF_8);
        } catch (IOException error) {
            throw new IllegalArgumentException("cannot read the key " + file + ": " + error.getMessage(), error);
        }
    }

    private static void checkMode(Path file) {
        PosixFileAttributes attributes;
        try {
            attributes = Files.readAttributes(file, PosixFileAttributes.class);
        } catch (UnsupportedOperationException noModes) { // another system than Linux
            return;
        } catch (IOException error) {
            throw new IllegalArgumentException("cannot read the key " + file + ": " + error.getMessage(), error);
        }
        EnumSet<PosixFilePermission> refused = EnumSet.copyOf(OTHERS);
        if (attributes.owner().getName().equals(System.getProperty("user.name"))) {
            refused.addAll(GROUP);
        } else {
            refused.add(PosixFilePermission.GROUP_WRITE);
        }
        refused.retainAll(attributes.permissions());
        if (!refused.isEmpty()) {
            throw new IllegalArgumentException("others may use the secret key " + file + ": chmod 600 " + file);
        }
    }
}
