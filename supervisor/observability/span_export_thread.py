"""A thread that exports spans.

The event loop puts traced requests into a bounded queue; when it is full, they are dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..loop.log import event
from .otlp_exporter import Collector, CollectorError
from .switch_interval import switch_interval
from .traced_request import TracedRequest

if TYPE_CHECKING:
    from .spans import SpanMaker

log = logging.getLogger("multitower.tracing")

MAX_WAITING: Final = 8192
"""Spans of requests that may wait for their export."""

MAX_BATCH: Final = 128
"""Spans in one message to the collector, or those of one burst of replies if they are more. Encoding them holds up the
event loop, since one thread of Python runs at a time."""

COLLECT_S: Final = 1.0
"""Seconds that the thread waits for more, once there is something to export: each message costs about as much as the
spans of ten requests."""

PLENTY: Final = MAX_WAITING // 8
"""Spans for which the thread waits no longer."""

LOG_INTERVAL_S: Final = 60.0
"""Seconds from one log entry about dropped spans to the next."""

MakeCollector = Callable[[str], Collector]


class SpanExport:
    """Exports the spans of traced requests to one collector, in a thread of its own.

    Args:
        endpoint: of the collector.
        make_collector: makes the connection to it.

    Attributes:
        endpoint: as given.
        exported: spans that the collector has taken.
        dropped: spans that it did not get.
        last_error: why it has not taken the last message; None if it has.
    """

    def __init__(self, endpoint: str, make_collector: MakeCollector = Collector) -> None:
        self.endpoint = endpoint
        self.exported = 0
        self.dropped = 0
        self.last_error: str | None = None
        self._make_collector = make_collector
        self._collector: Collector | None = None
        self._waiting: deque[list[TracedRequest]] = deque()
        self._waiting_spans = 0  # changed by both threads, under `_lock`
        self._lock = threading.Lock()
        self._filled = threading.Event()
        self._plenty = threading.Event()  # it is to be exported now
        self._ending = threading.Event()
        self._not_logged = 0  # dropped spans
        self._logged_at = -LOG_INTERVAL_S
        self._broken = False  # the thread has ended before its time
        self._thread = threading.Thread(target=self._run, name="multitower-spans", daemon=True)
        self._thread.start()

    def put(self, requests: list[TracedRequest]) -> None:
        """Takes requests that were answered at the same time. Never blocks for long: drops them if too many wait."""
        count = sum([request.spans for request in requests])
        with self._lock:
            if self._broken or self._waiting_spans + count > MAX_WAITING:
                self.dropped += count
                self._not_logged += count
                return
            self._waiting_spans += count
            self._waiting.append(requests)
            plenty = self._waiting_spans >= PLENTY
        if not self._filled.is_set():
            self._filled.set()
        if plenty and not self._plenty.is_set():
            self._plenty.set()

    @property
    def waiting(self) -> int:
        """How many spans wait for their export."""
        return self._waiting_spans

    def tick(self, now: float) -> None:
        """Logs what has been dropped, at a limited rate; call it about once a second.

        Args:
            now: monotonic seconds.
        """
        if self._not_logged and now - self._logged_at >= LOG_INTERVAL_S:
            with self._lock:
                count, self._not_logged = self._not_logged, 0
            self._logged_at = now
            event(
                log,
                logging.WARNING,
                "spans dropped",
                spans=count,
                endpoint=self.endpoint,
                cause=self.last_error,
                check="that the collector runs and takes OTLP there; requests are served as before",
            )

    def end(self) -> None:
        """Exports what waits, and then ends; returns at once."""
        self._ending.set()
        self._filled.set()
        self._plenty.set()

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def close(self, seconds: float) -> None:
        """Exports what waits, and ends.

        Args:
            seconds: how long that may take. Then what is left is dropped; the thread may still wait for the collector.
        """
        self.end()
        self._thread.join(seconds)
        collector = self._collector
        if self._thread.is_alive() and collector is not None:
            collector.close()

    def _run(self) -> None:
        try:
            with switch_interval.short():
                # Importing OpenTelemetry is slow, so it is done in this thread.
                from .spans import SpanMaker, own_resource

                maker = SpanMaker(own_resource())
                self._collector = self._make_collector(self.endpoint)
                self._export(maker, self._collector)
        except Exception as error:
            event(log, logging.ERROR, "requests are not traced: no spans can be exported", endpoint=self.endpoint)
            log.error("internal error while exporting spans", exc_info=error)
            self._broken = True
            self._drop_waiting(f"{type(error).__name__}: {error}")

    def _export(self, maker: SpanMaker, collector: Collector) -> None:
        while True:
            self._filled.wait()
            self._plenty.wait(COLLECT_S)
            self._filled.clear()
            self._plenty.clear()
            while self._waiting:
                requests: list[list[TracedRequest]] = []
                count = 0
                with self._lock:
                    while self._waiting and count < MAX_BATCH:
                        requests.append(self._waiting.popleft())
                        count += sum([request.spans for request in requests[-1]])
                    self._waiting_spans -= count
                began = time.thread_time()
                try:
                    spans = [span for burst in requests for span in maker.make(burst)]
                    collector.send(spans)
                except CollectorError as error:
                    self.exported += error.taken
                    self._drop(count - error.taken, str(error))
                    if self._ending.is_set() and not error.taken:
                        # Each further message could wait for the collector as long as this one has.
                        self._drop_waiting(str(error))
                except Exception as error:
                    log.error("internal error while making spans", exc_info=error)
                    self._drop(count, f"{type(error).__name__}: {error}")
                else:
                    self.exported += len(spans)
                    self.last_error = None
                # At most half of the time is for spans, however many wait: the event loop needs the rest.
                self._ending.wait(time.thread_time() - began)
            if self._ending.is_set():
                collector.close()
                return

    def _drop_waiting(self, cause: str) -> None:
        with self._lock:
            count, self._waiting_spans = self._waiting_spans, 0
            self._waiting.clear()
        self._drop(count, cause)

    def _drop(self, count: int, cause: str) -> None:
        self.last_error = cause
        with self._lock:
            self.dropped += count
            self._not_logged += count
