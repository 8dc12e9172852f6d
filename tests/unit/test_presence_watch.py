"""What is waited for, and what follows once it has come: real folders, processes that are made up."""

from __future__ import annotations

import dataclasses
import itertools
import os
import select
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from version_folders import version
from waiting_daemon import Clock, Daemon, attempts

from multitower.errors import MultitowerError
from multitower.supervisor import settings as settings_module
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.source import ConfigError
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.machine.devices import DeviceError, Discovery
from multitower.supervisor.operations.presence_watch import PresenceWatch
from multitower.supervisor.settings import build_settings


def test_a_model_that_comes_is_served_and_the_others_never_stop(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.look()
    assert daemon.serves() == ["here"]
    assert daemon.waiting() == [("model", "later")]
    assert daemon.cause() == f"{tmp_path / 'later'} does not exist"
    row = daemon.rows()["later"]
    assert (row["state"], row["slots_ready"], row["slots_total"]) == ("waiting", 0, 2)
    report = daemon.operations.readiness.report()
    assert (report["ready"], report["slots_total"]) == (False, len(daemon.scene.manager.slots))
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


def test_a_strict_start_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(tmp_path)
    with pytest.raises(OSError, match=r"model later: .*later does not exist"):
        build_settings(daemon.settings.config, strict=True)
    with pytest.raises(ConfigError, match=r"config.yaml:7:25: models\[1\].path: .*does not exist"):
        load(tmp_path / "config.yaml", environment={})
    monkeypatch.setattr(settings_module, "discover", lambda: Discovery((), "no driver"))
    version(tmp_path / "later", "3")
    daemon.write(devices="all")
    with pytest.raises(DeviceError, match="finds no GPU"):
        build_settings(load(tmp_path / "config.yaml", environment={}), strict=True)


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
        daemon.operations.presence_watch.tick(now)
        daemon.settle()
        if len(daemon.scene.launched) > launched:
            tried.append(second)
    assert 3 <= len(tried) <= 5, tried
    daemon.bad.clear()
    os.rename(tmp_path / "later", tmp_path / "away")
    launched = len(daemon.scene.launched)
    for _ in range(200):
        now += 1.0
        daemon.operations.presence_watch.tick(now)
        daemon.settle()
    assert len(daemon.scene.launched) == launched, "its files cannot be read"
    os.rename(tmp_path / "away", tmp_path / "later")
    for _ in range(20):
        now += 1.0
        daemon.operations.presence_watch.tick(now)
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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


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


def scan(daemon: Daemon, clock: Clock, seconds: int) -> None:
    """The daemon scans the folders of its models, once a second."""
    for _ in range(seconds):
        clock.now += 1.0
        daemon.operations.watch.tick(clock.now)
        daemon.settle()


def versions(daemon: Daemon) -> dict[str, tuple[str, str | None]]:
    """Returns the state and the cause of each version of the model that has come."""
    rows = daemon.operations.status.report(daemon.scene.now)["models"]
    return {row["version"]: (row["state"], row["cause"]) for row in rows if row["name"] == "later"}


@pytest.mark.parametrize("passes", [True, False], ids=["for a passing reason", "for another reason"])
def test_a_model_that_has_come_is_tried_again_if_another_one_of_its_slots_failed(
    tmp_path: Path, clock: Clock, passes: bool
) -> None:
    daemon = Daemon(tmp_path)
    daemon.look()
    daemon.bad["here"] = ("stale file handle", passes)
    version(tmp_path / "later", "3")
    assert 3 <= len(attempts(daemon, clock, 60)) <= 5
    assert daemon.serves() == ["here"]
    assert "and is tried again later: slot 0: here: stale file handle" in daemon.cause()
    daemon.bad.clear()
    attempts(daemon, clock, 120)
    assert daemon.serves() == ["here", "later"]
    # Likewise a version of it.
    daemon.bad["here"] = ("stale file handle", passes)
    version(tmp_path / "later", "4")
    scan(daemon, clock, 5)
    assert versions(daemon) == {"3": ("ready", None), "4": ("failed", "slot 0: here: stale file handle")}
    daemon.bad.clear()
    scan(daemon, clock, 20)
    assert versions(daemon) == {"4": ("ready", None)}


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
def background() -> Iterator[BackgroundJobs]:
    jobs = BackgroundJobs()
    yield jobs
    jobs.close()


@pytest.mark.parametrize("stuck", ["here", "other"])
def test_a_folder_that_hangs_keeps_no_other_model_from_being_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: BackgroundJobs, stuck: str
) -> None:
    daemon = Daemon(tmp_path, more="}\n  - {name: other, path: other")
    daemon.operations.presence_watch = PresenceWatch(
        dataclasses.replace(daemon.operations.context, background=background)
    )
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
            daemon.operations.presence_watch.due = 0.0
            daemon.operations.presence_watch.tick(time.monotonic())
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
    watch = daemon.operations.presence_watch
    watch.due = time.monotonic() + 100.0
    reads: list[None] = []
    monkeypatch.setattr(type(daemon.manager), "slots", property(lambda _: reads.append(None) or []))
    for _ in range(10):
        watch.tick(time.monotonic())
    assert reads == []
