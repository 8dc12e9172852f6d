"""What a worker records while it loads, in memory that it shares with the supervisor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fake_workers import Scene, child
from loading_scene import WARM_UP

from multitower.load_step import STEP_BYTES, LoadStep, clear_step
from multitower.worker_wire import BEGUN_BYTES


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("test")
    os.truncate(descriptor, BEGUN_BYTES + STEP_BYTES)
    yield descriptor
    os.close(descriptor)


def test_the_last_step_is_read_until_it_is_cleared(memory: int) -> None:
    assert LoadStep.read(memory) is None
    for step in (LoadStep("m" * 128, "12", "s", 1000, 512), LoadStep("n", "1")):
        step.write(memory)
        assert LoadStep.read(memory) == step
    clear_step(memory)
    assert LoadStep.read(memory) is None


def test_a_long_signature_is_cut(memory: int) -> None:
    LoadStep("m" * 256, "1", "\u20ac" * 10_000, 1, 0).write(memory)
    step = LoadStep.read(memory)
    assert step is not None
    assert step.signature == "\u20ac" * 256


@pytest.mark.parametrize(
    "page", [b"", b"\x01", b"\x02\x00{}", b"\x02\x00[]", b"\x03\x00{\xff", b"\xff\xff" + b"x" * 4000, b'\x04\x00"xx"']
)
def test_memory_that_the_worker_has_spoilt_shows_no_step(memory: int, page: bytes) -> None:
    os.truncate(memory, BEGUN_BYTES)
    os.pwrite(memory, page, BEGUN_BYTES)
    assert LoadStep.read(memory) is None


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (LoadStep("m", "1"), "loading m version 1"),
        (LoadStep("m", "3", rows=1), "warming up m version 3 with 1 row"),
        (LoadStep("m", "3", "train", 8, 4), "warming up m version 3 (train) with 8 rows"),
    ],
)
def test_a_step_is_described_for_people(step: LoadStep, text: str) -> None:
    assert str(step) == text


def test_the_status_shows_what_a_worker_is_about_to_do() -> None:
    from multitower.supervisor.operations.status_slots import _step

    scene = Scene()
    process = scene.process()
    assert _step(process, scene.now) == {"step": None, "step_for_s": None}
    child(process).step = replace(WARM_UP, began_at=scene.now - 5.0)
    shown = {"step": "warming up m version 1 with 1000 rows", "step_for_s": 5.0}
    assert _step(process, scene.now) == shown
