package multitower;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.zeromq.SocketType;
import org.zeromq.ZContext;
import org.zeromq.ZEvent;
import org.zeromq.ZMQ;
import org.zeromq.ZMQException;
import org.zeromq.ZMonitor;
import zmq.Msg;

/**
 * One connection to a daemon: a DEALER socket and the thread that owns it.
 *
 * <p>Calls are handed over through a queue, and the thread is woken only when it sleeps, so that a burst of calls costs
 * one wake-up. The thread asks the daemon for its limits, sends, receives, sends again what was refused unrun, expires,
 * and fails what is outstanding when the connection is lost; each call gets exactly one outcome. The connection opens
 * by itself, and again after it was lost.
 */
final class Connection {
    private static final long CLOSE_MS = 5000;
    private static final int RECONNECT_MS = 100;
    private static final int RECONNECT_MAX_MS = 2000;
    private static final long HANDSHAKE_MS = 100;
    private static final long HANDSHAKE_MAX_MS = 30_000;
    private static final long LONGEST_SLEEP_MS = TimeUnit.HOURS.toMillis(1);

    /** The id of the question for the daemon's limits; calls have others. */
    private static final long GREETING = 0;

    /** Larger frames are received into direct buffers. */
    private static final int DIRECT_BYTES = 64 << 10;

    private final String endpoint;
    private final Thread thread;

    // Filled by any thread, emptied by the connection's.
    private final Queue<Call<?>> incoming = new ConcurrentLinkedQueue<>();
    private final Queue<Call<?>> cancelled = new ConcurrentLinkedQueue<>();
    private final Queue<ZMonitor.Event> events = new ConcurrentLinkedQueue<>();
    private final AtomicBoolean sleeping = new AtomicBoolean();
    private volatile boolean closing;
    private volatile boolean ended; // the thread takes nothing any more

    // The connection's thread's own. A selector rather than JeroMQ's poller: a thread that is interrupted while it
    // wakes another through a channel closes that channel, but not a selector.
    private final Selector selector;
    private final ZContext context;
    private final ZMQ.Socket socket;
    private final Retries retries;
    private final Deque<Call<?>> unsent = new ArrayDeque<>();
    private final Map<Long, Call<?>> outstanding = new HashMap<>();
    private long serial = GREETING;
    private long nextCheck = Clock.NEVER;
    private long limit = Wire.DEFAULT_MAX_MESSAGE_SIZE;
    private long handshakeMs = HANDSHAKE_MS;
    private long handshakeBy = Clock.NEVER;
    private boolean connected; // something speaks ZeroMQ there
    private boolean toGreet; // and is to be asked for its limits
    private boolean greeted; // and has answered: calls may be sent
    private boolean blocked; // JeroMQ takes no more for now
    private boolean cut; // the connection went away in the middle of a message

    /**
     * Begins to connect.
     *
     * @param endpoint {@code tcp://HOST:PORT}
     * @param mostRetries how often a call that the daemon refused without running it is sent again
     * @throws MultitowerException.Unavailable {@code not_listening}: the host's name leads nowhere
     */
    Connection(String endpoint, int mostRetries) {
        this.endpoint = endpoint;
        this.retries = new Retries(mostRetries, () -> ThreadLocalRandom.current().nextDouble());
        this.context = new ZContext();
        this.socket = context.createSocket(SocketType.DEALER);
        socket.setLinger(0);
        // What libzmq calls ZMQ_IMMEDIATE is false here: nothing is queued for a daemon that is not there.
        socket.setImmediate(false);
        // The requests outstanding bound the replies. A limit here would stop reading while an application's callback
        // runs, and the daemon drops what a client does not read.
        socket.setRcvHWM(0);
        socket.setReconnectIVL(RECONNECT_MS);
        socket.setReconnectIVLMax(RECONNECT_MAX_MS);
        socket.setIPv6(endpoint.contains("["));
        socket.setMsgAllocationHeapThreshold(DIRECT_BYTES);
        int wanted = ZMQ.EVENT_CONNECTED | ZMQ.EVENT_HANDSHAKE_PROTOCOL | ZMQ.EVENT_DISCONNECTED;
        socket.setEventHook(this::happened, wanted);
        try {
            this.selector = Selector.open();
            socket.getFD().register(selector, SelectionKey.OP_READ);
            socket.connect(endpoint);
        } catch (ZMQException error) {
            context.close();
            throw Errors.make(Reason.NOT_LISTENING, endpoint + " leads nowhere: " + error.getMessage());
        } catch (IOException error) {
            context.close();
            throw new UncheckedIOException(error);
        }
        this.thread = new Thread(this::run, "multitower-client " + endpoint);
        thread.setDaemon(true);
        thread.start();
    }

    // From any thread.

    /** The caller runs in the connection's own thread: in something that depends on a future. */
    boolean inItsThread() {
        return Thread.currentThread() == thread;
    }

    /**
     * Refuses use after {@link #close}.
     *
     * @throws MultitowerException.Unavailable {@code closed}
     */
    void check() {
        if (closing) {
            throw closed();
        }
    }

    /** Sends a call as soon as that is possible. Its outcome comes through its future. */
    void start(Call<?> call) {
        incoming.add(call);
        wake();
        if (ended) {
            refuseIncoming();
        }
    }

    /** Nobody waits for this call any more: it is not sent, or the daemon is told. */
    void cancel(Call<?> call) {
        cancelled.add(call);
        wake();
    }

    /**
     * Ends the connection and waits until it has, for some seconds. Calls without an outcome fail as {@code closed}.
     */
    void close() {
        closing = true;
        selector.wakeup();
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

    private void wake() {
        if (sleeping.get() && sleeping.compareAndSet(true, false)) {
            selector.wakeup();
        }
    }

    /** In JeroMQ's thread. */
    private void happened(ZEvent event) {
        events.add(event.getEvent());
        wake();
    }

    // In the connection's thread.

    private void run() {
        try {
            while (!closing) {
                sleep();
                receive();
                watch();
                long now = Clock.now();
                if (now >= retries.due()) {
                    incoming.addAll(retries.take(now));
                }
                takeIncoming();
                takeCancelled();
                send();
                if (now >= nextCheck) {
                    expire(now);
                }
                if (now >= handshakeBy) {
                    connectAgain();
                }
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        } finally {
            closing = true;
            end();
        }
    }

    private void sleep() throws IOException {
        sleeping.set(true);
        // What was handed over before it slept must not wait for a wake-up that nobody sends; and what came to the
        // socket while JeroMQ was busy with something else is signalled no second time.
        boolean idle = incoming.isEmpty() && cancelled.isEmpty() && events.isEmpty();
        int wanted = blocked ? ZMQ.Poller.POLLIN | ZMQ.Poller.POLLOUT : ZMQ.Poller.POLLIN;
        if (idle && !closing && (socket.getEvents() & wanted) == 0) {
            long until = Math.min(Math.min(nextCheck, handshakeBy), retries.due());
            if (until == Clock.NEVER) {
                selector.select();
            } else {
                long ms = (until - Clock.now()) / 1_000_000 + 1;
                if (ms > 0) {
                    selector.select(Math.min(ms, LONGEST_SLEEP_MS));
                }
            }
            selector.selectedKeys().clear();
        }
        sleeping.set(false);
    }

    private void takeIncoming() {
        for (Call<?> call = incoming.poll(); call != null; call = incoming.poll()) {
            unsent.add(call);
            nextCheck = Math.min(nextCheck, greeted ? call.deadline : Math.min(call.deadline, call.connectBy));
        }
    }

    private void takeCancelled() {
        for (Call<?> call = cancelled.poll(); call != null; call = cancelled.poll()) {
            if (call.over) {
                continue;
            }
            call.over = true; // its future has its outcome; where it waits to be sent, it stays until its turn comes
            if (outstanding.remove(call.id, call)) {
                giveUp(call);
            }
        }
    }

    /**
     * Tells the daemon that nobody waits for what was sent. Without room for it, the answer is dropped when it comes.
     */
    private void giveUp(Call<?> call) {
        sendRequest(Wire.CANCEL, call.id, Wire.EMPTY_HEADER, List.of());
    }

    private void send() {
        blocked = false;
        if (toGreet) {
            toGreet = !sendRequest(Wire.SERVER_METADATA, GREETING, Wire.EMPTY_HEADER, List.of());
            blocked = toGreet;
        }
        while (greeted && !unsent.isEmpty()) {
            Call<?> call = unsent.peek();
            if (call.over) {
                unsent.remove();
                continue;
            }
            long size = call.size();
            if (size > limit) {
                unsent.remove();
                String message = "the message has " + size + " bytes; the daemon's max_message_size is " + limit;
                fail(call, Errors.make(Reason.TOO_LARGE, message, "frames"));
                continue;
            }
            call.id = ++serial;
            if (!sendRequest(call.kind, call.id, call.header, call.body)) {
                blocked = true;
                return;
            }
            unsent.remove();
            outstanding.put(call.id, call);
        }
    }

    /** Sends a request, or returns false when nothing can be sent now. */
    private boolean sendRequest(byte[] kind, long id, byte[] header, List<Tensor> body) {
        // JeroMQ waits for the end of a message that was cut, and would take the next one for it.
        if (cut && !socket.sendMsg(new Msg(), ZMQ.DONTWAIT)) {
            return false;
        }
        cut = false;
        List<Msg> message = new ArrayList<>(4 + body.size());
        message.add(new Msg());
        message.add(new Msg(kind));
        message.add(new Msg(ByteBuffer.allocate(Long.BYTES).putLong(0, id)));
        message.add(new Msg(header));
        for (Tensor tensor : body) {
            message.add(new Msg(tensor.data()));
        }
        for (int i = 0; i < message.size(); i++) {
            boolean last = i == message.size() - 1;
            if (!socket.sendMsg(message.get(i), last ? ZMQ.DONTWAIT : ZMQ.DONTWAIT | ZMQ.SNDMORE)) {
                // Where the first frame finds room the others do, unless the connection ends meanwhile: then it is said
                // to be lost, and this request with it.
                cut = i > 0;
                return cut;
            }
        }
        return true;
    }

    private void receive() {
        for (Msg first = socket.recvMsg(ZMQ.DONTWAIT); first != null; first = socket.recvMsg(ZMQ.DONTWAIT)) {
            List<Msg> message = new ArrayList<>(5);
            message.add(first);
            while (message.get(message.size() - 1).hasMore()) {
                message.add(socket.recvMsg(ZMQ.DONTWAIT));
            }
            // Anything that is no reply of the protocol's to this client is not for it.
            if (message.size() >= 4 && first.size() == 0 && message.get(2).size() == Long.BYTES) {
                boolean ok = Arrays.equals(message.get(1).data(), Wire.OK);
                take(ok, message.get(2).getLong(0), message.get(3).data(), message.subList(4, message.size()));
            }
        }
    }

    private void take(boolean ok, long id, byte[] header, List<Msg> tensors) {
        if (id == GREETING) {
            greet(ok, header);
            return;
        }
        Call<?> call = outstanding.remove(id);
        if (call == null) {
            return; // cancelled or expired meanwhile
        }
        if (ok) {
            List<ByteBuffer> frames = new ArrayList<>(tensors.size());
            for (Msg tensor : tensors) {
                frames.add(tensor.buf());
            }
            call.answer(header, frames);
            Thread.interrupted();
            return;
        }
        MultitowerException error = Errors.fromWire(header);
        if (!retries.add(call, error, Clock.now())) {
            fail(call, error);
        }
    }

    private void greet(boolean ok, byte[] header) {
        greeted = true;
        limit = Wire.DEFAULT_MAX_MESSAGE_SIZE;
        Object told = null;
        try {
            told = ok ? Json.read(header).get("max_message_size") : null;
        } catch (MultitowerException unreadable) {
            told = null; // a daemon that does not tell
        }
        if (told instanceof Long && (Long) told > 0) {
            limit = (Long) told;
        }
    }

    private void watch() {
        for (ZMonitor.Event event = events.poll(); event != null; event = events.poll()) {
            handshakeBy = Clock.NEVER;
            if (event == ZMonitor.Event.CONNECTED) {
                handshakeBy = Clock.now() + TimeUnit.MILLISECONDS.toNanos(handshakeMs);
                continue;
            }
            if (event == ZMonitor.Event.HANDSHAKE_PROTOCOL) {
                handshakeMs = HANDSHAKE_MS;
                connected = true;
                toGreet = true;
                continue;
            }
            // Answers that came before the end count.
            receive();
            connected = toGreet = greeted = false;
            List<Call<?>> lost = new ArrayList<>(outstanding.values());
            outstanding.clear();
            for (Call<?> call : lost) {
                String message = "the connection to " + endpoint + " was lost before the answer came";
                fail(call, Errors.make(Reason.CONNECTION_LOST, message));
            }
            // What waits to be sent has this long to find the daemon again.
            for (Call<?> call : unsent) {
                nextCheck = Math.min(nextCheck, call.connectBy);
            }
        }
    }

    /**
     * JeroMQ 0.6 forgets about one new connection in a hundred, and neither sends nor reads (its pull request 1022): it
     * needs another. Each gets twice the time of the one before, for peers that are merely far away.
     */
    private void connectAgain() {
        handshakeMs = Math.min(2 * handshakeMs, HANDSHAKE_MAX_MS);
        handshakeBy = Clock.NEVER;
        socket.disconnect(endpoint);
        try {
            socket.connect(endpoint);
        } catch (ZMQException error) {
            // The host's name leads nowhere for now.
            handshakeBy = Clock.now() + TimeUnit.MILLISECONDS.toNanos(handshakeMs);
        }
    }

    /** Fails what has run out of time. Runs when the earliest deadline known has come: rarely, under load. */
    private void expire(long now) {
        nextCheck = Clock.NEVER;
        for (Iterator<Call<?>> calls = outstanding.values().iterator(); calls.hasNext(); ) {
            Call<?> call = calls.next();
            if (call.deadline <= now) {
                calls.remove();
                fail(call, Errors.make(Reason.DEADLINE, "no answer within the request's time"));
                // The daemon's clock started when the request reached it, which may have been late.
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
            return Errors.make(Reason.DEADLINE, "the request's time was over before it could be sent");
        }
        if (connected) {
            String message = "something listens at " + endpoint + ", but it does not answer as a multitower daemon";
            return Errors.make(Reason.NOT_LISTENING, message);
        }
        String message =
                "no daemon listens at " + endpoint + "; is it running (multitower serve CONFIG), and is this its"
                        + " endpoint (" + Wire.ENDPOINT_VARIABLE + " or the client's argument)?";
        return Errors.make(Reason.NOT_LISTENING, message);
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
        left.forEach(call -> fail(call, closed()));
        ended = true;
        refuseIncoming();
        context.close();
        try {
            selector.close();
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    /** Fails what was handed over while the thread ended; also in the thread that handed it over. */
    private void refuseIncoming() {
        for (Call<?> call = incoming.poll(); call != null; call = incoming.poll()) {
            call.fail(closed());
        }
    }

    private static MultitowerException closed() {
        return Errors.make(Reason.CLOSED, "this client has been closed");
    }
}
