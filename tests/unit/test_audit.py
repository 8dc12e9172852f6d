"""Audit: each operation that changes something leaves a line and an event: who, from where, what, and its outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from multitower.errors import Reason, make
from multitower.supervisor.loop.history import EventHistory
from multitower.supervisor.security.audit import MAX_ASKERS, REFUSED_AT_ONCE, REFUSED_PER_S, STRANGERS_AT_ONCE, Audit


class Scene:
    def __init__(self) -> None:
        self.now = 0.0
        self.history = EventHistory()
        self.audit = Audit(self.history, lambda: self.now)

    def events(self) -> list[dict[str, Any]]:
        found = [past.to_json(0.0) for past in self.history.events()]
        return [{key: value for key, value in each.items() if key not in ("seq", "time", "age_s")} for each in found]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_an_outcome_is_a_line_of_the_log_and_an_event(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "multitower.audit")
    header = {"model_name": "digits", "token": "secret"}
    scene.audit.note("load", "alice", "10.0.0.1:5", header, {"model_name": "digits"})
    expected = {"operation": "load", "principal": "alice", "from": "10.0.0.1:5", "outcome": "ok", "model": "digits"}
    assert scene.events() == [
        {"kind": "audit", "level": "info", "message": "audit: load by alice: ok", **expected},
    ]
    (record,) = caplog.records
    assert record.getMessage() == "audit: load by alice: ok"
    assert record.__dict__["fields"] == expected


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ({"slot": 3}, {"slot": 3}),
        ({"slot": 10**4000}, {}),
        ({"slot": -1}, {}),
        ({"gateway": True}, {}),
        ({"model_name": "a\ud800", "model_version": "\udfff"}, {"model": "a?", "version": "?"}),
        ({"model_name": "m" * 1000, "model_version": "2"}, {"model": "m" * 128, "version": "2"}),
        ({"model_name": 7, "model_version": None, "slot": "x"}, {}),
        ({}, {}),
    ],
)
def test_what_an_operation_concerns(scene: Scene, header: dict[str, Any], what: dict[str, Any]) -> None:
    scene.audit.note("restart", "local:0", "", header, None)
    (event,) = scene.events()
    known = ("kind", "level", "message", "operation", "principal", "outcome")
    assert {key: value for key, value in event.items() if key not in known} == what


def test_a_reload_is_written_with_the_principals_that_it_changed(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "multitower.audit")
    answer = {"principals": {"number": 1, "added": ["a", "b"], "removed": ["c"], "changed": []}}
    scene.audit.note("reload", "alice", "", {}, answer)
    scene.audit.note("reload", "signal", "SIGHUP", {}, answer)
    for record in caplog.records:
        fields = record.__dict__["fields"]
        assert (fields["outcome"], fields["principals_added"], fields["principals_removed"]) == ("ok", "a,b", "c")
        assert "principals_changed" not in fields
    assert len(caplog.records) == 2


def test_a_failure_has_its_reason_and_its_cause(scene: Scene) -> None:
    error = make(Reason.ORDER_FAILED, "'digits' could not be loaded: no weights")
    scene.audit.note("load", "alice", "", {"model_name": "digits"}, error)
    (event,) = scene.events()
    assert (event["level"], event["outcome"], event["cause"]) == ("warning", "order_failed", error.message)
    assert event["message"] == "audit: load by alice: order_failed"


def test_what_is_not_allowed_is_written_at_a_bounded_rate_and_what_is_done_always(scene: Scene) -> None:
    for reason in (Reason.FORBIDDEN, Reason.UNAUTHENTICATED) * 20:
        scene.audit.note("unload", "mallory", "", {}, make(reason, "no"))
    assert len(scene.events()) == REFUSED_AT_ONCE
    for _ in range(15):
        scene.audit.note("unload", "alice", "", {}, None)
    assert len(scene.events()) == REFUSED_AT_ONCE + 15
    scene.now += 1 / REFUSED_PER_S
    for _ in range(2):
        scene.audit.note("unload", "mallory", "", {}, make(Reason.FORBIDDEN, "no"))
    assert len(scene.events()) == REFUSED_AT_ONCE + 16


@pytest.fixture
def refused(scene: Scene, caplog: pytest.LogCaptureFixture) -> Callable[..., list[Any]]:
    """Has orders of somebody refused; returns `not_logged` of each line that was written."""
    caplog.set_level(logging.INFO, "multitower.audit")

    def refuse(who: str, origin: str, count: int = 1) -> list[Any]:
        caplog.clear()
        for _ in range(count):
            scene.audit.note("reload", who, origin, {}, make(Reason.FORBIDDEN, "no"))
        return [record.__dict__["fields"].get("not_logged") for record in caplog.records]

    return refuse


def test_nobody_hides_the_refused_orders_of_another(scene: Scene, refused: Callable[..., list[Any]]) -> None:
    assert len(refused("mallory", "", 1000)) == REFUSED_AT_ONCE
    assert len(refused("anonymous", "key a", 1000)) == REFUSED_AT_ONCE
    assert refused("alice", "") == [None]
    assert refused("anonymous", "key b") == [None]
    scene.now += 1 / REFUSED_PER_S
    assert refused("alice", "") == [None]
    assert refused("mallory", "") == [990], "the count is that of mallory alone"


def test_the_lines_of_all_strangers_together_are_bounded(scene: Scene, refused: Callable[..., list[Any]]) -> None:
    written = sum(len(refused("anonymous", f"key {number}")) for number in range(2 * MAX_ASKERS))
    assert written == STRANGERS_AT_ONCE
    assert refused("alice", "") == [], "the table is full, so she counts as a stranger"
    scene.now += 1 / REFUSED_PER_S
    assert refused("alice", "") == [None], "those who are quiet make room"
