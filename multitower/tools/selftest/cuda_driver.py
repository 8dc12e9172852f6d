"""The few calls of NVIDIA's libcuda that the probe needs, through ctypes: no CUDA toolkit and no other package.

https://docs.nvidia.com/cuda/cuda-driver-api/ describes each function. cuInit reads CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import ctypes
import uuid
from typing import Final

LIBRARY: Final = "libcuda.so.1"

_OUT_OF_MEMORY: Final = 2
_PATTERN: Final = 0xA5
_UUID_BYTES: Final = 16

_Uuid: Final = ctypes.c_ubyte * _UUID_BYTES


class CudaError(Exception):
    """A call of the driver failed; the message has the function and the driver's name of the error."""


class OutOfMemoryError(CudaError):
    """The device does not have the memory. Workers recognize exhausted memory by the name of this class."""


class Driver:
    """The driver of this process, initialised.

    Raises:
        CudaError: the library cannot be loaded or initialised.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise CudaError(f"{LIBRARY} cannot be loaded: {error}") from error
        self.call("cuInit", ctypes.c_uint(0))

    @property
    def knows_slices(self) -> bool:
        """Whether the driver tells the UUID of a MIG slice, as it does from R470 on."""
        return hasattr(self._library, "cuDeviceGetUuid_v2")

    def devices(self) -> tuple[CudaDevice, ...]:
        """All devices that this process sees, in the order of the driver."""
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        return tuple(CudaDevice(self, number) for number in range(count.value))

    def call(self, function: str, *arguments: object) -> None:
        """Calls a function of the driver.

        Raises:
            OutOfMemoryError: it found too little memory.
            CudaError: it failed for another reason.
        """
        error = getattr(self._library, function)(*arguments)
        if error:
            kind = OutOfMemoryError if error == _OUT_OF_MEMORY else CudaError
            raise kind(f"{function}: {self._name_of(error)} (error {error})")

    def _name_of(self, error: int) -> str:
        name = ctypes.c_char_p()
        self._library.cuGetErrorName(error, ctypes.byref(name))
        return name.value.decode() if name.value else "an error that the driver has no name for"


class CudaDevice:
    """A device with a context of this process, which takes some hundred MiB of its memory.

    Args:
        driver: the driver.
        number: the device's number in this process.

    Attributes:
        uuid: the device's UUID without a prefix such as `GPU-`; of a MIG slice its own, if the driver tells it.
        total_bytes: the device's memory.
    """

    def __init__(self, driver: Driver, number: int) -> None:
        self._driver = driver
        device = ctypes.c_int()
        driver.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        octets = _Uuid()
        driver.call("cuDeviceGetUuid_v2" if driver.knows_slices else "cuDeviceGetUuid", ctypes.byref(octets), device)
        self.uuid = str(uuid.UUID(bytes=bytes(octets)))
        total = ctypes.c_size_t()
        driver.call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
        self.total_bytes = total.value
        self._context = ctypes.c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def reserve(self, size: int) -> int:
        """Allocates memory without touching it, and returns its address.

        Raises:
            OutOfMemoryError: the device does not have the memory.
            CudaError: another error.
        """
        self._driver.call("cuCtxSetCurrent", self._context)
        address = ctypes.c_uint64()
        self._driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def allocate(self, size: int) -> int:
        """Allocates memory, writes to all of it and reads the last byte back; returns its address.

        Raises:
            OutOfMemoryError: the device does not have the memory.
            CudaError: another error, or the byte read differs from the one written.
        """
        address = self.reserve(size)
        try:
            self._write(address, size)
        except BaseException:
            self.free(address)
            raise
        return address

    def _write(self, address: int, size: int) -> None:
        last = ctypes.c_ubyte()
        self._driver.call("cuMemsetD8_v2", ctypes.c_uint64(address), ctypes.c_ubyte(_PATTERN), ctypes.c_size_t(size))
        end = ctypes.c_uint64(address + size - 1)
        self._driver.call("cuMemcpyDtoH_v2", ctypes.byref(last), end, ctypes.c_size_t(1))
        if last.value != _PATTERN:
            raise CudaError(f"device memory holds {last.value} where {_PATTERN} was written")

    def free(self, address: int) -> None:
        """Frees memory that `allocate` or `reserve` returned."""
        self._driver.call("cuCtxSetCurrent", self._context)
        self._driver.call("cuMemFree_v2", ctypes.c_uint64(address))
