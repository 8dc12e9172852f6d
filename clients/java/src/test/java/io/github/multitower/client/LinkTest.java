package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;

/** The socket of a connection, without the connection. */
class LinkTest {
    @Test
    void anAddressThatIsNotTakenIsTriedAgainAndGivenUpForAnother() {
        try (FakeDaemon daemon = new FakeDaemon()) {
            Link link = new Link(0, null);
            try {
                link.connect("tcp://[fe80::1%no-such-zone]:5555");
                assertTrue(link.connects());
                link.retryHandshake(Clock.NEVER - 1, "tcp://[fe80::1%no-such-zone]:5555");
                link.retryHandshake(Clock.NEVER - 1, daemon.endpoint);
                // JeroMQ loses some connections, which the link then opens again.
                while (link.change() != Link.Change.OPENED) {
                    link.sleep(Clock.NEVER, false, () -> false);
                    link.retryHandshake(Clock.now(), daemon.endpoint);
                }
            } finally {
                link.close();
            }
        }
    }
}
