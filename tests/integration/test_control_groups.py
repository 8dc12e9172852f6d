"""With a control group that is delegated to the daemon: what a handler starts ends with its worker, wherever it is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_group import ControlGroup
from delegated_cgroup import control_group
from running import STEP_S, Running, outliving
from started_helpers import start_helper

WAYS = ("child", "group", "session", "bare group", "bare", "daemon", "bare daemon", "forked")
"""See `starting_handlers.Starter`."""

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
restart: {max_restarts: 1000, window: 1s, backoff: {first: 10ms, max: 100ms}}
models:
  - {name: m, handler: "starting_handlers:Starter"}
"""

WITH_STRANGERS = ("sh", "-c", 'sleep 1000 2>/dev/null & exec "$@"', "sh")
"""Starts another process, which does not hold the daemon's log open, and then becomes the daemon."""


@pytest.fixture
def group() -> Iterator[ControlGroup]:
    with control_group() as made:
        yield made


def workers(daemon: Running) -> list[int]:
    return [slot["pid"] for slot in daemon.status()["slots"]]


def test_everything_ends_with_a_daemon_that_is_killed(tmp_path: Path, group: ControlGroup) -> None:
    with Running(tmp_path, CONFIG, inside=group.enter) as daemon, daemon.wait_ready().client() as client:
        helpers = [start_helper(client, way)[0] for way in WAYS]
        everything = [*helpers, *daemon.remember()]
        daemon.signal(signal.SIGKILL)
        assert not outliving(everything, STEP_S)
        daemon.wait(lambda: not group.inner())


def test_each_helper_ends_with_its_own_worker_and_no_other(tmp_path: Path, group: ControlGroup) -> None:
    with Running(tmp_path, CONFIG, inside=group.enter) as daemon, daemon.wait_ready().client() as client:
        helpers = [start_helper(client, way) for way in WAYS * 2]
        first, second = workers(daemon)
        assert {worker for _, worker in helpers} == {first, second}
        os.kill(first, signal.SIGKILL)
        assert not outliving([helper for helper, worker in helpers if worker == first], STEP_S)
        daemon.wait(lambda: all(slot["state"] == "ready" for slot in daemon.status()["slots"]))
        others = [helper for helper, worker in helpers if worker == second]
        assert others == [helper for helper in others if helper.is_running()]
        assert daemon.end() == 0
        assert not outliving(others, 0)
        assert group.inner() == []


def test_helpers_are_told_from_processes_that_were_there_before(tmp_path: Path, group: ControlGroup) -> None:
    inside = (*group.enter, *WITH_STRANGERS)
    with Running(tmp_path, CONFIG, inside=inside) as daemon, daemon.wait_ready().client() as client:
        (stranger,) = daemon.children("sleep")
        helper, worker = start_helper(client, "bare daemon")
        os.kill(worker, signal.SIGKILL)
        assert not outliving([helper], STEP_S)
        assert daemon.end() == 0
        assert stranger.is_running()
        stranger.kill()


def test_restarts_leave_no_control_groups(tmp_path: Path, group: ControlGroup) -> None:
    with Running(tmp_path, CONFIG, inside=group.enter) as daemon:
        daemon.wait_ready()
        for _ in range(3):
            pid = workers(daemon)[0]
            os.kill(pid, signal.SIGKILL)
            daemon.wait(lambda pid=pid: pid not in workers(daemon))
            daemon.wait_ready()
        daemon.wait(lambda: len(group.inner()) == 3)
        assert group.inner()[0].startswith("multitower.")
        assert daemon.end() == 0
        assert group.inner() == []


def test_a_control_group_that_is_not_delegated_is_left_as_it_is(tmp_path: Path) -> None:
    with control_group(delegated=False) as group, Running(tmp_path, CONFIG, inside=group.enter) as daemon:
        daemon.wait_ready()
        assert group.inner() == []
        assert daemon.end() == 0
