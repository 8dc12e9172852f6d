"""Which cores each worker is bound to, as tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from multitower.supervisor.machine import cores

NODE_0, NODE_1 = range(4), range(4, 8)
BOTH = range(8)


@pytest.mark.parametrize(
    ("available", "near", "expected"),
    [
        # One node, or nothing known: equal runs; the remaining core is for the supervisor.
        (range(8), [None, None], [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (range(7), [None] * 3, [(0, 1), (2, 3), (4, 5)]),
        (range(8), [BOTH, None], [(0, 1, 2, 3), (4, 5, 6, 7)]),
        # Two nodes, whatever the order of the devices.
        (range(8), [NODE_0, NODE_1], [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (range(8), [NODE_1, NODE_0], [(4, 5, 6, 7), (0, 1, 2, 3)]),
        (range(8), [NODE_0, NODE_1, NODE_0, NODE_1], [(0, 1), (4, 5), (2, 3), (6, 7)]),
        (range(8), [NODE_0, NODE_0, NODE_0, NODE_1], [(0,), (1,), (2,), (4, 5, 6, 7)]),
        (range(8), [NODE_1, NODE_1], [(4, 5), (6, 7)]),  # no worker is near the other node
        # A device that is near all of them.
        (range(8), [NODE_0, BOTH, NODE_1], [(0, 1), (2, 3, 4, 5), (6, 7)]),
        # Numbered alternately, as on some machines.
        (range(8), [(0, 2, 4, 6), (1, 3, 5, 7), (0, 2, 4, 6)], [(0, 2), (1, 3, 5, 7), (4, 6)]),
        # A container has a part of each node, or only one node: any core is better than none.
        ((2, 3, 4, 5), [NODE_0, NODE_1], [(2, 3), (4, 5)]),
        ((2, 3), [NODE_0, NODE_1], [(2,), (3,)]),
        ((0, 1, 2, 3), [NODE_1], [(0, 1, 2, 3)]),
        # More workers than cores take turns, at their own node.
        ((4, 6), [None] * 5, [(4,), (6,), (4,), (6,), (4,)]),
        ((0, 4), [NODE_0, NODE_1, NODE_0, NODE_1, NODE_1], [(0,), (4,), (0,), (4,), (4,)]),
        # Threads of a core side by side stay together.
        ((0, 4, 1, 5, 2, 6, 3, 7), [None, None], [(0, 1, 4, 5), (2, 3, 6, 7)]),
    ],
)
def test_cores_are_divided_among_workers_near_them(
    available: Sequence[int], near: list[Collection[int] | None], expected: list[tuple[int, ...]]
) -> None:
    assert list(cores.divide_cores(available, [[device] for device in near])) == expected


@pytest.mark.parametrize(
    ("near", "expected"),
    [
        ([[NODE_0, NODE_1]], [tuple(range(8))]),
        ([[NODE_0, NODE_1], [NODE_1, NODE_0]], [(0, 1, 4, 5), (2, 3, 6, 7)]),  # each has its part of both
        ([[NODE_0, NODE_1], [NODE_0], [NODE_1]], [(0, 1, 4, 5), (2, 3), (6, 7)]),
        ([[NODE_0, NODE_0], [NODE_1, NODE_1]], [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ([[NODE_0, None], [NODE_1]], [(0, 1, 2, 3, 4, 5), (6, 7)]),  # a device without known cores may be near any
    ],
)
def test_a_worker_with_devices_at_two_nodes_gets_cores_of_both(
    near: list[list[Collection[int] | None]], expected: list[tuple[int, ...]]
) -> None:
    assert list(cores.divide_cores(range(8), near)) == expected


def test_threads_of_the_same_core_are_next_to_each_other(tmp_path: Path) -> None:
    for core in range(8):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{core % 4},{core % 4 + 4}\n")
    assert cores.sort_by_physical_core((0, 1, 2, 4, 5, 6, 9), tmp_path) == (0, 4, 1, 5, 2, 6, 9)


@pytest.mark.parametrize(
    ("text", "numbers"), [("", []), ("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("0-1,3-4,6", [0, 1, 3, 4, 6])]
)
def test_core_lists_have_the_format_of_the_kernel(text: str, numbers: list[int]) -> None:
    assert cores.parse_core_list(f"{text}\n") == numbers
    assert cores.format_core_list(reversed(numbers)) == text


@pytest.mark.parametrize("content", [b"\xff\xfe", b"0-x", b"\0", b""])
def test_unreadable_topology_of_a_core_is_ignored(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "cpu1" / "topology"
    folder.mkdir(parents=True)
    (folder / "thread_siblings_list").write_bytes(content)
    assert cores.sort_by_physical_core({0, 1}, tmp_path) == (0, 1)
