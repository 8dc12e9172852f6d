"""A front socket: what clients connect to. It reads requests, writes replies, and never waits for anybody."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from multitower import frames, tensors, wire
from multitower.errors import MultitowerError, Reason, make

from ..loop.reactor import unwatched
from ..loop.runtime_dir import FileLock, HeldError

log = logging.getLogger("multitower.router")

IPC = "ipc://"
SOCKET_MODE = 0o660
MAX_HOPS = 16
"""Address frames before the delimiter: the client's own, and one for each intermediary."""

RECEIVE_HWM = 64
SEND_HWM = 1000
"""Replies that one client may leave unread; libzmq counts messages, not their bytes."""

MAX_UNREAD_BYTES = 512 << 20
"""Bytes of large frames that one client may leave unread, beside `SEND_HWM` replies of small ones."""


def internal_error() -> MultitowerError:
    """What a request gets that met a defect of multitower; the caller logs the traceback."""
    return make(Reason.INTERNAL_ERROR, "a defect of the daemon, whose log has the traceback")


class Incoming(NamedTuple):
    """A message of a client: its address frames, and the frames behind the delimiter.

    `body` is None when there is no delimiter within `MAX_HOPS` frames: not a request-reply envelope.
    """

    address: tuple[bytes, ...]
    body: list[Any] | None


class UnreadBytes:
    """The large frames of replies that libzmq still holds for each client: those that it has not written yet."""

    def __init__(self) -> None:
        self._held: dict[bytes, deque[tuple[zmq.MessageTracker, int]]] = {}

    def of(self, client: bytes) -> int:
        """Bytes held for a client."""
        held = self._held.get(client)
        if held is None:
            return 0
        while held and held[0][0].done:
            held.popleft()
        if not held:
            del self._held[client]
        return sum(size for _, size in held)

    def track(self, client: bytes, frame: Any) -> Any:
        """The frame as it is to be sent, counted as held until libzmq lets it go; small ones are as they were."""
        if len(frame) < tensors.BULKY_BYTES:
            return frame
        tracked = zmq.Frame(frame if type(frame) is bytes else memoryview(frame), track=True, copy=False)
        if len(self._held) >= MAX_CLIENTS:
            for other in list(self._held):
                self.of(other)  # forgets those that have read all
        self._held.setdefault(client, deque()).append((tracked.tracker, len(frame)))
        return tracked


MAX_CLIENTS = 1024
"""Clients with unread frames that are kept apart before those who have read theirs are looked for."""


class FrontSocket:
    """One bound ROUTER socket.

    Args:
        context: the router's ZeroMQ context.
        endpoint: `ipc://PATH` or `tcp://HOST:PORT`; the port may be `*`.
        max_message_size: bytes; libzmq closes the connection of who sends a single frame over twice that.

    Attributes:
        endpoint: as bound, with the real port.
        dropped: replies that their client did not read, or that left before them.
        recheck: called after each reply; see `reactor.Reactor.add_socket`.

    Raises:
        HeldError: something else listens there.
        OSError: it cannot be bound.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, max_message_size: int) -> None:
        self.dropped = 0
        self.recheck: Callable[[], None] = unwatched
        self._unread = UnreadBytes()
        self._path = Path(endpoint.removeprefix(IPC)) if endpoint.startswith(IPC) else None
        if self._path is not None and self._path.exists() and not self._path.is_socket():
            raise FileExistsError(f"cannot listen on {endpoint}: {self._path} is a file that is no socket")
        self._lock = self._lock_path(endpoint)
        self.socket = context.socket(zmq.ROUTER)
        options = {
            zmq.LINGER: 0,
            zmq.ROUTER_MANDATORY: 1,
            zmq.RCVHWM: RECEIVE_HWM,
            zmq.SNDHWM: SEND_HWM,
            zmq.MAXMSGSIZE: 2 * max_message_size,
            zmq.IPV6: int("[" in endpoint),
        }
        for option, value in options.items():
            self.socket.set(option, value)
        # The path must not be open to others even for a moment, hence the umask rather than a chmod.
        umask = os.umask(0o777 & ~SOCKET_MODE)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            if error.errno == zmq.EADDRINUSE:
                raise HeldError(f"{endpoint} is in use by another process") from None
            raise OSError(f"cannot listen on {endpoint}: {error.strerror}") from None
        finally:
            os.umask(umask)
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _lock_path(self, endpoint: str) -> FileLock | None:
        if self._path is None:
            return None
        try:
            return FileLock(self._path.with_name(self._path.name + ".lock"))
        except OSError as error:
            folder = self._path.parent
            what = f"the folder {folder} does not exist" if not folder.exists() else f"{folder}: {error.strerror}"
            raise OSError(f"cannot listen on {endpoint}: {what}") from None

    @property
    def local(self) -> bool:
        """Its clients run on this machine: they may pass tensors through shared memory."""
        return self._path is not None

    @property
    def readable(self) -> bool:
        """A message has come."""
        return frames.readable(self.socket)

    def receive(self) -> Incoming | None:
        """The next message, or None when none has come."""
        # A frame more than any valid message has, so that one with too many is seen as such.
        message = frames.receive(self.socket, MAX_HOPS + 4 + wire.MAX_INPUTS + 1, routed=True)
        if message is None:
            return None
        if not message[1]:  # no intermediary: nearly always
            return Incoming((message[0],), message[2:])
        for index in range(2, min(len(message), MAX_HOPS + 1)):
            if len(message[index]) == 0:
                return Incoming(tuple(message[:index]), message[index + 1 :])
        return Incoming((message[0],), None)

    def answer(self, address: Sequence[bytes], id: bytes, answer: Mapping[str, Any] | MultitowerError) -> None:
        """Sends a reply without tensors.

        It never raises: a reply that cannot be built is logged with its traceback, and replaced by an error.

        Args:
            address: of the request.
            id: of the request.
            answer: the reply's header, or the error that the request gets.
        """
        try:
            self._answer(address, id, answer)
        except Exception:
            log.exception("reply cannot be sent", extra={"fields": {"endpoint": self.endpoint}})
            try:
                self._answer(address, id, internal_error())
            except Exception:
                self.dropped += 1
                log.exception("error reply cannot be sent", extra={"fields": {"endpoint": self.endpoint}})

    def _answer(self, address: Sequence[bytes], id: bytes, answer: Mapping[str, Any] | MultitowerError) -> None:
        if isinstance(answer, MultitowerError):
            self.reply(address, wire.ERROR, id, (wire.dump_json(answer.to_wire()),))
        else:
            self.reply(address, wire.OK, id, (wire.dump_json(answer),))

    def reply(self, address: Sequence[bytes], kind: bytes, id: bytes, body: Sequence[Any]) -> None:
        """Sends a reply. It is dropped, and counted, if the client has left or does not read.

        Raises:
            TypeError: a frame of the body has no bytes; nothing was sent.
        """
        bulk = sum([size for size in map(len, body) if size >= tensors.BULKY_BYTES])
        if bulk:
            if self._unread.of(address[0]) + bulk > MAX_UNREAD_BYTES:
                self.dropped += 1
                return
            body = [self._unread.track(address[0], frame) for frame in body]
        try:
            frames.send(self.socket, (*address, wire.DELIMITER, kind, id, *body))
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.dropped += 1
        self.recheck()

    def close(self, linger_ms: int = 0) -> None:
        """Stops listening and removes the socket's path; replies not yet sent get `linger_ms` milliseconds."""
        self.socket.close(linger_ms)
        if self._path is not None:
            # libzmq may have removed it, and a folder that cannot be written keeps it.
            with contextlib.suppress(OSError):
                self._path.unlink()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
