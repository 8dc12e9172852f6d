package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The jar as applications use it: on the module path, with what Maven brings. */
class ModulePathIT {
    private static final Path TARGET = Path.of(System.getProperty("basedir"), "target");
    private static final Path JAR = Path.of(System.getProperty("multitower.jar"));
    private static final String MODULE = "io.github.multitower.client";
    private static final String APPLICATION = String.join("\n",
            "package application;",
            "import io.github.multitower.client.*;",
            "import java.util.Map;",
            "public class Main {",
            "    public static void main(String[] arguments) {",
            "        try (InferenceClient client = MultitowerClient.connect(arguments[0])) {",
            "            Tensor x = Tensor.of(new float[] {1}, 1);",
            "            byte[] y = client.infer(\"m\", Map.of(\"x\", x)).get(\"y\").toBytes();",
            "            System.out.println(MultitowerClient.class.getModule().getName() + ' ' + y[0] + ' ' + y[1]);",
            "        }",
            "    }",
            "}");

    private static String modulePath() throws IOException {
        try (Stream<Path> libraries = Files.list(TARGET.resolve("lib"))) {
            return Stream.concat(Stream.of(JAR), libraries)
                    .map(Path::toString)
                    .collect(Collectors.joining(System.getProperty("path.separator")));
        }
    }

    private static String run(String... command) throws IOException, InterruptedException {
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8).strip();
        assertTrue(process.waitFor(30, TimeUnit.SECONDS), output);
        assertEquals(0, process.exitValue(), output);
        return output;
    }

    @Test
    void aModularApplicationAsksADaemon(@TempDir Path folder) throws Exception {
        Path descriptor = folder.resolve("module-info.java");
        Path program = folder.resolve("Main.java");
        Files.writeString(descriptor, "module application { requires " + MODULE + "; }");
        Files.writeString(program, APPLICATION);
        ByteArrayOutputStream errors = new ByteArrayOutputStream();
        String path = modulePath();
        List<String> options = List.of("--release", "11", "-p", path, "-d", folder.resolve("classes").toString());
        List<String> sources = List.of(descriptor.toString(), program.toString());
        String[] arguments = Stream.concat(options.stream(), sources.stream()).toArray(String[]::new);
        int failed = ToolProvider.getSystemJavaCompiler().run(null, null, errors, arguments);
        assertEquals(0, failed, errors.toString(StandardCharsets.UTF_8));
        try (FakeDaemon daemon = new FakeDaemon(FakeDaemon::two)) {
            String modules = path + System.getProperty("path.separator") + folder.resolve("classes");
            Path java = Path.of(System.getProperty("java.home"), "bin", "java");
            String output = run(java.toString(), "-p", modules, "-m", "application/application.Main", daemon.endpoint);
            assertEquals(MODULE + " 1 2", output);
        }
    }

    @Test
    void theJarHasItsLicence() throws Exception {
        try (var jar = new java.util.jar.JarFile(JAR.toFile())) {
            assertTrue(jar.getEntry("META-INF/LICENSE") != null);
        }
    }
}
