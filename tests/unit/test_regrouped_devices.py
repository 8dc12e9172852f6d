"""Slots that share devices, as where a reload groups devices differently: which waits for which."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_workers import LARGEST, Scene, child, placement
from serving_scene import serving

from multitower.supervisor.workers.slot_state_machine import State


def on(scene: Scene, **devices: str) -> None:
    """Gives slots other devices than the scene has: `slot_0="GPU-a,GPU-b"`."""
    for name, names in devices.items():
        slot = scene.slot(int(name.removeprefix("slot_")))
        slot.placement = replace(slot.placement, devices=tuple(names.split(",")))


def group(scene: Scene, slot: int, devices: str) -> None:
    scene.manager.add_slot(replace(placement(slot), devices=tuple(devices.split(","))))
    scene.tick()


def test_a_group_starts_when_its_last_gpu_is_free_and_requests_wait_for_it() -> None:
    scene = serving(2)
    on(scene, slot_0="GPU-a", slot_1="GPU-b")
    first, second = scene.process(0), scene.process(1)
    group(scene, 2, "GPU-a,GPU-b")
    assert (scene.state(2), scene.slot(2).process) == (State.STARTING, None)
    for _ in range(4):
        scene.submit(LARGEST)  # more than both can have at once
    outcomes = [scene.order(slot, remove=True) for slot in range(2)]
    scene.answer(first)
    assert child(first).told_to_end, "requests can wait for the group"
    scene.let_processes_end()
    assert (outcomes, scene.slot(2).process) == ([[None], []], None)
    scene.answer(second)
    scene.let_processes_end()
    assert outcomes == [[None], [None]]
    new = scene.process(2)
    assert len(scene.replies()) == 2
    scene.submit()
    assert scene.replies() == [], "no request is refused"
    scene.serve(new)
    scene.settle()
    assert len(scene.replies()) == 3
    assert scene.alive() == [new]


def test_the_last_old_worker_serves_until_a_group_that_loads_is_ready() -> None:
    scene = serving(3)
    on(scene, slot_0="GPU-a,GPU-b", slot_1="GPU-c", slot_2="GPU-d")
    group(scene, 3, "GPU-a")
    group(scene, 4, "GPU-d,GPU-c")
    for slot in range(2):
        scene.order(slot, remove=True)
        scene.let_processes_end()
    begun = scene.process(3)
    for _ in range(3):
        scene.submit(LARGEST)
    outcomes = scene.order(2, remove=True)
    scene.answer(scene.process(2))
    assert not child(scene.process(2)).told_to_end, "requests wait that only it can answer now"
    scene.serve(begun)
    scene.answer(scene.process(2))
    scene.settle()
    assert (outcomes, len(scene.replies()), len(scene.alive())) == ([None], 3, 2)


@pytest.mark.parametrize("remove", [True, False])
def test_a_slot_that_waits_for_devices_can_be_removed_or_restarted(remove: bool) -> None:
    scene = serving(1)
    on(scene, slot_0="GPU-a")
    group(scene, 1, "GPU-a,GPU-b")
    outcomes = scene.order(1, remove=remove)
    assert outcomes == [None]
    assert [slot.number for slot in scene.manager.slots] == ([0] if remove else [0, 1])
    if not remove:
        assert scene.slot(1).process is None
        scene.order(0, remove=True)
        scene.settle()
        assert (len(scene.launched), scene.state(1)) == (2, State.READY)


def test_a_slot_that_waits_for_devices_can_lose_its_models() -> None:
    scene = serving(1)
    on(scene, slot_0="GPU-a")
    group(scene, 1, "GPU-a,GPU-b")
    assert scene.order(1, specs=()) == [None]
    scene.order(0, remove=True)
    scene.settle()
    assert (scene.state(1), len(scene.launched)) == (State.STOPPED, 1)


def test_a_slot_to_be_removed_serves_although_its_relief_has_no_process_yet() -> None:
    scene = serving()
    old = scene.process()
    scene.manager.add_slot(placement(1))
    outcomes = scene.order(0, remove=True)  # as a reload orders it, before the next tick
    scene.tick()
    new = scene.process(1)
    assert (scene.state(), child(old).told_to_end, outcomes) == (State.READY, False, [])
    scene.serve(new)
    scene.settle()
    assert (outcomes, scene.alive()) == ([None], [new])


@pytest.mark.parametrize("loads", [True, False])
def test_a_slot_to_be_removed_serves_until_its_relief_is_ready_or_has_failed(loads: bool) -> None:
    scene = serving(1)
    old = scene.process()
    scene.manager.add_slot(placement(1))
    scene.tick()
    new = scene.process(1)
    outcomes = scene.order(0, remove=True)
    assert not child(old).told_to_end
    scene.submit()
    scene.answer(old)
    assert (outcomes, len(scene.replies())) == ([], 1)
    if loads:
        scene.serve(new)
    else:
        scene.report(new, "loading")
        scene.report(new, "failed", "no weights")
        scene.tick()
    assert child(old).told_to_end
    scene.settle()
    assert outcomes == [None]


def test_equal_groups_and_cpu_devices_do_not_block_each_other() -> None:
    scene = serving(2)
    on(scene, slot_0="GPU-a,GPU-b", slot_1="cpu:0")
    group(scene, 2, "GPU-a,GPU-b")
    group(scene, 3, "cpu:0,cpu:1")
    assert None not in (scene.slot(2).process, scene.slot(3).process)
