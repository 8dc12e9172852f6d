"""Shared memory of local clients: the regions that requests name, and what the router and the workers need of them.

A region is a memfd of the client, which the daemon opens through /proc at its first use; there is nothing to register.
The daemon maps nothing and reads nothing (but to put a request into quarantine): workers read and write through its
descriptor. A descriptor stays open while a request needs it and as long as the region is in use, so that a client's
death takes nothing away under a worker, and keeps nothing for longer than `IDLE_S`.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from multitower import wire
from multitower.errors import MultitowerError, Reason, make
from multitower.worker_wire import Table, batch_head, shared_head

from ..scheduling.areas import OpenArea, Region
from ..scheduling.queue import Batch
from ..scheduling.request import Frame, Plan

MAX_REGIONS = 256
"""Regions that are open at one time: each is a descriptor."""

IDLE_S = 10.0
"""How long a region stays open that no request names."""

PASSING_MS = 1000
"""What clients are told to wait for before they try shared memory again, where only too much was open."""

_PASSING = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def open_region(name: str) -> Region:
    """Opens a region by its name.

    Raises:
        OSError: it cannot be reached: the client runs in another container, as another user, or not at all; or what
            is there is not the region of this name, or could be opened only after a wait.
    """
    found = wire.REGION_NAME.fullmatch(name)
    if found is None:
        raise OSError("this is no name of a region")
    pid, descriptor, nonce = found.groups()
    # To open a pipe or a device may wait or do something; this opens nothing, and what it names stays the same.
    path = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_PATH | os.O_CLOEXEC)
    try:
        # Before anything is asked of a file system, which may be the client's own and never answer.
        if _mount_of(path) != _mount_of_memfds():
            raise OSError("the descriptor is no shared memory")
        # A client may hold a lease on a memfd: then an opener waits for up to 45 s, unless it says that it does not.
        region = Region(name, os.open(f"/proc/self/fd/{path}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    finally:
        os.close(path)
    # Without this seal, what was checked here may be gone when a worker reads.
    if not fcntl.fcntl(region.descriptor, _F_GET_SEALS) & _F_SEAL_SHRINK:
        raise OSError("the descriptor is no memfd that is sealed against shrinking")
    head = wire.REGION_MAGIC + nonce.encode()
    if os.pread(region.descriptor, len(head), 0) != head:
        raise OSError("the descriptor is another region's")
    return region


def _mount_of(descriptor: int) -> bytes:
    """What the kernel calls the mount that a descriptor's file lies in; asks only the kernel.

    Raises:
        OSError: it does not tell.
    """
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as lines:
        for line in lines:
            if line.startswith(b"mnt_id:"):
                return line
    raise OSError("the kernel does not tell what the descriptor is")


@functools.cache
def _mount_of_memfds() -> bytes:
    """All memfds, but for those of huge pages, lie in one mount, which has no name and holds no other files."""
    descriptor = os.memfd_create("multitower", os.MFD_CLOEXEC)
    try:
        return _mount_of(descriptor)
    finally:
        os.close(descriptor)


# Linux's numbers (linux/fcntl.h); the fcntl module has them only from Python 3.13 on.
_F_GET_SEALS = 1034
_F_SEAL_SHRINK = 2


class Regions:
    """The regions that are open, the least recently used first.

    Args:
        open: opens a region by its name, or raises OSError.
    """

    def __init__(self, open: Callable[[str], Region] = open_region) -> None:
        self._open = open
        self._used: OrderedDict[str, float] = OrderedDict()
        self._kept: dict[str, Region] = {}  # the same ones
        self._all: weakref.WeakValueDictionary[str, Region] = weakref.WeakValueDictionary()  # also what requests keep

    def __len__(self) -> int:
        return len(self._all)

    def get(self, name: str, now: float) -> Region:
        """The region of this name, opened if it is not open yet.

        Raises:
            OSError: it cannot be, or there are too many.
        """
        region = self._all.get(name)
        if region is None:
            if len(self._all) >= MAX_REGIONS and not self._make_room():
                raise OSError(errno.EMFILE, f"{len(self._all)} regions are in use")
            region = self._all[name] = self._open(name)
        self._kept[name] = region
        self._used[name] = now
        self._used.move_to_end(name)
        return region

    def _make_room(self) -> bool:
        """Closes the least recently used region that no request needs; False when all are needed."""
        for name in self._used:
            del self._kept[name]
            region = self._all.get(name)
            if region is None:
                del self._used[name]
                return True
            self._kept[name] = region
        return False

    def tick(self, now: float) -> None:
        """Forgets the regions that no request has named for `IDLE_S`."""
        while self._used:
            name, used = next(iter(self._used.items()))
            if used + IDLE_S > now:
                return
            del self._used[name], self._kept[name]

    def resolve(self, plan: Plan, frames: Sequence[Frame], now: float) -> tuple[list[Frame], dict[str, OpenArea]]:
        """The tensors of a request in its own order, and the places of its outputs.

        Args:
            plan: of a request of which something lies in shared memory.
            frames: those that came with it.
            now: monotonic seconds.

        Raises:
            InvalidRequest: `malformed`: a region cannot be opened or is smaller than the request says, or the number
                of frames is wrong.
        """
        assert plan.shared is not None  # else nobody asks
        inputs = plan.shared.inputs
        missing = inputs.count(None) - len(frames)
        if missing:
            raise make(
                Reason.MALFORMED,
                f"the header lists {inputs.count(None)} inputs outside shared memory, but {len(frames)} frames came "
                "with it",
                field="inputs",
            )
        rest = iter(frames)
        tensors = [
            next(rest) if area is None else self._area(area, f"inputs[{index}]", now)
            for index, area in enumerate(inputs)
        ]
        output_areas = {name: self._area(area, name, now) for name, area in plan.shared.outputs.items()}
        return tensors, output_areas

    def _area(self, area: wire.Area, whose: str, now: float) -> OpenArea:
        try:
            region = self.get(area.region, now)
        except OSError as error:
            passing = PASSING_MS if error.errno in _PASSING else None
            raise _refusal(whose, error.strerror or str(error), passing) from None
        if area.offset + area.size > region.size:
            where = f"{whose}.parameters.{wire.SHARED_MEMORY_OFFSET}"
            raise make(
                Reason.MALFORMED,
                f"{where}: {area.size} bytes from {area.offset} on, but the region has {region.size}",
                field=where,
            )
        return OpenArea(region, area.offset, area.size)


def refusal(plan: Plan, why: str) -> MultitowerError:
    """Why a request is refused that would use shared memory; clients send it again in frames."""
    assert plan.shared is not None  # else nobody asks
    first = next((index for index, area in enumerate(plan.shared.inputs) if area is not None), None)
    return _refusal(next(iter(plan.shared.outputs)) if first is None else f"inputs[{first}]", why)


def _refusal(whose: str, why: str, retry_after_ms: int | None = None) -> MultitowerError:
    where = f"{whose}.parameters.{wire.SHARED_MEMORY_REGION}"
    message = f"{where}: the daemon cannot take this shared memory: {why}"
    return make(Reason.MALFORMED, message, field=where, retry_after_ms=retry_after_ms)


def batch_message(batch: Batch, description: Sequence[bytes]) -> list[Any]:
    """The message of a batch of which something lies in shared memory.

    Args:
        batch: it.
        description: of its key; none when the worker knows it.
    """
    table = Table([], [])
    frames: list[Frame] = []
    for entry, request in enumerate(batch.requests):
        for index, frame in enumerate(request.frames):
            if type(frame) is OpenArea:
                table.inputs.append(frame.for_worker(entry, index))
            else:
                frames.append(frame)
        output_areas: Mapping[str, OpenArea] = getattr(request, "output_areas", {})
        table.outputs.extend(area.for_worker(entry, name) for name, area in output_areas.items())
    rows = [request.rows for request in batch.requests]
    head = batch_head(batch.id, batch.key.id, rows, joined=False, described=bool(description))
    return [shared_head(head), *description, table.pack(), *frames]
