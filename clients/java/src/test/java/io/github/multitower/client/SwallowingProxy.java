package io.github.multitower.client;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.List;

/** A TCP proxy that can swallow what passes through it, as a NAT box does that has forgotten a connection. */
final class SwallowingProxy implements AutoCloseable {
    final String endpoint;

    private final int target;
    private final ServerSocket listener;
    private final List<Socket> sockets = new ArrayList<>();
    private volatile boolean swallowsNew;
    private volatile int generation; // connections of earlier ones are swallowed

    SwallowingProxy(String target) throws IOException {
        this.target = Integer.parseInt(target.substring(target.lastIndexOf(':') + 1));
        listener = new ServerSocket(0, 50, InetAddress.getByName("127.0.0.1"));
        endpoint = "tcp://127.0.0.1:" + listener.getLocalPort();
        daemonThread(this::accept);
    }

    /** From now on nothing passes, over the present connections and over new ones; none of them ends. */
    synchronized void swallow() {
        generation++;
        swallowsNew = true;
    }

    /** New connections pass again. Those that were swallowed stay silent. */
    synchronized void restore() {
        generation++;
        swallowsNew = false;
    }

    private static void daemonThread(Runnable run) {
        Thread thread = new Thread(run, "swallowing-proxy");
        thread.setDaemon(true);
        thread.start();
    }

    private void accept() {
        try {
            while (true) {
                Socket client = listener.accept();
                synchronized (this) {
                    sockets.add(client);
                    if (!swallowsNew) {
                        Socket daemon = new Socket("127.0.0.1", target);
                        sockets.add(daemon);
                        int born = generation;
                        daemonThread(() -> forward(client, daemon, born));
                        daemonThread(() -> forward(daemon, client, born));
                    }
                }
            }
        } catch (IOException closed) {
            // The test has ended.
        }
    }

    private void forward(Socket from, Socket to, int born) {
        byte[] buffer = new byte[1 << 16];
        try {
            for (int read = from.getInputStream().read(buffer); read > 0; read = from.getInputStream().read(buffer)) {
                if (born == generation) {
                    to.getOutputStream().write(buffer, 0, read);
                }
            }
            if (born == generation) {
                to.close();
            }
        } catch (IOException closed) {
            // One of them has ended; its other half is closed with the proxy.
        }
    }

    @Override
    public synchronized void close() {
        try {
            listener.close();
            for (Socket socket : sockets) {
                socket.close();
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }
}
