"""Sockets that ask a daemon with `security`, as a client may or must not: by key, by handle, as another user."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import platform
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import zmq
from made_security import Keys
from waiting import WAIT_S

from multitower import wire, zmtp

NO_ANSWER = "no answer"
NOT_ANSWERED_S = 0.5
"""Seconds for which an answer that must not come is waited for."""


class Asker:
    """A socket of libzmq.

    Args:
        endpoint: of the daemon.
        keys: its CURVE keys; None for none.
        server: the daemon's public key.
        hop: frames in front of the delimiter, as the gateway sends a handle.

    Attributes:
        message: the header of the last reply, as it came.
    """

    def __init__(
        self, endpoint: str, keys: Keys | None = None, server: str | None = None, hop: tuple[bytes, ...] = ()
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        if keys is not None and server is not None:
            self.socket.set(zmq.CURVE_SERVERKEY, server.encode())
            self.socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
            self.socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
        self._hop = list(hop)
        self._ids = itertools.count()
        self.message = ""
        self.socket.connect(endpoint)

    def ask(self, kind: bytes, header: dict[str, Any], *tensors: bytes, timeout_s: float = WAIT_S) -> str:
        """Asks, and returns the reason of the error; `ok` without one, `NO_ANSWER` without an answer in time."""
        id = str(next(self._ids)).encode()
        self.socket.set(zmq.SNDTIMEO, int(timeout_s * 1000))
        try:
            self.socket.send_multipart([*self._hop, b"", kind, id, wire.dump_json(header), *tensors])
        except zmq.Again:
            return NO_ANSWER  # libzmq has given up to connect
        if not self.socket.poll(int(timeout_s * 1000)):
            return NO_ANSWER
        frames = self.socket.recv_multipart()
        assert frames[: len(self._hop)] == self._hop
        return self._read(frames[len(self._hop) :], id)

    def _read(self, frames: list[Any], id: bytes) -> str:
        delimiter, outcome, replied, body, *_ = (bytes(frame) for frame in frames)
        assert (delimiter, replied) == (b"", id)
        self.message = body.decode()
        return "ok" if outcome == wire.OK else str(json.loads(body)["error"]["reason"])

    def close(self) -> None:
        self._context.destroy(linger=0)


class LocalAsker(Asker):
    """A connection to a Unix socket, of any user where the tests run as root.

    Args:
        path: of the socket.
        uid: the user who connects; None for this process's.
        claims: properties that it states in its handshake, by name.
    """

    def __init__(self, path: str, uid: int | None = None, **claims: str) -> None:
        self._ids = itertools.count()
        self._hop = []
        self.message = ""
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        opened.settimeout(WAIT_S)
        try:
            if uid is None:
                opened.connect(path)
            else:
                _as_user(uid, lambda: opened.connect(path))
        except OSError:
            opened.close()
            raise
        self._opened = opened
        self._decoder = zmtp.Decoder("DEALER", lambda size: memoryview(bytearray(size)))
        opened.sendall(zmtp.GREETING + _ready({"Socket-Type": "DEALER", **claims}))
        while not self._decoder.shake_hands():
            assert self._read_more(WAIT_S)

    def ask(self, kind: bytes, header: dict[str, Any], *tensors: bytes, timeout_s: float = WAIT_S) -> str:
        id = str(next(self._ids)).encode()
        for buffer in zmtp.encode([b"", kind, id, wire.dump_json(header), *tensors]):
            self._opened.sendall(buffer)
        while (message := self._decoder.next_message()) is None:
            if not self._read_more(timeout_s):
                return NO_ANSWER
        return self._read(message, id)

    def _read_more(self, timeout_s: float) -> bool:
        readable, _, _ = select.select([self._opened], [], [], timeout_s)
        if not readable:
            return False
        rest = self._decoder.rest_of_frame()
        if rest is not None:
            count = self._opened.recv_into(rest)
            self._decoder.filled(count)
            return count > 0
        data = self._opened.recv(64 << 10)
        self._decoder.feed(data)
        return bool(data)

    def close(self) -> None:
        self._opened.close()


def _ready(properties: dict[str, str]) -> bytes:
    """A READY command of ZMTP with these properties."""
    body = b"\x05READY"
    for name, value in properties.items():
        body += bytes([len(name)]) + name.encode() + len(value).to_bytes(4, "big") + value.encode()
    return bytes([4, len(body)]) + body


_SETRESUID = {"x86_64": 117, "aarch64": 147}
CAN_BE_OTHERS = os.geteuid() == 0 and platform.machine() in _SETRESUID
"""Whether this process can connect as another user."""


def _as_user(uid: int, call: Any) -> None:
    """Calls something in a thread that is another user for the kernel, while the process stays what it is."""
    failed: list[BaseException] = []

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        # The system call itself: libc's function would change all threads.
        if libc.syscall(_SETRESUID[platform.machine()], -1, uid, -1) != 0:
            failed.append(OSError(ctypes.get_errno(), "setresuid"))
            return
        try:
            call()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


Closing = Callable[[Asker], Asker]
"""Returns what it is given, and closes it when the test has ended: the fixture `closing`."""
