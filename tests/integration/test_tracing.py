"""Traces of requests, as a collector of OpenTelemetry gets them from a real daemon."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collector import Collector, SilentListener, Span
from opentelemetry import trace as otel
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from running import STEP_S, Running

from multitower import InvalidRequest

HANDLERS = """
import time

class Slow:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        time.sleep(float(inputs["x"].max()))
        return {"y": inputs["x"]}
"""
CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: slow, handler: "slow_handler:Slow", batching: {max_batch_size: 4, trust: true}}
  - {name: hasty, handler: "slow_handler:Slow", queue: {timeout: 200ms}}
tracing: {endpoint: "%s", sample: %s}
"""

SERVER = 2
"""The kind of a span that serves a request."""


def start(folder: Path, endpoint: str, sample: float = 0, **arguments: Any) -> Running:
    (folder / "slow_handler.py").write_text(HANDLERS)
    return Running(folder, CONFIG % (endpoint, sample), **arguments)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Running]:
    """A daemon that traces only requests whose clients are traced, and exports over gRPC."""
    environment = {"OTEL_SERVICE_NAME": "digits", "OTEL_EXPORTER_OTLP_HEADERS": "x-key=7"}
    folder = tmp_path_factory.mktemp("traced")
    with start(folder, collector.grpc, environment=environment) as daemon:
        yield daemon.wait_ready()


_numbers = iter(range(1, 1000))


def traced() -> tuple[str, str, dict[str, str]]:
    """The ids of a new trace and of the client's span in it, and the headers that name them."""
    number = next(_numbers)
    trace_id, span_id = f"{number:032x}", f"{number + 7:016x}"
    return trace_id, span_id, {"traceparent": f"00-{trace_id}-{span_id}-01", "tracestate": "vendor=opaque,other=1"}


def seconds(*values: float) -> dict[str, np.ndarray]:
    """The inputs of a request that takes so long."""
    return {"x": np.array(values, np.float32).reshape(-1, 1)}


def contains(outer: Span, inner: Span) -> bool:
    return outer.start <= inner.start <= inner.end <= outer.end


def test_the_spans_of_a_request_add_up_to_the_clients_latency(daemon: Running, collector: Collector) -> None:
    trace_id, span_id, headers = traced()
    with daemon.client() as client:
        client.infer("slow", seconds(0.0))
        began_wall, began = time.time_ns(), time.monotonic()
        client.infer("slow", seconds(0.3, 0.0), trace=headers)
        latency = time.monotonic() - began
        ended_wall = time.time_ns()
    spans = collector.wait_for_trace(trace_id)
    assert sorted(spans) == ["batch", "compute", "infer slow", "queue"]
    request, queue, batch, compute = (spans[name] for name in ("infer slow", "queue", "batch", "compute"))
    assert (request.parent_id, request.kind) == (span_id, SERVER)
    assert queue.parent_id == batch.parent_id == request.id
    assert compute.parent_id == batch.id
    assert contains(request, queue)
    assert contains(request, batch)
    assert contains(batch, compute)
    assert queue.end == batch.start
    assert compute.seconds == pytest.approx(0.3, abs=0.1)
    assert compute.seconds <= batch.seconds
    assert queue.seconds + batch.seconds == pytest.approx(request.seconds, rel=0.05)
    assert request.seconds == pytest.approx(latency, rel=0.05)
    assert began_wall <= request.start <= request.end <= ended_wall + 1_000_000
    assert {span.state for span in spans.values()} == {"vendor=opaque,other=1"}


def test_spans_have_the_attributes_of_the_conventions_and_our_own(daemon: Running, collector: Collector) -> None:
    trace_id, _, headers = traced()
    with daemon.client() as client:
        client.infer("slow", seconds(0.0, 0.0, 0.0), trace=headers)
    spans = collector.wait_for_trace(trace_id)
    request, batch = spans["infer slow"], spans["batch"]
    wanted = {
        "rpc.system.name": "multitower",
        "rpc.method": "MT1:infer",
        "multitower.interface": "mt1",
        "multitower.model": "slow",
        "multitower.version": "1",
        "multitower.rows": 3,
        "multitower.slot": 0,
        "multitower.device": "cpu:0",
        "multitower.batch.rows": 3,
    }
    assert wanted.items() <= request.attributes.items()
    assert "error.type" not in request.attributes
    assert {"multitower.batch.requests": 1, "multitower.batch.executed_rows": 3}.items() <= batch.attributes.items()
    assert {"service.name": "digits", "telemetry.sdk.language": "python"}.items() <= request.resource.items()
    assert collector.headers["x-key"] == "7"


def test_the_spans_of_requests_in_one_batch_are_linked(daemon: Running, collector: Collector) -> None:
    traces = [traced() for _ in range(4)]
    with daemon.client() as client:
        blocking = [client.submit("slow", seconds(0.3)) for _ in range(2)]  # others wait behind them
        futures = [client.submit("slow", seconds(0.0), trace=headers) for *_, headers in traces]
        for future in [*blocking, *futures]:
            future.result(STEP_S)
    found = [collector.wait_for_trace(trace_id) for trace_id, *_ in traces]
    batches: dict[int, list[dict[str, Span]]] = {}
    for spans in found:
        batches.setdefault(spans["batch"].attributes["multitower.batch.id"], []).append(spans)
    assert len(batches) < len(traces)
    for members in batches.values():
        first, *others = sorted(members, key=lambda spans: -len(spans["batch"].links))
        assert first["batch"].links == [spans["infer slow"].id for spans in others]
        for spans in others:
            assert spans["batch"].links == [first["batch"].id]


def test_a_request_that_is_split_has_a_span_for_each_batch(daemon: Running, collector: Collector) -> None:
    trace_id, _, headers = traced()
    with daemon.client() as client:
        client.infer("slow", seconds(*[0.0] * 9), trace=headers)
    collector.wait_for_trace(trace_id, 8)
    batches = [span for span in collector.spans() if span.trace_id == trace_id and span.name == "batch"]
    assert sorted(span.attributes["multitower.batch.rows"] for span in batches) == [1, 4, 4]


def test_only_sampled_traces_are_traced(daemon: Running, collector: Collector) -> None:
    trace_id, span_id, headers = traced()
    with daemon.client() as client:
        client.infer("slow", seconds(0.0))
        client.infer("slow", seconds(0.0), trace={"traceparent": f"00-{trace_id}-{span_id}-00"})
        client.infer("slow", seconds(0.0), trace={"traceparent": "no-trace"})
        before = len(collector.spans())
        client.infer("slow", seconds(0.0), trace=headers)
    collector.wait_for_trace(trace_id)
    assert len(collector.spans()) == before + 4


def test_a_refused_and_an_expired_request_are_traced_as_errors(daemon: Running, collector: Collector) -> None:
    refused, _, headers_of_refused = traced()
    expired, _, headers_of_expired = traced()
    with daemon.client() as client:
        with pytest.raises(InvalidRequest):
            client.infer("slow", seconds(0.0), outputs=["y", "y"], trace=headers_of_refused)
        with pytest.raises(TimeoutError):
            client.infer("hasty", seconds(0.5), trace=headers_of_expired)
    (span,) = collector.wait_for_trace(refused, 1).values()
    assert (span.name, span.attributes["error.type"], span.failed) == ("infer slow", "malformed", False)
    spans = collector.wait_for_trace(expired, 3)
    assert spans["infer hasty"].attributes["error.type"] == "deadline"
    assert spans["infer hasty"].failed
    assert spans["batch"].failed


def test_the_client_passes_the_current_span_of_opentelemetry(daemon: Running, collector: Collector) -> None:
    trace_id, span_id, _ = traced()
    state = TraceState.from_header(["a=1"])
    context = SpanContext(int(trace_id, 16), int(span_id, 16), False, TraceFlags(TraceFlags.SAMPLED), state)
    with daemon.client() as client, otel.use_span(NonRecordingSpan(context)):
        client.infer("slow", seconds(0.0))
    request = collector.wait_for_trace(trace_id)["infer slow"]
    assert (request.parent_id, request.state) == (span_id, "a=1")


def test_the_status_has_the_number_of_spans(daemon: Running) -> None:
    tracing = daemon.status()["daemon"]["tracing"]
    assert tracing["spans_exported"] > 0
    assert (tracing["spans_dropped"], tracing["last_error"], tracing["sample"]) == (0, None, 0)


def test_a_reload_turns_tracing_on_and_off(tmp_path: Path, collector: Collector) -> None:
    text = CONFIG % (collector.http, 0.5)
    without, _, _ = text.partition("tracing:")
    (tmp_path / "slow_handler.py").write_text(HANDLERS)
    before = len(collector.spans())
    with Running(tmp_path, without) as daemon, daemon.wait_ready().client() as client:
        assert client.status()["daemon"]["tracing"] is None
        daemon.config.write_text(text.replace("{endpoint}", daemon.endpoint))
        daemon.signal(signal.SIGHUP)
        daemon.wait(lambda: client.status()["daemon"]["tracing"] is not None)
        for _ in range(32):
            client.infer("slow", seconds(0.0))
        daemon.config.write_text(without.replace("{endpoint}", daemon.endpoint))
        daemon.signal(signal.SIGHUP)
        daemon.wait(lambda: client.status()["daemon"]["tracing"] is None)
        daemon.wait_line("requests are not traced any more")
        assert client.infer("slow", seconds(0.0))
        assert daemon.end() == 0
    # What waited has been exported, over HTTP this time.
    requests = [span for span in collector.spans()[before:] if span.name == "infer slow"]
    assert 0 < len(requests) < 32
    assert {span.parent_id for span in requests} == {""}
    assert len({span.trace_id for span in requests}) == len(requests)


def test_requests_do_not_notice_a_collector_that_never_answers(tmp_path: Path) -> None:
    patient = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1000"}
    with (
        SilentListener() as listener,
        start(tmp_path, f"http://127.0.0.1:{listener.port}", 1, environment=patient) as daemon,
    ):
        with daemon.wait_ready().client() as client:
            client.infer("slow", seconds(0.0))
            assert listener.connected.wait(STEP_S)
            for _ in range(20):
                client.infer("slow", seconds(0.0))
            assert client.status()["daemon"]["tracing"]["spans_waiting"] > 0
        assert daemon.end() == 0
        assert not [line for line in daemon.lines if "opentelemetry" in line.get("logger", "")]


def test_the_end_exports_what_waits(daemon: Running, collector: Collector) -> None:
    trace_id, _, headers = traced()
    with daemon.client() as client:
        client.infer("slow", seconds(0.0), trace=headers)
    assert daemon.end() == 0
    assert len([span for span in collector.spans() if span.trace_id == trace_id]) == 4
