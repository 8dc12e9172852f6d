"""What the log says of connections that are not accepted; integration/test_connections.py has the connections."""

from __future__ import annotations

import contextlib
import logging

import pytest

from multitower.supervisor.routing.connections import ANNOUNCED_S, Connections

PAUSED = "no more connections are accepted until others are closed"
RESUMED = "connections are accepted again"


def test_clients_that_come_and_go_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "multitower.router")
    now = 100.0
    with contextlib.closing(Connections(10, clock=lambda: now)) as connections:
        for _ in range(5):
            connections.pause()
            connections.accept()
            assert connections.paused
            connections.tick()
            assert not connections.paused
        assert caplog.messages == [PAUSED, RESUMED]

        now += ANNOUNCED_S
        connections.pause()
        connections.accept()
        assert caplog.messages[2:] == [PAUSED]
        connections.tick()
        assert caplog.messages[2:] == [PAUSED, RESUMED]


def test_a_shortage_that_lasts_is_logged_although_one_before_was_short(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "multitower.router")
    now = 100.0
    with contextlib.closing(Connections(1, clock=lambda: now)) as connections:
        connections.pause()
        connections.accept()
        connections.tick()
        connections.set_limits(0, 1)
        assert connections.paused
        assert caplog.messages == [PAUSED, RESUMED]
        now += ANNOUNCED_S
        connections.tick()
        assert caplog.messages == [PAUSED, RESUMED, PAUSED]
