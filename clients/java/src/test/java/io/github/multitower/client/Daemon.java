package io.github.multitower.client;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Assumptions;

/** A real daemon in a process of its own: started, listened to through its log, ended. */
final class Daemon implements AutoCloseable {
    static final Path WORK = Path.of(System.getProperty("basedir"), "target", "daemons");
    private static final String PYTHON_PROPERTY = "multitower.python";
    private static final long WAIT_S = 60;

    /** On a busy machine TensorFlow's import alone takes a minute. */
    private static final long PROGRAM_S = 200;

    private static String python;

    private final Path folder;
    private final String config;
    private Process process;
    private String endpoint = "tcp://127.0.0.1:*";

    /**
     * Chooses the interpreter that starts daemons: {@code -Dmultitower.python}, which must have the modules, otherwise
     * that of the checkout. If that one is not there or lacks a module, the tests of the calling class are skipped.
     *
     * @param modules what the tests need
     */
    static void require(String... modules) throws IOException, InterruptedException {
        String passed = System.getProperty(PYTHON_PROPERTY);
        String found = passed != null ? passed : Vectors.ROOT.resolve(".venv/bin/python").toString();
        String missing = missing(found, modules);
        if (missing.isEmpty()) {
            python = found;
            return;
        }
        if (passed != null) {
            throw new IllegalStateException("-D" + PYTHON_PROPERTY + "=" + passed + ": " + missing);
        }
        String message = "skipped, since no daemon can be started: " + missing + "; pass -D" + PYTHON_PROPERTY
                + "=PYTHON, an interpreter that has " + String.join(", ", modules);
        System.out.println(message);
        Assumptions.abort(message);
    }

    /** Why an interpreter cannot be used; empty if it can. */
    private static String missing(String interpreter, String... modules) throws IOException, InterruptedException {
        if (!Files.isExecutable(Path.of(interpreter))) {
            return "there is no " + interpreter;
        }
        String program = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if not u.find_spec(m)])";
        List<String> command = new ArrayList<>(List.of(interpreter, "-c", program));
        command.addAll(List.of(modules));
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String absent = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8).strip();
        if (process.waitFor() != 0) {
            return interpreter + " fails: " + absent;
        }
        return absent.isEmpty() ? "" : interpreter + " has no " + absent.replace(" ", ", ");
    }

    /**
     * Starts one.
     *
     * @param name of its folder, where the handlers of the project's tests lie beside its configuration
     * @param config YAML without {@code listen}
     */
    Daemon(String name, String config) {
        this.config = config;
        this.folder = WORK.resolve(name);
        try {
            Files.createDirectories(folder);
            for (String file : List.of("handlers.py", "commanded_handlers.py")) {
                Files.copy(
                        Vectors.ROOT.resolve("tests/fakes").resolve(file),
                        folder.resolve(file),
                        java.nio.file.StandardCopyOption.REPLACE_EXISTING);
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        start();
    }

    /** Starts it, again on the same port after it was ended; returns when it listens. */
    void start() {
        try {
            Files.writeString(folder.resolve("config.yaml"), "listen: [\"" + endpoint + "\"]\n" + config);
            // Short, since paths of sockets are limited to 107 bytes.
            Path sockets = Files.createTempDirectory("mt-");
            ProcessBuilder builder =
                    new ProcessBuilder(python, "-m", "multitower", "serve", "config.yaml", "--log-format", "json");
            builder.command().addAll(List.of("--set", "runtime_dir=" + sockets.resolve("run")));
            builder.directory(folder.toFile()).redirectErrorStream(true);
            builder.environment().put("TF_CPP_MIN_LOG_LEVEL", "2");
            process = builder.start();
            Process started = process;
            Runtime.getRuntime().addShutdownHook(new Thread(started::destroyForcibly)); // whatever becomes of the tests
            endpoint = (String) Json.read(line("daemon started").getBytes(StandardCharsets.UTF_8)).get("listen");
        } catch (IOException | InterruptedException error) {
            throw new IllegalStateException(error);
        }
    }

    /**
     * Reads the log to its end in a thread, so that the daemon never waits for it; the first line that holds a text.
     */
    private String line(String wanted) throws InterruptedException {
        List<String> log = new ArrayList<>();
        BlockingQueue<String> found = new LinkedBlockingQueue<>();
        BufferedReader reader =
                new BufferedReader(new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8));
        Thread thread = new Thread(() -> {
            try {
                for (String line = reader.readLine(); line != null; line = reader.readLine()) {
                    synchronized (log) {
                        log.add(line);
                    }
                    if (line.contains(wanted)) {
                        found.add(line);
                    }
                }
            } catch (IOException ended) {
                synchronized (log) {
                    log.add(ended.toString());
                }
            }
            found.add("");
        });
        thread.setDaemon(true);
        thread.start();
        String line = found.poll(WAIT_S, TimeUnit.SECONDS);
        if (line == null || line.isEmpty()) {
            synchronized (log) {
                throw new IllegalStateException("the daemon did not start:\n" + String.join("\n", log));
            }
        }
        return line;
    }

    String endpoint() {
        return endpoint;
    }

    Path folder() {
        return folder;
    }

    /** Kills it, as a crash would. */
    void kill() throws InterruptedException {
        process.destroyForcibly().waitFor(WAIT_S, TimeUnit.SECONDS);
    }

    /** Ends it as an operator would: it answers what it has. */
    @Override
    public void close() {
        process.destroy();
        try {
            if (!process.waitFor(WAIT_S, TimeUnit.SECONDS)) {
                kill();
            }
        } catch (InterruptedException interrupt) {
            process.destroyForcibly();
            Thread.currentThread().interrupt();
        }
    }

    /** Runs a Python program of the project to its end. */
    static void python(Path folder, String... arguments) throws IOException, InterruptedException {
        List<String> command = new ArrayList<>(List.of(python));
        command.addAll(List.of(arguments));
        Path log = Files.createTempFile("mt-", ".log");
        Process program = new ProcessBuilder(command)
                .directory(folder.toFile())
                .redirectErrorStream(true)
                .redirectOutput(log.toFile())
                .start();
        boolean ended = program.waitFor(PROGRAM_S, TimeUnit.SECONDS);
        if (!ended || program.exitValue() != 0) {
            program.destroyForcibly();
            String how = ended ? "exit code " + program.exitValue() : "no end within " + PROGRAM_S + " s";
            throw new IllegalStateException(String.join(" ", command) + ": " + how + "\n" + Files.readString(log));
        }
        Files.delete(log);
    }
}
