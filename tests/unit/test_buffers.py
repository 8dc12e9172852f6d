"""Memory for large tensors is used again, and never while a view of it exists."""

from __future__ import annotations

import gc
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from multitower.buffers import Buffers


def address(view: memoryview) -> int:
    found: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return found


def test_a_buffer_is_used_again_also_for_nearly_equal_sizes() -> None:
    made = Buffers(64 << 20)
    first = address(made.allocate(602_112))
    assert address(made.allocate(602_112)) == first
    assert address(made.allocate(590_000)) == first
    assert address(made.allocate(6_000_000)) != first
    assert [len(made.allocate(size)) for size in (0, 1, 5000, 602_112)] == [0, 1, 5000, 602_112]


def test_a_buffer_is_not_used_again_while_a_view_of_it_exists() -> None:
    made = Buffers(64 << 20)
    view = made.allocate(100_000)
    array = np.frombuffer(view, np.float32).reshape(100, 250)[10:20]
    array[:] = 7
    frame = array.reshape(-1).view(np.uint8).data
    first = address(view)
    for kept in (view, array, frame):
        assert len(kept)
    del view, kept
    for _ in range(2):
        other = made.allocate(100_000)
        assert address(other) != first
        other[:] = bytes(100_000)
    del array
    assert bytes(frame[:4]) == np.float32(7).tobytes()
    del frame
    gc.collect()
    del other
    assert first in [address(view) for view in [made.allocate(100_000) for _ in range(3)]]


def test_free_buffers_are_bounded() -> None:
    made = Buffers(1 << 20)
    views = [made.allocate(100_000) for _ in range(50)]
    assert len({address(view) for view in views}) == 50
    del views
    made.allocate(1)
    assert 0 < made.free_bytes <= 1 << 20
    views = [made.allocate(200_000) for _ in range(50)]
    made.allocate(2 << 20)
    del views
    made.allocate(1)
    assert 0 < made.free_bytes <= 1 << 20


def test_two_threads_never_get_the_same_buffer() -> None:
    made = Buffers(64 << 20)

    def work(number: int) -> int:
        for _ in range(5000):
            view = made.allocate(4096)
            view[:8] = struct.pack("<Q", number)
            assert struct.unpack_from("<Q", view) == (number,)
        return number

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(work, range(3))) == [0, 1, 2]
    finally:
        sys.setswitchinterval(interval)
    made.allocate(4096)
    assert 0 <= made.free_bytes <= 6 * 4096  # each thread had one buffer while it allocated the next
