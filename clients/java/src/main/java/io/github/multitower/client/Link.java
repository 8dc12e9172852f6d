package io.github.multitower.client;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.BooleanSupplier;
import org.zeromq.SocketType;
import org.zeromq.ZContext;
import org.zeromq.ZEvent;
import org.zeromq.ZMQ;
import org.zeromq.ZMQException;
import org.zeromq.ZMonitor;
import zmq.Msg;

/**
 * A connection's DEALER socket, which opens by itself, and again after it was lost. Its owner, a thread, sleeps in it.
 * All methods but {@link #wake} are for that thread. It handles messages; calls are the connection's.
 */
final class Link {
    private static final System.Logger LOG = System.getLogger("io.github.multitower.client");
    private static final int RECONNECT_MS = 100;
    private static final int RECONNECT_MAX_MS = 2000;
    private static final long HANDSHAKE_MS = 100;
    private static final long HANDSHAKE_MAX_MS = 30_000;
    private static final long CONNECT_MS = 5000;

    /** JeroMQ connects no more after a refused handshake, by itself. */
    private static final long REFUSED_AGAIN_NS = TimeUnit.SECONDS.toNanos(1);
    private static final long LONGEST_SLEEP_MS = TimeUnit.HOURS.toMillis(1);

    /** Larger frames are received into direct buffers. */
    private static final int DIRECT_BYTES = 64 << 10;

    /** What happened to the connection. */
    enum Change {
        /** The peer speaks ZeroMQ. With keys, the handshake is not done yet. */
        OPENED,
        /** The daemon does not admit this client's key. */
        REFUSED,
        /** The connection was lost. */
        LOST
    }

    /** A reply of the protocol. */
    static final class Reply {
        final boolean ok;
        final long id;
        final byte[] header;
        final List<ByteBuffer> frames;

        Reply(boolean ok, long id, byte[] header, List<ByteBuffer> frames) {
            this.ok = ok;
            this.id = id;
            this.header = header;
            this.frames = frames;
        }
    }

    private final ZContext context = new ZContext();
    private final ZMQ.Socket socket;
    // Rather than JeroMQ's poller: a thread that is interrupted while it wakes another through a channel closes that
    // channel, but not a selector.
    private final Selector selector;
    private final AtomicBoolean sleeping = new AtomicBoolean();
    private final Queue<ZMonitor.Event> events = new ConcurrentLinkedQueue<>();
    private volatile boolean closing;
    private String address; // where it connects to; null before `connect`
    private long handshakeMs = HANDSHAKE_MS;
    private long handshakeBy = Clock.NEVER;
    private boolean handshaking; // connected, and the handshake is not done
    private final boolean keyed;
    private boolean greeted; // the daemon has answered on this connection
    private boolean cut; // the connection was lost in the middle of a message
    private String refusal = ""; // why JeroMQ did not take the address; empty if it did

    /**
     * Creates the socket, which {@link #connect} connects.
     *
     * @param peerTimeoutMs milliseconds without a sign of the daemon after which the connection counts as lost; 0 for
     *     never
     * @param keys for CURVE; null for a connection without it
     * @throws MultitowerException.InternalError it cannot be opened, for example as too many files are open
     */
    Link(int peerTimeoutMs, Keys keys) {
        keyed = keys != null;
        context.setNotificationExceptionHandler(this::failed);
        try {
            socket = context.createSocket(SocketType.DEALER);
            configure(peerTimeoutMs);
            if (keys != null) {
                socket.setCurvePublicKey(keys.publicKey);
                socket.setCurveSecretKey(keys.secretKey);
                socket.setCurveServerKey(keys.serverKey);
            }
            selector = Selector.open();
            socket.getFD().register(selector, SelectionKey.OP_READ);
        } catch (IOException | RuntimeException error) { // JeroMQ has several classes for a lack of files
            try {
                close();
            } catch (RuntimeException halfOpen) {
                error.addSuppressed(halfOpen);
            }
            throw Errors.broken("this client can open no socket", error);
        }
    }

    private void configure(int peerTimeoutMs) {
        socket.setLinger(0);
        // The inverse of libzmq's ZMQ_IMMEDIATE: queue nothing while no daemon is connected.
        socket.setImmediate(false);
        // Replies are bounded by the outstanding requests. A limit here would stop reading while an application's
        // callback runs, and the daemon drops what a client does not read.
        socket.setRcvHWM(0);
        socket.setReconnectIVL(RECONNECT_MS);
        socket.setReconnectIVLMax(RECONNECT_MAX_MS);
        // It allows IPv6 as well.
        socket.setIPv6(true);
        if (peerTimeoutMs > 0) {
            // A heartbeat every quarter of the time; its answer must arrive within the other three quarters.
            int quarter = Math.max(1, peerTimeoutMs / 4);
            socket.setHeartbeatIvl(quarter);
            socket.setHeartbeatTimeout(3 * quarter);
            socket.setTCPKeepAlive(1);
        }
        socket.setMsgAllocationHeapThreshold(DIRECT_BYTES);
        int wanted = ZMQ.EVENT_CONNECTED | ZMQ.EVENT_HANDSHAKE_PROTOCOL | ZMQ.EVENT_DISCONNECTED
                | zmq.ZMQ.ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
        socket.setEventHook(this::happened, wanted);
    }

    /** Whether {@link #connect} was called. */
    boolean connects() {
        return address != null;
    }

    /** Whether it should connect to this address: there is no connection, and it connects to none or to another one. */
    boolean wants(String latest) {
        return latest != null && !latest.equals(address) && !handshaking && (!connects() || handshakeBy != Clock.NEVER);
    }

    /**
     * Begins to connect.
     *
     * @param to {@code tcp://ADDRESS:PORT}, with nothing to resolve
     */
    void connect(String to) {
        address = to;
        handshakeBy = connectBy();
        String error = "";
        try {
            socket.connect(to);
        } catch (ZMQException refused) {
            // An address that JeroMQ does not take: tried again later, and logged once.
            error = String.valueOf(refused.getMessage());
            if (!error.equals(refusal)) {
                LOG.log(System.Logger.Level.WARNING, "cannot connect to {0}: {1}", to, error);
            }
        }
        refusal = error;
    }

    private void disconnect() {
        try {
            socket.disconnect(address);
        } catch (ZMQException refused) {
            // JeroMQ reads the address again, and does not take what it did not take in `connect`.
            LOG.log(System.Logger.Level.DEBUG, "cannot disconnect from {0}: {1}", address, refused.getMessage());
        }
    }

    /** Ends the owner's sleep, from any thread. No-op while the owner is awake. */
    void wake() {
        if (sleeping.get() && sleeping.compareAndSet(true, false)) {
            selector.wakeup();
        }
    }

    /** In JeroMQ's thread. */
    private void happened(ZEvent event) {
        events.add(event.getEvent());
        wake();
    }

    /** In JeroMQ's thread. While JeroMQ closes a socket, it sometimes writes to a channel that is already closed. */
    private void failed(Thread thread, Throwable error) {
        LOG.log(closing ? System.Logger.Level.DEBUG : System.Logger.Level.WARNING, "in " + thread.getName(), error);
    }

    /**
     * Sleeps until a message arrives, the connection changes, or {@link #wake} is called.
     *
     * @param until latest end of the sleep
     * @param toSend whether to wake when a message can be sent
     * @param busy whether there is work; checked once more before sleeping
     */
    void sleep(long until, boolean toSend, BooleanSupplier busy) {
        sleeping.set(true);
        // Checked here: what was handed over before it slept has woken nobody, and JeroMQ signals a message only once.
        int wanted = toSend ? ZMQ.Poller.POLLIN | ZMQ.Poller.POLLOUT : ZMQ.Poller.POLLIN;
        if (!busy.getAsBoolean() && events.isEmpty() && (socket.getEvents() & wanted) == 0) {
            select(Math.min(until, handshakeBy));
        }
        sleeping.set(false);
    }

    private void select(long until) {
        try {
            if (until == Clock.NEVER) {
                selector.select();
            } else {
                long ms = (until - Clock.now()) / 1_000_000 + 1;
                if (ms > 0) {
                    selector.select(Math.min(ms, LONGEST_SLEEP_MS));
                }
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        selector.selectedKeys().clear();
    }

    /** The next change of the connection, or null. */
    Change change() {
        for (ZMonitor.Event event = events.poll(); event != null; event = events.poll()) {
            if (event == ZMonitor.Event.HANDSHAKE_FAILED_AUTH) {
                return Change.REFUSED; // and then DISCONNECTED
            }
            handshakeBy = Clock.NEVER;
            handshaking = event == ZMonitor.Event.CONNECTED;
            if (event == ZMonitor.Event.DISCONNECTED) {
                handshakeBy = keyed && !greeted ? Clock.now() + REFUSED_AGAIN_NS : connectBy();
                greeted = false;
                return Change.LOST;
            }
            if (event == ZMonitor.Event.HANDSHAKE_PROTOCOL) {
                handshakeMs = HANDSHAKE_MS;
                if (keyed) {
                    handshakeBy = connectBy(); // until the daemon answers: JeroMQ does not tell when the handshake is done
                }
                return Change.OPENED;
            }
            handshakeBy = Clock.now() + TimeUnit.MILLISECONDS.toNanos(handshakeMs);
        }
        return null;
    }

    /**
     * Connects again if the connection, or the handshake, does not come. An attempt whose packets are swallowed would last
     * for minutes, and JeroMQ 0.6 has no limit for it. JeroMQ 0.6 loses about one new connection in a hundred, on which it
     * neither sends nor reads (its pull request 1022). Each attempt gets twice the time of the previous one, for peers
     * that are far away. It connects at once to another address than before.
     *
     * @param latest the address of the daemon, {@code tcp://ADDRESS:PORT}; its name may lead elsewhere than before
     */
    void retryHandshake(long now, String latest) {
        if (now < handshakeBy && !wants(latest)) {
            return;
        }
        if (handshaking) {
            handshakeMs = Math.min(2 * handshakeMs, HANDSHAKE_MAX_MS);
        }
        handshaking = false;
        disconnect();
        connect(latest);
    }

    /** The daemon has answered. */
    void greeted() {
        greeted = true;
        handshakeBy = Clock.NEVER;
    }

    private static long connectBy() {
        return Clock.now() + TimeUnit.MILLISECONDS.toNanos(CONNECT_MS);
    }

    /** Sends a request, or returns false when nothing can be sent now. */
    boolean send(byte[] kind, long id, byte[] header, List<Tensor> body) {
        // After a message that was cut off, JeroMQ would take the next one as its continuation.
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
                // If there is room for the first frame there is for the others, unless the connection ends meanwhile:
                // then it is reported as lost, and so is this request.
                cut = i > 0;
                return cut;
            }
        }
        return true;
    }

    /** The next reply that has arrived, or null. Messages that are not replies of the protocol are dropped. */
    Reply receive() {
        for (Msg first = socket.recvMsg(ZMQ.DONTWAIT); first != null; first = socket.recvMsg(ZMQ.DONTWAIT)) {
            List<Msg> message = new ArrayList<>(5);
            message.add(first);
            while (message.get(message.size() - 1).hasMore()) {
                message.add(socket.recvMsg(ZMQ.DONTWAIT)); // a message arrives as a whole
            }
            if (message.size() >= 4 && first.size() == 0 && message.get(2).size() == Long.BYTES) {
                boolean ok = Arrays.equals(message.get(1).data(), Wire.OK);
                List<ByteBuffer> frames = new ArrayList<>(message.size() - 4);
                for (Msg tensor : message.subList(4, message.size())) {
                    frames.add(tensor.buf());
                }
                return new Reply(ok, message.get(2).getLong(0), message.get(3).data(), frames);
            }
        }
        return null;
    }

    void close() {
        closing = true;
        try (Selector closed = selector) { // null if it could not be opened
            context.close();
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }
}
