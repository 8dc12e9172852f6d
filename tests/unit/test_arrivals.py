"""What is waited for, and what follows once it has come: real folders, processes that are made up."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import select
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_operations import Operations
from fake_workers import Scene, child
from version_folders import version

from multitower.errors import MultitowerError
from multitower.load_step import LoadStep
from multitower.spec import ModelReport
from multitower.supervisor import settings as settings_module
from multitower.supervisor.config import config
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.machine.core_claims import CoreClaims
from multitower.supervisor.machine.devices import Device, DeviceError, Discovery
from multitower.supervisor.operations.arrivals import Arrivals
from multitower.supervisor.settings import Settings, build_settings
from multitower.supervisor.workers.slot import WorkerProcess

CONFIG = """
devices: {devices}
spares: 0
watch: {{settle: 0s}}
models:
  - {{name: here, handler: "h:M"{on}}}
  - {{name: later, path: {path}{more}}}
"""


class Daemon:
    """A fleet with the operations of a daemon, one model that is there, and one that is waited for.

    Attributes:
        bad: why a model cannot be loaded, by name, and whether that may pass.
        killing: models during whose loading a process is killed.
    """

    def __init__(self, folder: Path, *, path: str = "later", devices: str = "{cpu: 2}", on: str = "", more: str = ""):
        self._path = folder / "config.yaml"
        self._values = {"path": path, "devices": devices, "on": on, "more": more}
        self.write()
        made = build_settings(self._read())
        self.scene = Scene(len(made.placements), models=[("here",)] * len(made.placements))
        self.manager = self.scene.manager
        self.manager.apply_settings(made.worker_settings)
        for slot, placement in zip(self.manager.slots, made.placements, strict=True):
            slot.specs, slot.placement = placement.select_models(made.worker_settings.models), placement
        for name, limits in made.limits.items():
            self.scene.router.set_model(name, limits, made.timeouts[name])
        self.operations = Operations(self.scene, made, self._read)
        self.bad: dict[str, tuple[str, bool]] = {}
        self.killing: set[str] = set()
        self.settle()
        for slot in self.manager.slots:  # the first processes do not know the specifications
            self.scene.die(self.scene.process(slot.number))
        self.settle()

    def write(self, **values: str) -> None:
        self._values |= values
        self._path.write_text(CONFIG.format(**self._values))

    def _read(self, model: str | None = None) -> config.Config:
        if model is not None:
            return config.load_model(self._path, model, environment={}, strict=False)
        return config.load(self._path, environment={}, strict=False)

    @property
    def settings(self) -> Settings:
        return self.operations.settings.current

    def settle(self) -> None:
        """Processes load what they can and end when asked to, until nothing happens any more."""
        self.scene.load_until_quiet(self._load)

    def _load(self, process: WorkerProcess) -> None:
        assert process.slot is not None
        self.scene.report(process, "loading")
        assignment = child(process).assignment
        left_out = {spec.key for spec in assignment.models if spec.not_loaded_because} if assignment is not None else ()
        for key in process.generations:
            if key[0] in self.killing and key not in left_out:
                child(process).step = LoadStep(*key)
                self.scene.die(process)
                return
        prints = {spec.key: spec.fingerprint for spec in assignment.models} if assignment is not None else {}
        reports = tuple(
            ModelReport(name=key[0], version=key[1], state="failed", cause="left out")
            if key in left_out
            else self._report(*key, prints.get(key, ""))
            for key in process.generations
        )
        good = any(report.state == "ready" for report in reports)
        self.scene.report(process, "ready" if good else "failed", models=reports)
        self.scene.tick()

    def _report(self, name: str, version: str, fingerprint: str) -> ModelReport:
        if name not in self.bad:
            return ModelReport(name=name, version=version, fingerprint=fingerprint)
        cause, passing = self.bad[name]
        return ModelReport(name=name, version=version, state="failed", cause=cause, passing=passing)

    def look(self, times: int = 2) -> None:
        """The daemon looks for what it waits for, and what follows from that is carried out."""
        for _ in range(times):
            self.operations.arrivals.due = 0.0
            self.operations.arrivals.tick(time.monotonic())
            self.settle()
        self.operations.arrivals.tick(0.0)  # marks what is waited for

    def serves(self) -> list[str]:
        return sorted({name for slot in self.manager.slots if slot.route for name in slot.route.worker.serves})

    def rows(self) -> dict[str, Any]:
        return {row["name"]: row for row in self.operations.status.report(self.scene.now)["models"]}

    def refusal(self, name: str) -> str:
        refusal = self.scene.router.scheduler.refusal_for_new_request(name)
        assert refusal is not None
        return refusal.message

    def waiting(self) -> list[tuple[str, str]]:
        status = self.operations.status.report(self.scene.now)["daemon"]
        return [(entry["kind"], entry["name"]) for entry in status["waiting"]]

    def cause(self) -> str:
        (entry,) = self.settings.waiting
        return entry.cause

    def carry_out(self, order: str, *arguments: str) -> Any:
        answers: list[Any] = []
        models = self.operations.model_orders
        {"load": models.load, "unload": models.unload, "reload": self.operations.orders.reload}[order](
            *arguments, answers.append
        )
        self.settle()
        return answers[0]


def test_a_model_that_comes_is_served_and_the_others_never_stop(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.look()
    assert daemon.serves() == ["here"]
    assert daemon.waiting() == [("model", "later")]
    assert daemon.cause() == f"{tmp_path / 'later'} does not exist"
    assert daemon.rows()["later"]["state"] == "waiting"
    assert daemon.refusal("later") == f"no worker serves 'later': it is waited for: {tmp_path / 'later'} does not exist"
    (tmp_path / "later").mkdir()
    daemon.look()
    assert "it is empty" in daemon.cause()
    version(tmp_path / "later", "3")
    daemon.look()
    assert daemon.serves() == ["here", "later"]
    assert daemon.waiting() == []
    assert (daemon.rows()["later"]["version"], daemon.rows()["later"]["state"]) == ("3", "ready")
    assert daemon.scene.router.scheduler.refusal_for_new_request("later") is None


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        (", warmup: w.npz", "w.npz does not exist"),
        (", custom_ops: [ops/late.so]", "late.so does not exist, nor does "),
        (", custom_ops: [there.so, ops/late.so, ops/later.so]", "late.so does not exist, nor does "),
        (", versions: {specific: [7]}", "has none of the versions 7"),
    ],
)
def test_what_else_a_model_needs_is_waited_for(tmp_path: Path, more: str, cause: str) -> None:
    version(tmp_path / "later", "3")
    (tmp_path / "there.so").touch()
    daemon = Daemon(tmp_path, more=more)
    daemon.look()
    assert cause in daemon.cause()
    assert daemon.serves() == ["here"]
    (tmp_path / "w.npz").touch()
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "late.so").touch()
    (tmp_path / "ops" / "later.so").touch()
    version(tmp_path / "later", "7")
    daemon.look()
    assert daemon.serves() == ["here", "later"]


def test_a_file_that_comes_is_served_without_a_version(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, path="later.keras")
    daemon.look()
    assert daemon.serves() == ["here"]
    (tmp_path / "later.keras").write_bytes(b"keras")
    daemon.look()
    assert daemon.serves() == ["here", "later"]


def test_what_comes_is_not_loaded_while_it_is_still_written(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.write()
    text = (tmp_path / "config.yaml").read_text().replace("settle: 0s", "settle: 3600s")
    (tmp_path / "config.yaml").write_text(text)
    assert daemon.carry_out("reload") == {"renewed": [], "added": [], "removed": []}
    version(tmp_path / "later", "3")
    daemon.look()
    assert daemon.serves() == ["here"]
    assert "must not change for a while" in daemon.cause()


def test_a_model_that_has_come_broken_waits_until_its_files_change(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.look()
    daemon.bad["later"] = ("no weights", False)
    version(tmp_path / "later", "3")
    daemon.look()
    launched = len(daemon.scene.launched)
    assert daemon.serves() == ["here"]
    assert "it cannot be loaded, and is tried again when its files change" in daemon.cause()
    assert "no weights" in daemon.cause()
    daemon.look(5)
    assert len(daemon.scene.launched) == launched, "it is not tried again"
    daemon.bad.clear()
    (tmp_path / "later" / "3" / "saved_model.pb").write_bytes(b"better")
    daemon.look()
    assert daemon.serves() == ["here", "later"]


def test_devices_that_are_missing_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus: list[Device] = []
    monkeypatch.setattr(settings_module, "discover", lambda: Discovery(tuple(gpus), "the driver is not loaded"))
    daemon = Daemon(tmp_path, devices="all", path="later.keras")
    daemon.look()
    assert ("devices", "devices") in daemon.waiting()
    assert ("model", "here") in daemon.waiting()
    assert "its devices are missing: devices: all finds no GPU: the driver is not loaded" in daemon.refusal("here")
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


def gpu(index: int) -> Device:
    return Device(
        name=f"GPU-{index}",
        kind="gpu",
        index=index,
        product="P",
        memory_bytes=1 << 34,
        memory_used_bytes=0,
        pci_bus_id=f"0{index}",
    )


def test_a_strict_start_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(tmp_path)
    with pytest.raises(OSError, match=r"model later: .*later does not exist"):
        build_settings(daemon.settings.config, strict=True)
    with pytest.raises(config.ConfigError, match=r"config.yaml:7:25: models\[1\].path: .*does not exist"):
        config.load(tmp_path / "config.yaml", environment={})
    monkeypatch.setattr(settings_module, "discover", lambda: Discovery((), "no driver"))
    version(tmp_path / "later", "3")
    daemon.write(devices="all")
    with pytest.raises(DeviceError, match="finds no GPU"):
        build_settings(config.load(tmp_path / "config.yaml", environment={}), strict=True)


def test_a_reload_goes_on_waiting_but_refuses_what_is_newly_missing(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    assert daemon.carry_out("reload") == {"renewed": [], "added": [], "removed": []}
    assert daemon.waiting() == [("model", "later")]
    assert list(daemon.rows()) == ["here", "later"]
    version(tmp_path / "complete", "1")
    daemon.write(more="}\n  - {name: third, path: complete, custom_ops: [gone.so]")
    answer = daemon.carry_out("reload")
    assert isinstance(answer, MultitowerError)
    assert "models[2].custom_ops" in answer.message
    assert "gone.so does not exist" in answer.message
    daemon.write(more="}\n  - {name: third, path: nowhere")
    answer = daemon.carry_out("reload")
    assert isinstance(answer, MultitowerError)
    assert "config.yaml:8:25: models[2].path" in answer.message
    assert "nowhere does not exist" in answer.message
    assert list(daemon.rows()) == ["here", "later"]


def test_a_reload_keeps_a_served_model_whose_folder_has_vanished(tmp_path: Path) -> None:
    version(tmp_path / "later", "3")
    daemon = Daemon(tmp_path)
    assert daemon.serves() == ["here", "later"]
    launched = len(daemon.scene.launched)
    shutil.rmtree(tmp_path / "later")
    assert isinstance(daemon.carry_out("reload"), dict)
    assert daemon.serves() == ["here", "later"]
    assert daemon.waiting() == []
    assert len(daemon.scene.launched) == launched, "no worker had to be replaced"


def test_orders_for_a_model_that_is_waited_for(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    answer = daemon.carry_out("load", "later")
    assert isinstance(answer, MultitowerError)
    assert "later does not exist" in answer.message
    assert isinstance(daemon.carry_out("load", "here"), dict), "another model's files do not matter"
    assert isinstance(daemon.carry_out("unload", "later"), dict)
    assert daemon.waiting() == []
    assert daemon.rows()["later"]["state"] == "unloaded"
    version(tmp_path / "later", "3")
    daemon.look()
    assert daemon.serves() == ["here"], "an operator has unloaded it"
    assert isinstance(daemon.carry_out("load", "later"), dict)
    assert daemon.serves() == ["here", "later"]


def test_a_model_that_failed_for_a_passing_reason_is_tried_again_with_a_back_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(tmp_path / "later", "3")
    daemon = Daemon(tmp_path)
    daemon.bad["later"] = ("PermissionError", True)
    for number in (0, 1):
        daemon.scene.die(daemon.scene.process(number))
    daemon.settle()
    assert daemon.serves() == ["here"]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tried: list[float] = []
    for second in range(40):
        launched = len(daemon.scene.launched)
        now += 1.0
        daemon.operations.arrivals.tick(now)
        daemon.settle()
        if len(daemon.scene.launched) > launched:
            tried.append(second)
    assert 3 <= len(tried) <= 5, tried
    daemon.bad.clear()
    os.rename(tmp_path / "later", tmp_path / "away")
    launched = len(daemon.scene.launched)
    for _ in range(200):
        now += 1.0
        daemon.operations.arrivals.tick(now)
        daemon.settle()
    assert len(daemon.scene.launched) == launched, "its files cannot be read"
    os.rename(tmp_path / "away", tmp_path / "later")
    for _ in range(20):
        now += 1.0
        daemon.operations.arrivals.tick(now)
        daemon.settle()
    assert daemon.serves() == ["here", "later"]
    assert all(slot.serves("later") for slot in daemon.manager.slots)


def test_a_model_that_is_broken_is_not_tried_again(tmp_path: Path) -> None:
    version(tmp_path / "later", "3")
    daemon = Daemon(tmp_path)
    daemon.bad["later"] = ("no weights", False)
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    launched = len(daemon.scene.launched)
    daemon.look(10)
    assert len(daemon.scene.launched) == launched


class Clock:
    """Stands for `time.monotonic`."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def attempts(daemon: Daemon, clock: Clock, seconds: int) -> list[int]:
    """Returns after how many seconds processes were started."""
    found = []
    for second in range(seconds):
        launched = len(daemon.scene.launched)
        clock.now += 1.0
        daemon.operations.arrivals.tick(clock.now)
        daemon.settle()
        if len(daemon.scene.launched) > launched:
            found.append(second)
    return found


def test_a_model_that_has_come_and_failed_for_a_passing_reason_is_tried_again(tmp_path: Path, clock: Clock) -> None:
    daemon = Daemon(tmp_path)
    daemon.look()
    daemon.bad["later"] = ("PermissionError", True)
    version(tmp_path / "later", "3")
    tried = attempts(daemon, clock, 60)
    assert 3 <= len(tried) <= 5, tried
    gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]
    assert "it cannot be loaded, and is tried again later: " in daemon.cause()
    daemon.bad.clear()
    attempts(daemon, clock, 120)
    assert daemon.serves() == ["here", "later"]


def test_a_model_that_came_during_a_shortage_is_served_after_it(tmp_path: Path, clock: Clock) -> None:
    daemon = Daemon(tmp_path)
    daemon.look()
    daemon.scene.shortage = True
    version(tmp_path / "later", "3")
    attempts(daemon, clock, 10)
    assert "no process could be started: fork: Resource temporarily unavailable" in daemon.cause()
    daemon.scene.shortage = False
    attempts(daemon, clock, 30)
    assert daemon.serves() == ["here", "later"]


def test_a_model_that_came_and_was_killed_is_tried_again_with_more_memory(tmp_path: Path, clock: Clock) -> None:
    daemon = Daemon(tmp_path)
    daemon.look()
    daemon.killing = {"later"}
    version(tmp_path / "later", "3")
    attempts(daemon, clock, 40)
    assert daemon.serves() == ["here"]
    assert "is tried again once more memory is available" in daemon.cause()
    daemon.killing.clear()
    assert attempts(daemon, clock, 40) == []
    daemon.scene.capacity.available *= 2
    attempts(daemon, clock, 40)
    assert daemon.serves() == ["here", "later"]


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
    daemon.operations.arrivals = Arrivals(dataclasses.replace(daemon.operations.context, claims=CoreClaims()))
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
    assert [record.message for record in caplog.records].count("what is waited for cannot be used yet") == 1


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
    assert [record.message for record in caplog.records].count("what is waited for cannot be used yet") == 1
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
        daemon.operations.arrivals.tick(clock.now)
        if daemon.operations.queue.busy and not busy:
            begun.append(second)
        daemon.settle()
    assert 3 <= len(begun) <= 5, begun
    daemon.scene.no_room = False
    attempts(daemon, clock, 60)
    assert [slot.placement.devices for slot in daemon.manager.slots] == [("GPU-0",), ("GPU-1",)]


@pytest.fixture
def background() -> Iterator[BackgroundJobs]:
    jobs = BackgroundJobs()
    yield jobs
    jobs.close()


@pytest.mark.parametrize("stuck", ["here", "other"])
def test_a_folder_that_hangs_keeps_no_other_model_from_being_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: BackgroundJobs, stuck: str
) -> None:
    daemon = Daemon(tmp_path, more="}\n  - {name: other, path: other")
    daemon.operations.arrivals = Arrivals(dataclasses.replace(daemon.operations.context, background=background))
    find, released, reads = settings_module._find_versions, threading.Event(), []

    def find_or_hang(model: Any, folder: Path) -> Any:
        reads.append(model.name)
        if model.name == stuck:
            released.wait(60.0)
        return find(model, folder)

    monkeypatch.setattr(settings_module, "_find_versions", find_or_hang)
    version(tmp_path / "later", "3")
    try:
        for _ in range(6):
            daemon.operations.arrivals.due = 0.0
            daemon.operations.arrivals.tick(time.monotonic())
            while select.select([background.descriptor], [], [], 0.3)[0]:
                background.run_callbacks()
                daemon.settle()
        assert daemon.serves() == ["here", "later"]
        assert reads.count(stuck) <= 1, "no further thread for what hangs"
    finally:
        released.set()


def test_reports_are_not_searched_in_every_round_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(tmp_path)
    daemon.look()
    arrivals = daemon.operations.arrivals
    arrivals.due = time.monotonic() + 100.0
    reads: list[None] = []
    monkeypatch.setattr(type(daemon.manager), "slots", property(lambda _: reads.append(None) or []))
    for _ in range(10):
        arrivals.tick(time.monotonic())
    assert reads == []
