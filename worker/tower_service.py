"""A ready worker of several towers: each has a thread of its own, which serves it as if it were a worker.

The process has one socket all the same. The main thread hands each batch to the tower that it is for, and each answer
to the supervisor; TensorFlow lets other threads run while it computes.
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
from multitower.worker.service import Models, serve

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
        towers: the models of each that serve, by name.
        begin: for each: notes the id of a batch before it is executed.
    """
    serving = [
        _Tower(context, number, models, note) for number, (models, note) in enumerate(zip(towers, begin, strict=True))
    ]
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    for tower in serving:
        poller.register(tower.socket, zmq.POLLIN)
    try:
        left = len(serving)
        while left:
            ready = dict(poller.poll())
            for tower in serving:
                # One message of each in turn: none has to wait until another has nothing more to say.
                if tower.socket in ready and (message := frames.receive(tower.socket)) is not None:
                    if message[0] != _ENDED:
                        frames.send(socket, message, wait=True)
                        continue
                    left -= 1
            if socket in ready and (message := frames.receive(socket)) is not None:
                if message[0] == worker_wire.STOP:
                    for tower in serving:
                        frames.send(tower.socket, message)
                else:
                    tower = serving[worker_wire.read_tower_head(message[0])]
                    frames.send(tower.socket, message[1:])
    finally:
        for tower in serving:
            tower.socket.close(linger=0)


class _Tower:
    """A thread that serves one tower. What would end a worker of one tower ends the process from there.

    Attributes:
        socket: the main thread's end of the channel to it.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        number: int,
        models: Models,
        begin: Callable[[int], None],
    ) -> None:
        self.socket = _pair(context)
        self.socket.bind(f"inproc://tower-{number}")
        inner = _pair(context)
        inner.connect(f"inproc://tower-{number}")
        # The process may end while it computes: a thread that is no daemon would be waited for.
        threading.Thread(target=self._run, args=(inner, models, begin), name=f"tower-{number}", daemon=True).start()

    def _run(self, socket: zmq.Socket[bytes], models: Models, begin: Callable[[int], None]) -> None:
        with socket:
            try:
                serve(socket, models, begin)
            except SystemExit as end:
                _end(end.code if isinstance(end.code, int) else int(end.code is not None))
            except BaseException:  # noqa: BLE001  it goes to the log, and the exit code tells
                traceback.print_exc()
                _end(1)
            frames.send(socket, [_ENDED])


def _end(code: int) -> NoReturn:
    # The other threads may be anywhere, and could not be waited for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _pair(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    # Nothing is to be dropped, nor to wait: the supervisor keeps count of what is on its way.
    for option in (zmq.SNDHWM, zmq.RCVHWM):
        socket.set(option, 0)
    return socket
