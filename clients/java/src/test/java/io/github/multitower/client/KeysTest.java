package io.github.multitower.client;

import static io.github.multitower.client.Outcomes.assertReason;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Duration;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.zeromq.ZMQ;

/** Keys of CURVE: their forms, which clients the daemon accepts, and which errors the others get. */
class KeysTest {
    private static final ZMQ.Curve.KeyPair SERVER = ZMQ.Curve.generateKeyPair();
    private static final ZMQ.Curve.KeyPair KNOWN = ZMQ.Curve.generateKeyPair();
    private static final ZMQ.Curve.KeyPair STRANGER = ZMQ.Curve.generateKeyPair();
    private static final Map<String, Tensor> INPUTS = Map.of("x", Tensor.of(new float[] {1, 2}, 1, 2));
    private static final String METADATA = "{\"name\":\"fake\"}";

    /** A refusal must not take as long as this. */
    private static final Duration LONG = Duration.ofSeconds(60);

    @TempDir
    Path folder;

    private static FakeDaemon locked() {
        FakeDaemon daemon = new FakeDaemon(FakeDaemon::two, "tcp://127.0.0.1:*", METADATA, SERVER.secretKey);
        daemon.admitted.add(KNOWN.publicKey);
        return daemon;
    }

    private static MultitowerClient.Builder builder(String endpoint) {
        return MultitowerClient.builder().endpoint(endpoint).connectTimeout(LONG).timeout(LONG);
    }

    private static MultitowerClient client(String endpoint, ZMQ.Curve.KeyPair keys, String serverKey) {
        return builder(endpoint).key(keys.publicKey, keys.secretKey).serverKey(serverKey).build();
    }

    private Path file(String name, String text, String mode) throws IOException {
        Path file = folder.resolve(name);
        Files.writeString(file, text);
        Files.setPosixFilePermissions(file, PosixFilePermissions.fromString(mode));
        return file;
    }

    private static String certificate(String publicKey, String secretKey) {
        return "metadata\ncurve\n    public-key = \"" + publicKey + "\"\n    secret-key = \"" + secretKey + "\"\n";
    }

    // Who is let in.

    @Test
    void keysAndFilesOfThemLetAClientIn() throws Exception {
        Path secret = file("ana.key_secret", certificate(KNOWN.publicKey, KNOWN.secretKey), "rw-------");
        Path server = file("gpus.key", "curve\n    public-key = \"" + SERVER.publicKey + "\"\n", "rw-r--r--");
        try (FakeDaemon daemon = locked()) {
            for (MultitowerClient.Builder builder : new MultitowerClient.Builder[] {
                builder(daemon.endpoint).key(secret).serverKey(server),
                builder(daemon.endpoint).key(KNOWN.publicKey, KNOWN.secretKey).serverKey(SERVER.publicKey),
                builder(daemon.endpoint).key(secret).serverKey(server.toString())
            }) {
                try (MultitowerClient client = builder.build()) {
                    assertArrayEquals(new byte[] {1, 2}, client.infer("m", INPUTS).get("y").toBytes());
                }
            }
        }
    }

    @Test
    void aClientThatIsAdmittedLaterIsLetIn() throws Exception {
        try (FakeDaemon daemon = locked();
                MultitowerClient client = client(daemon.endpoint, STRANGER, SERVER.publicKey)) {
            assertRefused(daemon.endpoint, "key_refused", "does not admit this client's key", client);
            assertRefused(daemon.endpoint, "key_refused", "does not admit this client's key", client);
            daemon.admitted.add(STRANGER.publicKey);
            long limit = System.nanoTime() + LONG.toNanos();
            while (true) {
                try {
                    assertArrayEquals(new byte[] {1, 2}, client.infer("m", INPUTS).get("y").toBytes());
                    return;
                } catch (MultitowerException.Unauthenticated notYet) {
                    assertTrue(System.nanoTime() < limit, notYet.toString());
                    Thread.sleep(20);
                }
            }
        }
    }

    // What is said to others: at once.

    private static void assertRefused(String endpoint, String kind, String words, MultitowerClient client) {
        long begun = System.nanoTime();
        MultitowerException error =
                assertThrows(MultitowerException.Unauthenticated.class, () -> client.infer("m", INPUTS));
        assertTrue(System.nanoTime() - begun < LONG.toNanos() / 2, "it waited");
        assertReason(Reason.UNAUTHENTICATED, error);
        assertEquals(Map.of("connect_error", kind), error.details());
        assertTrue(error.getMessage().contains(endpoint) && error.getMessage().contains(words), error.getMessage());
        for (ZMQ.Curve.KeyPair keys : new ZMQ.Curve.KeyPair[] {SERVER, KNOWN, STRANGER}) {
            assertFalse(error.toString().contains(keys.secretKey));
        }
    }

    @Test
    void anUnknownKeyIsRefused() {
        try (FakeDaemon daemon = locked();
                MultitowerClient client = client(daemon.endpoint, STRANGER, SERVER.publicKey)) {
            assertRefused(daemon.endpoint, "key_refused", STRANGER.publicKey, client);
        }
    }

    @Test
    void aClientWithoutAKeyIsToldThatItNeedsOne() {
        try (FakeDaemon daemon = locked();
                MultitowerClient client = builder(daemon.endpoint).build()) {
            assertRefused(daemon.endpoint, "key_needed", "admits only clients with a key", client);
        }
    }

    @Test
    void aDaemonWithoutCurveGetsNothing() {
        try (FakeDaemon daemon = new FakeDaemon();
                MultitowerClient client = client(daemon.endpoint, KNOWN, SERVER.publicKey)) {
            assertRefused(daemon.endpoint, "no_curve", "does not use CURVE", client);
            assertTrue(daemon.requests.isEmpty());
        }
    }

    @Test
    void anotherDaemonThanWasMeantGetsNothing() {
        try (FakeDaemon daemon = locked();
                MultitowerClient client = client(daemon.endpoint, KNOWN, STRANGER.publicKey)) {
            assertRefused(daemon.endpoint, "server_key_wrong", "has another key than serverKey", client);
            assertTrue(daemon.requests.isEmpty());
        }
    }

    @Test
    void waitingForReadinessEndsAtARefusal() {
        try (FakeDaemon daemon = locked();
                MultitowerClient client = client(daemon.endpoint, STRANGER, SERVER.publicKey)) {
            assertThrows(MultitowerException.Unauthenticated.class, () -> client.waitUntilReady(LONG));
        }
    }

    // Keys that cannot be used.

    private static void assertRefused(String words, Runnable given) {
        IllegalArgumentException error = assertThrows(IllegalArgumentException.class, given::run);
        assertTrue(error.getMessage().contains(words), error.getMessage());
        assertFalse(error.getMessage().contains(KNOWN.secretKey.substring(0, 39)), error.getMessage());
    }

    @Test
    void keysThatCannotBeUsedAreRefusedWithoutBeingRepeated() throws Exception {
        String slip = KNOWN.secretKey.substring(0, 39);
        assertRefused("the secret key is not a key", () -> Keys.pair(KNOWN.publicKey, slip));
        assertRefused("are no pair", () -> Keys.pair(STRANGER.publicKey, KNOWN.secretKey));
        assertRefused("is neither a file that exists nor a key", () -> Keys.secret(slip));
        assertRefused("there is no file none.key_secret", () -> Keys.secret("none.key_secret"));
        assertRefused("is empty", () -> Keys.secret(""));
        assertRefused("is empty", () -> Keys.publicKey(""));
        assertRefused("is neither a file that exists nor a key", () -> Keys.publicKey("#".repeat(40)));
        assertRefused("does not exist", () -> Keys.secretFile(folder.resolve("none")));
        assertRefused("is not a regular file", () -> Keys.secretFile(folder));
        Path open = file("open", KNOWN.publicKey, "rw-r--r--");
        assertRefused("others may use the secret key", () -> Keys.secretFile(open));
        Path wrong = file("wrong", certificate(STRANGER.publicKey, KNOWN.secretKey), "rw-------");
        assertRefused("are no pair", () -> Keys.secretFile(wrong));
        Path secretOnly = file("secret", "secret-key = \"" + KNOWN.secretKey + "\"\n", "rw-------");
        assertRefused("holds no public key", () -> Keys.publicFile(secretOnly));
    }

    @Test
    void theBuilderNamesTheParameterOfAKeyThatCannotBeUsed() {
        Path none = folder.resolve("none");
        assertRefused("serverKey: it is empty", () -> MultitowerClient.builder().serverKey(""));
        assertRefused("serverKey: " + none + " does not exist", () -> MultitowerClient.builder().serverKey(none));
        assertRefused("key: " + none + " does not exist", () -> MultitowerClient.builder().key(none));
        assertRefused("key: the public and", () -> MultitowerClient.builder().key(STRANGER.publicKey, KNOWN.secretKey));
    }

    @Test
    void theEnvironmentHasTheKeysOrNone() throws Exception {
        Path secret = file("ana.key_secret", KNOWN.secretKey + "\n", "rw-------");
        Map<String, String> both = Map.of("MULTITOWER_KEY", secret.toString(), "MULTITOWER_SERVER_KEY", SERVER.publicKey);
        assertEquals(KNOWN.publicKey, Keys.find(null, null, both::get).shownPublicKey());
        Map<String, String> inZ85 = Map.of("MULTITOWER_KEY", KNOWN.secretKey, "MULTITOWER_SERVER_KEY", SERVER.publicKey);
        assertEquals(KNOWN.publicKey, Keys.find(null, null, inZ85::get).shownPublicKey());
        byte[] other = Keys.pair(STRANGER.publicKey, STRANGER.secretKey);
        assertEquals(STRANGER.publicKey, Keys.find(other, null, both::get).shownPublicKey()); // the builder's is first
        assertNull(Keys.find(null, null, name -> null));
        Map<String, String> empty = Map.of("MULTITOWER_KEY", "", "MULTITOWER_SERVER_KEY", SERVER.publicKey);
        assertRefused("MULTITOWER_KEY: it is empty", () -> Keys.find(null, null, empty::get));
        Map<String, String> half = Map.of("MULTITOWER_SERVER_KEY", SERVER.publicKey);
        assertRefused("key is not: pass it, or set MULTITOWER_KEY", () -> Keys.find(null, null, half::get));
        assertRefused("serverKey is not: pass it, or set", () -> Keys.find(other, null, name -> null));
    }
}
