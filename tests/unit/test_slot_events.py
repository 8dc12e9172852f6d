"""What the log and `status` say about a slot's restarts."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from multitower.supervisor.loop.history import EventHistory
from multitower.supervisor.workers.slot import Slot
from multitower.supervisor.workers.slot_events import describe_restart, note_failed


@pytest.mark.parametrize(
    ("delay_s", "text"),
    [
        (0.0, "restart at once"),
        (0.049, "restart at once"),
        (0.42, "restart in 0.4 s"),
        (3.0, "restart in 3 s"),
        (300.0, "restart in 5 min"),
    ],
)
def test_a_restart_without_a_delay_is_at_once(delay_s: float, text: str) -> None:
    assert describe_restart(delay_s) == text


def test_a_failed_slot_has_the_command_that_tries_again(caplog: pytest.LogCaptureFixture) -> None:
    history, slot = EventHistory(), cast(Slot, SimpleNamespace(number=3))
    with caplog.at_level(logging.ERROR):
        note_failed(history, slot, {"slot": 3}, "killed by SIGKILL (9)")
    fields: dict[str, Any] = getattr(caplog.records[0], "fields", {})
    assert (fields["cause"], fields["next"]) == ("killed by SIGKILL (9)", "`multitower restart 3` tries again")
    (past,) = history.latest()
    assert past.fields["next"] == fields["next"]
