package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;
import org.zeromq.SocketType;
import org.zeromq.ZContext;
import org.zeromq.ZMQ;

/**
 * A scripted daemon: a ROUTER in a thread that says exactly what a test wants said. It answers
 * {@code MT1:server_metadata} itself, since a client asks for it before it sends anything else; what {@code answer}
 * gives no frames for is left in {@link #requests}, for the test to answer through {@link #reply}.
 */
final class FakeDaemon implements AutoCloseable {
    static final long WAIT_S = 20;

    /** A request as it came: address, delimiter, kind, id, header, tensors. */
    static final class Received {
        final List<byte[]> frames;

        Received(List<byte[]> frames) {
            this.frames = frames;
        }

        String kind() {
            return text(frames.get(2));
        }

        byte[] id() {
            return frames.get(3);
        }

        String header() {
            return text(frames.get(4));
        }

        List<byte[]> tensors() {
            return frames.subList(5, frames.size());
        }
    }

    final BlockingQueue<Received> requests = new LinkedBlockingQueue<>();
    final String endpoint;

    private final Queue<List<byte[]>> toSend = new ConcurrentLinkedQueue<>();
    private final Function<Received, List<byte[]>> answer;
    private final String metadata;
    private final ZContext context = new ZContext();
    private final ZMQ.Socket socket = context.createSocket(SocketType.ROUTER);
    private final ZMQ.Socket zap = context.createSocket(SocketType.REP);

    /** The CURVE keys that it admits; may be changed. */
    final Set<String> admitted = ConcurrentHashMap.newKeySet();

    private final Thread thread = new Thread(this::run, "fake-daemon");
    private volatile boolean closing;

    FakeDaemon() {
        this(request -> null);
    }

    FakeDaemon(Function<Received, List<byte[]>> answer) {
        this(answer, "tcp://127.0.0.1:*", "{\"name\":\"fake\",\"max_message_size\":1048576}");
    }

    /**
     * Listens from now on.
     *
     * @param answer the frames of the reply from the kind on, or null
     * @param metadata what it says of itself; null lets it say nothing
     */
    FakeDaemon(Function<Received, List<byte[]>> answer, String endpoint, String metadata) {
        this(answer, endpoint, metadata, null);
    }

    /**
     * The same with {@code security}: it admits only what is in {@link #admitted}.
     *
     * @param secretKey its CURVE key in Z85; null for a daemon without CURVE
     */
    FakeDaemon(Function<Received, List<byte[]>> answer, String endpoint, String metadata, String secretKey) {
        if (secretKey != null) {
            zap.bind("inproc://zeromq.zap.01");
            socket.setCurveServer(true);
            socket.setCurveSecretKey(ZMQ.Curve.z85Decode(secretKey));
        }
        this.answer = answer;
        this.metadata = metadata;
        socket.setLinger(0);
        socket.setReceiveTimeOut(5); // to look for what is to be sent
        socket.bind(endpoint);
        this.endpoint = socket.getLastEndpoint();
        thread.start();
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static String text(byte[] bytes) {
        return new String(bytes, StandardCharsets.UTF_8);
    }

    static List<byte[]> ok(Received request, String header, byte[]... tensors) {
        List<byte[]> frames = new ArrayList<>(List.of(bytes("MT1:ok"), request.id(), bytes(header)));
        frames.addAll(List.of(tensors));
        return frames;
    }

    static List<byte[]> error(Received request, Reason reason, Map<String, Object> details) {
        Map<String, Object> error =
                Map.of("code", reason.code(), "reason", reason.toString(), "message", "as wanted", "details", details);
        return List.of(bytes("MT1:error"), request.id(), Json.write(Map.of("error", error)));
    }

    /** Answers any inference with one output of two numbers. */
    static List<byte[]> two(Received request) {
        String output = "{\"name\":\"y\",\"datatype\":\"INT8\",\"shape\":[2]}";
        String header = "{\"model_name\":\"m\",\"model_version\":\"1\",\"outputs\":[" + output + "]}";
        return ok(request, header, new byte[] {1, 2});
    }

    /** The next request that is the test's to answer; it must be of this kind. */
    Received next(String kind) throws InterruptedException {
        Received request = requests.poll(WAIT_S, TimeUnit.SECONDS);
        assertNotNull(request, "no " + kind + " came");
        assertEquals(kind, request.kind());
        return request;
    }

    /** Sends the frames of a reply, from its kind on. */
    void reply(Received request, List<byte[]> frames) {
        List<byte[]> message = new ArrayList<>(List.of(request.frames.get(0), new byte[0]));
        message.addAll(frames);
        toSend.add(message);
    }

    private void admit() {
        for (byte[] version = zap.recv(ZMQ.DONTWAIT); version != null; version = zap.recv(ZMQ.DONTWAIT)) {
            byte[] id = zap.recv();
            byte[] key = null;
            while (zap.hasReceiveMore()) {
                key = zap.recv();
            }
            boolean known = admitted.contains(ZMQ.Curve.z85Encode(key));
            zap.sendMore(version);
            zap.sendMore(id);
            zap.sendMore(known ? "200" : "400");
            zap.sendMore("");
            zap.sendMore("");
            zap.send("");
        }
    }

    private void run() {
        while (!closing) {
            admit();
            for (List<byte[]> message = toSend.poll(); message != null; message = toSend.poll()) {
                for (int i = 0; i < message.size(); i++) {
                    socket.send(message.get(i), i < message.size() - 1 ? ZMQ.SNDMORE : 0);
                }
            }
            List<byte[]> frames = new ArrayList<>();
            byte[] first = socket.recv();
            if (first == null) {
                continue;
            }
            frames.add(first);
            while (socket.hasReceiveMore()) {
                frames.add(socket.recv());
            }
            Received request = new Received(frames);
            List<byte[]> reply = null;
            if (!request.kind().equals("MT1:server_metadata") || request.header().isEmpty()) {
                reply = answer.apply(request);
            } else if (metadata != null) {
                reply = ok(request, metadata);
            } else {
                continue;
            }
            if (reply == null) {
                requests.add(request);
            } else {
                reply(request, reply);
            }
        }
        context.close();
    }

    /** Stops listening; the connections end. */
    @Override
    public void close() {
        closing = true;
        try {
            thread.join(TimeUnit.SECONDS.toMillis(WAIT_S));
        } catch (InterruptedException interrupt) {
            Thread.currentThread().interrupt();
        }
    }
}
