"""Devices that are waited for, and what follows once they have come: processes that are made up."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from waiting_daemon import Clock, Daemon, attempts, gpu

from multitower.supervisor import settings as settings_module
from multitower.supervisor.machine.core_claims import CoreClaims
from multitower.supervisor.machine.devices import Device, DeviceError, Discovery
from multitower.supervisor.operations.presence_watch import PresenceWatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def test_devices_that_are_missing_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus: list[Device] = []
    monkeypatch.setattr(settings_module, "discover", lambda: Discovery(tuple(gpus), "the driver is not loaded"))
    daemon = Daemon(tmp_path, devices="all", path="later.keras")
    daemon.look()
    assert ("devices", "devices") in daemon.waiting()
    assert ("model", "here") in daemon.waiting()
    refusal = daemon.refusal("here")
    assert "its devices are missing: devices: all finds no GPU: the driver is not loaded" in refusal
    assert refusal.endswith("To serve on the CPU, write devices: {cpu: 1}.")
    assert daemon.manager.slots == []
    gpus.append(gpu(0))
    daemon.look()
    assert daemon.waiting() == [("model", "later")]
    assert daemon.serves() == ["here"]
    (tmp_path / "later.keras").write_bytes(b"keras")
    daemon.look()
    assert (daemon.waiting(), daemon.serves()) == ([], ["here", "later"])


def test_the_gpus_that_are_there_serve_while_another_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = [gpu(0)]
    monkeypatch.setattr(settings_module, "discover", lambda: Discovery(tuple(gpus)))
    (tmp_path / "later.keras").write_bytes(b"keras")
    daemon = Daemon(tmp_path, devices="[0, 1]", path="later.keras", on=", devices: [0, 1]", more=", devices: [1]")
    daemon.look()
    assert daemon.serves() == ["here"]
    assert daemon.waiting() == [("devices", "devices"), ("model", "later")]
    assert "devices: 1 is not the index of a GPU here" in daemon.settings.waiting[0].cause
    gpus.append(gpu(1))
    daemon.look()
    assert (daemon.waiting(), daemon.serves()) == ([], ["here", "later"])
    assert [slot.placement.devices for slot in daemon.manager.slots] == [("GPU-0",), ("GPU-1",)]


def test_devices_that_can_never_be_used_so_are_no_reason_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_module, "discover", lambda: Discovery((gpu(0),)))
    with pytest.raises(DeviceError, match="is the same device as"):
        Daemon(tmp_path, devices="[0, GPU-0, 7]")


@pytest.fixture
def late_gpu(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    """GPU 0 is there; what a test appends comes."""
    gpus = [gpu(0)]
    monkeypatch.setattr(settings_module, "discover", lambda: Discovery(tuple(gpus)))
    return gpus


def test_no_worker_is_replaced_while_no_device_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_gpu: list[Device]
) -> None:
    (tmp_path / "later.keras").write_bytes(b"keras")
    daemon = Daemon(tmp_path, devices="[0, 1]", path="later.keras", on=", devices: [0, 1]", more=", devices: [1]")
    launched = len(daemon.scene.launched)
    place = settings_module.place_workers_on

    def place_with_fewer_threads(*arguments: Any, **options: Any) -> Any:
        placements = place(*arguments, **options)
        return tuple(dataclasses.replace(placement, intra_op_threads=77) for placement in placements)

    # As after a change of the quota, or the end of another daemon.
    monkeypatch.setattr(settings_module, "place_workers_on", place_with_fewer_threads)
    daemon.look()
    assert len(daemon.scene.launched) == launched
    late_gpu.append(gpu(1))
    daemon.look()
    assert daemon.serves() == ["here", "later"]
    assert {slot.placement.intra_op_threads for slot in daemon.manager.slots} == {77}


def test_looking_for_devices_claims_no_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_gpu: list[Device]
) -> None:
    daemon = Daemon(tmp_path, devices="[0, 1]", on=", devices: [0, 1]", more=", devices: [1]")
    claimed: list[object] = []
    monkeypatch.setattr(CoreClaims, "claim", lambda _, cores: claimed.append(cores))
    daemon.operations.presence_watch = PresenceWatch(
        dataclasses.replace(daemon.operations.context, claims=CoreClaims())
    )
    daemon.look(5)
    assert claimed == []
    late_gpu.append(gpu(1))
    daemon.look()
    assert len(claimed) == 1


def test_devices_that_cannot_be_used_yet_are_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_gpu: list[Device], caplog: pytest.LogCaptureFixture
) -> None:
    daemon = Daemon(tmp_path, devices="[0, 1]", on=", devices: [0, 1]")

    def refuse(*_: object, **__: object) -> None:
        raise DeviceError("memory: too little")

    monkeypatch.setattr(settings_module, "place_workers_on", refuse)
    with caplog.at_level(logging.WARNING):
        daemon.look(5)
    assert [record.message for record in caplog.records].count("devices that are available now cannot be used yet") == 1


def test_devices_that_are_gone_again_when_they_are_to_be_served_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_gpu: list[Device], caplog: pytest.LogCaptureFixture
) -> None:
    daemon = Daemon(tmp_path, devices="[0, 1]", on=", devices: [0, 1]")
    daemon.look()
    late_gpu.append(gpu(1))
    answers = itertools.cycle([True, False])

    def discover_each_other_time() -> Discovery:
        if not next(answers):
            raise DeviceError("the driver does not answer")
        return Discovery(tuple(late_gpu))

    monkeypatch.setattr(settings_module, "discover", discover_each_other_time)
    with caplog.at_level(logging.WARNING):
        daemon.look(5)
    assert not daemon.operations.queue.busy
    assert [record.message for record in caplog.records].count("devices that are available now cannot be used yet") == 1
    monkeypatch.setattr(settings_module, "discover", lambda: Discovery(tuple(late_gpu)))
    daemon.look()
    assert daemon.serves() == ["here"]
    assert len(daemon.manager.slots) == 2


def test_devices_that_cannot_be_served_are_tried_again_with_a_back_off(
    tmp_path: Path, late_gpu: list[Device], clock: Clock
) -> None:
    # The present worker is replaced when the GPU comes, and cannot be.
    daemon = Daemon(tmp_path, devices="[0, 1]", on=", devices: [0, 1]", path="later.keras", more=", devices: [1]")
    daemon.look()
    daemon.scene.no_room = True
    daemon.manager.slots[0].placement = dataclasses.replace(daemon.manager.slots[0].placement, intra_op_threads=77)
    late_gpu.append(gpu(1))
    begun = []
    for second in range(60):
        clock.now += 1.0
        busy = daemon.operations.queue.busy
        daemon.operations.presence_watch.tick(clock.now)
        if daemon.operations.queue.busy and not busy:
            begun.append(second)
        daemon.settle()
    assert 3 <= len(begun) <= 5, begun
    daemon.scene.no_room = False
    attempts(daemon, clock, 60)
    assert [slot.placement.devices for slot in daemon.manager.slots] == [("GPU-0",), ("GPU-1",)]


def test_a_model_that_waits_goes_on_waiting_after_devices_came_that_could_not_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = [gpu(0)]
    monkeypatch.setattr(settings_module, "discover", lambda: Discovery(tuple(gpus)))
    (tmp_path / "later.keras").write_bytes(b"keras")
    daemon = Daemon(tmp_path, devices="[0, 1]", path="later.keras", on=", devices: [0, 1]", more=", devices: [1]")
    daemon.look()
    daemon.bad["here"] = ("no weights", False)
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    gpus.append(gpu(1))
    daemon.look(1)  # neither the change for the new device succeeds nor the one back
    assert sorted(daemon.scene.router.scheduler.models) == ["here", "later"]
