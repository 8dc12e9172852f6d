"""The client's side of shared memory: which areas are reused, which are not, and what requests contain."""

from __future__ import annotations

import fcntl
import gc
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from descriptors import leaving_no_descriptor, open_descriptors
from growth import growth
from memfds import in_shared_memory

from multitower import ModelError, tensors, wire
from multitower.client import shared_memory
from multitower.client.codec import SHARED_BYTES, Codec, EncodedRequest, InferRequest
from multitower.client.requests import Requests
from multitower.client.shared_memory import Allocation, Arena
from multitower.infer_header import parse_infer_header

LARGE = SHARED_BYTES // 4  # of FP32


def allocated(arena: Arena, size: int = 100_000) -> Allocation:
    allocation = arena.allocate(size)
    assert allocation is not None
    return allocation


def where(allocation: Allocation) -> tuple[str, int]:
    return allocation.region.name, allocation.offset


# Areas.


def test_the_same_area_is_reused() -> None:
    arena = Arena()
    first = where(allocated(arena))
    assert where(allocated(arena)) == first, "it was given back at once"
    held = allocated(arena)
    assert where(held) == first
    assert where(allocated(arena)) != first


def test_an_area_is_held_while_any_view_of_it_exists() -> None:
    arena = Arena()
    allocation = allocated(arena)
    first = where(allocation)
    array = allocation.array(allocation.offset, (10, 10), np.dtype("<f4"), writeable=False)
    del allocation
    view = array[2:, 1:].T
    del array
    gc.collect()
    assert where(allocated(arena)) != first
    del view
    assert where(allocated(arena)) == first


def test_a_retired_area_is_not_reused_and_its_memory_is_released() -> None:
    arena = Arena()
    allocation = allocated(arena)
    first, region = where(allocation), allocation.region
    allocation.array(allocation.offset, (100_000,), np.dtype("u1"), writeable=True)[:] = 1
    descriptor = int(region.name.split("-")[2])
    assert os.fstat(descriptor).st_blocks * 512 >= 100_000
    allocation.retire()
    del allocation
    areas = [allocated(arena) for _ in range(100)]
    assert first not in map(where, areas)
    assert os.fstat(descriptor).st_blocks * 512 <= 4096


def test_a_region_of_retired_areas_is_released() -> None:
    arena = Arena()
    size = shared_memory.REGION_BYTES
    descriptors = set()
    for _ in range(50):
        allocation = allocated(arena, size)
        descriptors.add(int(allocation.region.name.split("-")[2]))
        allocation.retire()
    del allocation
    assert len(descriptors) < 4, "descriptors of released regions are closed"


def test_memory_is_bounded_and_unused_regions_are_released_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "MAX_BYTES", 3 * shared_memory.REGION_BYTES)
    arena = Arena()
    held = [arena.allocate(shared_memory.REGION_BYTES - 4096 * 4) for _ in range(3)]
    assert [allocation is None for allocation in held] == [False, False, True]
    small = arena.allocate(1000)
    assert small is not None
    assert arena.allocate(shared_memory.REGION_BYTES // 2) is None
    held.clear()
    assert arena.allocate(shared_memory.REGION_BYTES // 2) is not None
    kept = where(allocated(arena))
    assert arena.allocate(4 * shared_memory.REGION_BYTES) is None
    assert where(allocated(arena)) == kept, "nothing went for what can never be had"


def test_regions_that_a_burst_needed_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(shared_memory.time, "monotonic", lambda: now)
    before = open_descriptors()
    arena = Arena()
    held = [allocated(arena, 1 << 20) for _ in range(100)]
    burst = open_descriptors() - before
    assert len(burst) >= 2 * 4, "a descriptor of the segment, and its mapping's"
    first = where(held[0])
    held.clear()
    for _ in range(2 * int(shared_memory.UNUSED_S)):
        now += 1
        assert where(allocated(arena, 1 << 20))[0] == first[0], "what is used is kept"
    assert len(open_descriptors() - before) == 2


def test_areas_are_little_larger_than_requested() -> None:
    arena = Arena()
    for size in [1, 4096, 4097, 65536, 602_112, 1_204_224, 2**20, 2**20 + 1, 10_000_000]:
        allocation = allocated(arena, size)
        assert size <= allocation.region.area_bytes <= max(size * 1.25, 4096 + size), size
        assert allocation.region.area_bytes % 4096 == 0
        assert allocation.offset + allocation.region.area_bytes <= allocation.region.size


def test_a_region_follows_the_protocol() -> None:
    region = allocated(Arena()).region
    found = wire.REGION_NAME.fullmatch(region.name)
    assert found is not None
    pid, descriptor, nonce = found.groups()
    assert int(pid) == os.getpid()
    head = wire.REGION_MAGIC + nonce.encode()
    assert os.pread(int(descriptor), len(head), 0) == head
    assert not os.get_inheritable(int(descriptor))
    for size in (region.size - 1, region.size + 1):
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(int(descriptor), size)


def test_without_memfds_nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert Arena().allocate(1000) is None
    assert Arena().empty((1000,), np.float32) is None


def test_a_region_that_cannot_be_created_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with leaving_no_descriptor():
        assert Arena().allocate(1000) is None


def test_all_memory_is_released_with_the_last_array() -> None:
    with leaving_no_descriptor() as before:
        arena = Arena()
        array = arena.empty((1000, 100), np.float64)
        assert array is not None
        array[:] = 7
        row = array[5]
        del arena, array
        gc.collect()
        assert (row == 7).all()
        assert open_descriptors() - before
        del row
        gc.collect()
    assert not re.search("/memfd:multitower", Path("/proc/self/maps").read_text())


@pytest.mark.parametrize("dtype", ["?", "i1", "<u2", "<i8", "<f2", "<f4", "<f8", "<c8", "<c16"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_arrays_of_every_dtype_and_shape_can_be_allocated(dtype: str, shape: tuple[int, ...]) -> None:
    arena = Arena()
    array = arena.empty(shape, dtype)
    assert array is not None
    assert (array.dtype, array.shape, array.flags.writeable) == (np.dtype(dtype), shape, True)
    assert array.flags.aligned
    assert in_shared_memory(array)
    array[...] = 1
    assert (array == 1).all()


def test_bf16_arrays_can_be_allocated() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = Arena().empty((4,), ml_dtypes.bfloat16)
    assert array is not None
    array[:] = 1.5
    assert array.tolist() == [1.5] * 4
    assert tensors.datatype_of(array) == "BF16"


def test_empty_arrays_and_objects_are_not_in_shared_memory() -> None:
    assert Arena().empty((0, 3), np.float32) is None
    assert Arena().empty((3,), object) is None


@pytest.mark.parametrize("shape", [(-1, 3), (-2000, 3), (-1, -3)])
def test_an_array_with_a_negative_dimension_is_refused_as_numpy_refuses_it(shape: tuple[int, ...]) -> None:
    requests = Requests("ipc:///nowhere/socket", 1.0, 1.0, shared_memory=True)
    try:
        with pytest.raises(ValueError, match="negative dimensions are not allowed"):
            requests.empty(shape, np.float32)
    finally:
        requests.close()


def test_an_array_may_have_an_integer_of_numpys_as_its_shape() -> None:
    requests = Requests("ipc:///nowhere/socket", 1.0, 1.0, shared_memory=True)
    try:
        assert requests.empty(np.prod((2, 3)), np.float32).shape == (6,)
    finally:
        requests.close()


def test_threads_never_hold_the_same_area() -> None:
    arena = Arena()
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(300):
            allocation = allocated(arena, 70_000 + 4096 * (turn % 3))
            array = allocation.array(allocation.offset, (1000,), np.dtype("<i4"), writeable=True)
            array[:] = number
            del allocation
            if not (array == number).all():
                wrong.append(f"{number} found {np.unique(array)}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Requests and replies.


def encode(codec: Codec, arena: Arena | None, **inputs: Any) -> EncodedRequest:
    return codec.encode(InferRequest("m", inputs), 1.0, copy=True, arena=arena)


def content(area: wire.Area) -> bytes:
    """What a worker would read."""
    _, _, descriptor, _ = area.region.split("-")
    return os.pread(int(descriptor), area.size, area.offset)


def of_input(encoded: EncodedRequest, index: int = 0) -> wire.Area | None:
    return parse_infer_header(encoded.header).inputs[index].area


def reply(sent: EncodedRequest, *outputs: tuple[str, int], shared: bool = True) -> tuple[bytes, list[bytes]]:
    """The reply of a daemon that answers zeros, where they are wanted."""
    areas = parse_infer_header(sent.header).areas if shared else {}
    described = [wire.Tensor(name, "UINT8", (size,), areas.get(name)) for name, size in outputs]
    frames = [bytes(size) for name, size in outputs if name not in areas]
    return wire.reply_header("m", "1", described), frames


SOURCES = {
    "row-major": lambda: np.arange(LARGE, dtype=np.float32).reshape(4, -1),
    "column-major": lambda: np.asfortranarray(np.arange(LARGE, dtype=np.float32).reshape(4, -1)),
    "every other": lambda: np.arange(4 * LARGE, dtype=np.float32)[::2],
    "big-endian": lambda: np.arange(LARGE, dtype=">f4"),
    "booleans": lambda: np.arange(4 * LARGE) % 3 == 0,
    "complex": lambda: np.arange(LARGE) * 1j,
    "read-only": lambda: np.frombuffer(bytes(range(256)) * LARGE, np.float32),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_large_input_in_shared_memory_has_the_bytes_of_a_frame(source: str) -> None:
    array = SOURCES[source]()
    encoded = encode(Codec(), Arena(), x=array)
    area = of_input(encoded)
    assert area is not None
    assert encoded.frames == []
    assert content(area) == bytes(tensors.encode(array))


def test_small_inputs_and_bytes_are_sent_in_frames() -> None:
    inputs = {"a": np.arange(4), "x": np.zeros(LARGE, np.float32), "s": ["text" * LARGE], "b": np.arange(3)}
    encoded = encode(Codec(), Arena(), **inputs)
    header = parse_infer_header(encoded.header)
    assert [tensor.area is not None for tensor in header.inputs] == [False, True, False, False]
    assert [len(frame) for frame in encoded.frames] == [32, 4 * LARGE + 4, 24]
    assert encoded.without_shared_memory is not None
    plain = encode(Codec(), None, **inputs)
    assert encoded.without_shared_memory() == (plain.header, plain.frames)
    nearly = encode(Codec(), Arena(), x=np.zeros(LARGE - 1, np.float32))
    assert (nearly.allocation, len(nearly.frames)) == (None, 1)


def test_headers_repeat_byte_for_byte() -> None:
    codec, arena = Codec(), Arena()
    x = np.zeros(LARGE, np.float32)
    first = encode(codec, arena, x=x).header
    assert encode(codec, arena, x=x).header == first
    held = encode(codec, arena, x=x)
    assert encode(codec, arena, x=x).header != held.header


def test_an_array_in_shared_memory_is_not_copied() -> None:
    codec, arena = Codec(), Arena()
    array = arena.empty((4, LARGE), np.float32)
    assert array is not None
    array[:] = np.arange(4)[:, None]
    whole, row, column = (encode(codec, arena, x=part) for part in (array, array[2], array[:, 1:]))
    area, area_of_row = of_input(whole), of_input(row)
    assert area is not None
    assert area_of_row is not None
    assert (whole.allocation, row.allocation) == (None, None)
    assert area_of_row.offset == area.offset + 2 * 4 * LARGE
    assert content(area_of_row) == array[2].tobytes()
    # It is not contiguous.
    assert column.allocation is not None


def test_finding_arrays_takes_time_in_proportion_to_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "MAX_BYTES", 1 << 40)

    def prepare(count: int) -> Callable[[], object]:
        arena = Arena()
        arrays = [arena.empty((shared_memory.REGION_BYTES,), np.uint8) for _ in range(count)]  # one per region
        return lambda: [arena.locate(array) for array in arrays if array is not None]

    assert growth(prepare, 16, 256) < 2


def test_encoding_takes_time_in_proportion_to_the_number_of_inputs() -> None:
    def prepare(count: int) -> Callable[[], object]:
        codec, arena = Codec(), Arena()
        inputs = {f"input_{number}": np.zeros(4, np.float32) for number in range(count)}
        return lambda: encode(codec, arena, **inputs)

    assert growth(prepare, 64, 1024) < 2


def test_decoding_takes_time_in_proportion_to_the_number_of_outputs() -> None:
    def prepare(count: int) -> Callable[[], object]:
        header = wire.reply_header(
            "m", "1", [wire.Tensor(f"output_{number}", "UINT8", (1,)) for number in range(count)]
        )
        return lambda: Codec().decode(header, [b"0"] * count)

    assert growth(prepare, 64, 1024) < 2


def test_an_array_in_shared_memory_is_held_until_its_request_is_over() -> None:
    codec, arena = Codec(), Arena()
    array = arena.empty((LARGE,), np.float32)
    assert array is not None
    encoded = encode(codec, arena, x=array)
    area = of_input(encoded)
    del array
    gc.collect()
    assert area is not None
    other = allocated(arena, 4 * LARGE)
    assert where(other) != (area.region, area.offset)
    encoded.without_shared_memory = None  # as the connection does when the call has its outcome
    gc.collect()
    assert where(allocated(arena, 4 * LARGE)) == (area.region, area.offset)


def test_areas_for_outputs_are_allocated_once_their_sizes_are_known() -> None:
    codec, arena = Codec(), Arena()
    x = np.zeros(LARGE, np.float32)
    outputs = (("y", SHARED_BYTES), ("small", 10))
    first = encode(codec, arena, x=x)
    assert parse_infer_header(first.header).areas == {}
    assert not first.has_output_areas
    codec.decode(*reply(first, *outputs), first)
    second = encode(codec, arena, x=x)
    parsed = parse_infer_header(second.header)
    assert second.has_output_areas
    assert (parsed.outputs, list(parsed.areas)) == (None, ["y"])
    assert parsed.areas["y"].size == SHARED_BYTES
    found = codec.decode(*reply(second, *outputs), second)
    assert [in_shared_memory(array) for array in found.values()] == [True, False]
    assert not any(array.flags.writeable for array in found.values())
    # A small input may have a large output, and a later one a larger one.
    tiny = encode(codec, arena, x=x[:1])
    codec.decode(*reply(tiny, *outputs), tiny)
    larger = encode(codec, arena, x=x[:1])
    assert list(parse_infer_header(larger.header).areas) == ["y"]
    codec.decode(*reply(larger, ("y", 2 * SHARED_BYTES), shared=False), larger)
    again = parse_infer_header(encode(codec, arena, x=x[:1]).header)
    assert again.areas["y"].size == 2 * SHARED_BYTES


def test_requested_output_names_are_kept_with_areas() -> None:
    codec, arena = Codec(), Arena()
    for turn in range(2):
        sent = codec.encode(InferRequest("m", {"x": [1]}, ["b", "a"]), 1.0, copy=True, arena=arena)
        parsed = parse_infer_header(sent.header)
        assert parsed.outputs == ("b", "a")
        assert set(parsed.areas) == ({"a"} if turn else set())
        codec.decode(*reply(sent, ("b", 10), ("a", SHARED_BYTES)), sent)


def test_an_empty_list_of_outputs_asks_for_all_of_them() -> None:
    codec, arena = Codec(), Arena()
    for turn in range(2):
        sent = codec.encode(InferRequest("m", {"x": [1]}, []), 1.0, copy=True, arena=arena)
        parsed = parse_infer_header(sent.header)
        assert parsed.outputs is None
        assert (sent.allocation is not None, set(parsed.areas)) == ((True, {"a"}) if turn else (False, set()))
        outputs = codec.decode(*reply(sent, ("a", SHARED_BYTES)), sent)
        assert list(outputs) == ["a"]


def test_outputs_hold_their_area() -> None:
    codec, arena = Codec(), Arena()
    x = np.zeros(LARGE, np.float32)
    for _ in range(2):
        sent = encode(codec, arena, x=x)
        found = codec.decode(*reply(sent, ("y", SHARED_BYTES), ("z", SHARED_BYTES)), sent)
    header, kept = sent.header, found["z"]
    del sent, found
    gc.collect()
    assert encode(codec, arena, x=x).header != header
    del kept
    gc.collect()
    assert encode(codec, arena, x=x).header == header


def test_without_room_all_inputs_are_sent_in_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "MAX_BYTES", 0)
    x = np.zeros(LARGE, np.float32)
    encoded = encode(Codec(), Arena(), a=[1], x=x, b=[2])
    assert (encoded.header, encoded.frames) == (lambda e: (e.header, e.frames))(
        encode(Codec(), None, a=[1], x=x, b=[2])
    )
    assert encoded.without_shared_memory is None


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 0},
        {"offset": 1 << 40},
        {"size": SHARED_BYTES - 1},
        {"size": 1 << 40},
        {"region": "mt-1-1-" + "0" * 32},
    ],
)
def test_replies_outside_the_area_of_their_request_are_refused(change: dict[str, Any]) -> None:
    codec, arena = Codec(), Arena()
    first = encode(codec, arena, x=[1])
    codec.decode(*reply(first, ("y", SHARED_BYTES)), first)
    sent = encode(codec, arena, x=[1])
    area = parse_infer_header(sent.header).areas["y"]
    header = wire.reply_header("m", "1", [wire.Tensor("y", "UINT8", (SHARED_BYTES,), area._replace(**change))])
    for of in (sent, first, None):
        with pytest.raises(ModelError, match="cannot be read"):
            codec.decode(header, [], of)
