package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Map;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** A real daemon with {@code security}, and keys that {@code multitower keys} has made: JeroMQ's CURVE beside libzmq's. */
class SecurityIT {
    private static final String CONFIG = String.join("\n",
            "devices: {cpu: 1}",
            "spares: 0",
            "security: {curve: {secret_key: server.key_secret}, principals: principals.yaml}",
            "models:",
            "  - {name: echo, handler: 'handlers:Echo'}",
            "  - {name: theirs, handler: 'handlers:Echo'}",
            "");
    private static final Map<String, Tensor> INPUTS = Map.of("x", Tensor.of(new float[] {1, 2}, 1, 2));
    private static final Duration LONG = Duration.ofSeconds(60);

    private static Path folder;
    private static Daemon daemon;

    private static void keys(String... arguments) throws Exception {
        String[] command = new String[arguments.length + 3];
        System.arraycopy(new String[] {"-m", "multitower", "keys"}, 0, command, 0, 3);
        System.arraycopy(arguments, 0, command, 3, arguments.length);
        Daemon.python(folder, command);
    }

    @BeforeAll
    static void serve() throws Exception {
        Daemon.require("multitower", "numpy", "psutil");
        folder = Files.createDirectories(Daemon.WORK.resolve("security"));
        Files.deleteIfExists(folder.resolve("principals.yaml"));
        keys("new", "server", "--server", "--force");
        keys("new", "ana", "--force");
        keys("new", "stranger", "--force");
        keys("add", "ana", "--principals", "principals.yaml", "--public-key", "ana.key", "--role", "infer", "--model", "echo");
        daemon = new Daemon("security", CONFIG);
    }

    @AfterAll
    static void end() {
        if (daemon != null) {
            daemon.close();
        }
    }

    private static MultitowerClient.Builder builder() {
        return MultitowerClient.builder().endpoint(daemon.endpoint()).timeout(LONG).connectTimeout(LONG);
    }

    private static void assertRefused(String kind, MultitowerClient.Builder builder) {
        try (MultitowerClient client = builder.build()) {
            MultitowerException error =
                    assertThrows(MultitowerException.Unauthenticated.class, () -> client.infer("echo", INPUTS));
            assertTrue(error.is(Reason.UNAUTHENTICATED), error.toString());
            assertEquals(kind, error.details().get("connect_error"), error.toString());
        }
    }

    @Test
    void aPrincipalMayDoWhatItsRolesAllowOnItsModels() throws Exception {
        try (MultitowerClient client = builder()
                .key(folder.resolve("ana.key_secret"))
                .serverKey(folder.resolve("server.key"))
                .build()) {
            client.waitUntilReady(LONG);
            assertArrayEquals(new float[] {1, 2}, client.infer("echo", INPUTS).get("x").toFloats());
            // Four megabytes, encrypted.
            float[] many = new float[1 << 20];
            many[many.length - 1] = 7;
            assertArrayEquals(many, client.infer("echo", Map.of("x", Tensor.of(many, 1, many.length))).get("x").toFloats());
            for (String model : new String[] {"theirs", "nosuch"}) {
                MultitowerException error =
                        assertThrows(MultitowerException.Forbidden.class, () -> client.infer(model, INPUTS));
                assertTrue(error.is(Reason.FORBIDDEN), error.toString());
                assertTrue(!error.getMessage().contains(model), error.getMessage());
            }
            assertThrows(MultitowerException.Forbidden.class, client::status);
        }
    }

    @Test
    void withoutTheRightKeysNothingAnswersButARefusal() {
        assertRefused("key_needed", builder());
        assertRefused(
                "key_refused", builder().key(folder.resolve("stranger.key_secret")).serverKey(folder.resolve("server.key")));
        assertRefused(
                "server_key_wrong", builder().key(folder.resolve("ana.key_secret")).serverKey(folder.resolve("stranger.key")));
    }
}
