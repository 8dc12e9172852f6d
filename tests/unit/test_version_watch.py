"""How the daemon follows model folders: real folders, real reloads and replacements, processes that are made up."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any, cast

import pytest
from fake_operations import DelayedJobs
from fake_workers import child
from version_folders import version
from watched_daemon import Daemon, daemon_of

from multitower.errors import MultitowerError, Reason
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.operations.version_watch import VersionWatch
from multitower.supervisor.workers.slot_state_machine import State


def test_a_new_version_is_served_and_its_removal_brings_back_the_former(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", slots=2)
    version(tmp_path / "model", "2")
    daemon.scan()
    assert daemon.served() == [["2"], ["2"]]
    assert daemon.rows() == {"2": ("ready", None)}
    processes = len(daemon.scene.launched)
    daemon.scan()
    assert len(daemon.scene.launched) == processes, "nothing has changed"
    shutil.rmtree(tmp_path / "model" / "2")
    daemon.scan()
    assert daemon.served() == [["1"], ["1"]]
    shutil.rmtree(tmp_path / "model" / "1")
    daemon.scan()
    assert daemon.served() == [["1"], ["1"]], "what is loaded goes on"


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("bad", [{0, 1}, {1}])
def test_a_version_that_cannot_be_loaded_leaves_all_slots_unchanged(tmp_path: Path, fits: bool, bad: set[int]) -> None:
    daemon = daemon_of(tmp_path, "1", slots=2, fits=fits)
    daemon.bad["2"] = bad
    version(tmp_path / "model", "2")
    daemon.scan()
    assert daemon.served() == [["1"], ["1"]]
    assert daemon.rows() == {"1": ("ready", None), "2": ("failed", "no weights")}
    assert daemon.operations.readiness.report()["ready"]
    processes = len(daemon.scene.launched)
    daemon.scan()
    assert len(daemon.scene.launched) == processes, "tried again"
    # Its files change: tried again.
    daemon.bad.clear()
    (tmp_path / "model" / "2" / "variables" / "variables.data").write_bytes(b"better")
    daemon.scan()
    daemon.scan()
    assert daemon.served() == [["2"], ["2"]]


@pytest.mark.parametrize("fits", [True, False])
def test_a_version_whose_loading_is_killed_is_tried_again_with_more_memory(tmp_path: Path, fits: bool) -> None:
    daemon = daemon_of(tmp_path, "1", fits=fits)
    daemon.killing = {"2"}
    version(tmp_path / "model", "2")
    daemon.scan()
    assert daemon.served() == [["1"]]
    state, cause = daemon.rows()["2"]
    assert (state, "killed by SIGKILL (9) while loading m version 2" in str(cause)) == ("failed", True)
    processes = len(daemon.scene.launched)
    daemon.scan()
    assert len(daemon.scene.launched) == processes, "there is as little memory as before"
    daemon.killing.clear()
    daemon.scene.capacity.available *= 2
    daemon.scan()
    daemon.scan()
    assert daemon.served() == [["2"]]


@pytest.mark.parametrize("change", ["a version comes", "a version goes"])
def test_a_change_that_lacked_resources_is_made_once_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    before, after = ("1", "2") if change == "a version comes" else ("2", "1")
    daemon = daemon_of(tmp_path, *sorted({"1", before}))
    daemon.scan()
    daemon.scene.slot().last_error = "killed by SIGSEGV (an old death)"
    daemon.scene.shortage = True
    if after == "2":
        version(tmp_path / "model", "2")
    else:
        shutil.rmtree(tmp_path / "model" / "2")
    daemon.scan()
    assert daemon.served() == [[before]]
    if after == "2":
        cause = "slot 0: no process could be started: fork: Resource temporarily unavailable"
        assert daemon.rows()["2"] == ("failed", cause), "not the cause of an old death"
    daemon.scene.shortage = False
    daemon.scan()
    assert daemon.served() == [[before]], "not at once"
    now += 2.5
    daemon.scan()
    assert daemon.served() == [[after]]


def test_an_order_that_lacked_resources_reports_that(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1")
    daemon.scene.slot().last_error = "killed by SIGSEGV (an old death)"
    daemon.scene.shortage = True
    answers: list[Any] = []
    version(tmp_path / "model", "2")
    daemon.write(", versions: {specific: [2]}", slots=1)
    daemon.orders.reload(answers.append)
    daemon.settle()
    assert "slot 0: no process could be started: fork: Resource temporarily unavailable" in answers[0].message


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize(
    "crashing", [("other", "1"), ("m", "1"), ("m", "2")], ids=["another model", "a served version", "the version"]
)
def test_a_version_is_refused_for_a_crash_only_if_its_own_load_has_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashing: tuple[str, str], fits: bool
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    daemon = daemon_of(tmp_path, "1", more=", versions: all}, {name: other, handler: 'h:H'", fits=fits)
    daemon.scan()
    daemon.crashing = crashing
    version(tmp_path / "model", "2")
    daemon.scan()
    assert daemon.served() == [["1", "1"]]
    state, cause = daemon.rows()["2"]
    assert (state, f"killed by SIGSEGV (11) while loading {crashing[0]}" in str(cause)) == ("failed", True)
    now += 2.5
    daemon.scan()
    assert daemon.served() == [["1", "1"] if crashing == ("m", "2") else ["1", "1", "2"]]


@pytest.mark.parametrize("more", ["", "}, {name: other, handler: 'h:H'"], ids=["alone", "beside another model"])
def test_requests_wait_while_the_only_slot_fails_to_load_a_version(tmp_path: Path, more: str) -> None:
    daemon = daemon_of(tmp_path, "1", more=more, fits=False)
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    former = daemon.scene.process()
    daemon.watch.due = 0.0
    daemon.watch.tick(daemon.scene.now)
    daemon.scene.tick()
    assert child(former).told_to_end
    daemon.scene.submit()
    daemon.settle()
    assert set(daemon.served()[0]) == {"1"}
    daemon.scene.dispatch()
    daemon.scene.answer(daemon.scene.process())
    assert [type(reply) for reply in daemon.scene.replies()] == [list]


def test_a_served_version_that_is_rewritten_is_loaded_again(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", slots=2)
    before = [daemon.scene.process(slot) for slot in (0, 1)]
    weights = tmp_path / "model" / "1" / "variables" / "variables.data"
    daemon.bad["1"] = {0, 1}
    weights.write_bytes(b"worse")
    daemon.scan()
    assert [daemon.scene.process(slot) for slot in (0, 1)] == before, "what they have loaded is good"
    assert daemon.rows() == {"1": ("ready", "no weights")}, "of its files as they are now"
    daemon.bad.clear()
    weights.write_bytes(b"much better")
    daemon.scan()
    daemon.scan()
    assert daemon.served() == [["1"], ["1"]]
    assert not {id(daemon.scene.process(slot)) for slot in (0, 1)} & set(map(id, before))


def test_good_versions_are_served_beside_a_bad_one(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", more=", versions: all")
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    version(tmp_path / "model", "3")
    daemon.scan()
    daemon.scan()
    assert daemon.served() == [["1", "3"]]
    assert daemon.rows() == {"1": ("ready", None), "2": ("failed", "no weights"), "3": ("ready", None)}


def test_a_bad_version_is_undone_where_two_processes_do_not_fit(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2", more=", versions: {latest: 2}", fits=False)
    daemon.bad["3"] = {0}
    version(tmp_path / "model", "3")
    daemon.scan()
    assert daemon.served() == [["1", "2"]]
    assert daemon.rows() == {"1": ("ready", None), "2": ("ready", None), "3": ("failed", "no weights")}


def known(daemon: Daemon) -> list[str]:
    """Returns the versions that requests may name."""
    return daemon.scene.router.planner.catalog.versions("m")


def test_the_former_version_ends_where_two_processes_do_not_fit(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", fits=False)
    version(tmp_path / "model", "2")
    daemon.scan()
    assert daemon.served() == [["2"]]
    assert daemon.rows() == {"2": ("ready", None)}
    assert known(daemon) == ["2"]


def test_a_version_that_a_restarted_worker_lacks_is_refused(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2", more=", versions: all")
    daemon.bad["1"] = {0}
    daemon.scene.die(daemon.scene.process())
    assert known(daemon) == ["1", "2"], "it may come back with both"
    daemon.scene.submit(version="1")
    daemon.settle()
    assert (daemon.served(), known(daemon)) == ([["2"]], ["2"])
    assert [reply.reason for reply in daemon.scene.replies()] == [Reason.NO_WORKER]


def test_a_version_whose_only_slot_has_failed_is_refused(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2", slots=2, more=", versions: all")
    daemon.bad["1"] = {1}
    daemon.scene.die(daemon.scene.process(1))
    daemon.settle()
    assert daemon.served() == [["1", "2"], ["2"]]
    assert known(daemon) == ["1", "2"]
    daemon.bad = {"1": {0}, "2": {0}}
    daemon.scene.die(daemon.scene.process(0))
    daemon.scene.submit(version="1")
    daemon.settle()
    assert (daemon.served(), known(daemon)) == ([[], ["2"]], ["2"])
    assert [reply.reason for reply in daemon.scene.replies()] == [Reason.VERSION_UNKNOWN]


def test_a_version_that_fails_on_all_slots_at_the_start_is_replaced_by_the_former(tmp_path: Path) -> None:
    for number in ("1", "2"):
        version(tmp_path / "model", number)
    daemon = Daemon(tmp_path, slots=2)
    daemon.bad["2"] = {0, 1}
    daemon.settle()
    assert daemon.rows()["2"][0] == "failed"
    daemon.scan()
    assert daemon.served() == [["1"], ["1"]]
    assert daemon.rows() == {"1": ("ready", None), "2": ("failed", "slots 0, 1: no weights")}


def test_a_slot_that_failed_before_does_not_block_a_new_version(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", slots=3)
    slot = daemon.manager.slots[0]
    slot.state = State.FAILED
    daemon.scene.die(daemon.scene.process(0))
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    daemon.scan()
    assert daemon.served() == [[], ["2"], ["2"]]
    assert slot.state is State.FAILED
    assert slot.last_error == "m: no weights"


def test_a_worker_that_dies_is_restarted_with_the_version_in_force(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", slots=2)
    version(tmp_path / "model", "2")  # not seen yet
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    assert daemon.served() == [["1"], ["1"]]


def test_a_removed_version_that_a_restart_needs_is_replaced_by_the_former(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2")
    shutil.rmtree(tmp_path / "model" / "2")
    daemon.bad["2"] = {0}
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    assert daemon.served() == [[]]
    daemon.scan()
    assert daemon.served() == [["1"]]


def test_a_reload_waits_for_a_change_of_versions(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1")
    version(tmp_path / "model", "2")
    daemon.watch.tick(daemon.scene.now)
    assert daemon.operations.queue.busy
    daemon.write(", versions: all", 1)
    answers: list[Any] = []
    daemon.orders.reload(answers.append)
    assert answers == []
    daemon.settle()
    daemon.settle()
    assert answers == [{"renewed": [0], "added": [], "removed": []}]
    assert daemon.served() == [["1", "2"]]


def test_loading_another_model_does_not_retry_a_refused_version(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", more="}, {name: other, handler: 'h:H'")
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    daemon.scan()
    answers: list[Any] = []
    daemon.models.load("other", answers.append)
    daemon.settle()
    processes = len(daemon.scene.launched)
    daemon.scan()
    assert len(daemon.scene.launched) == processes
    daemon.models.load("m", answers.append)
    daemon.settle()
    assert len(daemon.scene.launched) > processes, "this is about the model"
    assert [isinstance(answer, MultitowerError) for answer in answers] == [False, True]


def test_a_reload_that_ends_early_leaves_the_labels_unchanged(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", more=", version_labels: {stable: 1}")
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    daemon.write(", version_labels: {stable: 2, canary: 2}", 1)
    answers: list[Any] = []
    daemon.orders.reload(answers.append)
    daemon.settle()
    assert isinstance(answers[0], MultitowerError)
    assert daemon.scene.router.planner.catalog.labels("m") == {"stable": "1"}


def test_a_scan_from_before_a_reload_is_ignored_for_changed_models(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2", "3", "4", "5")
    jobs = DelayedJobs()
    context = dataclasses.replace(daemon.operations.context, background=cast(BackgroundJobs, jobs))
    daemon.watch = VersionWatch(context, daemon.operations.readiness, daemon.models)
    daemon.watch.tick(daemon.scene.now)
    daemon.write(", versions: {specific: [1, 5]}", 1)
    daemon.orders.reload(lambda _: None)
    daemon.settle()
    assert daemon.served() == [["1", "5"]]
    (scan_ended,) = jobs.ended
    scan_ended()
    assert not daemon.operations.queue.busy, "version 1 was not scanned, and is there"
    daemon.watch.due = 0.0
    daemon.watch.tick(daemon.scene.now)
    assert len(jobs.ended) == 2, "it scans again"


def test_a_reload_retries_a_refused_version(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1")
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    daemon.scan()
    answers: list[Any] = []
    daemon.orders.reload(answers.append)
    daemon.settle()
    assert isinstance(answers[0], MultitowerError)
    assert "no weights" in answers[0].message
    daemon.bad.clear()
    daemon.orders.reload(answers.append)
    daemon.settle()
    assert answers[1:] == [{"renewed": [0], "added": [], "removed": []}]
    daemon.scan()
    assert daemon.rows() == {"2": ("ready", None)}


def test_a_new_version_does_not_load_an_unloaded_model(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", more=", version_labels: {stable: 2}")
    answers: list[Any] = []
    daemon.models.unload("m", answers.append)
    daemon.settle()
    assert daemon.rows() == {"1": ("unloaded", "'m' is unloaded; `multitower load m` loads it")}
    version(tmp_path / "model", "2")
    daemon.scan()
    assert daemon.scene.alive() == []
    daemon.models.load("m", answers.append)
    daemon.settle()
    assert answers == [{"model_name": "m", "slots": [0]}] * 2
    assert daemon.served() == [["2"]]
    assert [row["labels"] for row in daemon.operations.status.report(0.0)["models"]] == [["stable"]]


def test_a_moved_label_keeps_its_former_version_until_the_reload_ends(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2", more=", versions: {specific: [1]}, version_labels: {stable: 1}")
    catalog = daemon.scene.router.planner.catalog
    daemon.write(", versions: {specific: [1, 2]}, version_labels: {stable: 2, next: 2}", 1)
    daemon.orders.reload(lambda _: None)
    assert catalog.labels("m") == {"stable": "1", "next": "2"}
    daemon.settle()
    assert catalog.labels("m") == {"stable": "2", "next": "2"}
    assert daemon.served() == [["1", "2"]]
    rows = daemon.operations.status.report(0.0)["models"]
    assert [(row["version"], row["labels"]) for row in rows] == [("1", []), ("2", ["stable", "next"])]
    # Back again: the labels alone, at once.
    daemon.write(", versions: {specific: [1, 2]}, version_labels: {stable: 1}", 1)
    daemon.orders.reload(lambda _: None)
    assert catalog.labels("m") == {"stable": "1"}


def test_a_folder_that_cannot_be_read_changes_nothing_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = daemon_of(tmp_path, "1")
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    for _ in range(2):
        daemon.scan()
    assert daemon.served() == [["1"]]
    assert [record.message for record in caplog.records].count("model versions cannot be followed") == 1
    version(tmp_path / "model", "2")
    daemon.scan()
    assert daemon.served() == [["2"]]


def test_other_folders_within_a_single_savedmodel_do_not_matter(tmp_path: Path) -> None:
    version(tmp_path, "model")
    daemon = Daemon(tmp_path)
    daemon.settle()
    version(tmp_path / "model", "2")
    daemon.scan()
    assert daemon.served() == [["1"]]
    assert len(daemon.scene.launched) == 1


def test_nothing_is_scanned_where_the_watch_is_off(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1")
    version(tmp_path / "model", "2")
    text = (tmp_path / "config.yaml").read_text().replace("settle: 0s", "interval: 0")
    (tmp_path / "config.yaml").write_text(text.replace("model}", "model, versions: {specific: [1]}}"))
    daemon.orders.reload(lambda _: None)
    daemon.settle()
    daemon.scan()
    assert daemon.watch.due == float("inf")
