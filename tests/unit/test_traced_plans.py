from __future__ import annotations

import pytest

from multitower import wire
from multitower.errors import InvalidRequest
from multitower.spec import ModelReport, TensorReport
from multitower.supervisor.routing.request_plans import RequestPlanner
from multitower.trace_context import add_to_header

X = wire.Tensor("x", "FP32", (2, 3))


def traceparent(number: int) -> str:
    return f"00-{number:032x}-{number:016x}-01"


def planner_of_one_model() -> RequestPlanner:
    planner = RequestPlanner({"m": 30.0})
    inputs = (TensorReport(name="x", datatype="FP32", shape=(-1, 3)),)
    outputs = (TensorReport(name="y", datatype="FP32", shape=(-1, 3)),)
    planner.add_version(
        ModelReport(name="m", inputs=inputs, outputs=outputs, max_batch_size=8), newest=True, generation=0
    )
    return planner


def test_traced_requests_share_the_plan_of_their_header_without_the_trace():
    planner = planner_of_one_model()
    header = wire.infer_header("m", [X], timeout_us=1_000_000)
    plain = planner.plan(header)
    first, second = (planner.plan(add_to_header(header, traceparent(number))) for number in (1, 2))
    assert plain.trace is None
    assert first.trace is not None
    assert second.trace is not None
    assert (first.trace.trace_id, second.trace.trace_id) == (1, 2)
    assert first.key is second.key is plain.key
    for name in (name for name in plain.__slots__ if name != "trace"):
        assert getattr(first, name) == getattr(plain, name), name
    assert planner.plan(header) is plain


def test_a_trace_context_in_another_place_of_the_header_is_found_too():
    planner = planner_of_one_model()
    header = wire.infer_header("m", [X], timeout_us=1_000_000)
    moved = header.replace(b'"timeout"', f'"traceparent":"{traceparent(7)}","timeout"'.encode())
    plan = planner.plan(moved)
    assert plan.trace is not None
    assert plan.trace.trace_id == 7


def test_a_malformed_header_with_a_trace_context_is_refused():
    planner = planner_of_one_model()
    header = add_to_header(wire.infer_header("m", [X], timeout_us=1), traceparent(1))
    with pytest.raises(InvalidRequest):
        planner.plan(header.replace(b'"timeout":1', b'"timeout":0'))
