"""Which requests are traced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from multitower.errors import Reason, make
from multitower.supervisor.observability.trace_observer import TraceObserver
from multitower.supervisor.observability.traced_request import TracedRequest
from multitower.trace_context import TraceContext, add_to_header

FRONT = cast(Any, SimpleNamespace(interface="mt1"))


def reply(trace: TraceContext | None = None) -> Any:
    plan = SimpleNamespace(trace=trace, model="m")
    request = SimpleNamespace(
        plan=plan, id=b"1", sender=(FRONT, b""), version="1", rows=1, deaths=0, received=1.0, sent=1.5, runs=()
    )
    return SimpleNamespace(request=request, answer=[b"{}"])


class Put:
    def __init__(self) -> None:
        self.requests: list[TracedRequest] = []

    def __call__(self, requests: list[TracedRequest]) -> None:
        self.requests += requests


def test_the_observer_passes_on_what_its_sampler_has_chosen() -> None:
    put = Put()
    observer = TraceObserver(0.0, 1, put)
    traced = reply(TraceContext(7, 1, True))
    assert observer.sampler.chooses(traced.request.plan.trace, 1.0)
    assert not observer.sampler.chooses(TraceContext(8, 1, False), 1.0)
    assert observer.observe_acceptance(traced.request)
    observer.observe_replies([traced], 2.0)
    (request,) = put.requests
    assert request.trace is not None
    assert (request.trace.trace_id, request.received, request.answered) == (7, 1.0, 2.0)


def test_refused_requests_are_traced_by_the_same_rules() -> None:
    error = make(Reason.QUEUE_FULL, "full")
    header = b'{"model_name":"m","inputs":[],"parameters":{"timeout":1}}'
    traced = add_to_header(header, f"00-{1:032x}-{2:016x}-01")
    put = Put()
    observer = TraceObserver(0.0, 10, put)
    for each in (header, traced, traced[:-1], b"", traced.replace(b"-01", b"-00"), b'{"parameters":"traceparent"}'):
        observer.observe_refusal(FRONT, b"1", each, error, 2.0)
    (request,) = put.requests
    assert (request.model, request.reason, request.code) == ("m", "queue_full", "RESOURCE_EXHAUSTED")
    sampling = TraceObserver(1.0, 10, put)
    for each in (header, b"{", b"[]", b"\xff", b"x" * (1 << 20)):
        sampling.observe_refusal(FRONT, b"1", each, error, 2.0)
    assert [request.model for request in put.requests[1:]] == ["m", "", "", "", ""]


def test_names_and_reasons_that_cannot_be_encoded_are_replaced() -> None:
    put = Put()
    observer = TraceObserver(1.0, 10, put)
    observer.observe_refusal(FRONT, b"1", b'{"model_name":"m\\ud800"}', make(Reason.MODEL_UNKNOWN, "none"), 2.0)
    failed = reply()
    failed.answer = make(Reason.MODEL_ERROR, "chosen by a handler")
    failed.answer.reason = "odd\udfff"
    observer.observe_replies([failed], 2.0)
    assert [(request.model, request.reason) for request in put.requests] == [("m?", "model_unknown"), ("m", "odd?")]
