"""A fuzzer of the wire protocol: valid messages of every kind, mutated, thrown at a live daemon, replies counted.

It knows the envelope's rules (docs/protocol.md) well enough to tell which reply each mutated message must get: one,
with its id where that can be read, and an empty id where it cannot.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq
from memfds import make_region

from multitower import Reason, tensors, wire

UNKNOWN_KINDS = (b"MT1:dance", b"MT2:infer", b"mt1:infer", b"MT1:", b"\xff\x00infer", b"k" * 500)
WINDOW = 64
"""Messages that are outstanding at one time."""

ANSWER_S = 60.0
MAX_HOPS = 16
MAX_HOP_BYTES = 255
FORBIDDEN = (
    *(Reason.WORKER_DIED, Reason.POISONED, Reason.NO_WORKER, Reason.QUEUE_FULL),
    *(Reason.MODEL_ERROR, Reason.OUTPUT_INVALID, Reason.INTERNAL_ERROR, Reason.REPLY_DROPPED),
)
"""Reasons that no message may earn, however broken: it cost others something, or reached the model as it was."""

Message = list[bytes]
Key = tuple[tuple[bytes, ...], bytes]


def expected_reply(message: Message) -> Key:
    """The address frames and the id of the one reply that a message must get, sent over a DEALER."""
    for index, frame in enumerate(message[:MAX_HOPS]):
        if not frame:
            body = message[index + 1 :]
            readable = len(body) >= 2 and 0 < len(body[1]) <= wire.MAX_ID_BYTES
            return tuple(message[:index]), body[1] if readable else b""
        if len(frame) > MAX_HOP_BYTES:
            break
    return (), b""


# Valid messages, for the models of tests/chaos/test_fuzz.py.


def _tensor(name: str, array: Any) -> tuple[dict[str, Any], bytes]:
    frame = tensors.encode(array)
    entry = {"name": name, "datatype": tensors.datatype_of(array), "shape": list(array.shape)}
    return entry, bytes(frame)


def _infer(rng: random.Random) -> tuple[dict[str, Any], list[bytes]]:
    rows = rng.choice((1, 2, 7, 20))
    declared = [_tensor("x", np.ones((rows, 3), "<f4")), _tensor("n", np.arange(rows, dtype="<i8"))]
    text = np.array([b"", b"a", b"\xff" * rows], dtype=object)
    free = [_tensor("a", np.ones((rows, 2), rng.choice(("<u1", "<f2", "<f8", "<c8", "?")))), _tensor("t", text)]
    model, inputs = rng.choice((("declared", declared), ("echo", free)))
    header: dict[str, Any] = {"model_name": model, "inputs": [entry for entry, _ in inputs]}
    if rng.random() < 0.3:
        header["parameters"] = {"timeout": rng.randrange(1, 10**7), "priority": rng.randrange(3)}
    if rng.random() < 0.3:
        header["outputs"] = [{"name": rng.choice("ymatx")}]
    frames = [frame for _, frame in inputs]
    if rng.random() < 0.3:
        _share(header, frames, rng)
    return header, frames


@functools.cache
def _region() -> tuple[str, int]:
    return make_region()


def _share(header: dict[str, Any], frames: list[bytes], rng: random.Random) -> None:
    """Puts the first input into shared memory, and perhaps an output there, over another's bytes."""
    name, descriptor = _region()
    os.pwrite(descriptor, frames[0], 4096)
    header["inputs"][0]["parameters"] = dict(
        zip(wire.SHARED_MEMORY_KEYS, (name, 4096, len(frames.pop(0))), strict=True)
    )
    for output in header.get("outputs", ()):
        place = name, rng.choice((4096, 8192, (1 << 16) - 1)), rng.choice((1, 100))
        output["parameters"] = dict(zip(wire.SHARED_MEMORY_KEYS, place, strict=True))
    if rng.random() < 0.5:
        header.setdefault("parameters", {})["all_outputs"] = True


def valid(kind: bytes, id: bytes, rng: random.Random) -> Message:
    """A message of a kind as a client would send it."""
    header: dict[str, Any] = {}
    frames: list[bytes] = []
    if kind in (wire.MODEL_READY, wire.MODEL_METADATA, wire.MODEL_CONFIG, wire.STATISTICS):
        header = {"model_name": rng.choice(("declared", "echo")), "model_version": rng.choice(("", "1"))}
    elif kind not in wire.KINDS or kind == wire.INFER:
        header, frames = _infer(rng)
    return [wire.DELIMITER, kind, id, wire.dump_json(header), *frames]


# Mutations, each of a whole message.


def _place(message: Message, rng: random.Random) -> int:
    """Where to mutate: mostly behind the id, since a broken envelope is refused before anything else is read."""
    return rng.randrange(3, len(message)) if len(message) > 3 and rng.random() < 0.7 else rng.randrange(len(message))


def _lose(message: Message, rng: random.Random) -> None:
    del message[_place(message, rng)]


def _repeat(message: Message, rng: random.Random) -> None:
    index = _place(message, rng)
    message[index:index] = [message[index]] * rng.choice((1, 1, 2, 30))


def _swap(message: Message, rng: random.Random) -> None:
    one, other = rng.randrange(len(message)), rng.randrange(len(message))
    message[one], message[other] = message[other], message[one]


def _empty(message: Message, rng: random.Random) -> None:
    message[_place(message, rng)] = b""


def _insert(message: Message, rng: random.Random) -> None:
    message.insert(rng.randrange(len(message) + 1), rng.choice((b"", b"\0", b"{}", rng.randbytes(rng.randrange(100)))))


def _many(message: Message, rng: random.Random) -> None:
    message += [rng.choice((b"", b"x"))] * rng.choice((1, 5, 50, 1100))


def _flip(message: Message, rng: random.Random) -> None:
    index = _place(message, rng)
    data = bytearray(message[index] or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    message[index] = bytes(data)


def _cut(message: Message, rng: random.Random) -> None:
    index = _place(message, rng)
    message[index] = message[index][: rng.randrange(len(message[index]) + 1)]


def _grow(message: Message, rng: random.Random) -> None:
    message[_place(message, rng)] += rng.randbytes(rng.choice((1, 3, 64, 4096)))


def _header(message: Message, change: Callable[[bytes], bytes]) -> None:
    if len(message) > 3:
        message[3] = change(message[3])


def _text(message: Message, rng: random.Random) -> None:
    """Puts something into the header's text that JSON, or this protocol, does not allow."""
    deep = rng.choice((10, 101, 2000, 20_000))
    nasty = rng.choice(
        (
            b"NaN",
            b"-Infinity",
            b"1e999",
            b"9" * rng.choice((19, 400, 5000)),
            b"[" * deep + b"]" * deep,
            b'{"a":' * deep + b"1" + b"}" * deep,
            b"[" * deep,
            b'"\xff\xfe"',
            b'"\\ud800"',
            b'"\\u0000"',
            b"\xef\xbb\xbf{}",
            b"//",
            b"\0",
            b",",
            b'"' + b"n" * 2000 + b'"',
        )
    )
    places = (b"1", b"2", b"3", b'""', b'"x"', b'"echo"', b"[", b"}", b":")
    place = rng.choice(places)
    if rng.random() < 0.3:
        _header(message, lambda _: nasty)
    elif rng.random() < 0.5:
        _header(message, lambda header: header.replace(place, nasty, 1))
    else:
        where = rng.random()
        _header(message, lambda h: h[: int(where * len(h))] + nasty + h[int(where * len(h)) :])


_NAMES = (
    *(b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\u0000"', b'"\xc3\xa9"', b'"\\n"', b'""', b'"' + b"n" * 1100 + b'"'),
    *(b'"BYTES"', b'"INT8"', b'"x"', b'"1"', b"null", b"7"),
)


def _name(message: Message, rng: random.Random) -> None:
    """Another name for a model, input or output, or another word for a datatype: what errors and replies repeat."""
    if len(message) <= 3:
        return
    words = list(re.finditer(rb'"[^"]*"(?=[,}])', message[3]))
    if words:
        word = rng.choice(words)
        message[3] = message[3][: word.start()] + rng.choice(_NAMES) + message[3][word.end() :]


def _twice(message: Message, rng: random.Random) -> None:
    """The same keys again, on the outermost level or an inner one."""
    _header(message, lambda header: header[:-1] + b"," + header[1:] if len(header) > 2 else b'{"a":1,"a":2}')
    if rng.random() < 0.5:
        _header(message, lambda header: header.replace(b'{"name":', b'{"name":"x","name":', 1))


_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 3, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**40, 1.5, 1e308),
    *("", "x", "1", "\ud800", "\0", "..", "é" * 600, "BYTES", "FP32", "INT8", "BF16", "declared", "echo"),
    *([], {}, [[]], [None], [0], [1, 1], [2**62, 2], [2**62, 0], [1] * 65, {"name": "x"}, {"data": [1]}),
    *({"shared_memory_region": "r"}, {"all_outputs": 1}, {"timeout": 1}, {"timeout": True}, ["x"], [{"name": "y"}] * 2),
)


def _tree(message: Message, rng: random.Random) -> None:
    """Replaces, removes or adds values anywhere in the header; it stays JSON."""
    if len(message) <= 3:
        return
    try:
        root = json.loads(message[3])
    except (ValueError, RecursionError):
        return
    for _ in range(rng.choice((1, 1, 2, 4))):
        node = root
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and rng.random() < 0.7:
                node = node[key]
                continue
            what = rng.random()
            if what < 0.7:
                node[key] = rng.choice(_VALUES)
            elif what < 0.85:
                del node[key]
            elif isinstance(node, dict):
                node[rng.choice(("data", "parameters", "outputs", "shape", "k"))] = rng.choice(_VALUES)
            else:
                node.append(rng.choice(_VALUES))
            break
    try:
        message[3] = json.dumps(root).encode()
    except (ValueError, RecursionError):
        return


def _id(message: Message, rng: random.Random) -> None:
    if len(message) > 2:
        message[2] = rng.choice((b"", b"\0", b"i" * 64, b"i" * 65, rng.randbytes(1000), b"\xff" * 8))


def _kind(message: Message, rng: random.Random) -> None:
    if len(message) > 1:
        message[1] += rng.choice((b"\0", b" ", b"x" * 60, rng.randbytes(3)))


MUTATIONS = (
    *(_lose, _repeat, _swap, _empty, _insert, _many, _flip, _cut, _grow, _text, _twice, _id, _kind),
    *(_text, _name, _name, _name),
    *[_tree] * 5,
)


class Fuzzer:
    """Throws messages at a daemon over a DEALER socket, and checks that each gets its one reply.

    Args:
        socket: connected to the daemon.
        seed: the same seed throws the same messages.

    Attributes:
        outcomes: replies so far, by "ok" or the error's reason.
    """

    def __init__(self, socket: zmq.Socket[bytes], seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._socket = socket
        self._rng = random.Random(seed)
        self._serial = 0
        self._waiting: Counter[Key] = Counter()
        self._sent: dict[Key, Message] = {}
        self._recent: list[bytes] = []

    def throw(self, kind: bytes, count: int) -> None:
        """Sends that many mutated messages of a kind, and waits until each has its reply.

        Raises:
            AssertionError: a reply is missing, was not asked for, or is none of the protocol's; tells the message.
        """
        for _ in range(count):
            message = self._message(kind)
            key = expected_reply(message)
            while self._waiting.total() >= WINDOW:
                self._take()
            self._waiting[key] += 1
            self._sent[key] = message
            self._socket.send_multipart(message)
        while self._waiting:
            self._take()
        # What comes now comes twice.
        if self._socket.poll(50):
            self._take()

    def _message(self, kind: bytes) -> Message:
        rng = self._rng
        self._serial += 1
        # A cancel is aimed at what was sent just before, and some ids repeat.
        fresh = not self._recent or rng.random() > (0.5 if kind == wire.CANCEL else 0.03)
        id = self._serial.to_bytes(8, "little") if fresh else rng.choice(self._recent)
        # Cancels and their targets come over one connection, so requests are thrown in between.
        message = valid(wire.INFER if kind == wire.CANCEL and rng.random() < 0.3 else kind, id, rng)
        self._recent = [*self._recent[-8:], id]
        if rng.random() < 0.95:
            for mutation in rng.choices(MUTATIONS, k=rng.choice((1, 1, 1, 2, 3))):
                if message:
                    mutation(message, rng)
        return message or [b""]

    def _take(self) -> None:
        until = time.monotonic() + ANSWER_S
        if not self._socket.poll(max(0, int((until - time.monotonic()) * 1000))):
            missing = [shown(self._sent[key]) for key in list(self._waiting)[:3]]
            raise AssertionError(f"{self._waiting.total()} without a reply in {ANSWER_S} s, such as\n{missing}")
        message = self._socket.recv_multipart()
        delimiter = message.index(b"")
        kind, id, header = message[delimiter + 1 : delimiter + 4]
        key = tuple(message[:delimiter]), id
        assert self._waiting[key] > 0, f"a reply that nobody waits for: {shown(message)}"
        self._waiting[key] -= 1
        told = shown(self._sent[key])
        if not self._waiting[key]:
            del self._waiting[key], self._sent[key]
        self.outcomes[_outcome(kind, json.loads(header), told)] += 1


def _outcome(kind: bytes, header: Any, message: str) -> str:
    assert isinstance(header, dict), message
    if kind == wire.OK:
        return "ok"
    assert kind == wire.ERROR, message
    error = header["error"]
    assert set(error) - {"details"} == {"code", "reason", "message"}, message
    assert error["reason"] in {str(reason) for reason in Reason} - set(FORBIDDEN), f"{error} for {message}"
    assert len(error["message"]) < 4096, message
    return str(error["reason"])


def shown(message: Message) -> str:
    """A message for people: its frames, long ones cut."""
    return " | ".join(f"{frame[:300]!r}{f'… {len(frame)} bytes' if len(frame) > 300 else ''}" for frame in message[:12])
