"""RequestPlanner: plans for request headers, when they are cached and discarded, and which requests are refused."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Any

import pytest
from growth import growth

from multitower import wire
from multitower.errors import InvalidRequest, MultitowerError, NotFound, Reason, Unavailable, make
from multitower.spec import ModelReport, SignatureReport, TensorReport
from multitower.supervisor.routing import request_plans
from multitower.supervisor.routing.request_checks import MAX_EMPTY_ROWS, check_frames
from multitower.supervisor.routing.request_plans import RequestPlanner
from multitower.supervisor.scheduling.request import Request


def report(**changes: Any) -> ModelReport:
    described: dict[str, Any] = {
        "name": "m",
        "inputs": (
            TensorReport(name="x", datatype="FP32", shape=(-1, 3)),
            TensorReport(name="s", datatype="BYTES", shape=(-1,)),
        ),
        "outputs": (TensorReport(name="y", datatype="FP32", shape=(-1,)),),
        "max_batch_size": 8,
    }
    return ModelReport(**{**described, **changes})


def header(rows: int = 2, order: str = "xs", **more: Any) -> bytes:
    tensors = {"x": wire.Tensor("x", "FP32", (rows, 3)), "s": wire.Tensor("s", "BYTES", (rows,))}
    return wire.infer_header("m", [tensors[name] for name in order], **more)


@pytest.fixture
def admitted() -> RequestPlanner:
    made = RequestPlanner({"m": 30.0, "other": 1.0})
    made.add_version(report(), newest=True, generation=0)
    return made


def test_equal_headers_share_a_plan_and_equal_shapes_a_key(admitted: RequestPlanner) -> None:
    assert admitted.plan(header(2)) is admitted.plan(header(2))
    two, five = admitted.plan(header(2)), admitted.plan(header(5))
    assert two.key is five.key
    assert (two.rows, five.rows) == (2, 5)
    assert two.sizes == (24, 8)
    assert two.variable == (False, True)


@pytest.mark.parametrize(("bound", "keys"), [("MAX_CACHED_ENTRIES", 4), ("MAX_CACHED_BYTES", 4 * len(header(2)))])
def test_the_number_of_cached_keys_is_bounded(monkeypatch: pytest.MonkeyPatch, bound: str, keys: int) -> None:
    monkeypatch.setattr(request_plans, bound, keys)
    made = RequestPlanner({"m": 30.0})
    made.add_version(report(inputs=None), newest=True, generation=0)
    text = wire.Tensor("s", "BYTES", (2,))
    asked = [wire.infer_header("m", [wire.Tensor("x", "FP32", (2, 100 + dim)), text]) for dim in range(9)]
    first = made.plan(asked[0]).key
    assert made.plan(asked[0]).key is first
    for each in asked:
        made.plan(each)
    assert made.plan(asked[0]).key is not first


def test_inputs_in_any_order_share_a_key(admitted: RequestPlanner) -> None:
    plan = admitted.plan(header(order="sx"))
    assert plan.key is admitted.plan(header(order="xs")).key
    assert plan.order == (1, 0)
    assert plan.names == ("s", "x")


@pytest.mark.parametrize(("asked_us", "seconds"), [(None, 30.0), (5_000_000, 5.0), (60_000_000, 30.0)])
def test_the_shorter_of_both_timeouts_counts(admitted: RequestPlanner, asked_us: int | None, seconds: float) -> None:
    plan = admitted.plan(header(timeout_us=asked_us))
    assert plan.timeout_s == seconds
    assert plan.timeout_is_own == (asked_us is not None and asked_us / 1e6 == seconds)


SIGNED = {
    "signature": "serving_default",
    "signatures": (
        SignatureReport(
            name="sum",
            inputs=(TensorReport(name="n", datatype="INT64", shape=()),),
            outputs=(TensorReport(name="total", datatype="INT64", shape=()),),
        ),
        SignatureReport(name="ragged", cause="'r' is a RaggedTensor"),
    ),
}


def test_a_request_is_checked_against_the_signature_that_it_names(admitted: RequestPlanner) -> None:
    admitted.add_version(report(**SIGNED), newest=True, generation=0)
    scalar = wire.infer_header("m", [wire.Tensor("n", "INT64", ())], signature="sum")
    plan = admitted.plan(scalar)
    assert (plan.key.spec.signature, plan.key.spec.batched, plan.key.max_batch_size) == ("sum", False, 0)
    with pytest.raises(InvalidRequest, match="no input 'x', only 'n'"):
        admitted.plan(header(signature="sum"))
    with pytest.raises(InvalidRequest, match="no output 'y', only 'total'"):
        admitted.plan(wire.infer_header("m", [wire.Tensor("n", "INT64", ())], outputs=["y"], signature="sum"))


def test_the_default_signature_by_name_shares_batches_with_none(admitted: RequestPlanner) -> None:
    admitted.add_version(report(**SIGNED), newest=True, generation=0)
    assert admitted.plan(header(signature="serving_default")).key is admitted.plan(header()).key
    assert admitted.plan(header()).key.max_batch_size == 8


@pytest.mark.parametrize(
    ("more", "name", "message"),
    [
        (SIGNED, "other", "'m' has no signature 'other', only serving_default, sum"),
        (SIGNED, "ragged", "the signature 'ragged' of 'm' cannot be served: 'r' is a RaggedTensor"),
        ({}, "serving_default", "'m' has no signature 'serving_default', nor any other"),
    ],
)
def test_an_unknown_or_unservable_signature_is_refused(
    admitted: RequestPlanner, more: dict[str, Any], name: str, message: str
) -> None:
    admitted.add_version(report(**more), newest=True, generation=0)
    with pytest.raises(NotFound, match=message) as raised:
        admitted.plan(header(signature=name))
    assert (raised.value.reason, raised.value.details["field"]) == ("signature_unknown", "parameters.signature_name")


def test_another_set_of_signatures_is_another_interface(admitted: RequestPlanner) -> None:
    assert admitted.add_version(report(**SIGNED), newest=True, generation=0) != admitted.add_version(
        report(signature="serving_default"), newest=True, generation=0
    )


VARIABLE = {
    "pad_variable_length_inputs": True,
    "inputs": (
        TensorReport(name="x", datatype="FP32", shape=(-1, -1, 2)),
        TensorReport(name="s", datatype="BYTES", shape=(-1,)),
    ),
}


def lengths(rows: int, length: int) -> bytes:
    return wire.infer_header("m", [wire.Tensor("s", "BYTES", (rows,)), wire.Tensor("x", "FP32", (rows, length, 2))])


def test_requests_of_other_lengths_share_a_key_if_padded(admitted: RequestPlanner) -> None:
    admitted.add_version(report(**VARIABLE), newest=True, generation=0)
    three, five = admitted.plan(lengths(1, 3)), admitted.plan(lengths(2, 5))
    assert three.key is five.key
    assert three.key.spec.inputs == (("x", "FP32", (-1, 2)), ("s", "BYTES", ()), ("", "INT64", (1,)))
    assert (three.sizes_frame, five.sizes_frame) == (struct.pack("<q", 3), struct.pack("<q", 5))
    request = Request((), b"1", five, [b"x", b"s"], 2, 0.0)
    assert request.frames == [b"x", b"s", struct.pack("<q", 5)]


def test_requests_of_other_lengths_have_other_keys_if_not_padded(admitted: RequestPlanner) -> None:
    admitted.add_version(report(**VARIABLE | {"pad_variable_length_inputs": False}), newest=True, generation=0)
    assert admitted.plan(lengths(1, 3)).key is not admitted.plan(lengths(1, 5)).key


@pytest.mark.parametrize(("rows", "length"), [(9, 3), (1, 0)])
def test_requests_that_are_split_or_empty_are_not_padded(admitted: RequestPlanner, rows: int, length: int) -> None:
    admitted.add_version(report(**VARIABLE), newest=True, generation=0)
    plan = admitted.plan(lengths(rows, length))
    assert plan.key.spec.inputs == (("x", "FP32", (length, 2)), ("s", "BYTES", ()))
    assert plan.sizes_frame is None


@pytest.mark.parametrize("padded", [False, True])
def test_a_request_without_rows_runs_as_if_its_model_were_unbatched(padded: bool, admitted: RequestPlanner) -> None:
    admitted.add_version(report(**VARIABLE | {"pad_variable_length_inputs": padded}), newest=True, generation=0)
    plan = admitted.plan(lengths(0, 3))
    assert plan.key.spec.inputs == (("x", "FP32", (0, 3, 2)), ("s", "BYTES", (0,)))
    assert (plan.key.spec.batched, plan.key.max_batch_size, plan.rows) == (False, 0, 1)
    assert plan.sizes == (0, 0)


def test_rows_without_elements_are_batched_up_to_a_limit(admitted: RequestPlanner) -> None:
    admitted.add_version(
        report(inputs=(TensorReport(name="x", datatype="FP32", shape=(-1, -1)),)), newest=True, generation=0
    )
    most = admitted.plan(wire.infer_header("m", [wire.Tensor("x", "FP32", (MAX_EMPTY_ROWS, 0))]))
    assert (most.rows, most.key.spec.batched, most.sizes) == (MAX_EMPTY_ROWS, True, (0,))
    with pytest.raises(InvalidRequest, match="rows without elements; a request can have 65536") as caught:
        admitted.plan(wire.infer_header("m", [wire.Tensor("x", "FP32", (10**15, 0))]))
    assert caught.value.reason == Reason.SHAPE_INVALID


def test_inputs_without_variable_sizes_are_not_padded(admitted: RequestPlanner) -> None:
    admitted.add_version(report(pad_variable_length_inputs=True), newest=True, generation=0)
    assert not admitted.plan(header()).key.spec.padded
    admitted.add_version(report(**VARIABLE | {"max_batch_size": 0}), newest=True, generation=0)
    assert not admitted.plan(lengths(1, 3)).key.spec.padded


def test_undeclared_inputs_vary_in_every_size_but_the_rows(admitted: RequestPlanner) -> None:
    admitted.add_version(report(pad_variable_length_inputs=True, inputs=None), newest=True, generation=0)
    assert admitted.plan(lengths(1, 3)).key.spec.inputs == (
        *(("s", "BYTES", ()), ("x", "FP32", (-1, -1))),
        ("", "INT64", (2,)),
    )


def test_plans_are_discarded_only_when_the_model_changes(admitted: RequestPlanner) -> None:
    plan = admitted.plan(header())
    admitted.add_version(report(load_s=9.0), newest=True, generation=0)
    assert admitted.plan(header()) is plan
    admitted.add_version(report(max_batch_size=0), newest=True, generation=0)
    assert admitted.plan(header()) is not plan
    assert admitted.plan(header()).key.max_batch_size == 0


def test_the_cache_is_bounded_and_discards_the_least_recently_used(
    admitted: RequestPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_plans, "MAX_CACHED_ENTRIES", 3)
    first = admitted.plan(header(1))
    second = admitted.plan(header(2))
    admitted.plan(header(3))
    assert admitted.plan(header(1)) is first
    admitted.plan(header(4))
    assert admitted.plan(header(1)) is first
    assert admitted.plan(header(2)) is not second


def test_repeating_a_header_keeps_its_plan_longest(admitted: RequestPlanner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_plans, "MAX_CACHED_ENTRIES", 2)
    one, two = admitted.plan(header(1)), admitted.plan(header(2))
    assert [admitted.plan(header(rows)) for rows in (1, 1, 1)] == [one, one, one]
    admitted.plan(header(3))
    assert admitted.plan(header(1)) is one
    assert admitted.plan(header(2)) is not two


def test_the_largest_headers_are_cached_for_many_numbers_of_rows(admitted: RequestPlanner) -> None:
    headers = [header(rows)[:-1].ljust(wire.MAX_HEADER_BYTES - 1) + b"}" for rows in range(1, 33)]
    plans = [admitted.plan(each) for each in headers]
    assert [admitted.plan(each) is plan for each, plan in zip(headers, plans, strict=True)] == [True] * 32
    with pytest.raises(InvalidRequest, match="the limit is 1048576"):
        admitted.plan(headers[0] + b" ")
    assert admitted.plan(headers[0]) is plans[0], "a refused header takes no room"


def test_a_model_without_workers_is_refused_with_the_cause_if_known() -> None:
    causes: dict[str, MultitowerError] = {}
    made = RequestPlanner({"m": 30.0}, causes.get)
    with pytest.raises(Unavailable, match="still loading"):
        made.plan(header())
    causes["m"] = make(Reason.NO_WORKER, "the weights are missing")
    with pytest.raises(Unavailable, match="the weights are missing"):
        made.plan(header())
    with pytest.raises(NotFound, match="'nobody'"):
        made.plan(wire.infer_header("nobody", []))


OPTIONAL = {
    "inputs": (
        TensorReport(name="factor", datatype="FP32", shape=(-1,), optional=True),
        TensorReport(name="offset", datatype="FP32", shape=(), optional=True),
        TensorReport(name="pair", datatype="FP32", shape=(-1,), optional=True, batched_without=False),
        TensorReport(name="x", datatype="FP32", shape=(-1, -1)),
    )
}


@pytest.mark.parametrize(
    ("given", "batched"),
    [
        ({"x": (3, 2), "pair": (3,)}, True),
        ({"x": (3, 2), "pair": (3,), "factor": (3,)}, True),
        ({"x": (3, 2), "pair": (3,), "offset": ()}, False),
        ({"x": (3, 2)}, False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("padded", [False, True])
def test_requests_without_optional_inputs_have_keys_of_their_own(
    given: dict[str, tuple[int, ...]], batched: bool, padded: bool, admitted: RequestPlanner
) -> None:
    admitted.add_version(report(**OPTIONAL, pad_variable_length_inputs=padded), newest=True, generation=0)
    plan = admitted.plan(wire.infer_header("m", [wire.Tensor(name, "FP32", shape) for name, shape in given.items()]))
    names = [name for name, _, _ in plan.key.spec.inputs if name]
    assert names == sorted(given), "in the order of the model"
    assert (plan.key.spec.batched, plan.rows) == ((True, 3) if batched else (False, 1))
    assert plan.key.max_batch_size == (8 if batched else 0)
    assert plan.key.spec.padded == (padded and batched)


def test_a_request_may_leave_out_all_inputs_if_all_are_optional(admitted: RequestPlanner) -> None:
    admitted.add_version(report(inputs=OPTIONAL["inputs"][:1]), newest=True, generation=0)
    plan = admitted.plan(wire.infer_header("m", []))
    assert (plan.key.spec.inputs, plan.key.spec.batched) == ((), False)
    admitted.add_version(report(**OPTIONAL), newest=True, generation=0)
    with pytest.raises(InvalidRequest, match="the model also needs the input 'x'"):
        admitted.plan(wire.infer_header("m", [wire.Tensor("offset", "FP32", ())]))


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((24, 8), None),
        ((24, 5000), None),
        ((24, 7), Reason.SIZE_MISMATCH),
        ((23, 8), Reason.SIZE_MISMATCH),
        ((25, 8), Reason.SIZE_MISMATCH),
        ((24,), Reason.MALFORMED),
        ((24, 8, 0), Reason.MALFORMED),
    ],
)
def test_frames_of_wrong_number_or_size_are_refused(
    admitted: RequestPlanner, sizes: tuple[int, ...], reason: Reason | None
) -> None:
    plan = admitted.plan(header())
    if reason is None:
        check_frames(plan, sizes)
        return
    with pytest.raises(MultitowerError) as raised:
        check_frames(plan, sizes)
    assert raised.value.reason == reason


AREA = wire.Area("mt-1-2-" + "0" * 32, 4096, 24)


def shared(**more: Any) -> bytes:
    """A request of two rows with `x` in shared memory."""
    tensors = [wire.Tensor("s", "BYTES", (2,)), wire.Tensor("x", "FP32", (2, 3), AREA)]
    return wire.infer_header("m", tensors, **more)


def test_requests_in_shared_memory_and_in_frames_share_a_key(admitted: RequestPlanner) -> None:
    plain = admitted.plan(header())
    plan = admitted.plan(shared(areas={"y": AREA, "z": AREA}))
    assert plan is admitted.plan(shared(areas={"y": AREA, "z": AREA}))
    assert plan.key is plain.key
    assert plan.shared is not None
    assert plan.shared.inputs == (None, AREA)
    assert plan.shared.outputs == {"y": AREA, "z": AREA}
    assert plain.shared is None
    small = admitted.plan(wire.infer_header("m", [wire.Tensor(n, d, (2, *r)) for n, d, r in INPUTS], areas={"y": AREA}))
    assert small.shared is not None
    assert small.shared.inputs == (None, None)


INPUTS = (("x", "FP32", (3,)), ("s", "BYTES", ()))


def test_an_unknown_output_is_refused_even_with_an_area(admitted: RequestPlanner) -> None:
    with pytest.raises(MultitowerError, match="no output 'z'") as raised:
        admitted.plan(shared(outputs=["y", "z"], areas={"z": AREA}))
    assert raised.value.reason == "output_unknown"


@pytest.fixture
def versioned() -> RequestPlanner:
    made = RequestPlanner({"m": 30.0})
    for number in ("9", "010"):
        made.add_version(report(version=number), newest=number == "010", generation=0)
    made.set_labels("m", {"stable": ["9"], "next": ["11"], "moved": ["12", "10"]})
    return made


@pytest.mark.parametrize(
    ("asked", "version"),
    [
        ({}, ""),
        ({"model_version": "9"}, "9"),
        ({"model_version": "010"}, "010"),
        ({"model_version": "10"}, "010"),
        ({"version_label": "stable"}, "9"),
        ({"version_label": "moved"}, "010"),
    ],
)
def test_a_version_is_found_by_number_and_by_label(
    versioned: RequestPlanner, asked: dict[str, str], version: str
) -> None:
    key = versioned.plan(header(**asked)).key
    assert (key.version, key.spec.version) == (version, version)


def test_a_label_and_its_number_share_batches(versioned: RequestPlanner) -> None:
    by_number = versioned.plan(header(model_version="9"))
    assert versioned.plan(header(version_label="stable")).key is by_number.key
    assert versioned.plan(header()).key is not by_number.key


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        ({"model_version": "11"}, "model_version", "'m' has no version '11', only 9, 010"),
        ({"model_version": "nine"}, "model_version", "'m' has no version 'nine', only 9, 010"),
        ({"model_version": "9" * 5000}, "model_version", "only 9, 010"),
        ({"version_label": "9"}, "parameters.version_label", "no version label '9', only 'stable', 'next', 'moved'"),
        (
            {"version_label": "next"},
            "parameters.version_label",
            "the label 'next' of 'm' is version 11, but served is only 9, 010",
        ),
    ],
)
def test_an_unknown_version_or_label_is_refused(
    versioned: RequestPlanner, asked: dict[str, str], field: str, words: str
) -> None:
    with pytest.raises(NotFound, match=words) as caught:
        versioned.plan(header(**asked))
    assert caught.value.reason == Reason.VERSION_UNKNOWN
    assert caught.value.details["field"] == field


def test_a_moved_label_counts_for_the_next_request(versioned: RequestPlanner) -> None:
    assert versioned.plan(header(version_label="stable")).key.version == "9"
    versioned.set_labels("m", {"stable": ["10"]})
    assert versioned.plan(header(version_label="stable")).key.version == "010"
    assert versioned.catalog.labels("m") == {"stable": "010"}
    versioned.set_labels("m", {})
    with pytest.raises(NotFound, match="'m' has no version label 'stable', nor any other"):
        versioned.plan(header(version_label="stable"))


def test_an_older_version_does_not_become_the_newest(versioned: RequestPlanner) -> None:
    plan = versioned.plan(header())
    versioned.add_version(report(version="9"), newest=False, generation=0)
    assert versioned.plan(header()) is plan, "the description has not changed"
    other = (TensorReport(name="other", datatype="FP32", shape=(-1, 3)),)
    versioned.add_version(report(version="9", inputs=other), newest=False, generation=0)
    assert versioned.plan(header()).key.version == ""
    with pytest.raises(InvalidRequest, match="no input 'x', only 'other'"):
        versioned.plan(header(model_version="9"))
    versioned.retain_versions("m", {"9"})
    assert versioned.catalog.versions("m") == ["9", "010"], "the newest version stays"
    versioned.retain_versions("m", {"010"})
    assert versioned.catalog.versions("m") == ["010"]


@pytest.mark.parametrize("outputs", [False, True], ids=["inputs", "outputs"])
def test_the_time_to_check_a_request_is_proportional_to_its_size(outputs: bool) -> None:
    def prepare(count: int) -> Callable[[], object]:
        names = [f"tensor_{number}" for number in range(count)]
        tensors = tuple(TensorReport(name=name, datatype="FP32", shape=(-1, 4)) for name in names)
        inputs = tensors[:1] if outputs else tensors
        made = RequestPlanner({"m": 30.0})
        made.add_version(report(inputs=inputs, outputs=tensors), newest=True, generation=0)
        text = wire.infer_header(
            "m",
            [wire.Tensor(tensor.name, "FP32", (1, 4)) for tensor in inputs],
            outputs=names if outputs else None,
        )
        # A header that has not been seen before is checked anew.
        distinct = (text[:-1] + b" " * number + b"}" for number in itertools.count())
        return lambda: made.plan(next(distinct))

    # About 1 if it is linear, 16 if it is quadratic.
    assert growth(prepare, wire.MAX_INPUTS // 16, wire.MAX_INPUTS) < 4
