"""Each reason has a code, each code a class, and errors are the same after the wire and after pickling."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - errors cross process pools
import re
from pathlib import Path

import pytest

import multitower
from multitower import Code, DeadlineExceeded, ModelError, MultitowerError, Poisoned, Reason, errors

LOCAL = {Reason.NOT_LISTENING, Reason.CONNECTION_LOST, Reason.CLOSED}


def test_every_reason_has_a_code_and_every_code_a_reason() -> None:
    assert set(errors.CODE_OF) == set(Reason)
    assert set(errors.CODE_OF.values()) == set(Code)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_an_error_class(reason: Reason) -> None:
    error = errors.make(reason, "why", field="x", nothing=None)
    assert type(error) is not MultitowerError
    assert type(error).__name__ in multitower.__all__
    assert (error.reason, error.code, error.message) == (reason, errors.CODE_OF[reason], "why")
    assert error.details == {"field": "x"}
    assert str(error) == f"{error.code}/{reason}: why"


@pytest.mark.parametrize("reason", Reason)
def test_errors_are_the_same_after_the_wire_and_after_pickling(reason: Reason) -> None:
    error = errors.make(reason, "why", queue_depth=7)
    for again in (errors.from_wire(error.to_wire()), pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert vars(again) == vars(error)
        assert str(again) == str(error)


def test_details_are_left_out_where_there_are_none() -> None:
    error = errors.make(Reason.MODEL_ERROR, "why")
    assert error.to_wire() == {"error": {"code": "INTERNAL", "reason": "model_error", "message": "why"}}


def test_poisoned_is_distinct_from_other_internal_errors() -> None:
    assert type(errors.make(Reason.POISONED, "why")) is Poisoned
    assert type(errors.make(Reason.MODEL_ERROR, "why")) is ModelError


def test_deadline_exceeded_is_a_timeout_error() -> None:
    assert issubclass(DeadlineExceeded, TimeoutError)


@pytest.mark.parametrize(
    ("body", "kind", "code", "reason"),
    [
        ({"code": "UNAVAILABLE", "reason": "moved"}, errors.Unavailable, "UNAVAILABLE", "moved"),
        ({"code": "DATA_LOSS", "reason": "mice"}, MultitowerError, "DATA_LOSS", "mice"),
        ({"code": "UNAVAILABLE", "reason": "poisoned"}, Poisoned, "UNAVAILABLE", "poisoned"),
        ({}, ModelError, "INTERNAL", "model_error"),
        (None, ModelError, "INTERNAL", "model_error"),
        ([], ModelError, "INTERNAL", "model_error"),
        ({"code": 7, "reason": None, "message": ["x"], "details": "y"}, MultitowerError, "7", "None"),
    ],
)
def test_unknown_codes_and_reasons_become_the_nearest_class(
    body: object, kind: type[MultitowerError], code: str, reason: str
) -> None:
    error = errors.from_wire({"error": body})
    assert type(error) is kind
    assert (error.code, error.reason) == (code, reason)
    assert isinstance(error.message, str)
    assert isinstance(error.details, dict)


def test_the_protocol_lists_every_reason_that_is_sent() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| `([A-Z_]+)` \|", page, re.MULTILINE))
    assert rows == {str(reason): str(errors.CODE_OF[reason]) for reason in Reason if reason not in LOCAL}


def test_the_page_of_errors_lists_every_reason_with_its_class() -> None:
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    # The gateway's own errors have a gRPC code there, in capitals, instead of a class.
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| `([A-Z]\w*[a-z]\w*)` \|", page, re.MULTILINE))
    assert rows == {str(reason): type(errors.make(reason, "")).__name__ for reason in Reason}
