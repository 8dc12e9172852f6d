package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class RetriesTest {
    private static final long MS = 1_000_000;

    private static MultitowerException error(String reason, String details) {
        String json =
                "{\"error\":{\"code\":\"UNAVAILABLE\",\"reason\":\"" + reason + "\",\"message\":\"m\",\"details\":"
                        + details + "}}";
        return Errors.fromWire(json.getBytes(StandardCharsets.UTF_8));
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                // reason | what it says | retries so far | ms left | random | ms of delay, or -1
                "queue_full | {\"retry_after_ms\":200} | 0 | 1000 | 0 | 200",
                "queue_full | {\"retry_after_ms\":200} | 0 | 1000 | 1 | 300",
                "no_worker | {\"retry_after_ms\":200.5} | 0 | 1000 | 0 | 200",
                "queue_full | {\"retry_after_ms\":1} | 0 | 1000 | 0 | 50",
                "queue_full | {\"retry_after_ms\":1} | 1 | 1000 | 0 | 100",
                "queue_full | {\"retry_after_ms\":1} | 60 | 90000 | 0 | 5000",
                "queue_full | {\"retry_after_ms\":1e300} | 0 | 90000 | 0 | 5000",
                "queue_full | {\"retry_after_ms\":200} | 0 | 200 | 0 | -1",
                "queue_full | {\"retry_after_ms\":-1} | 0 | 1000 | 0 | -1",
                "queue_full | {\"retry_after_ms\":true} | 0 | 1000 | 0 | -1",
                "queue_full | {\"retry_after_ms\":\"200\"} | 0 | 1000 | 0 | -1",
                "queue_full | {} | 0 | 1000 | 0 | -1",
                "worker_died | {\"retry_after_ms\":200} | 0 | 1000 | 0 | -1",
                "poisoned | {\"retry_after_ms\":200} | 0 | 1000 | 0 | -1",
                "draining | {\"retry_after_ms\":200} | 0 | 1000 | 0 | -1",
            })
    void onlyWhatNeverRanIsSentAgainAndNotBeforeTheDaemonSays(
            String reason, String details, int retries, long left, double random, long delay) {
        long nanos = Retries.delayAfter(error(reason, details), retries, left * MS, random);
        assertEquals(delay, nanos == Retries.NONE ? -1 : nanos / MS);
    }

    @Test
    void callsComeInTheOrderOfTheirTurnsAndNotTooOften() {
        Retries retries = new Retries(1, () -> 0);
        assertEquals(Clock.NEVER, retries.due());
        Call<String> late = call();
        Call<String> soon = call();
        assertTrue(retries.add(late, error("queue_full", "{\"retry_after_ms\":300}"), 0));
        assertTrue(retries.add(soon, error("queue_full", "{\"retry_after_ms\":100}"), 0));
        assertEquals(100 * MS, retries.due());
        assertEquals(1100 * MS, soon.connectBy, "it waits at the daemon's word");
        assertEquals(List.of(), retries.take(99 * MS));
        assertEquals(List.of(soon), retries.take(100 * MS));
        assertFalse(retries.add(soon, error("queue_full", "{\"retry_after_ms\":100}"), 0), "once was all");
        assertEquals(List.of(late), retries.take(Clock.NEVER));
        assertEquals(Clock.NEVER, retries.due());
    }

    private static Call<String> call() {
        byte[] empty = {};
        return new Call<>(empty, empty, List.of(), 10_000 * MS, 1000 * MS, (header, frames) -> "", () -> {});
    }
}
