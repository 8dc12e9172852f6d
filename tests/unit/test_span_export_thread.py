"""The thread that exports spans: what it does when the collector is absent, slow, or takes everything."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from collector import Collector as ListeningCollector
from collector import SilentListener, unused_port
from waiting import wait_until

from multitower.supervisor.config.tracing import TracingConfig
from multitower.supervisor.observability import span_export_thread
from multitower.supervisor.observability.otlp_exporter import Collector, CollectorError
from multitower.supervisor.observability.span_export_thread import LOG_INTERVAL_S, MAX_WAITING, SpanExport
from multitower.supervisor.observability.spans import SpanMaker, own_resource
from multitower.supervisor.observability.switch_interval import SWITCH_S, SwitchInterval
from multitower.supervisor.observability.traced_request import TracedRequest
from multitower.supervisor.observability.tracing import Tracing
from multitower.supervisor.scheduling.batch_run import BatchRun

STEP_S = 30.0


def request(number: int = 1, **changes: Any) -> TracedRequest:
    run = BatchRun(number, 0, "cpu:0", 1, 1, 1, 2.0, 2.0, 3.0, 10_000_000, 500_000_000, 20_000_000)
    given = TracedRequest(None, b"id", "mt1", "m", "1", 1, 0, 1.0, 2.0, 3.5, "", "", (run,))
    return given._replace(**changes)


class FakeCollector:
    """Takes spans once `open` is set, or fails with `failure`."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.failure: Exception | None = None
        self.sizes: list[int] = []
        self.attempts = 0

    def send(self, spans: list[Any]) -> None:
        self.attempts += 1
        self.open.wait()
        if self.failure is not None:
            raise self.failure
        self.sizes.append(len(spans))

    def close(self) -> None:
        self.open.set()


@contextmanager
def exporting(make: Callable[[str], Any], endpoint: str = "grpc://collector:4317") -> Iterator[SpanExport]:
    export = SpanExport(endpoint, cast("Callable[[str], Collector]", make))
    try:
        yield export
    finally:
        export.close(0.0)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread does not wait long for more."""
    monkeypatch.setattr(span_export_thread, "COLLECT_S", 0.02)


def test_where_plenty_waits_the_thread_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_export_thread, "COLLECT_S", 10 * STEP_S)
    collector = FakeCollector()
    collector.open.set()
    with exporting(lambda _: collector) as export:
        for _ in range(span_export_thread.PLENTY // 4):
            export.put([request()])
        wait_until(lambda: export.exported == span_export_thread.PLENTY)
        export.put([request()])
        export.close(STEP_S)
        assert export.exported == span_export_thread.PLENTY + 4, "nor at its end"


def test_what_waits_is_bounded_and_the_rest_is_dropped_and_counted() -> None:
    collector = FakeCollector()
    with exporting(lambda _: collector) as export:
        for _ in range(MAX_WAITING // 4 + 300):
            export.put([request()])
        assert export.waiting <= MAX_WAITING
        assert export.dropped >= 300 * 4 - span_export_thread.MAX_BATCH
        collector.open.set()
        wait_until(lambda: export.waiting == 0 and export.exported > 0)
        export.close(STEP_S)
        assert export.exported + export.dropped == (MAX_WAITING // 4 + 300) * 4
        assert max(collector.sizes) <= span_export_thread.MAX_BATCH + 4


def test_dropped_spans_are_logged_at_a_limited_rate(caplog: pytest.LogCaptureFixture) -> None:
    collector = FakeCollector()
    collector.open.set()
    collector.failure = CollectorError("connection refused")
    with caplog.at_level(logging.WARNING), exporting(lambda _: collector) as export:
        export.put([request()])
        wait_until(lambda: export.dropped == 4)
        for seconds in (0.0, 1.0, 2.0):
            export.tick(100.0 + seconds)
        export.put([request()])
        wait_until(lambda: export.dropped == 8)
        export.tick(101.0)
        (record,) = caplog.records
        assert record.fields == {  # type: ignore[attr-defined]
            "spans": 4,
            "endpoint": "grpc://collector:4317",
            "cause": "connection refused",
            "check": "that the collector runs and takes OTLP there; requests are served as before",
        }
        export.tick(100.0 + LOG_INTERVAL_S)
        assert len(caplog.records) == 2
        assert export.last_error == "connection refused"
        collector.failure = None
        export.put([request()])
        wait_until(lambda: export.exported == 4)
        assert export.last_error is None


def test_a_defect_in_the_thread_is_logged_and_costs_spans_only(caplog: pytest.LogCaptureFixture) -> None:
    def fail(endpoint: str) -> Collector:
        raise ZeroDivisionError

    with exporting(fail) as export:
        export.put([request()])
        wait_until(lambda: export.dropped == 4)
        export.put([request()])
        assert (export.dropped, export.waiting) == (8, 0)
        assert "requests are not traced" in caplog.text


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_an_absent_collector_costs_the_spans_alone(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    with exporting(Collector, f"{scheme}://127.0.0.1:{unused_port()}") as export:
        export.put([request()])
        wait_until(lambda: export.dropped == 4)
        assert export.last_error


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_end_does_not_wait_for_a_collector_that_never_answers(scheme: str) -> None:
    with SilentListener() as listener, exporting(Collector, f"{scheme}://127.0.0.1:{listener.port}") as export:
        export.put([request()])
        assert listener.connected.wait(STEP_S)
        began = time.monotonic()
        export.put([request()])
        export.close(0.1)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(("scheme", "path"), [("grpc", ""), ("http", "/v1/traces")])
def test_a_span_that_cannot_be_encoded_costs_only_itself(scheme: str, path: str) -> None:
    with ListeningCollector() as listening, exporting(Collector, f"{getattr(listening, scheme)}{path}") as export:
        # The event loop makes names encodable. A defect must not cost the spans of others.
        export.put([request(1), request(2, model="\ud800"), request(3)])
        wait_until(lambda: export.exported + export.dropped == 12)
        assert export.dropped == 1, export.last_error
        assert "cannot be encoded" in (export.last_error or "")


def test_one_users_end_leaves_the_switch_interval_short_for_others() -> None:
    interval, before = SwitchInterval(), sys.getswitchinterval()
    first, second = interval.short(), interval.short()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == before


def test_an_ending_export_drops_the_rest_after_the_first_error() -> None:
    collector = FakeCollector()
    with exporting(lambda _: collector) as export:
        for _ in range(100):
            export.put([request()])
        wait_until(lambda: collector.attempts == 1)
        export.end()
        collector.failure = CollectorError("timed out")
        collector.open.set()
        wait_until(lambda: export.ended)
        assert (collector.attempts, export.dropped, export.waiting) == (1, 400, 0)


def test_a_second_collector_leaves_the_first_its_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    first, second = (Collector(f"http://127.0.0.1:{unused_port()}/v1/traces") for _ in range(2))
    spans = SpanMaker(own_resource()).make([request()])
    causes: list[str] = []
    for collector in (first, second):
        with closing(collector), pytest.raises(CollectorError) as raised:
            collector.send(spans)
        causes.append(str(raised.value))
    assert not any("has not taken them" in cause for cause in causes), causes


def test_tracing_is_tried_again_if_its_thread_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = TracingConfig(endpoint=f"http://127.0.0.1:{unused_port()}/v1/traces")
    tracing = Tracing(cast(Any, SimpleNamespace(current=SimpleNamespace(config=SimpleNamespace(tracing=wanted)))), [])
    with monkeypatch.context() as changed:
        changed.setattr(threading.Thread, "start", cannot_start)
        with pytest.raises(RuntimeError):
            tracing.tick(0.0)
    tracing.tick(1.0)
    assert tracing.report() is not None
    tracing.close(0.0)


def cannot_start(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
