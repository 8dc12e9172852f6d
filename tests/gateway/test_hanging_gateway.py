"""A gateway that hangs is killed and replaced; time in which the daemon's loop did not run does not count."""

from __future__ import annotations

import errno
import functools
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import Mock

import pytest
from gateway_scene import GatewayScene
from gateway_stand_in import write_program

from multitower.supervisor.gateway import supervision
from multitower.supervisor.gateway.run import SILENCE_S, START_S, GatewayState
from multitower.supervisor.gateway.supervision import STALL_S


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_gateway_that_reports_nothing_is_killed_and_replaced(stack: ExitStack, tmp_path: Path) -> None:
    scene = GatewayScene(stack, write_program(tmp_path / "gateway"))
    scene.wait(GatewayState.READY)
    former = scene.pid()
    scene.ask("silent")
    scene.stall(10 * SILENCE_S)
    assert scene.pid() == former, "the daemon's loop did not run, so nothing could be read"
    scene.let_pass(SILENCE_S / 2)
    assert [each.message for each in scene.history.events()] == []
    scene.let_pass(SILENCE_S)
    scene.wait(GatewayState.STARTING)
    (death,) = scene.history.events()
    assert (death.message, death.fields["pid"]) == ("gateway died", former)
    assert death.fields["cause"] == "killed because it hung: it has not reported for 60 s"
    scene.wait(GatewayState.READY)
    assert scene.ask("hello")["pid"] == scene.pid() != former


def test_sigusr1_does_not_end_a_gateway(stack: ExitStack, tmp_path: Path) -> None:
    scene = GatewayScene(stack, write_program(tmp_path / "gateway"))
    scene.wait(GatewayState.READY)
    pid = scene.pid()
    assert pid is not None
    os.kill(pid, signal.SIGUSR1)
    assert scene.ask("hello")["pid"] == pid
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_gateway_that_does_not_become_ready_is_killed(stack: ExitStack, tmp_path: Path) -> None:
    scene = GatewayScene(stack, write_program(tmp_path / "gateway", READY=False))
    scene.wait(GatewayState.STARTING)
    scene.let_pass(START_S + STALL_S)
    until = time.monotonic() + 60
    while not scene.history.events():
        assert time.monotonic() < until
        scene.reactor.wait(0.05)
    assert scene.history.events()[0].fields["cause"] == "killed because it did not accept connections within 30 s"


def test_reports_of_a_gateway_that_is_never_ready_give_it_no_more_time(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = GatewayScene(stack, write_program(tmp_path / "gateway", READY=False))
    monkeypatch.setattr(supervision, "monotonic", scene.now)
    scene.wait(GatewayState.STARTING)
    ended: list[str | None] = []
    scene.gateway.restart(scene.now(), ended.append)
    scene.stall(10 * START_S)
    for requests in range(1, 4):
        scene.ask("hello")
        scene.wait_until(functools.partial(reports, scene, requests))
        assert [each.message for each in scene.history.events()] == []
        scene.let_pass(START_S / 3)
    scene.wait_until(lambda: bool(ended))
    assert ended == ["killed because it did not accept connections within 30 s"]
    (death,) = scene.history.events()
    assert (death.message, death.fields["cause"]) == ("gateway died", ended[0])


def reports(scene: GatewayScene, requests: int) -> bool:
    """Whether the process has reported so many requests."""
    return bool(scene.gateway.report(0.0)["requests"] == requests)


def test_time_in_which_the_daemon_did_not_run_leaves_a_retired_gateway_its_time(
    stack: ExitStack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = GatewayScene(stack, write_program(tmp_path / "gateway", ENDS=False))
    scene.wait(GatewayState.READY)
    scene.change(threads=2)
    scene.tick()
    scene.wait(GatewayState.READY)
    scene.gateway.drain(scene.now())
    scene.tick()
    scene.stall(600.0)
    assert "killing the gateway" not in caplog.messages, "neither the one that was replaced nor its successor"
    scene.let_pass(10.0)
    assert caplog.messages.count("killing the gateway") == 2
    scene.wait(GatewayState.STOPPED)


def test_one_that_does_not_end_in_a_drain_is_killed_and_accepts_nobody(stack: ExitStack, tmp_path: Path) -> None:
    scene = GatewayScene(stack, write_program(tmp_path / "gateway", ENDS=False))
    scene.wait(GatewayState.READY)
    scene.gateway.drain(time.monotonic())
    assert not scene.gateway.ended
    host, port = scene.gateway.report(0.0)["http"][0].split(":")
    scene.let_pass(2.5)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    scene.let_pass(7.5)
    scene.wait(GatewayState.STOPPED)


def test_a_gateway_is_started_once_the_system_has_resources_again(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortage = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(supervision, "GatewayProcess", Mock(side_effect=shortage))
    scene = GatewayScene(stack, write_program(tmp_path / "gateway"))
    scene.let_pass(300.0)
    report = scene.gateway.report(0.0)
    assert (report["state"], report["restarts"]) == ("backoff", 0), "a shortage is not the gateway's fault"
    assert report["cause"] == f"{tmp_path}/gateway: Too many open files"
    assert [each.message for each in scene.history.events()] == ["gateway could not be started"]
    monkeypatch.undo()
    scene.let_pass(10.0)
    scene.wait(GatewayState.READY)
