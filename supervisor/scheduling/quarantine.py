"""What has crashed workers and is refused for a time: single requests, and models with several such requests.

Without it, a client that sends a poisoned request again would crash one worker after another. A model that crashes a
worker with every request would use up the restarts of all slots, those of other models too.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from multitower.durations import exact_duration, rounded_duration
from multitower.errors import MultitowerError, Reason, make
from multitower.worker_wire import KeySpec

from .deaths import Death
from .request import Request
from .shared_memory_areas import OpenArea

MAX_REQUESTS = 64
"""Requests that are in quarantine at one time; the oldest one makes room."""

MAX_DIGESTED_BYTES = 2 << 20
"""How much of a request is digested. A larger one's tensors are sampled, each by an equal share of this."""

SAMPLES = 8
"""How many pieces of a tensor that is larger than its share are digested."""

MIN_CRASHES = 3
"""A model is put into quarantine after this many requests in a row each crashed a worker alone."""

_Identity = tuple[KeySpec, int, bytes]
"""Key, size and digest: equal for requests that ask the same model for the same outputs of the same tensors."""


@dataclass(slots=True)
class QuarantinedRequest:
    """A request in quarantine.

    Attributes:
        model: its model.
        until: when the quarantine ends, in monotonic seconds.
        seconds: how long it lasts in all.
        death: how the worker died that the request ran on alone; None if unknown.
        refused: how many equal requests have been refused.
    """

    model: str
    until: float
    seconds: float
    death: Death | None = None
    refused: int = 0

    def refusal(self, now: float) -> MultitowerError:
        """The answer to an equal request."""
        hung = self.death is not None and self.death.hung
        what = "made a worker hang" if hung else "crashed a worker"
        cause = f" ({self.death.cause})" if self.death is not None else ""
        return make(
            Reason.POISONED,
            f"an equal request {what}{cause}; it is refused for {rounded_duration(self.until - now)} more, and "
            f"quarantine of {self.model!r} is {exact_duration(self.seconds)}",
            cause=self.death.cause if self.death is not None else None,
            limit="quarantine",
            limit_value=self.seconds,
        )


class RequestQuarantine:
    """The last `MAX_REQUESTS` requests that crashed a worker alone, each for its time.

    It stores digests, not requests. New requests are digested only if one of the same key and size is in quarantine.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[_Identity, QuarantinedRequest] = OrderedDict()
        self._sizes: dict[tuple[KeySpec, int], int] = {}  # number of entries by key and size

    def add(self, request: Request, now: float, seconds: float, death: Death | None = None) -> None:
        """Puts a request into quarantine; no-op for 0 seconds, and if its shared memory cannot be read.

        Args:
            request: the request; its frames must not have been released.
            now: monotonic seconds.
            seconds: how long it stays there.
            death: how its worker died; None if unknown.
        """
        if seconds <= 0:
            return
        identity = _identity(request)
        if identity is None:
            return
        if self._entries.pop(identity, None) is None:
            self._count(identity, 1)
        self._entries[identity] = QuarantinedRequest(request.plan.model, now + seconds, seconds, death)
        while len(self._entries) > MAX_REQUESTS:
            self._remove(next(iter(self._entries)))

    def find(self, request: Request, now: float) -> QuarantinedRequest | None:
        """The entry of an equal request, which then counts this one as refused; None if there is none."""
        # Digests cost time, and hardly any request has the size of one in quarantine.
        if not self._entries or (request.plan.key.spec, request.size) not in self._sizes:
            return None
        identity = _identity(request)
        entry = self._entries.get(identity) if identity is not None else None
        if identity is None or entry is None:
            return None
        if entry.until <= now:
            self._remove(identity)
            return None
        entry.refused += 1
        return entry

    def entries(self, now: float) -> list[QuarantinedRequest]:
        """All entries, oldest first."""
        for identity in [identity for identity, entry in self._entries.items() if entry.until <= now]:
            self._remove(identity)
        return list(self._entries.values())

    def remove_model(self, model: str) -> None:
        """Ends the quarantine of all requests to a model: the model was to blame."""
        for identity in [identity for identity, entry in self._entries.items() if entry.model == model]:
            self._remove(identity)

    def _remove(self, identity: _Identity) -> None:
        del self._entries[identity]
        self._count(identity, -1)

    def _count(self, identity: _Identity, change: int) -> None:
        spec, size, _ = identity
        count = self._sizes.get((spec, size), 0) + change
        if count:
            self._sizes[spec, size] = count
        else:
            del self._sizes[spec, size]


def _identity(request: Request) -> _Identity | None:
    """What equal requests have in common; None if shared memory cannot be read.

    Of a large tensor only samples are digested: reading all of it would block other requests.
    """
    digest = hashlib.blake2b(request.rows.to_bytes(8, "little"), digest_size=16)
    share = None if request.size <= MAX_DIGESTED_BYTES else MAX_DIGESTED_BYTES // len(request.frames)
    for frame in request.frames:
        # Tensors in shared memory and in frames have the same digest: they crash a worker equally.
        size = len(frame)
        digest.update(size.to_bytes(8, "little"))
        for start, end in _samples(size, share):
            if type(frame) is OpenArea:
                try:
                    digest.update(frame[start:end].read())
                except OSError:
                    return None
            else:
                digest.update(memoryview(frame)[start:end])
    return request.plan.key.spec, request.size, digest.digest()


def _samples(size: int, share: int | None) -> list[tuple[int, int]]:
    """The byte ranges of a tensor that are digested: its first and last bytes, and others at equal distances."""
    if share is None or size <= share:
        return [(0, size)]
    length = share // SAMPLES
    return [(start, start + length) for start in (index * (size - length) // (SAMPLES - 1) for index in range(SAMPLES))]


@dataclass(slots=True)
class _Crashes:
    """The requests of a model that crashed workers one after another.

    Attributes:
        requests: how many.
        hung: how many of them made their workers hang.
        seconds: how long a quarantine lasts.
        death: how the worker of the last one died; None if unknown.
    """

    requests: int = 0
    hung: int = 0
    seconds: float = 0.0
    death: Death | None = None


class ModelQuarantine:
    """Models whose requests crash their workers one after another. An answer of the model ends the series."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}  # by model in quarantine: its end, in monotonic seconds
        self._crashes: dict[str, _Crashes] = {}  # by model, in quarantine or not

    def __bool__(self) -> bool:
        return bool(self._until)

    def __contains__(self, model: str) -> bool:
        return model in self._until

    @property
    def models(self) -> list[str]:
        """The models in quarantine."""
        return list(self._until)

    @property
    def models_with_crashes(self) -> list[str]:
        """The models whose last request crashed a worker, in quarantine or not."""
        return list(self._crashes)

    def add_crash(self, model: str, now: float, seconds: float, death: Death | None = None) -> bool:
        """Counts a request that crashed a worker alone; after the last allowed one the model is in quarantine.

        When the quarantine has ended, one more such request starts it again.

        Args:
            model: the request's.
            now: monotonic seconds.
            seconds: how long a quarantine lasts; 0 for none.
            death: how the request's worker died; None if unknown.

        Returns:
            Whether the model is in quarantine now because of this request.
        """
        crashes = self._crashes.setdefault(model, _Crashes())
        crashes.requests += 1
        crashes.hung += death is not None and death.hung
        crashes.seconds, crashes.death = seconds, death
        if seconds <= 0 or crashes.requests < MIN_CRASHES:
            return False
        self._until[model] = now + seconds
        return True

    def refuses_suspects(self, model: str) -> bool:
        """Whether even suspects of the model are not run again: too many crashed, so hardly any will succeed."""
        crashes = self._crashes.get(model)
        return crashes is not None and crashes.requests >= 2 * MIN_CRASHES

    def add_answer(self, model: str) -> None:
        """A worker has answered a request to the model: ends the series and the quarantine."""
        if self._crashes:
            self.reset(model)

    def remove_expired(self, now: float) -> None:
        """Ends each quarantine whose time is over."""
        if self._until:
            self._until = {model: until for model, until in self._until.items() if until > now}

    def reset(self, model: str) -> None:
        """Ends the quarantine of a model and counts its crashes from 0 again."""
        self._crashes.pop(model, None)
        self._until.pop(model, None)

    def cause(self, model: str) -> str:
        """Why a model in quarantine is there."""
        crashes = self._crashes[model]
        what = "crashed their workers" if not crashes.hung else "crashed their workers or made them hang"
        what = "made their workers hang" if crashes.hung == crashes.requests else what
        last = f" (the last one: {crashes.death.cause})" if crashes.death is not None else ""
        return (
            f"{crashes.requests} requests in a row {what}{last}; it is tried again when its quarantine of "
            f"{exact_duration(crashes.seconds)} is over, or after `multitower restart SLOT`"
        )

    def details(self, model: str) -> dict[str, Any]:
        """The details of the refusal of a request to a model in quarantine."""
        crashes = self._crashes[model]
        return {
            "cause": crashes.death.cause if crashes.death is not None else None,
            "limit": "quarantine",
            "limit_value": crashes.seconds,
        }
