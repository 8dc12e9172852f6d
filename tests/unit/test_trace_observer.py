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


def test_a_client_that_is_traced_decides() -> None:
    for sample in (0.0, 1.0):
        put = Put()
        observer = TraceObserver(sample, 1, put)
        observer.observe_replies([reply(TraceContext(1, 1, True)) for _ in range(5)], 2.0)
        observer.observe_replies([reply(TraceContext(2, 1, False)) for _ in range(5)], 2.0)
        assert [request.trace.trace_id for request in put.requests if request.trace is not None] == [1] * 5


def test_of_all_others_a_share_is_traced() -> None:
    for sample, least, most in ((0.0, 0, 0), (0.25, 100, 400), (1.0, 1000, 1000)):
        put = Put()
        TraceObserver(sample, 10_000, put).observe_replies([reply() for _ in range(1000)], 2.0)
        assert least <= len(put.requests) <= most


def test_no_more_than_the_limit_is_traced_in_each_second() -> None:
    put = Put()
    observer = TraceObserver(1.0, 10, put)
    for tenth in range(100):  # ten seconds
        observer.observe_replies([reply() for _ in range(50)], 1000 + tenth / 10)
    assert 100 <= len(put.requests) <= 110
    observer.max_per_second = 30
    observer.observe_replies([reply() for _ in range(50)], 1020)
    assert 130 <= len(put.requests) <= 140


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
