"""The service of a worker of several towers: a thread for each tower serves it as if it were a worker.

The process has one connection to the supervisor. A thread reads it, and passes each batch to its tower; each tower
sends its answers itself. TensorFlow lets other threads run while it computes. Handlers are on the first tower, in the
main thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from multitower import worker_wire
from multitower.spec import UNREADABLE_MESSAGE

from .inbox import Channel
from .service import Models, UnreadableMessageError, log_unreadable, serve


class TowerChannel:
    """What a tower receives from and sends to; `put` is for the thread that reads the worker's socket.

    Args:
        socket: sends the answers.
    """

    def __init__(self, socket: Channel) -> None:
        self._socket = socket
        self._messages: deque[list[Any]] = deque()
        # Counts the messages.
        self._waiting = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self._poll = select.poll()
        self._poll.register(self._waiting, select.POLLIN)
        self._wait_ms: int | None = None

    def set_wait(self, seconds: float) -> None:
        """Limits how long `receive` waits; 0 for no limit."""
        self._wait_ms = int(seconds * 1000) or None

    def fileno(self) -> int:
        """A descriptor that is readable while a message waits."""
        return self._waiting

    def put(self, message: list[Any]) -> None:
        """Adds a message."""
        self._messages.append(message)
        os.eventfd_write(self._waiting, 1)

    def receive(self, *, wait: bool = False) -> list[Any] | None:
        """The next message; None when none has arrived, or none within the limit."""
        try:
            os.eventfd_read(self._waiting)
        except BlockingIOError:
            if not wait or not self._poll.poll(self._wait_ms):
                return None
            os.eventfd_read(self._waiting)
        return self._messages.popleft()

    def send(self, message: Sequence[Any]) -> None:
        """Sends an answer."""
        self._socket.send(message)

    def close(self) -> None:
        """Closes its descriptor."""
        os.close(self._waiting)


def serve_towers(socket: Channel, towers: Sequence[Models], mark_begun: Sequence[Callable[[int], None]]) -> None:
    """Answers batches, one at a time on each tower, until STOP.

    Args:
        socket: the worker's end of its connection to the supervisor.
        towers: the models of each tower.
        mark_begun: for each tower: stores the id of each batch before it runs.
    """
    channels = [TowerChannel(socket) for _ in towers]
    threads = [_start_thread("router", _pass_messages, socket, channels)]
    for number in range(1, len(towers)):
        arguments = channels[number], towers[number], mark_begun[number]
        threads.append(_start_thread(f"tower-{number}", serve, *arguments))
    _run_or_exit(serve, channels[0], towers[0], mark_begun[0])
    for thread in threads:
        thread.join()
    for channel in channels:
        channel.close()


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


def _pass_messages(socket: Channel, towers: Sequence[TowerChannel]) -> None:
    """Passes messages of the supervisor to the towers, until STOP."""
    socket.set_wait(0)
    while True:
        message = socket.receive(wait=True)
        if message is None:
            continue  # a peer that was none has gone
        if message[0] == worker_wire.STOP:
            for tower in towers:
                tower.put(message)
            return
        _addressed_tower(message, towers).put(message[1:])


def _addressed_tower(message: list[Any], towers: Sequence[TowerChannel]) -> TowerChannel:
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
