"""Failed authentications: all are counted, only some are logged, and no line has a secret."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from multitower.supervisor.security.authentication_failures import (
    LOGGED_AT_ONCE,
    LOGGED_PER_S,
    MAX_SOURCE,
    Failure,
    Failures,
)


def fields(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [record.__dict__["fields"] for record in caplog.records]
    caplog.clear()
    return found


def test_every_failure_is_counted_and_few_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "multitower.security")
    failures = Failures(0.0)
    failures.add("http", Failure.WRONG_TOKEN, "10.0.0.1:1", 0.0, "a")
    assert fields(caplog) == [
        {"interface": "http", "from": "10.0.0.1:1", "reason": "wrong_token", "principal": "a"},
    ]
    for _ in range(1000):
        failures.add("mt1", Failure.UNKNOWN_KEY, "10.0.0.2:" + "9" * 1000, 0.0)
    lines = fields(caplog)
    assert len(lines) == LOGGED_AT_ONCE - 1
    assert all(len(line["from"]) <= MAX_SOURCE for line in lines)
    failures.add("mt1", Failure.UNKNOWN_KEY, "10.0.0.2:1", 1 / LOGGED_PER_S)
    (line,) = fields(caplog)
    assert line["not_logged"] == 1000 - LOGGED_AT_ONCE + 1
    assert failures.counts == {("http", Failure.WRONG_TOKEN): 1, ("mt1", Failure.UNKNOWN_KEY): 1001}
