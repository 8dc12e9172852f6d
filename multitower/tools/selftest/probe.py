"""The handlers of the selftest's workers: one that reports on its devices, one that hangs, one that does nothing.

`Probe` takes device memory by itself, as much as a request asks for, and no more. Nothing here imports a library of
models: libcuda is called directly.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from multitower.tools.selftest import CRASH, EXHAUST, GIVE_BACK, IDENTIFY, TAKE
from multitower.tools.selftest.cuda_driver import CudaDevice, CudaError, Driver

_CPU: Final = "cpu"
_NO_MACHINE_HAS_BYTES: Final = 1 << 60
_PR_SET_DUMPABLE: Final = 4
_HANG_S: Final = 600.0

_INPUTS: Final = (
    {"name": "action", "datatype": "BYTES", "shape": [1]},
    {"name": "bytes", "datatype": "INT64", "shape": [1]},
)


class Probe:
    """Reports on the worker's devices, takes memory on each of them, and crashes."""

    inputs = _INPUTS
    outputs = ({"name": "report", "datatype": "BYTES", "shape": [1]},)

    def load(self, devices: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Opens the devices. If that fails, the first request gets the error, so that the other devices are checked."""
        self._names = tuple(devices)
        self._problem: CudaError | None = None
        self._memory: HostMemory | DeviceMemory = HostMemory()
        if not devices[0].startswith(_CPU):
            try:
                self._memory = DeviceMemory()
            except CudaError as error:
                self._problem = error

    def infer(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Carries out the action that the request names; `bytes` is the memory to take on each device.

        Raises:
            CudaError: the driver failed, now or when the handler was loaded.
            MemoryError: there is too little host memory.
        """
        if self._problem is not None:
            raise self._problem
        action, size = inputs["action"][0].decode(), int(inputs["bytes"][0])
        if action == TAKE:
            self._memory.take(size)
        elif action == GIVE_BACK:
            self._memory.give_back()
        elif action == EXHAUST:
            self._memory.exhaust()
        elif action == CRASH:
            _crash()
        elif action != IDENTIFY:
            raise ValueError(f"there is no action {action!r}")
        report = {
            "pid": os.getpid(),
            "names": self._names,
            "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "uuids": self._memory.uuids,
            "knows_slices": self._memory.knows_slices,
        }
        return {"report": [json.dumps(report)]}


class HostMemory:
    """Host memory, for CPU devices."""

    uuids: Sequence[str] = ()
    knows_slices = True

    def __init__(self) -> None:
        self._taken: list[Any] = []

    def take(self, size: int) -> None:
        """Takes memory and writes to all of it."""
        self._taken.append(np.ones(size, np.uint8))

    def give_back(self) -> None:
        """Frees all that was taken."""
        self._taken.clear()

    def exhaust(self) -> None:
        """Asks for more memory than any machine has.

        Raises:
            MemoryError: as expected.
        """
        bytearray(_NO_MACHINE_HAS_BYTES)


class DeviceMemory:
    """Memory on each GPU or MIG slice that this process sees.

    Raises:
        CudaError: the driver cannot be used.
    """

    def __init__(self) -> None:
        driver = Driver()
        self._devices = driver.devices()
        self._taken: list[tuple[CudaDevice, int]] = []
        self.uuids = tuple(device.uuid for device in self._devices)
        self.knows_slices = driver.knows_slices

    def take(self, size: int) -> None:
        """Takes `size` bytes on each device. If one fails, `give_back` frees those of the others."""
        for device in self._devices:
            self._taken.append((device, device.allocate(size)))

    def give_back(self) -> None:
        """Frees all that was taken."""
        while self._taken:
            device, address = self._taken.pop()
            device.free(address)

    def exhaust(self) -> None:
        """Asks the first device for twice its whole memory.

        Nothing is written to it: a driver that grants it, by using the host's memory, would fill that.

        Raises:
            OutOfMemoryError: as expected.
        """
        device = self._devices[0]
        device.free(device.reserve(2 * device.total_bytes))


class Hanging:
    """Does not return from its first request."""

    inputs = _INPUTS

    def load(self, devices: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Needs nothing."""

    def infer(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Sleeps until the daemon kills the process."""
        time.sleep(_HANG_S)
        return {}


class Idle:
    """Returns its inputs: a request costs what the daemon and the worker themselves take."""

    def load(self, devices: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Needs nothing."""

    def infer(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the inputs."""
        return dict(inputs)


def _crash() -> None:
    """Ends the process by a segmentation fault, without a core file, which would be left behind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Where cores are piped to a program, the limit alone does not prevent one.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    ctypes.string_at(0)
