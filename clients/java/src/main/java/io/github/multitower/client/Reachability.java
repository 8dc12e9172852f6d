package io.github.multitower.client;

import java.io.IOException;
import java.net.ConnectException;
import java.net.Inet6Address;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.net.UnknownHostException;
import java.time.Duration;
import java.util.Arrays;
import java.util.Map;
import java.util.concurrent.ThreadFactory;

/**
 * Resolves the daemon's host, and finds out why no connection opens, which JeroMQ does not report. Both can block for
 * seconds, so a thread does it; the thread runs only while there is no connection.
 */
final class Reachability {
    private static final System.Logger LOG = System.getLogger("io.github.multitower.client");
    private static final long MOST_BEFORE_PROBE_MS = 500;
    private static final long MOST_PROBE_MS = 2000;
    private static final long AGAIN_MS = 1000;
    private static final long UNRESOLVED_AGAIN_MS = 200;

    private static final String IS_IT_RUNNING =
            "is the daemon running (multitower serve CONFIG), and is this its endpoint (" + Wire.ENDPOINT_VARIABLE
                    + " or the client's argument)?";

    /** The key of the kind of failure in the details of an error; the kinds are those of the Python client. */
    private static final String CONNECT_ERROR = "connect_error";

    /** Why there is no connection: for programs, and for people with what to check. */
    static final class Finding {
        final String kind;
        final String message;

        Finding(String kind, String message) {
            this.kind = kind;
            this.message = message;
        }
    }

    private final Endpoint endpoint;
    private final Keys keys;
    private final Runnable resolved;
    private final ThreadFactory threads;
    private final long beforeProbeMs;
    private final int probeMs;

    /** The address to connect to, as an endpoint; null while the name could not be resolved. */
    private volatile String address;

    /** What was found out last; null while nothing was. */
    private volatile Finding finding;

    /** Why no attempt can succeed before somebody gives other keys; null if nothing of that kind is known. */
    private volatile Finding refusal;

    /** Handshakes that failed in a row. */
    private volatile int failedHandshakes;

    /** When the search began. */
    private volatile long begun;

    // Guarded by this object.
    private boolean wanted;
    private boolean running;

    /**
     * Prepares the search, which {@link #start} begins.
     *
     * @param endpoint of the daemon
     * @param connectTimeout how long requests wait for a daemon; the cause is looked for within that time
     * @param keys for CURVE; null for a connection without it
     * @param resolved called in the thread each time that there may be another address
     * @param threads creates the thread
     */
    Reachability(
            Endpoint endpoint, Duration connectTimeout, Keys keys, Runnable resolved, ThreadFactory threads) {
        this.endpoint = endpoint;
        this.keys = keys;
        this.resolved = resolved;
        this.threads = threads;
        long ms = Clock.nanos(connectTimeout) / 1_000_000;
        this.beforeProbeMs = Math.min(MOST_BEFORE_PROBE_MS, ms / 4);
        this.probeMs = (int) Math.max(1, Math.min(MOST_PROBE_MS, ms / 2));
    }

    /**
     * The endpoint with an address of the host instead of its name, the first one or one that accepts connections; null
     * until the name was resolved.
     */
    String address() {
        return address;
    }

    /**
     * Begins to look for the address and for the cause; no-op while it does. Where no thread can be started, the next call
     * tries again.
     */
    synchronized void start() {
        if (!wanted) {
            finding = null;
            begun = Clock.now();
        }
        wanted = true;
        if (!running) {
            Thread thread = threads.newThread(this::run);
            thread.setName("multitower-reachability " + endpoint);
            thread.setDaemon(true);
            try {
                thread.start();
            } catch (OutOfMemoryError noThread) {
                LOG.log(System.Logger.Level.WARNING, "no thread to look for " + endpoint + " can be started", noThread);
                return;
            }
            running = true;
        }
    }

    /** Ends the search: the connection is open, or closed for good. */
    synchronized void stop() {
        wanted = false;
        refusal = null;
        failedHandshakes = 0;
        notifyAll();
    }

    /** Why the keys prevent a connection, or null. */
    Finding refusal() {
        return refusal;
    }

    /** The daemon does not admit this client's key. */
    void refused() {
        refusal = KeyErrors.keyRefused(endpoint, keys);
    }

    /** A connection ended before the daemon answered. */
    void handshakeFailed() {
        failedHandshakes++;
    }

    /** The error of requests that waited for a connection in vain. */
    MultitowerException error() {
        Finding keysRefused = refusal;
        if (keysRefused != null) {
            return MultitowerException.of(Reason.UNAUTHENTICATED, keysRefused.message, Map.of(CONNECT_ERROR, keysRefused.kind));
        }
        Finding found = finding == null ? nothingYet() : finding;
        return MultitowerException.of(Reason.NOT_LISTENING, found.message, Map.of(CONNECT_ERROR, found.kind));
    }

    /** The error of requests where the connection opens and nothing answers. */
    MultitowerException noAnswer() {
        Finding found = unanswered(endpoint);
        return MultitowerException.of(Reason.NOT_LISTENING, found.message, Map.of(CONNECT_ERROR, found.kind));
    }

    private void run() {
        while (goesOn()) {
            InetAddress[] found;
            try {
                found = InetAddress.getAllByName(endpoint.host);
            } catch (UnknownHostException error) {
                String message = "the name of the host in " + endpoint + " cannot be resolved: " + error.getMessage()
                        + "; check its spelling, and DNS";
                finding = new Finding("name_not_resolved", message);
                sleep(UNRESOLVED_AGAIN_MS);
                continue;
            }
            if (address == null) {
                finding = null;
            }
            if (Arrays.stream(found).noneMatch(each -> numeric(each).equals(address))) {
                address = numeric(found[0]);
            }
            resolved.run();
            sleep(beforeProbeMs);
            if (probe(found)) {
                sleep(AGAIN_MS);
            }
        }
    }

    private synchronized boolean goesOn() {
        running = wanted;
        return running;
    }

    private synchronized void sleep(long ms) {
        if (wanted && ms > 0) {
            try {
                wait(ms);
            } catch (InterruptedException unexpected) {
                wanted = false;
            }
        }
    }

    private String numeric(InetAddress found) {
        String text = found.getHostAddress();
        int zone = text.indexOf('%');
        if (zone >= 0) {
            // As a number: JeroMQ would look for the interface of a name, which may be gone by then.
            text = text.substring(0, zone + 1) + ((Inet6Address) found).getScopeId();
        }
        return "tcp://" + (text.contains(":") ? "[" + text + "]" : text) + ":" + endpoint.port;
    }

    /**
     * Connects to one address of the host after another, without a message, until one accepts, which is the address from
     * then on. The finding is that of this one, or else of the first one; false if nobody waits for it.
     */
    private boolean probe(InetAddress[] found) {
        for (InetAddress each : found) {
            synchronized (this) {
                if (!wanted) {
                    return false;
                }
            }
            try (Socket socket = new Socket()) {
                socket.connect(new InetSocketAddress(each, endpoint.port), probeMs);
                finding = unanswered(endpoint);
                address = numeric(each);
                Finding explained = failedHandshakes == 0 ? null : KeyErrors.examine(endpoint, keys, socket, probeMs, failedHandshakes);
                boolean known = refusal != null && refusal.kind.equals(KeyErrors.KEY_REFUSED);
                synchronized (this) {
                    if (wanted && (explained != null || !known)) {
                        refusal = explained;
                    }
                }
                resolved.run();
                return true;
            } catch (IOException error) {
                refusal = null;
                if (each == found[0]) {
                    finding = failed(endpoint, error, probeMs);
                }
            }
        }
        return true;
    }

    /** What is known while no attempt has ended. */
    private Finding nothingYet() {
        long ms = (Clock.now() - begun) / 1_000_000;
        if (address != null) {
            return timedOut(endpoint, ms);
        }
        String message = within(endpoint, ms) + "its name is not resolved in time; check DNS";
        return new Finding("timed_out", message);
    }

    private static Finding timedOut(Endpoint endpoint, long ms) {
        String message = within(endpoint, ms) + "the host does not answer; check the address, and whether a firewall"
                + " drops the packets; " + IS_IT_RUNNING;
        return new Finding("timed_out", message);
    }

    private static String within(Endpoint endpoint, long ms) {
        return "no connection to " + endpoint + " within " + ms / 1000.0 + " s: ";
    }

    private static Finding unanswered(Endpoint endpoint) {
        String message =
                "something listens at " + endpoint + ", but it does not answer as a multitower daemon: another program"
                        + " listens there, or the daemon is stopped, or it accepts no more connections"
                        + " (max_connections)";
        return new Finding("no_answer", message);
    }

    /**
     * Why a connection could not be opened, and what to check. The system's texts depend on the locale, so that the class
     * of the error decides where it can.
     */
    static Finding failed(Endpoint endpoint, IOException error, int waitedMs) {
        String cause = String.valueOf(error.getMessage());
        if (error instanceof SocketTimeoutException || cause.contains("timed out")) {
            return timedOut(endpoint, waitedMs);
        }
        boolean denied = cause.contains("Permission denied") || cause.contains("Operation not permitted");
        // Java 11 raises ConnectException for other failures as well, and ends its message with these words.
        boolean other = denied || cause.contains("unreachable") || cause.endsWith("(connect failed)");
        if (error instanceof ConnectException && !other) {
            String message = "no daemon listens at " + endpoint + ": the connection is refused; " + IS_IT_RUNNING;
            return new Finding("connection_refused", message);
        }
        String message =
                "no connection to " + endpoint + ": " + cause + "; check the address, the network, and firewalls";
        return new Finding(denied ? "permission_denied" : "unreachable", message);
    }
}
