"""What the log and `status` say about a slot's restarts."""

from __future__ import annotations

import pytest

from multitower.supervisor.workers.slot_events import describe_restart


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
