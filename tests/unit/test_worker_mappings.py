"""Mappings of clients' memory: areas that are used again cost no system call, and no client can do harm."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from memfds import NONCE, region

from multitower import wire
from multitower.worker.shared_memory import mappings as under_test
from multitower.worker.shared_memory.mappings import MAX_MAPPINGS, Mappings
from multitower.worker.shared_memory.regions import Regions
from multitower.worker_wire import WorkerArea

F_ADD_SEALS, F_SEAL_WRITE = 1033, 8
KEEP_SIZE, PUNCH_HOLE = 1, 2  # of fallocate(2)
CONTENT = b"ab" * 3000


@contextmanager
def area(content: bytes = CONTENT, *, size: int | None = None, sealed: bool = True) -> Iterator[tuple[WorkerArea, int]]:
    with region(content, sealed=sealed) as (name, descriptor):
        status = os.fstat(descriptor)
        size = len(content) if size is None else size
        yield WorkerArea(0, 0, name, descriptor, status.st_dev, status.st_ino, 4096, size), descriptor


def read(mappings: Mappings, where: WorkerArea) -> bytes:
    buffer = bytearray(where.size)
    with Regions(os.getpid(), mappings) as regions:
        regions.read(where, memoryview(buffer))
    return bytes(buffer)


def write(mappings: Mappings, where: WorkerArea, data: bytes) -> None:
    with Regions(os.getpid(), mappings) as regions:
        regions.write(where, memoryview(data))


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:test")


def test_an_area_is_found_from_the_third_use_on() -> None:
    mappings = Mappings()
    with area() as (where, descriptor):
        for turn in range(4):
            assert (mappings.find(where) is not None) == (turn >= 2), turn
            assert read(mappings, where) == CONTENT
        os.pwrite(descriptor, b"new", 4096)
        assert read(mappings, where)[:5] == b"newba"
        # The supervisor may have closed the unused region meanwhile; the memory is still the same.
        gone = where._replace(descriptor=999_999)
        assert read(mappings, gone)[:5] == b"newba"
        write(mappings, gone, b"written")
        assert os.pread(descriptor, 9, 4096) == b"writtenba"
        assert mapped() == 1
    del mappings
    assert mapped() == 0


def test_an_area_within_a_known_one_is_found() -> None:
    """Requests of varying sizes use the same memory."""
    mappings = Mappings()
    with area() as (where, _):
        for _ in range(2):
            read(mappings, where)
        for offset, size in ((4096, 1), (5000, 5096), (10_096 - 1, 1), (4096, 8192), (8192, 4096)):
            within = where._replace(offset=offset, size=size)
            assert mappings.find(within) is not None
            assert read(mappings, within) == (bytes(4096) + CONTENT + bytes(4096))[offset : offset + size]
        for offset, size in ((4095, 2), (4096, 8193), (12_288, 1), (60_000, 10_000)):
            assert mappings.find(where._replace(offset=offset, size=size)) is None


def test_an_area_of_another_region_is_not_found() -> None:
    mappings = Mappings()
    with area() as (where, _):
        for _ in range(3):
            read(mappings, where)
        assert mappings.find(where) is not None
        for other in (
            where._replace(region=where.region.replace(NONCE, NONCE[::-1])),
            where._replace(inode=where.inode + 1),
            where._replace(device=where.device + 1),
            where._replace(offset=8192),
            where._replace(offset=0),
        ):
            assert mappings.find(other) is None


def test_an_area_that_was_never_filled_is_not_found() -> None:
    """Reading it through a mapping would allocate as much memory as the client likes."""
    mappings = Mappings()
    with area(size=20_000) as (where, descriptor):
        blocks = os.fstat(descriptor).st_blocks
        for _ in range(4):
            assert read(mappings, where) == CONTENT + bytes(14_000)
        assert mappings.find(where) is None
        assert os.fstat(descriptor).st_blocks == blocks


def test_outputs_are_found_once_they_have_been_written() -> None:
    mappings = Mappings()
    with area(b"", size=20_000) as (where, descriptor):
        for turn in range(4):
            data = bytes([turn]) * 20_000
            write(mappings, where, data)
            assert os.pread(descriptor, 20_001, 4096) == data + b"\0"
        assert mappings.find(where) is not None


def test_memory_that_a_client_frees_reads_as_zeros() -> None:
    mappings = Mappings()
    with area() as (where, descriptor):
        for _ in range(3):
            read(mappings, where)
        libc = ctypes.CDLL(None, use_errno=True)
        span = ctypes.c_int64(4096), ctypes.c_int64(8192)
        assert libc.fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, *span) == 0
        assert read(mappings, where) == bytes(len(CONTENT))
        write(mappings, where, CONTENT)
        assert os.pread(descriptor, len(CONTENT), 4096) == CONTENT


@pytest.mark.parametrize("why", ["may shrink", "must not be written"])
def test_a_file_that_is_unsafe_to_map_is_read_through_its_descriptor(why: str) -> None:
    mappings = Mappings()
    with area(sealed=why != "may shrink") as (where, descriptor):
        if why == "must not be written":
            fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_WRITE)
        for _ in range(4):
            assert read(mappings, where) == CONTENT
        assert mapped() == 0
        if why == "may shrink":
            os.ftruncate(descriptor, 4096)
            with pytest.raises(OSError, match="ends at byte 4096"):
                read(mappings, where)


def test_a_file_that_has_grown_is_read_through_its_descriptor() -> None:
    mappings = Mappings()
    with area() as (where, descriptor):
        for _ in range(3):
            read(mappings, where)
        os.pwrite(descriptor, b"x" * 4096, 1 << 16)
        behind = where._replace(offset=1 << 16, size=4096)
        for _ in range(3):
            assert read(mappings, behind) == b"x" * 4096
        assert mappings.find(behind) is None


def test_unused_mappings_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(under_test.time, "monotonic", lambda: now)
    mappings = Mappings()
    with area() as (where, _):
        for _ in range(3):
            read(mappings, where)
        for _ in range(5):
            now += under_test.UNUSED_S / 2
            mappings.drop_unused()
            assert read(mappings, where) == CONTENT
            assert mappings.find(where) is not None
        now += under_test.UNUSED_S
        mappings.drop_unused()
        assert mapped() == 0
        assert read(mappings, where) == CONTENT


def test_the_number_of_mappings_is_bounded() -> None:
    mappings = Mappings()
    opened = []
    try:
        for number in range(3 * MAX_MAPPINGS):
            descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
            opened.append(descriptor)
            os.ftruncate(descriptor, 8192)
            os.pwrite(descriptor, wire.REGION_MAGIC, 4096)
            fcntl.fcntl(descriptor, F_ADD_SEALS, 2)
            status = os.fstat(descriptor)
            where = WorkerArea(0, 0, f"mt-1-{number}-x", descriptor, status.st_dev, status.st_ino, 4096, 1)
            for _ in range(3):
                read(mappings, where)
            assert mappings.find(where) is not None
            assert mapped() <= MAX_MAPPINGS
    finally:
        for descriptor in opened:
            os.close(descriptor)
