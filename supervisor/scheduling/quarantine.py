"""Requests that crashed a worker alone: an equal one is refused unrun, so that resending cannot kill one after another.

Pure. What is kept is a digest, not the request; requests are digested only while something of their size is kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from multitower.worker_wire import KeySpec

from .areas import OpenArea
from .request import Request

MAX_KEPT = 64

MOST_BYTES = 2 << 20
"""Of a request that are digested, shared out among its tensors: all of one that is no larger."""

PARTS = 8
"""In which these bytes lie, of each tensor that is larger than its share."""


@dataclass(slots=True)
class QuarantinedRequest:
    """One request in quarantine.

    Attributes:
        model: its model.
        until: when it is let go, in monotonic seconds.
        refused: how many equal requests have been refused.
    """

    model: str
    until: float
    refused: int = 0


class Quarantine:
    """The last `MAX_KEPT` requests that crashed a worker, each for its time."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[KeySpec, int, bytes], QuarantinedRequest] = OrderedDict()
        self._sizes: dict[tuple[KeySpec, int], int] = {}  # how many are kept of each key and size

    def add(self, request: Request, now: float, seconds: float) -> None:
        """Keeps a request away for some seconds; its frames must still be there. No time keeps nothing."""
        if seconds <= 0:
            return
        identity = _identity(request)
        if self._kept.pop(identity, None) is None:
            self._count(identity, 1)
        self._kept[identity] = QuarantinedRequest(request.plan.model, now + seconds)
        while len(self._kept) > MAX_KEPT:
            self._forget(next(iter(self._kept)))

    def find(self, request: Request, now: float) -> QuarantinedRequest | None:
        """The entry of a request equal to this one, which counts it as refused; None where there is none."""
        # Digests cost, and hardly any request has the size of one that is kept.
        if not self._kept or (request.plan.key.spec, request.size) not in self._sizes:
            return None
        identity = _identity(request)
        entry = self._kept.get(identity)
        if entry is None:
            return None
        if entry.until <= now:
            self._forget(identity)
            return None
        entry.refused += 1
        return entry

    def entries(self, now: float) -> list[QuarantinedRequest]:
        """What is kept, the oldest first."""
        for identity in [identity for identity, entry in self._kept.items() if entry.until <= now]:
            self._forget(identity)
        return list(self._kept.values())

    def forget_model(self, model: str) -> None:
        """Lets all requests of a model go: it was to blame, not they."""
        for identity in [identity for identity, entry in self._kept.items() if entry.model == model]:
            self._forget(identity)

    def _forget(self, identity: tuple[KeySpec, int, bytes]) -> None:
        del self._kept[identity]
        self._count(identity, -1)

    def _count(self, identity: tuple[KeySpec, int, bytes], change: int) -> None:
        spec, size, _ = identity
        count = self._sizes.get((spec, size), 0) + change
        if count:
            self._sizes[spec, size] = count
        else:
            del self._sizes[spec, size]


def _identity(request: Request) -> tuple[KeySpec, int, bytes]:
    """Equal for requests that ask the same model for the same outputs of the same tensors.

    Of a large tensor only parts are looked at: to read and digest all of it would hold up all other requests.
    """
    digest = hashlib.blake2b(request.rows.to_bytes(8, "little"), digest_size=16)
    for frame in request.frames:
        # Also of shared memory: the same tensors in frames would crash a worker just so.
        size = len(frame)
        digest.update(size.to_bytes(8, "little"))
        for start, end in _looked_at(size, None if request.size <= MOST_BYTES else MOST_BYTES // len(request.frames)):
            data: Any = frame[start:end].read() if type(frame) is OpenArea else memoryview(frame)[start:end]
            digest.update(data)
    return request.plan.key.spec, request.size, digest.digest()


def _looked_at(size: int, most: int | None) -> list[tuple[int, int]]:
    """The parts of a tensor that are digested: first and last bytes, and others at even distances between them."""
    if most is None or size <= most:
        return [(0, size)]
    part = most // PARTS
    return [(start, start + part) for start in (index * (size - part) // (PARTS - 1) for index in range(PARTS))]
