"""The service of a worker of several towers: a thread for each tower serves it as if it were a worker.

The process has one connection to the supervisor. A thread passes each batch to its tower, and each answer to the
supervisor; TensorFlow lets other threads run while it computes. Handlers are on the first tower, in the main thread.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import zmq

from multitower import frames, worker_wire
from multitower.spec import UNREADABLE_MESSAGE

from .service import Models, UnreadableMessageError, log_unreadable, serve

_ENDED = b""
"""The last message of a tower's thread."""


def serve_towers(
    context: zmq.Context[zmq.Socket[bytes]],
    socket: zmq.Socket[bytes],
    towers: Sequence[Models],
    mark_begun: Sequence[Callable[[int], None]],
) -> None:
    """Answers batches, one at a time on each tower, until STOP.

    Args:
        context: makes the sockets between the threads.
        socket: the worker's end of its connection to the supervisor.
        towers: the models of each tower.
        mark_begun: for each tower: stores the id of each batch before it runs.
    """
    near, far = zip(*(_connected_pair(context, number) for number in range(len(towers))), strict=True)
    router = _start_thread("router", _pass_messages, socket, near)
    for number in range(1, len(towers)):
        _start_thread(f"tower-{number}", _serve_tower, far[number], towers[number], mark_begun[number])
    _run_or_exit(_serve_tower, far[0], towers[0], mark_begun[0])
    router.join()


def _connected_pair(
    context: zmq.Context[zmq.Socket[bytes]], number: int
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Both ends of a connection between two threads."""
    near, far = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    for end in (near, far):
        # No message may be dropped or wait: the supervisor bounds what is on its way.
        for option in (zmq.SNDHWM, zmq.RCVHWM):
            end.set(option, 0)
    near.bind(f"inproc://tower-{number}")
    far.connect(f"inproc://tower-{number}")
    return near, far


def _start_thread(name: str, target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=_run_or_exit, args=(target, *arguments), name=name, daemon=True)
    thread.start()
    return thread


def _run_or_exit(target: Callable[..., None], *arguments: object) -> None:
    """Runs a thread's function. What it raises ends the process, with all its threads."""
    try:
        target(*arguments)
    except UnreadableMessageError as error:
        log_unreadable(error)
        _exit(UNREADABLE_MESSAGE)
    except BaseException:  # noqa: BLE001  it goes to the log, and the exit code tells
        traceback.print_exc()
        _exit(1)


def _serve_tower(socket: zmq.Socket[bytes], models: Models, mark_begun: Callable[[int], None]) -> None:
    with socket:
        serve(socket, models, mark_begun)
        frames.send(socket, [_ENDED])


def _pass_messages(socket: zmq.Socket[bytes], towers: Sequence[zmq.Socket[bytes]]) -> None:
    """Passes messages between the supervisor and the towers, until all of these have ended."""
    poller = zmq.Poller()
    for each in (socket, *towers):
        poller.register(each, zmq.POLLIN)
    left = len(towers)
    while left:
        ready = dict(poller.poll())
        for tower in towers:
            # One message of each in turn: none waits until another has no more.
            if tower in ready and (message := frames.receive(tower)) is not None:
                if message[0] == _ENDED:
                    left -= 1
                else:
                    frames.send(socket, message, wait=True)
        if socket in ready and (message := frames.receive(socket)) is not None:
            if message[0] == worker_wire.STOP:
                for tower in towers:
                    frames.send(tower, message)
            else:
                frames.send(_addressed_tower(message, towers), message[1:])
    for tower in towers:
        tower.close(linger=0)


def _addressed_tower(message: list[bytes], towers: Sequence[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """The tower that a batch is for.

    Raises:
        UnreadableMessageError: the message names no tower, or one that does not exist, or holds nothing else.
    """
    try:
        number = worker_wire.read_tower_head(message[0])
    except struct.error as error:
        raise UnreadableMessageError(f"the number of a tower, of {len(message[0])} bytes: {error}") from error
    if number >= len(towers) or len(message) == 1:
        raise UnreadableMessageError(f"a message of {len(message)} frames for tower {number} of {len(towers)}")
    return towers[number]


def _exit(code: int) -> NoReturn:
    # The other threads may be anywhere, and cannot be waited for.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a model may have closed or replaced it
            stream.flush()
    os._exit(code)
