"""A ready worker of several towers: each has a thread of its own, which serves it as if it were a worker.

The process has one socket all the same. A thread hands each batch to the tower that it is for, and each answer to the
supervisor; TensorFlow lets other threads run while it computes. Handlers are on the first tower, in the main thread.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import zmq

from multitower import frames, worker_wire

from .service import Models, serve

_ENDED = b""
"""A tower's last message."""


def serve_towers(
    context: zmq.Context[zmq.Socket[bytes]],
    socket: zmq.Socket[bytes],
    towers: Sequence[Models],
    begin: Sequence[Callable[[int], None]],
) -> None:
    """Answers batches, one at a time on each tower, until STOP.

    Args:
        context: for the sockets between the threads.
        socket: the worker's end of its channel.
        towers: the models of each that serve.
        begin: for each: notes the id of a batch before it is executed.
    """
    near, far = zip(*(_channel(context, number) for number in range(len(towers))), strict=True)
    post = _thread("post", _hand_over, socket, near)
    for number in range(1, len(towers)):
        _thread(f"tower-{number}", _serve, far[number], towers[number], begin[number])
    _whole(_serve, far[0], towers[0], begin[0])
    post.join()


def _channel(context: zmq.Context[zmq.Socket[bytes]], number: int) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Both ends of a channel between two threads."""
    near, far = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    for end in (near, far):
        # Nothing is to be dropped, nor to wait: the supervisor keeps count of what is on its way.
        for option in (zmq.SNDHWM, zmq.RCVHWM):
            end.set(option, 0)
    near.bind(f"inproc://tower-{number}")
    far.connect(f"inproc://tower-{number}")
    return near, far


def _thread(name: str, target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=_whole, args=(target, *arguments), name=name, daemon=True)
    thread.start()
    return thread


def _whole(target: Callable[..., None], *arguments: object) -> None:
    """What would end a worker of one tower ends this process, with all its threads."""
    try:
        target(*arguments)
    except SystemExit as end:
        _end(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException:  # noqa: BLE001  it goes to the log, and the exit code tells
        traceback.print_exc()
        _end(1)


def _serve(socket: zmq.Socket[bytes], models: Models, begin: Callable[[int], None]) -> None:
    with socket:
        serve(socket, models, begin)
        frames.send(socket, [_ENDED])


def _hand_over(socket: zmq.Socket[bytes], towers: Sequence[zmq.Socket[bytes]]) -> None:
    """Between the supervisor and the towers, until all of these have ended."""
    poller = zmq.Poller()
    for each in (socket, *towers):
        poller.register(each, zmq.POLLIN)
    left = len(towers)
    while left:
        ready = dict(poller.poll())
        for tower in towers:
            # One message of each in turn: none has to wait until another has nothing more to say.
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
                frames.send(towers[worker_wire.read_tower_head(message[0])], message[1:])
    for tower in towers:
        tower.close(linger=0)


def _end(code: int) -> NoReturn:
    # The other threads may be anywhere, and could not be waited for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
