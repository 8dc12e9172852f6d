"""Limits of connections after a reload."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from multitower.supervisor.operations import connection_limits

FEW = 400


def settings(processes: int) -> Any:
    config = SimpleNamespace(max_connections="auto", spares=0, listen=["tcp://127.0.0.1:*"], gateway=None)
    return SimpleNamespace(config=config, placements=(None,) * processes)


def test_few_descriptors_are_logged_once_and_again_when_the_plan_changes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection_limits, "raise_limit", lambda *_: FEW)
    active: Any = SimpleNamespace(current=settings(1))
    connections = SimpleNamespace(set_limits=lambda *_: None, tick=lambda: None)
    endpoints: Any = SimpleNamespace(connections=connections, control_connections=connections)
    router: Any = SimpleNamespace(set_max_regions=lambda _: None)
    plan = connection_limits.apply_descriptor_limit(active.current)
    limits = connection_limits.ConnectionLimits(active, endpoints, router, plan)
    for _ in range(3):
        active.current = settings(1)  # as after a reload, or when a model has come
        limits.tick(0.0)
    assert caplog.text.count("few file descriptors") == 1
    active.current = settings(2)
    limits.tick(0.0)
    assert caplog.text.count("few file descriptors") == 2
