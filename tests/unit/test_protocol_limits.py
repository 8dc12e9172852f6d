"""Models to which the protocol can carry no request are found when they are loaded."""

from __future__ import annotations

from typing import Any

import pytest

from multitower import wire
from multitower.spec import TensorReport
from multitower.worker.protocol_limits import check_limits
from multitower.worker.unrunnable import UnrunnableError


def tensor(name: str = "x", shape: tuple[int, ...] | None = (-1,), datatype: str = "FP32") -> TensorReport:
    return TensorReport(name=name, datatype=datatype, shape=shape)


def named(count: int, length: int) -> list[TensorReport]:
    return [tensor(f"{number:0{length}}") for number in range(count)]


@pytest.mark.parametrize(
    "inputs",
    [
        None,
        (),
        named(wire.MAX_INPUTS, 32),
        [tensor("é" * (wire.MAX_NAME_BYTES // 2))],
        [tensor(shape=None), tensor("s", (), "BYTES"), tensor("y", (-1,) * wire.MAX_RANK)],
        [tensor(shape=(-1, 1000)), tensor("y", (-1, -1, 10_000_000), "BOOL")],
    ],
    ids=["undeclared", "none", "many", "long name", "ranks", "large"],
)
def test_models_within_the_limits_are_accepted(inputs: Any) -> None:
    check_limits("m", inputs, wire.DEFAULT_MAX_MESSAGE_SIZE)


@pytest.mark.parametrize(
    ("inputs", "cause"),
    [
        (named(wire.MAX_INPUTS + 1, 6), f"it has {wire.MAX_INPUTS + 1} inputs; a request can have {wire.MAX_INPUTS}"),
        ([tensor("é" * (wire.MAX_NAME_BYTES // 2 + 1))], f"has 1026 bytes; a request can name {wire.MAX_NAME_BYTES}"),
        ([tensor("")], "an input with an empty name"),
        (
            [tensor(shape=(1,) * (wire.MAX_RANK + 1))],
            f"has 65 dimensions; a tensor of a request can have {wire.MAX_RANK}",
        ),
        (named(1500, 1000), f"1500 inputs make a header of .* bytes; a request can have {wire.MAX_HEADER_BYTES}"),
        ([tensor(shape=(-1, 1 << 24))], "at least 67108.* bytes, and max_message_size is 67108864: raise it"),
        ([tensor(shape=(1 << 24,), datatype="BYTES")], "at least 67108.* bytes, and max_message_size is 67108864"),
    ],
    ids=["count", "name", "no name", "rank", "header", "size", "elements"],
)
def test_a_limit_that_no_request_can_keep_fails_the_model(inputs: Any, cause: str) -> None:
    with pytest.raises(UnrunnableError, match=cause):
        check_limits("m", inputs, wire.DEFAULT_MAX_MESSAGE_SIZE)


def test_the_size_is_not_checked_where_the_limit_is_unknown() -> None:
    check_limits("m", [tensor(shape=(-1, 1 << 24))])
