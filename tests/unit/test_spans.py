"""The spans of traced requests, made of fixed times."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from multitower.errors import Code
from multitower.supervisor.observability.spans import SpanMaker, own_resource
from multitower.supervisor.observability.traced_request import TracedRequest
from multitower.supervisor.scheduling.batch_run import BatchRun
from multitower.trace_context import TraceContext


def run(id: int = 1, **changes: Any) -> BatchRun:
    made = BatchRun(id, 3, "GPU-1", 2, 5, 8, 12.0, 12.0, 13.0, 100_000_000, 500_000_000, 200_000_000)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def request(*runs: BatchRun, **changes: Any) -> TracedRequest:
    sent = runs[0].sent if runs else None
    given = TracedRequest(None, b"\x00\xff", "gateway", "digits", "2", 3, 0, 10.0, sent, 13.5, "", "", runs)
    return given._replace(**changes)


def make(*requests: TracedRequest) -> list[ReadableSpan]:
    return SpanMaker(Resource({})).make(requests)


def lengths(spans: list[ReadableSpan]) -> dict[str, tuple[float, float]]:
    """Begin and end of each span in seconds from the beginning of the first, by name."""
    start = spans[0].start_time or 0
    return {span.name: (((span.start_time or 0) - start) / 1e9, ((span.end_time or 0) - start) / 1e9) for span in spans}


def test_a_request_has_spans_for_queue_batch_and_computation() -> None:
    spans = make(request(run()))
    found = lengths(spans)
    assert found == {
        "infer digits": pytest.approx((0.0, 3.5)),
        "queue": pytest.approx((0.0, 2.0)),
        "batch": pytest.approx((2.0, 3.0)),
        # 0.8 s of the second are measured; 0.1 s are before and behind them.
        "compute": pytest.approx((2.2, 2.7)),
    }
    assert spans[0].kind is SpanKind.SERVER
    assert spans[0].parent is None
    assert (spans[0].attributes or {})["multitower.request.id"] == "00ff"
    assert (spans[0].attributes or {})["multitower.interface"] == "gateway"


@pytest.mark.parametrize(
    "odd",
    [
        run(compute_ns=9_000_000_000),
        run(started=13.0),
        run(sent=9.0, started=9.0),
        run(ended=99.0),
        run(assemble_ns=0, compute_ns=0, slice_ns=0),
        run(slice_ns=5_000_000_000),
    ],
    ids=["a long computation", "just started", "sent early", "ended late", "no time", "long slicing"],
)
def test_spans_lie_within_their_parents_whatever_the_times(odd: BatchRun) -> None:
    spans = make(request(odd))
    by_id = {span.context.span_id: span for span in spans if span.context is not None}
    for span in spans:
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
        if span.parent is not None:
            parent = by_id[span.parent.span_id]
            assert (parent.start_time or 0) <= span.start_time
            assert span.end_time <= (parent.end_time or 0)


def test_the_first_of_a_batch_is_linked_with_all_others() -> None:
    shared = run()
    maker = SpanMaker(Resource({}))
    spans = maker.make([request(shared) for _ in range(3)])
    requests = [span.context.span_id for span in spans if span.name == "infer digits" and span.context is not None]
    first, *others = [span for span in spans if span.name == "batch"]
    assert [link.context.span_id for link in first.links] == requests[1:]
    for other in others:
        assert [link.context for link in other.links] == [first.context]
    # A part of a split request is answered later than the others in its batch.
    (later,) = [span for span in maker.make([request(shared)]) if span.name == "batch"]
    assert [link.context for link in later.links] == [first.context]


def test_an_unanswered_request_has_a_batch_without_computation() -> None:
    expired = request(sent=12.0, code=str(Code.DEADLINE_EXCEEDED), reason="deadline")
    spans = make(expired)
    assert list(lengths(spans)) == ["infer digits", "queue", "batch"]
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR, StatusCode.UNSET, StatusCode.ERROR]
    waited = make(expired._replace(sent=None))
    assert lengths(waited) == {"infer digits": (0.0, 3.5), "queue": (0.0, 3.5)}
    refused = make(request(received=13.5, model="", code=str(Code.RESOURCE_EXHAUSTED), reason="queue_full"))
    assert lengths(refused) == {"infer": (0.0, 0.0)}
    assert refused[0].status.status_code is StatusCode.UNSET
    assert (refused[0].attributes or {})["error.type"] == "queue_full"


def test_spans_join_the_trace_of_the_client() -> None:
    spans = make(request(run(), trace=TraceContext(7, 9, True, "a=1,b=2")))
    assert {span.context.trace_id for span in spans if span.context is not None} == {7}
    assert spans[0].parent is not None
    assert spans[0].parent.span_id == 9
    assert {span.context.trace_state.to_header() for span in spans if span.context is not None} == {"a=1,b=2"}


def test_the_environment_overrides_what_spans_tell_of_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_resource().attributes["service.name"] == "multitower"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=vision,service.version=7")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "digits")
    attributes = own_resource().attributes
    assert (attributes["service.name"], attributes["service.namespace"], attributes["service.version"]) == (
        "digits",
        "vision",
        "7",
    )
