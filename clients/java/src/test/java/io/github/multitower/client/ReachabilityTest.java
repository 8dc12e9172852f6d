package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.net.ConnectException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.NoRouteToHostException;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketException;
import java.net.SocketTimeoutException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import java.util.logging.SimpleFormatter;
import org.junit.jupiter.api.Test;

/** Why there is no connection, as errors tell it, and what the log says about connections. */
class ReachabilityTest {
    private static final Map<String, Tensor> INPUTS = Map.of("x", Tensor.of(new float[] {1, 2}, 1, 2));
    private static final Duration CONNECT = Duration.ofMillis(500);
    private static final String NO_ANSWER =
            "something listens at ENDPOINT, but it does not answer as a multitower daemon: ";

    /** Asks at an endpoint where no daemon is, until the error is this one: the cause is found in the background. */
    private static void assertError(String kind, String begin, String endpoint) {
        String text = begin.replace("ENDPOINT", endpoint);
        try (MultitowerClient client =
                MultitowerClient.builder().endpoint(endpoint).connectTimeout(CONNECT).build()) {
            MultitowerException error;
            do {
                error = assertThrows(MultitowerException.Unavailable.class, () -> client.infer("m", INPUTS));
                assertTrue(error.is(Reason.NOT_LISTENING), error.toString());
                assertTrue(error.getMessage().contains(endpoint), error.getMessage());
            } while (!error.getMessage().startsWith(text));
            assertEquals(Map.of("connect_error", kind), error.details(), error.toString());
        }
    }

    @Test
    void aRefusedConnectionIsToldApart() throws Exception {
        int port;
        try (ServerSocket socket = new ServerSocket(0)) {
            port = socket.getLocalPort();
        }
        String text = "no daemon listens at ENDPOINT: the connection is refused; ";
        assertError("connection_refused", text, "tcp://127.0.0.1:" + port);
        assertError("connection_refused", text, "tcp://localhost:" + port);
    }

    @Test
    void aNameThatDoesNotResolveIsToldApart() {
        String text = "the name of the host in ENDPOINT cannot be resolved: no-such-host.test";
        assertError("name_not_resolved", text, "tcp://no-such-host.test:5555");
    }

    @Test
    void aHostThatDoesNotAnswerIsToldApart() throws Exception {
        List<Socket> queued = new ArrayList<>();
        // Linux drops the first packets of connections while the queue of a listener is full.
        try (ServerSocket listener = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            InetSocketAddress address = new InetSocketAddress("127.0.0.1", listener.getLocalPort());
            boolean full = false;
            while (!full) {
                Socket socket = new Socket();
                queued.add(socket);
                try {
                    socket.connect(address, 500);
                } catch (SocketTimeoutException swallowed) {
                    full = true;
                }
            }
            String text = "no connection to ENDPOINT within 0.25 s: the host does not answer";
            assertError("timed_out", text, "tcp://127.0.0.1:" + listener.getLocalPort());
        } finally {
            for (Socket socket : queued) {
                socket.close();
            }
        }
    }

    @Test
    void aProgramThatIsNoDaemonIsToldApart() throws Exception {
        try (ServerSocket listener = new ServerSocket(0, 50, InetAddress.getLoopbackAddress())) {
            assertError("no_answer", NO_ANSWER, "tcp://127.0.0.1:" + listener.getLocalPort());
        }
    }

    @Test
    void otherErrorsOfTheNetworkHaveTheirKind() {
        Endpoint endpoint = Endpoint.parse("tcp://gpus:5555");
        Map<IOException, String> kinds = Map.of(
                new NoRouteToHostException("No route to host"), "unreachable",
                new ConnectException("Network is unreachable"), "unreachable",
                new ConnectException("Das Netzwerk ist nicht erreichbar (connect failed)"), "unreachable",
                new ConnectException("Connection timed out"), "timed_out",
                new SocketException("Permission denied"), "permission_denied",
                new ConnectException("Permission denied (connect failed)"), "permission_denied",
                new SocketException("Operation not permitted"), "permission_denied",
                new ConnectException("Connection refused"), "connection_refused",
                // The system's language is German.
                new ConnectException("Verbindungsaufbau abgelehnt"), "connection_refused");
        kinds.forEach(
                (error, kind) -> assertEquals(kind, Reachability.failed(endpoint, error, 1).kind, error.toString()));
    }

    @Test
    void anIpv6AddressMayHaveAZone() throws Exception {
        try (ServerSocket listener = new ServerSocket(0, 50, InetAddress.getByName("::1"))) {
            assertError("no_answer", NO_ANSWER, "tcp://[::1%lo]:" + listener.getLocalPort());
        }
        String text = "the name of the host in ENDPOINT cannot be resolved: no such interface";
        assertError("name_not_resolved", text, "tcp://[::1%no-such-zone]:5555");
    }

    @Test
    void aZoneIsANumberForJeroMqWhichNeedsNoInterface() throws Exception {
        CountDownLatch resolved = new CountDownLatch(1);
        Reachability reachability = new Reachability(
                Endpoint.parse("tcp://[::1%lo]:5555"), CONNECT, null, resolved::countDown, Thread::new);
        reachability.start();
        Outcomes.await(resolved);
        assertEquals("tcp://[0:0:0:0:0:0:0:1%1]:5555", reachability.address());
        reachability.stop();
    }

    @Test
    void aThreadThatCannotBeStartedIsStartedLater() throws Exception {
        CountDownLatch resolved = new CountDownLatch(1);
        AtomicInteger threads = new AtomicInteger();
        Reachability reachability = new Reachability(
                Endpoint.parse("tcp://127.0.0.1:5555"),
                CONNECT,
                null,
                resolved::countDown,
                action -> threads.incrementAndGet() > 1 ? new Thread(action) : new NoThread());
        reachability.start();
        assertTrue(reachability.error().is(Reason.NOT_LISTENING));
        reachability.start();
        Outcomes.await(resolved);
        reachability.stop();
    }

    /** As at the limit of processes. */
    private static final class NoThread extends Thread {
        @Override
        public void start() {
            throw new OutOfMemoryError("unable to create native thread");
        }
    }

    @Test
    void aNameThatIsAddedLaterIsFound() throws Exception {
        // The file stands for DNS: the JVM reads it for each look-up. The pom lets it keep no failures, which it does
        // for ten seconds by default.
        Path hosts = Path.of(System.getProperty("jdk.net.hosts.file"));
        String before = Files.readString(hosts);
        try (FakeDaemon daemon = new FakeDaemon(FakeDaemon::two)) {
            String port = daemon.endpoint.substring(daemon.endpoint.lastIndexOf(':'));
            try (MultitowerClient client = MultitowerClient.builder()
                    .endpoint("tcp://later.test" + port)
                    .connectTimeout(Duration.ofSeconds(30))
                    .build()) {
                CompletableFuture<Map<String, Tensor>> future = client.inferAsync("m", INPUTS);
                Files.writeString(hosts, before + "127.0.0.1 later.test\n");
                assertArrayEquals(new byte[] {1, 2}, future.get(30, TimeUnit.SECONDS).get("y").toBytes());
            }
        } finally {
            Files.writeString(hosts, before);
        }
    }

    @Test
    void theLogTellsOfALostAndARegainedConnection() throws Exception {
        BlockingQueue<LogRecord> records = new LinkedBlockingQueue<>();
        Handler handler =
                new Handler() {
                    @Override
                    public void publish(LogRecord record) {
                        records.add(record);
                    }

                    @Override
                    public void flush() {}

                    @Override
                    public void close() {}
                };
        Logger logger = Logger.getLogger("io.github.multitower.client");
        logger.addHandler(handler);
        try (FakeDaemon first = new FakeDaemon(request -> null);
                MultitowerClient client = MultitowerClient.builder()
                        .endpoint(first.endpoint)
                        .connectTimeout(Duration.ofSeconds(30))
                        .build()) {
            client.inferAsync("m", INPUTS);
            first.next("MT1:infer");
            first.close();
            assertRecord(records, first.endpoint, Level.WARNING, "lost the connection to ENDPOINT: 1 request ");
            try (FakeDaemon second = new FakeDaemon(FakeDaemon::two, first.endpoint, "{}")) {
                client.infer("m", INPUTS);
                assertRecord(records, second.endpoint, Level.INFO, "connected to ENDPOINT again, ");
                client.close();
            }
            assertTrue(records.isEmpty(), "closing is no loss");
        } finally {
            logger.removeHandler(handler);
        }
    }

    /** The next record. */
    private static void assertRecord(BlockingQueue<LogRecord> records, String endpoint, Level level, String start)
            throws InterruptedException {
        LogRecord record = records.poll(30, TimeUnit.SECONDS);
        assertTrue(record != null, "no record: " + start);
        String text = new SimpleFormatter().formatMessage(record);
        assertTrue(text.startsWith(start.replace("ENDPOINT", endpoint)), text);
        assertEquals(level, record.getLevel());
    }
}
