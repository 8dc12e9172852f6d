"""What a client is told whose request does not fit the model: which of both sides has what."""

from __future__ import annotations

import pytest

from multitower.errors import InvalidRequest
from multitower.spec import TensorReport
from multitower.supervisor.routing.request_checks import check_inputs
from multitower.wire import Tensor

DECLARED = (
    TensorReport(name="x", datatype="FP32", shape=(-1, 64)),
    TensorReport(name="s", datatype="BYTES", shape=(-1,)),
)
STRINGS = Tensor("s", "BYTES", (2,))


@pytest.mark.parametrize(
    ("given", "reason", "message"),
    [
        (
            Tensor("x", "FP64", (2, 64)),
            "datatype_mismatch",
            "the model takes FP32 for the input 'x'; the request has FP64: convert it (in numpy to np.float32)",
        ),
        (
            Tensor("x", "FP32", (64,)),
            "shape_invalid",
            "the model takes the shape [-1, 64] (-1: any size) for the input 'x'; "
            "the request has [64]: one row is [1, 64]",
        ),
        (Tensor("y", "FP32", (2, 64)), "input_unknown", "the model has no input 'y', only 'x', 's'"),
    ],
)
def test_a_mismatch_names_what_the_model_takes_and_what_the_request_has(
    given: Tensor, reason: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_inputs((given, STRINGS), DECLARED)
    assert raised.value.reason == reason
    assert message in raised.value.message


def test_all_inputs_that_are_missing_are_named() -> None:
    with pytest.raises(InvalidRequest, match="the model also needs the inputs 'x', 's'"):
        check_inputs((), DECLARED)
