"""A worker's side of shared memory: inputs are read into the batch's arrays, outputs written to their areas."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from descriptors import leaving_no_descriptor
from memfds import region

from multitower import wire
from multitower.buffers import Buffers
from multitower.worker.shared_memory.mappings import Mappings
from multitower.worker.shared_memory.regions import OutputWriter, Regions, SharedInputs
from multitower.worker_wire import KeySpec, Table, WorkerArea

KEY = KeySpec("m", (("x", "INT16", (2,)), ("n", "UINT8", ())), None, True)


def numbers(*values: int) -> bytes:
    return np.array(values, "<i2").tobytes()


@contextmanager
def area(entry: int, tensor: int | str, content: bytes, size: int | None = None) -> Iterator[tuple[WorkerArea, int]]:
    """An area in a region of this process, and the region's descriptor."""
    with region(content) as (name, descriptor):
        status = os.fstat(descriptor)
        size = len(content) if size is None else size
        yield WorkerArea(entry, tensor, name, descriptor, status.st_dev, status.st_ino, 4096, size), descriptor


def read(
    rows: list[int],
    inputs: list[WorkerArea],
    frames: list[bytes],
    key: KeySpec = KEY,
    padded: Callable[[int], int] = lambda rows: rows,
) -> SharedInputs:
    with leaving_no_descriptor(), Regions(os.getpid(), Mappings()) as regions:
        return SharedInputs(key, rows, Table(inputs, []), frames, regions, Buffers(64 << 20), padded)


def test_entries_in_frames_and_in_shared_memory_are_joined() -> None:
    with area(1, 0, numbers(5, 6, 7, 8)) as (x, _), area(2, 1, b"\3") as (n, _):
        made = read([1, 2, 1], [x, n], [numbers(1, 2), b"\0", b"\1\2", numbers(9, 10)])
    assert made.joined
    assert [bytes(frame) for frame in made.frames] == [numbers(1, 2, 5, 6, 7, 8, 9, 10), b"\0\1\2\3"]
    assert (made.rows, made.errors) == ([1, 2, 1], {})


def test_joined_inputs_are_padded() -> None:
    with area(1, 0, numbers(5, 6, 7, 8)) as (x, _):
        sizes = (lambda rows: 6, lambda rows: 3)
        frames = [numbers(1, 2), b"\0", b"\1\2"]
        made = read([1, 2], [x], frames, padded=sizes[0])
        assert made.rows == [1, 2]
        assert [bytes(frame) for frame in made.frames] == [numbers(1, 2, 5, 6, *[7, 8] * 4), b"\0\1" + b"\2" * 4]
        gone = x._replace(inode=0)
        made = read([1, 2], [gone], frames, padded=sizes[1])
        assert made.rows == [1], "the last row that could be read is repeated"
        assert [bytes(frame) for frame in made.frames] == [numbers(1, 2, 1, 2, 1, 2), b"\0\0\0"]


def test_a_missing_region_fails_its_own_entry_only() -> None:
    with area(1, 0, numbers(5, 6)) as (x, _):
        gone = [x._replace(inode=x.inode + 1), x._replace(descriptor=999_999), x._replace(offset=1 << 16)]
        for bad in gone:
            made = read([1, 1, 1], [bad], [numbers(1, 2), b"\0", b"\1", numbers(3, 4), b"\2"])
            assert made.rows == [1, 1]
            assert [bytes(frame) for frame in made.frames] == [numbers(1, 2, 3, 4), b"\0\2"]
            assert list(made.errors) == [1]
            # This tells the client that the request has not run, and to send it again in frames.
            assert made.errors[1].reason == "malformed"
            assert made.errors[1].details["field"].endswith("shared_memory_region")


def test_an_unbatched_entry_is_read_into_its_own_frames() -> None:
    key = KeySpec("m", (("x", "INT16", (1, 2)), ("n", "BYTES", (1,))), None, False)
    with area(0, 0, numbers(5, 6)) as (x, _):
        made = read([1], [x], [b"\1\0\0\0a"], key)
        assert (made.joined, made.rows) == (False, [1])
        assert [bytes(frame) for frame in made.frames] == [numbers(5, 6), b"\1\0\0\0a"]
        assert list(read([1], [x._replace(inode=0)], [b"\0\0\0\0"], key).errors) == [0]


def test_entries_with_bytes_are_not_joined() -> None:
    key = KeySpec("m", (("x", "INT16", (2,)), ("n", "BYTES", ())), None, True)
    with area(1, 0, numbers(5, 6)) as (x, _):
        made = read([1, 1], [x], [numbers(1, 2), b"\1\0\0\0a", b"\1\0\0\0b"], key)
    assert not made.joined
    assert [bytes(f) for f in made.frames] == [numbers(1, 2), b"\1\0\0\0a", numbers(5, 6), b"\1\0\0\0b"]


def test_missing_memory_is_answered_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> memoryview:
        raise MemoryError

    monkeypatch.setattr(Buffers, "allocate", refuse)
    single = KeySpec("m", KEY.inputs, None, False)
    with area(0, 0, numbers(5, 6)) as (x, _):
        for key, rows, frames in ((KEY, [1, 1], [b"\0", numbers(1, 2), b"\1"]), (single, [1], [b"\0"])):
            made = read(rows, [x], frames, key)
            assert made.rows == []
            assert [error.reason for error in made.errors.values()] == ["model_error"] * len(rows)


# Outputs.

REPLY = wire.reply_header("m", "1", [wire.Tensor("y", "INT16", (2,)), wire.Tensor("s", "BYTES", (1,))])
ANSWER = [REPLY, numbers(1, 2), b"\1\0\0\0a"]


def write(outputs: OutputWriter, areas: dict[str, WorkerArea]) -> list[bytes]:
    with Regions(os.getpid(), Mappings()) as regions:
        return outputs.write(list(ANSWER), areas, regions)


def test_an_output_is_written_to_its_area_and_the_header_says_so() -> None:
    outputs = OutputWriter()
    with area(0, "y", bytes(10)) as (y, descriptor):
        for _ in range(2):
            header, *frames = write(outputs, {"y": y})
            assert frames == [b"\1\0\0\0a"]
            told = json.loads(header)["outputs"]
            assert told[0]["parameters"] == dict(zip(wire.SHARED_MEMORY_KEYS, (y.region, 4096, 4), strict=True))
            assert "parameters" not in told[1]
            assert os.pread(descriptor, 10, 4096) == numbers(1, 2) + bytes(6)
        other = y._replace(offset=8192)
        assert json.loads(write(outputs, {"y": other})[0])["outputs"][0]["parameters"]["shared_memory_offset"] == 8192


@pytest.mark.parametrize("change", [{"size": 3}, {"inode": 0}, {"descriptor": 999_999}])
def test_an_output_that_cannot_be_written_stays_a_frame(change: dict[str, int]) -> None:
    with area(0, "y", bytes(10)) as (y, descriptor):
        answer = write(OutputWriter(), {"y": y._replace(**change)})
        assert answer[1:] == ANSWER[1:]
        assert json.loads(answer[0]) == json.loads(REPLY)
        assert os.pread(descriptor, 10, 4096) == bytes(10)


def test_bytes_and_unknown_outputs_stay_frames() -> None:
    with area(0, "s", bytes(100)) as (s, _):
        assert write(OutputWriter(), {"s": s, "z": s}) == ANSWER
