"""A gateway is replaced by one process at a time, and one that has failed is started again by an operator's order."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from gateway_scene import GatewayScene
from gateway_stand_in import write_program
from running import look_at_each

from multitower.supervisor.gateway.run import GatewayState


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def held_port(stack: ExitStack) -> tuple[str, socket.socket]:
    """An address that nobody else gets, and a socket that has it too: SO_REUSEADDR allows that until it listens."""
    holder = stack.enter_context(socket.socket())
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{holder.getsockname()[1]}", holder


def processes(program: Path) -> set[int]:
    """The pids of the processes of the stand-in."""
    found = look_at_each(psutil.Process().children(), psutil.Process.cmdline)
    return {child.pid for child, command in found.items() if str(program) in command}


def test_a_second_replacement_waits_for_the_end_of_the_first_process(stack: ExitStack, tmp_path: Path) -> None:
    program = write_program(tmp_path / "gateway", ENDS=False)
    scene = GatewayScene(stack, program)
    scene.wait(GatewayState.READY)
    first = scene.pid()
    scene.change(threads=2)
    scene.tick()
    scene.wait(GatewayState.READY)
    second = scene.pid()
    assert second != first
    for threads in (3, 4, 5):
        scene.change(threads=threads)
        scene.tick()
        assert scene.pid() == second
        assert processes(program) == {first, second}
    scene.let_pass(10.0)  # the first one does not end in time
    scene.wait_until(lambda: scene.pid() not in (first, second))
    scene.wait(GatewayState.READY)
    assert processes(program) == {second, scene.pid()}
    scene.let_pass(10.0)
    scene.wait_until(lambda: processes(program) == {scene.pid()})
    assert scene.ask("hello")["settings"]["threads"] == 5


def test_a_socket_that_is_bound_again_is_served_at_once(stack: ExitStack, tmp_path: Path) -> None:
    program = write_program(tmp_path / "gateway", ENDS=False)
    scene = GatewayScene(stack, program)
    scene.wait(GatewayState.READY)
    scene.change(threads=2)
    scene.tick()
    scene.wait(GatewayState.READY)
    second = scene.pid()
    (tmp_path / "g").unlink()
    scene.tick()
    scene.wait(GatewayState.READY)
    assert scene.pid() != second
    assert scene.ask("hello")["pid"] == scene.pid()
    scene.wait_until(lambda: processes(program) == {second, scene.pid()})


@pytest.mark.parametrize("why", ["an order", "new settings", "a death"])
def test_a_path_that_cannot_be_bound_again_keeps_no_process_from_serving(
    stack: ExitStack, tmp_path: Path, why: str
) -> None:
    scene = GatewayScene(stack, write_program(tmp_path / "gateway"))
    scene.wait(GatewayState.READY)
    first, ended = scene.pid(), []
    assert first is not None
    (tmp_path / "g").unlink()
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(f"{tmp_path}/g")
        taken.listen()
        scene.tick()
        (cause,) = scene.gateway.missing.values()
        assert "its path was removed, and it cannot be bound again" in cause
        if why == "an order":
            scene.gateway.restart(scene.now(), ended.append)
        elif why == "new settings":
            scene.change(threads=2)
        else:
            os.kill(first, signal.SIGKILL)
        scene.wait_until(lambda: scene.pid() not in (None, first))
        second = scene.pid()
        scene.wait(GatewayState.READY)
        assert scene.ask_http("hello")["pid"] == second
        assert scene.gateway.missing, "it is still waited for"
        assert ended == ([None] if why == "an order" else [])
    scene.wait_until(lambda: scene.pid() not in (None, second))
    scene.wait(GatewayState.READY)
    assert (scene.ask("hello")["pid"], dict(scene.gateway.missing)) == (scene.pid(), {})


def test_only_an_order_starts_a_gateway_that_has_failed(stack: ExitStack, tmp_path: Path) -> None:
    program = write_program(tmp_path / "gateway", EXIT_CODE=7)
    scene = GatewayScene(stack, program)
    scene.wait(GatewayState.FAILED)
    write_program(program)
    scene.change(threads=2)  # as new settings of a model are, too
    scene.let_pass(60.0)
    assert scene.gateway.state is GatewayState.FAILED
    scene.gateway.resume(scene.now())
    scene.wait(GatewayState.READY)


def test_clients_are_refused_while_the_gateway_has_failed(stack: ExitStack, tmp_path: Path) -> None:
    program = write_program(tmp_path / "gateway", EXIT_CODE=7)
    scene = GatewayScene(stack, program, http=held_port(stack)[0])
    waiting = stack.enter_context(scene.connect_http())
    scene.wait(GatewayState.FAILED)
    with pytest.raises(ConnectionResetError):
        waiting.recv(1)
    for ask in (scene.ask, scene.ask_http):
        with pytest.raises(ConnectionRefusedError):
            ask("hello")
    (tmp_path / "g").unlink()
    scene.tick()
    assert not (tmp_path / "g").exists(), "nobody would accept who connects there"
    write_program(program)
    ended: list[str | None] = []
    scene.gateway.restart(scene.now(), ended.append)
    scene.wait(GatewayState.READY)
    assert ended == [None]
    assert scene.ask("hello")["pid"] == scene.ask_http("hello")["pid"] == scene.pid()


@pytest.mark.parametrize("taken", ["port", "path"])
def test_an_address_that_was_taken_while_the_gateway_had_failed_is_waited_for(
    stack: ExitStack, tmp_path: Path, taken: str
) -> None:
    program = write_program(tmp_path / "gateway")
    address, other = held_port(stack)
    scene = GatewayScene(stack, program, http=address)
    scene.wait(GatewayState.READY)
    write_program(program, EXIT_CODE=7)
    first = scene.pid()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    scene.wait(GatewayState.FAILED)
    write_program(program)
    if taken == "path":
        (tmp_path / "g").unlink()
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        other.bind(f"{tmp_path}/g")
    other.listen()
    ended: list[str | None] = []
    scene.gateway.restart(scene.now(), ended.append)
    scene.wait(GatewayState.WAITING)
    (cause,) = ended
    assert cause is not None
    assert cause == scene.gateway.cause
    assert "is in use by another process" in cause
    other.close()
    scene.wait(GatewayState.READY)
    assert scene.ask("hello")["pid"] == scene.ask_http("hello")["pid"] == scene.pid()
    assert not scene.gateway.missing


def test_a_restart_is_answered_once_the_new_process_is_ready(stack: ExitStack, tmp_path: Path) -> None:
    scene = GatewayScene(stack, write_program(tmp_path / "gateway"))
    scene.wait(GatewayState.READY)
    first, ended = scene.pid(), []
    scene.gateway.restart(scene.now(), ended.append)
    scene.wait_until(lambda: bool(ended))
    assert ended == [None]
    assert scene.gateway.state is GatewayState.READY
    assert scene.pid() not in (None, first)
    assert scene.gateway.report(0.0)["restarts"] == 0


def test_a_restart_that_waits_takes_place_only_if_it_is_still_wanted(stack: ExitStack, tmp_path: Path) -> None:
    scene = GatewayScene(stack, write_program(tmp_path / "gateway", ENDS=False))
    scene.wait(GatewayState.READY)
    first, ended = scene.pid(), []
    assert first is not None
    scene.gateway.restart(scene.now(), ended.append)
    scene.wait_until(lambda: bool(ended))
    second, dropped, asked = scene.pid(), [], []
    scene.gateway.restart(scene.now(), dropped.append, lambda: bool(asked.append(None)))
    scene.tick()
    assert not asked, "the first process has not ended, so it is not its turn"
    os.kill(first, signal.SIGKILL)
    scene.wait_until(lambda: bool(dropped))
    assert (dropped, asked, scene.pid()) == (["it is not wanted any more"], [None], second)
    scene.gateway.restart(scene.now(), ended.append, lambda: True)
    scene.wait_until(lambda: len(ended) == 2)
    assert (ended, scene.pid() != second) == ([None, None], True)


def test_a_restart_that_fails_is_answered_with_its_cause(stack: ExitStack, tmp_path: Path) -> None:
    program = write_program(tmp_path / "gateway", EXIT_CODE=7)
    scene = GatewayScene(stack, program)
    scene.wait(GatewayState.FAILED)
    ended: list[str | None] = []
    scene.gateway.restart(scene.now(), ended.append)
    scene.wait_until(lambda: bool(ended))
    assert ended == ["exited with code 7; restart.max_restarts is 2 within 60 s"]
    scene.gateway.drain(scene.now())
    scene.gateway.restart(scene.now(), ended.append)
    assert ended[1:] == ["the daemon is stopping"]
