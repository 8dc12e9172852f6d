"""Shared memory of local clients: opens the regions that requests name, and finds the tensors in them.

The router resolves each request that names a region here, and builds the messages of batches that contain one.

A region is a memfd of the client. The daemon opens it through /proc when a request first names it; clients register
nothing. The daemon does not map it, and reads it only to compare requests with those in quarantine: workers read and
write through the daemon's descriptor. The descriptor stays open while a request uses it, so that a worker can finish
after the client has died, and is closed when no request has named the region for `IDLE_S`.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from multitower import wire
from multitower.errors import MultitowerError, Reason, make
from multitower.worker_wire import batch_head, packed_table, shared_head

from ..machine import descriptors
from ..scheduling.pool_worker import Batch
from ..scheduling.request import Frame, Plan, SharedRequest
from ..scheduling.shared_memory_areas import OpenArea
from ..scheduling.shared_memory_region import Region

MAX_REGIONS = descriptors.REGIONS
"""Regions that may be open at one time. Each takes one descriptor."""

IDLE_S = 10.0
"""Seconds after which a region that no request names is closed."""

RETRY_AFTER_MS = 1000
"""When clients may try shared memory again after a refusal for lack of descriptors or memory."""

_TRANSIENT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def open_region(name: str) -> Region:
    """Opens the region of this name.

    Raises:
        OSError: the region cannot be reached, since its client runs in another container, as another user, or not at
            all; or the descriptor is not that region; or opening it would block.
    """
    found = wire.REGION_NAME.fullmatch(name)
    if found is None:
        raise OSError("the name is not that of a region")
    pid, descriptor, nonce = found.groups()
    # Opening a pipe or a device can block or have side effects. O_PATH opens nothing, and pins the file.
    path = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_PATH | os.O_CLOEXEC)
    try:
        # Checked first: a call to the file system would block for ever where the client serves it and does not answer.
        if _mount_of(path) != _mount_of_memfds():
            raise OSError("the descriptor is not shared memory")
        # Without O_NONBLOCK, a lease that the client holds on the memfd would block this for up to 45 s.
        region = Region(name, os.open(f"/proc/self/fd/{path}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    finally:
        os.close(path)
    # Without this seal, the client could shrink the memfd between this check and a worker's access.
    if not fcntl.fcntl(region.descriptor, _F_GET_SEALS) & _F_SEAL_SHRINK:
        raise OSError("the descriptor is not a memfd sealed against shrinking")
    head = wire.REGION_MAGIC + nonce.encode()
    if os.pread(region.descriptor, len(head), 0) != head:
        raise OSError("the descriptor is that of another region")
    return region


def _mount_of(descriptor: int) -> bytes:
    """The `mnt_id` line of a descriptor's file, from /proc, which no file system is asked for.

    Raises:
        OSError: the kernel does not report it.
    """
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as lines:
        for line in lines:
            if line.startswith(b"mnt_id:"):
                return line
    raise OSError("the kernel does not report the descriptor's mount")


@functools.cache
def _mount_of_memfds() -> bytes:
    """The `mnt_id` line of all memfds (except those of huge pages): a kernel mount that holds no other files."""
    descriptor = os.memfd_create("multitower", os.MFD_CLOEXEC)
    try:
        return _mount_of(descriptor)
    finally:
        os.close(descriptor)


# From linux/fcntl.h; the fcntl module has them from Python 3.13 on.
_F_GET_SEALS = 1034
_F_SEAL_SHRINK = 2


class Regions:
    """The open regions, by name.

    Args:
        open: opens a region by its name; raises OSError where it cannot.

    Attributes:
        maximum: how many may be open, where descriptors are left for fewer than `MAX_REGIONS`.
    """

    def __init__(self, open: Callable[[str], Region] = open_region) -> None:
        self.maximum = MAX_REGIONS
        self._open = open
        self._last_use: OrderedDict[str, float] = OrderedDict()  # the least recently used first
        self._kept: dict[str, Region] = {}  # the same regions, so that they stay open
        self._all: weakref.WeakValueDictionary[str, Region] = weakref.WeakValueDictionary()  # also those of requests

    def __len__(self) -> int:
        return len(self._all)

    def get(self, name: str, now: float) -> Region:
        """The region of this name, which is opened at its first use.

        Raises:
            OSError: it cannot be opened, or `maximum` others are in use.
        """
        region = self._kept.get(name)
        if region is not None:
            if self._last_use[name] != now:  # not for each of a request's areas
                self._last_use[name] = now
                self._last_use.move_to_end(name)
            return region
        region = self._all.get(name)
        if region is None:
            if len(self._all) >= self.maximum and not self._make_room():
                raise OSError(errno.EMFILE, f"{len(self._all)} regions are in use")
            region = self._all[name] = self._open(name)
        self._kept[name] = region
        self._last_use[name] = now
        self._last_use.move_to_end(name)
        return region

    def _make_room(self) -> bool:
        """Closes the least recently used region that no request uses; False where all are in use."""
        for name in self._last_use:
            del self._kept[name]
            region = self._all.get(name)
            if region is None:
                del self._last_use[name]
                return True
            self._kept[name] = region
        return False

    def close_idle(self, now: float) -> None:
        """Closes the regions that no request has named for `IDLE_S`; those in use close with their last request."""
        while self._last_use:
            name, last_use = next(iter(self._last_use.items()))
            if last_use + IDLE_S > now:
                return
            del self._last_use[name], self._kept[name]

    def resolve(self, plan: Plan, frames: Sequence[Frame], now: float) -> tuple[list[Frame], dict[str, OpenArea]]:
        """The inputs and output areas of a request that uses shared memory.

        Args:
            plan: of the request; its `shared` is not None.
            frames: of the inputs that are not in shared memory, in the header's order.
            now: monotonic seconds.

        Returns:
            All inputs in the header's order, as frames and areas; and the output areas by the output's name.

        Raises:
            InvalidRequest: `malformed`: a region cannot be opened or is smaller than the request says, or the number
                of frames is wrong.
        """
        assert plan.shared is not None  # as documented
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
            next(rest) if area is None else self._open_area(area, f"inputs[{index}]", now)
            for index, area in enumerate(inputs)
        ]
        output_areas = {name: self._open_area(area, name, now) for name, area in plan.shared.outputs.items()}
        return tensors, output_areas

    def _open_area(self, area: wire.Area, field: str, now: float) -> OpenArea:
        try:
            region = self.get(area.region, now)
        except OSError as error:
            retry_after_ms = RETRY_AFTER_MS if error.errno in _TRANSIENT else None
            raise _refusal(field, error.strerror or str(error), retry_after_ms) from None
        if area.offset + area.size > region.size:
            where = f"{field}.parameters.{wire.SHARED_MEMORY_OFFSET}"
            raise make(
                Reason.MALFORMED,
                f"{where}: {area.size} bytes from {area.offset} on, but the region has {region.size}",
                field=where,
            )
        return OpenArea(region, area.offset, area.size)


def refusal(plan: Plan, why: str) -> MultitowerError:
    """The error for a request whose shared memory cannot be used; clients then send its tensors in frames."""
    assert plan.shared is not None  # the caller has looked
    first = next((index for index, area in enumerate(plan.shared.inputs) if area is not None), None)
    return _refusal(next(iter(plan.shared.outputs)) if first is None else f"inputs[{first}]", why)


def _refusal(field: str, why: str, retry_after_ms: int | None = None) -> MultitowerError:
    where = f"{field}.parameters.{wire.SHARED_MEMORY_REGION}"
    message = f"{where}: the daemon cannot use this shared memory: {why}"
    return make(Reason.MALFORMED, message, field=where, retry_after_ms=retry_after_ms)


def batch_message(batch: Batch, description: Sequence[bytes]) -> list[Any]:
    """The SHARED message to a worker (see `worker_wire`) for a batch that uses shared memory.

    Args:
        batch: to be sent.
        description: the key's description; empty where the worker knows the key.
    """
    inputs: list[str] = []
    outputs: list[str] = []
    frames: list[Frame] = []
    for entry, request in enumerate(batch.requests):
        for index, frame in enumerate(request.frames):
            if type(frame) is OpenArea:
                inputs.append(frame.packed(entry, index))
            else:
                frames.append(frame)
        if type(request) is SharedRequest:  # others in the batch have no areas for outputs
            for name, area in request.output_areas.items():
                outputs.append(area.packed(entry, name))
    rows = [request.rows for request in batch.requests]
    head = batch_head(batch.id, batch.key.id, rows, joined=False, described=bool(description))
    return [shared_head(head), *description, packed_table(inputs, outputs), *frames]
