package io.github.multitower.client;

import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * One connection to a daemon: a {@link Link} and the thread that owns it.
 *
 * <p>Calls are handed over through a queue, and the thread is woken only when it sleeps, so that a burst of calls costs
 * one wake-up. The thread asks the daemon for its limits, sends, receives, retries what the daemon refused without
 * running it, expires calls, and fails what is outstanding when the connection is lost. Each call gets exactly one
 * outcome. The connection opens by itself, and again after it was lost.
 */
final class Connection {
    private static final System.Logger LOG = System.getLogger("io.github.multitower.client");
    private static final long CLOSE_MS = 5000;

    /** The id of the query for the daemon's limits; calls have other ids. */
    private static final long GREETING = 0;

    private final Endpoint endpoint;
    private final Link link;
    private final Reachability reachability;
    private final Thread thread;
    private final boolean keyed;

    // Written by any thread, read by the connection's thread.
    private final Queue<Call<?>> incoming = new ConcurrentLinkedQueue<>();
    private final Queue<Call<?>> cancelled = new ConcurrentLinkedQueue<>();
    private volatile boolean closing;
    private volatile boolean ended; // the thread takes no more calls
    private volatile Throwable defect; // what ended the thread, other than `close`; null otherwise

    // For the connection's thread only.
    private final Retries retries;
    private final Deque<Call<?>> unsent = new ArrayDeque<>();
    private final Map<Long, Call<?>> outstanding = new HashMap<>();
    private long serial = GREETING;
    private long nextCheck = Clock.NEVER;
    private long limit = Wire.DEFAULT_MAX_MESSAGE_SIZE;
    private long lostAt; // when the connection was lost; 0 before the first one
    private boolean connected; // the ZeroMQ handshake is done
    private boolean toGreet; // the greeting is still to be sent
    private boolean greeted; // the daemon has answered the greeting: calls may be sent
    private boolean blocked; // JeroMQ takes no more messages for now

    /**
     * Begins to connect.
     *
     * @param endpoint of the daemon
     * @param connectTimeout how long calls wait for a daemon to listen
     * @param mostRetries how often a call that the daemon refused without running it is sent again
     * @param peerTimeoutMs milliseconds without a sign of the daemon after which the connection counts as lost; 0 for
     *     never
     * @param keys for CURVE; null for a connection without it
     * @throws MultitowerException.InternalError it has no socket, for example as too many files are open
     */
    Connection(Endpoint endpoint, Duration connectTimeout, int mostRetries, int peerTimeoutMs, Keys keys) {
        this.endpoint = endpoint;
        this.retries = new Retries(mostRetries, () -> ThreadLocalRandom.current().nextDouble());
        this.link = new Link(peerTimeoutMs, keys);
        this.keyed = keys != null;
        this.reachability = new Reachability(endpoint, connectTimeout, keys, link::wake, Thread::new);
        this.thread = new Thread(this::run, "multitower-client " + endpoint);
        thread.setDaemon(true);
        try {
            thread.start();
        } catch (OutOfMemoryError noThread) {
            link.close();
            throw noThread;
        }
    }

    // From any thread.

    /** Whether the caller runs in the connection's thread: in an action that depends on a future. */
    boolean inItsThread() {
        return Thread.currentThread() == thread;
    }

    /**
     * Refuses use after the end.
     *
     * @throws MultitowerException.Unavailable {@code closed}: {@link #close} was called
     * @throws MultitowerException.InternalError an error ended the connection's thread
     */
    void check() {
        if (closing) {
            throw over();
        }
    }

    /** Sends a call as soon as possible. Its future gets the outcome. */
    void start(Call<?> call) {
        incoming.add(call);
        link.wake();
        if (ended) {
            refuseIncoming();
        }
    }

    /** Drops a call that nobody waits for. If it was sent, the daemon is told; if not, it is not sent any more. */
    void cancel(Call<?> call) {
        cancelled.add(call);
        link.wake();
    }

    /**
     * Ends the connection, and waits up to five seconds for its end, which comes later if an application's action still
     * runs then. Calls without an outcome fail as {@code closed}.
     */
    void close() {
        closing = true;
        link.wake();
        if (inItsThread()) {
            return;
        }
        boolean interrupted = false;
        long until = Clock.now() + TimeUnit.MILLISECONDS.toNanos(CLOSE_MS);
        for (long left = CLOSE_MS; thread.isAlive() && left > 0; left = (until - Clock.now()) / 1_000_000) {
            try {
                thread.join(left);
            } catch (InterruptedException again) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    // In the connection's thread.

    private void run() {
        try {
            reachability.start();
            while (!closing) {
                link.sleep(Math.min(nextCheck, retries.due()), blocked, this::busy);
                receive();
                watch();
                long now = Clock.now();
                if (now >= retries.due()) {
                    incoming.addAll(retries.take(now));
                }
                takeIncoming();
                takeCancelled();
                if (toRefuse()) {
                    refuseUnsent();
                }
                send();
                if (now >= nextCheck) {
                    expire(now);
                }
                connect(now);
            }
        } catch (Throwable error) {
            defect = error;
            LOG.log(Level.ERROR, "the connection to " + endpoint + " ends by an error: create another client", error);
        } finally {
            closing = true;
            reachability.stop();
            end();
        }
    }

    /** Whether calls were handed over, or another address of the daemon. */
    private boolean busy() {
        return closing
                || link.wants(reachability.address())
                || !incoming.isEmpty()
                || !cancelled.isEmpty()
                || toRefuse();
    }

    private void connect(long now) {
        if (link.connects()) {
            link.retryHandshake(now, reachability.address());
        } else if (reachability.address() != null) {
            link.connect(reachability.address());
        }
    }

    private void takeIncoming() {
        for (Call<?> call = incoming.poll(); call != null; call = incoming.poll()) {
            if (call.over) {
                continue; // cancelled while it waited to be sent again
            }
            unsent.add(call);
            nextCheck = Math.min(nextCheck, greeted ? call.deadline : Math.min(call.deadline, call.connectBy));
        }
    }

    private void takeCancelled() {
        for (Call<?> call = cancelled.poll(); call != null; call = cancelled.poll()) {
            if (call.over) {
                continue;
            }
            call.drop();
            if (outstanding.remove(call.id, call)) {
                giveUp(call);
            } else {
                unsent.remove(call);
            }
        }
    }

    /**
     * Tells the daemon that nobody waits for a call that was sent, unless JeroMQ cannot take a message now.
     */
    private void giveUp(Call<?> call) {
        link.send(Wire.CANCEL, call.id, Wire.EMPTY_HEADER, List.of());
    }

    private void send() {
        blocked = false;
        if (toGreet) {
            toGreet = !link.send(Wire.SERVER_METADATA, GREETING, Wire.EMPTY_HEADER, List.of());
            blocked = toGreet;
        }
        while (greeted && !unsent.isEmpty()) {
            Call<?> call = unsent.peek();
            long size = call.size();
            if (size > limit) {
                unsent.remove();
                String message = "the message has " + size + " bytes; the daemon's max_message_size is " + limit;
                fail(call, Errors.make(Reason.TOO_LARGE, message, "frames"));
                continue;
            }
            call.id = ++serial;
            if (!link.send(call.kind, call.id, call.header, call.body())) {
                blocked = true;
                return;
            }
            unsent.remove();
            outstanding.put(call.id, call);
        }
    }

    private void receive() {
        for (Link.Reply reply = link.receive(); reply != null; reply = link.receive()) {
            if (reply.id == GREETING) {
                greet(reply);
                continue;
            }
            Call<?> call = outstanding.remove(reply.id);
            if (call == null) {
                continue; // cancelled or expired meanwhile
            }
            if (reply.ok) {
                call.answer(reply.header, reply.frames);
                Thread.interrupted(); // as in `fail`
                continue;
            }
            MultitowerException error = Errors.fromWire(reply.header);
            if (!retries.add(call, error, Clock.now())) {
                fail(call, error);
            }
        }
    }

    private void greet(Link.Reply reply) {
        greeted = true;
        link.greeted();
        if (!connected) {
            connected();
        }
        limit = Wire.DEFAULT_MAX_MESSAGE_SIZE;
        Object told = null;
        try {
            told = reply.ok ? Json.read(reply.header).get("max_message_size") : null;
        } catch (MultitowerException unreadable) {
            told = null; // malformed: the defaults hold
        }
        if (told instanceof Long && (Long) told > 0) {
            limit = (Long) told;
        }
    }

    private void watch() {
        for (Link.Change change = link.change(); change != null; change = link.change()) {
            if (change == Link.Change.OPENED) {
                toGreet = true;
                if (!keyed) {
                    connected();
                }
                continue;
            }
            if (change == Link.Change.REFUSED) {
                reachability.refused();
                continue;
            }
            if (!greeted) {
                reachability.handshakeFailed();
            }
            // Replies that arrived before the end count.
            receive();
            List<Call<?>> lost = new ArrayList<>(outstanding.values());
            outstanding.clear();
            if (connected && greeted) {
                lostAt = Clock.now();
                String requests =
                        lost.size() == 1
                                ? "1 request without a reply fails"
                                : lost.size() + " requests without a reply fail";
                LOG.log(Level.WARNING, "lost the connection to {0}: {1}; connecting again", endpoint, requests);
            }
            connected = toGreet = greeted = false;
            reachability.start();
            for (Call<?> call : lost) {
                String message = "the connection to " + endpoint + " was lost before the answer came";
                fail(call, Errors.make(Reason.CONNECTION_LOST, message));
            }
            // Unsent calls wait until `connectBy` for the daemon to listen again.
            for (Call<?> call : unsent) {
                nextCheck = Math.min(nextCheck, call.connectBy);
            }
        }
    }

    private void connected() {
        connected = true;
        reachability.stop();
        if (lostAt == 0) {
            LOG.log(Level.DEBUG, "connected to {0}", endpoint);
        } else {
            String ms = Long.toString((Clock.now() - lostAt) / 1_000_000);
            LOG.log(Level.INFO, "connected to {0} again, {1} ms after the connection was lost", endpoint, ms);
        }
    }

    /** Whether calls wait for a connection that the keys prevent. */
    private boolean toRefuse() {
        return !greeted && !unsent.isEmpty() && reachability.refusal() != null;
    }

    private void refuseUnsent() {
        List<Call<?>> refused = new ArrayList<>(unsent);
        unsent.clear();
        refused.forEach(call -> fail(call, reachability.error()));
    }

    /** Fails the calls whose time is over. Called at the earliest deadline known: rarely, under load. */
    private void expire(long now) {
        nextCheck = Clock.NEVER;
        for (Iterator<Call<?>> calls = outstanding.values().iterator(); calls.hasNext(); ) {
            Call<?> call = calls.next();
            if (call.deadline <= now) {
                calls.remove();
                fail(call, Errors.make(Reason.DEADLINE, "no answer within the timeout given to this client"));
                // The daemon's own clock started later, when the request reached it.
                giveUp(call);
            } else {
                nextCheck = Math.min(nextCheck, call.deadline);
            }
        }
        for (Iterator<Call<?>> calls = unsent.iterator(); calls.hasNext(); ) {
            Call<?> call = calls.next();
            long until = greeted ? call.deadline : Math.min(call.deadline, call.connectBy);
            if (until <= now) {
                calls.remove();
                fail(call, notSent());
            } else {
                nextCheck = Math.min(nextCheck, until);
            }
        }
    }

    private MultitowerException notSent() {
        if (greeted) {
            String over = "the timeout given to this client was over before the request could be sent";
            return Errors.make(Reason.DEADLINE, over);
        }
        if (connected) {
            return reachability.noAnswer();
        }
        MultitowerException error = reachability.error();
        reachability.start(); // if no thread could be started before
        return error;
    }

    /**
     * What depends on the future runs here, and may leave the thread interrupted, which JeroMQ would take for its own
     * end.
     */
    private static void fail(Call<?> call, MultitowerException error) {
        call.fail(error);
        Thread.interrupted();
    }

    private void end() {
        takeIncoming();
        List<Call<?>> left = new ArrayList<>(unsent);
        left.addAll(outstanding.values());
        left.addAll(retries.take(Clock.NEVER));
        left.forEach(call -> fail(call, over()));
        ended = true;
        refuseIncoming();
        Thread.interrupted(); // as in `fail`
        link.close();
    }

    /** Fails the calls that were handed over while the thread ended; from any thread. */
    private void refuseIncoming() {
        for (Call<?> call = incoming.poll(); call != null; call = incoming.poll()) {
            call.fail(over());
        }
    }

    /** The error of calls that come after the end, or have no outcome then. */
    private MultitowerException over() {
        if (defect != null) {
            return Errors.broken("an error ended the thread of this client, and another client is needed", defect);
        }
        return Errors.make(Reason.CLOSED, "this client has been closed");
    }
}
