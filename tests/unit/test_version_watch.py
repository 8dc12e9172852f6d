"""What the daemon does when versions come and go: real folders, real reloads and renewals, made-up processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from fake_workers import Scene, child
from version_folders import version

from multitower.errors import MultitowerError, Reason
from multitower.spec import ModelReport
from multitower.supervisor import settings
from multitower.supervisor.config import config
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.operations.model_orders import ModelOrders
from multitower.supervisor.operations.orders import Orders
from multitower.supervisor.operations.status import StatusReporter
from multitower.supervisor.operations.version_watch import Watch
from multitower.supervisor.workers.slot import WorkerProcess
from multitower.supervisor.workers.slot_state_machine import State


class AtOnce:
    """Errands that are run at once."""

    def run(self, errand: Callable[[], Any], then: Callable[[Any], None]) -> None:
        try:
            outcome = errand()
        except Exception as error:  # noqa: BLE001  as errands do
            outcome = error
        then(outcome)


class Daemon:
    """A daemon's watch, orders and slots, step by step.

    Args:
        folder: of the configuration, with the versions in `model`.
        slots: how many.
        more: keys of the model.
        fits: whether two processes of a slot fit.

    Attributes:
        bad: versions that no worker can load, or the slots where one cannot be loaded.
        orders, models: the daemon's.
        watch: the daemon's.
    """

    def __init__(self, folder: Path, slots: int = 1, more: str = "", *, fits: bool = True) -> None:
        self._path = folder / "config.yaml"
        self.write(more, slots)
        self.bad: dict[str, set[int]] = {}
        self.scene = Scene(slots, fits=fits)
        made = settings.build_settings(config.load(self._path, environment={}))
        self.manager = self.scene.manager
        self.manager.apply(made.worker_settings)
        for slot, placement in zip(self.manager.slots, made.placements, strict=True):
            slot.specs, slot.placement = made.worker_settings.models, placement
        router = self.scene.router
        self.reporter = StatusReporter(router, self.manager, made.worker_settings.models, 1 << 20, started=0.0)
        background = cast(BackgroundJobs, AtOnce())
        self.orders = Orders(
            self.manager,
            router,
            self.reporter,
            background,
            made,
            lambda: config.load(self._path, environment={}),
            begun=lambda: None,
            ended=lambda: None,
        )
        self.watch = Watch(self.manager, self.reporter, self.orders, background)
        self.models = ModelOrders(
            self.orders,
            self.manager,
            router,
            self.reporter,
            background,
            lambda: config.load(self._path, environment={}),
        )
        self.reporter.refused = self.watch.refused
        for name, limits in made.limits.items():
            router.set_model(name, limits, made.timeouts[name])
        router.set_labels(made.labels)
        self._hired: dict[int, Any] = {}
        give_work = self.manager._assigner.give_work

        def hire(slot: Any, specs: Any, *rest: Any) -> WorkerProcess | None:
            process = give_work(slot, specs, *rest)
            if process is not None:
                self._hired[id(process)] = specs
            return process

        self.manager._assigner.give_work = hire  # type: ignore[method-assign]
        for process in list(self.scene.launched):
            self._hired[id(process)] = made.worker_settings.models

    def write(self, more: str, slots: int) -> None:
        """The configuration, anew."""
        models = f"models: [{{name: m, path: model{more}}}]\n"
        self._path.write_text(f"devices: {{cpu: {slots}}}\nspares: 0\nwatch: {{settle: 0s}}\n{models}")

    def go_on(self) -> None:
        """Processes load what they can, and end as they are told, until nothing happens any more."""
        for _ in range(50):
            self.scene.tick(1.0)
            loading = [
                process
                for process in self.scene.alive()
                if process.route is None and not child(process).told and process.state not in ("ready", "failed")
            ]
            for process in loading:
                self._load(process)
            if not (self.scene.obey() or loading or self.manager.replacements.active):
                return
        raise AssertionError("it does not settle")

    def _load(self, process: WorkerProcess) -> None:
        assert process.slot is not None
        slot = process.slot.number
        reports = tuple(
            ModelReport(
                name=spec.name,
                version=spec.key[1],
                state="failed" if slot in self.bad.get(spec.key[1], ()) else "ready",
                cause="no weights" if slot in self.bad.get(spec.key[1], ()) else None,
            )
            for spec in self._hired[id(process)]
        )
        self.scene.report(process, "loading")
        good = any(report.state == "ready" for report in reports)
        self.scene.report(process, "ready" if good else "failed", models=reports)
        self.scene.tick()

    def look(self) -> None:
        """The watch looks, and what follows from it is carried out."""
        self.watch.due = 0.0
        self.watch.tick(self.scene.now)
        self.go_on()

    def served(self) -> list[list[str]]:
        """The versions that each slot serves."""
        return [
            sorted(version for _, version in slot.route.worker.versions) if slot.route is not None else []
            for slot in self.manager.slots
        ]

    def rows(self) -> dict[str, tuple[str, str | None]]:
        """State and cause of each version in the status."""
        rows = self.reporter.status(self.scene.now)["models"]
        return {row["version"]: (row["state"], row["cause"]) for row in rows}


def daemon_of(folder: Path, *versions: str, **arguments: Any) -> Daemon:
    """A daemon that serves these versions."""
    for number in versions:
        version(folder / "model", number)
    daemon = Daemon(folder, **arguments)
    daemon.go_on()
    return daemon


def test_a_new_version_is_taken_and_a_removed_one_makes_room_for_the_former(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", slots=2)
    version(tmp_path / "model", "2")
    daemon.look()
    assert daemon.served() == [["2"], ["2"]]
    assert daemon.rows() == {"2": ("ready", None)}
    processes = len(daemon.scene.launched)
    daemon.look()
    assert len(daemon.scene.launched) == processes, "nothing has changed"
    shutil.rmtree(tmp_path / "model" / "2")
    daemon.look()
    assert daemon.served() == [["1"], ["1"]]
    shutil.rmtree(tmp_path / "model" / "1")
    daemon.look()
    assert daemon.served() == [["1"], ["1"]], "what is loaded goes on"


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("bad", [{0, 1}, {1}])
def test_one_that_cannot_be_loaded_leaves_all_slots_as_they_were(tmp_path: Path, fits: bool, bad: set[int]) -> None:
    daemon = daemon_of(tmp_path, "1", slots=2, fits=fits)
    daemon.bad["2"] = bad
    version(tmp_path / "model", "2")
    daemon.look()
    assert daemon.served() == [["1"], ["1"]]
    assert daemon.rows() == {"1": ("ready", None), "2": ("failed", "no weights")}
    assert daemon.reporter.readiness()["ready"]
    processes = len(daemon.scene.launched)
    daemon.look()
    assert len(daemon.scene.launched) == processes, "tried again"
    # Its files change: tried again.
    daemon.bad.clear()
    (tmp_path / "model" / "2" / "variables" / "variables.data").write_bytes(b"better")
    daemon.look()
    daemon.look()
    assert daemon.served() == [["2"], ["2"]]


@pytest.mark.parametrize("more", ["", "}, {name: other, handler: 'h:H'"], ids=["alone", "beside another model"])
def test_requests_wait_where_the_only_slot_tries_a_version_in_vain(tmp_path: Path, more: str) -> None:
    daemon = daemon_of(tmp_path, "1", more=more, fits=False)
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    former = daemon.scene.process()
    daemon.watch.due = 0.0
    daemon.watch.tick(daemon.scene.now)
    daemon.scene.tick()
    assert child(former).told
    daemon.scene.submit()
    daemon.go_on()
    assert set(daemon.served()[0]) == {"1"}
    daemon.scene.dispatch()
    daemon.scene.answer(daemon.scene.process())
    assert [type(reply) for reply in daemon.scene.replies()] == [list]


def test_one_that_is_served_is_written_again(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", slots=2)
    before = [daemon.scene.process(slot) for slot in (0, 1)]
    weights = tmp_path / "model" / "1" / "variables" / "variables.data"
    daemon.bad["1"] = {0, 1}
    weights.write_bytes(b"worse")
    daemon.look()
    assert [daemon.scene.process(slot) for slot in (0, 1)] == before, "what they have loaded is good"
    assert daemon.rows() == {"1": ("ready", "no weights")}, "of its files as they are now"
    daemon.bad.clear()
    weights.write_bytes(b"much better")
    daemon.look()
    daemon.look()
    assert daemon.served() == [["1"], ["1"]]
    assert not {id(daemon.scene.process(slot)) for slot in (0, 1)} & set(map(id, before))


def test_of_several_new_ones_the_good_are_taken(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", more=", versions: all")
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    version(tmp_path / "model", "3")
    daemon.look()
    daemon.look()
    assert daemon.served() == [["1", "3"]]
    assert daemon.rows() == {"1": ("ready", None), "2": ("failed", "no weights"), "3": ("ready", None)}


def test_where_two_processes_do_not_fit_a_version_that_fails_beside_good_ones_is_given_up(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2", more=", versions: {latest: 2}", fits=False)
    daemon.bad["3"] = {0}
    version(tmp_path / "model", "3")
    daemon.look()
    assert daemon.served() == [["1", "2"]]
    assert daemon.rows() == {"1": ("ready", None), "2": ("ready", None), "3": ("failed", "no weights")}


def known(daemon: Daemon) -> list[str]:
    """The versions that requests may name."""
    return daemon.scene.router.admission.catalog.versions("m")


def test_where_two_processes_do_not_fit_the_former_version_is_gone_as_well(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", fits=False)
    version(tmp_path / "model", "2")
    daemon.look()
    assert daemon.served() == [["2"]]
    assert daemon.rows() == {"2": ("ready", None)}
    assert known(daemon) == ["2"]


def test_one_that_a_worker_does_not_come_back_with_cannot_be_asked_for(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2", more=", versions: all")
    daemon.bad["1"] = {0}
    daemon.scene.die(daemon.scene.process())
    assert known(daemon) == ["1", "2"], "it may come back with both"
    daemon.scene.submit(version="1")
    daemon.go_on()
    assert (daemon.served(), known(daemon)) == ([["2"]], ["2"])
    assert [reply.reason for reply in daemon.scene.replies()] == [Reason.NO_WORKER]


def test_one_whose_only_slot_has_failed_cannot_be_asked_for(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2", slots=2, more=", versions: all")
    daemon.bad["1"] = {1}
    daemon.scene.die(daemon.scene.process(1))
    daemon.go_on()
    assert daemon.served() == [["1", "2"], ["2"]]
    assert known(daemon) == ["1", "2"]
    daemon.bad = {"1": {0}, "2": {0}}
    daemon.scene.die(daemon.scene.process(0))
    daemon.scene.submit(version="1")
    daemon.go_on()
    assert (daemon.served(), known(daemon)) == ([[], ["2"]], ["2"])
    assert [reply.reason for reply in daemon.scene.replies()] == [Reason.VERSION_UNKNOWN]


def test_one_that_no_worker_can_load_at_the_start_makes_room_for_the_former(tmp_path: Path) -> None:
    for number in ("1", "2"):
        version(tmp_path / "model", number)
    daemon = Daemon(tmp_path, slots=2)
    daemon.bad["2"] = {0, 1}
    daemon.go_on()
    assert daemon.rows()["2"][0] == "failed"
    daemon.look()
    assert daemon.served() == [["1"], ["1"]]
    assert daemon.rows() == {"1": ("ready", None), "2": ("failed", "slots 0, 1: no weights")}


def test_a_slot_that_is_broken_anyway_keeps_nobody_from_the_new_version(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", slots=3)
    slot = daemon.manager.slots[0]
    slot.state = State.FAILED
    daemon.scene.die(daemon.scene.process(0))
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    daemon.look()
    assert daemon.served() == [[], ["2"], ["2"]]
    assert slot.state is State.FAILED
    assert slot.last_error == "m: no weights"


def test_a_worker_that_dies_comes_back_with_the_version_of_its_neighbours(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", slots=2)
    version(tmp_path / "model", "2")  # not seen yet
    daemon.scene.die(daemon.scene.process(0))
    daemon.go_on()
    assert daemon.served() == [["1"], ["1"]]


def test_a_removed_version_that_a_worker_should_come_back_with_makes_room_as_well(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2")
    shutil.rmtree(tmp_path / "model" / "2")
    daemon.bad["2"] = {0}
    daemon.scene.die(daemon.scene.process(0))
    daemon.go_on()
    assert daemon.served() == [[]]
    daemon.look()
    assert daemon.served() == [["1"]]


def test_a_reload_that_is_ordered_meanwhile_waits_and_is_carried_out(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1")
    version(tmp_path / "model", "2")
    daemon.watch.tick(daemon.scene.now)
    assert daemon.orders.changing
    daemon.write(", versions: all", 1)
    answers: list[Any] = []
    daemon.orders.reload(answers.append)
    assert answers == []
    daemon.go_on()
    daemon.go_on()
    assert answers == [{"renewed": [0], "added": [], "removed": []}]
    assert daemon.served() == [["1", "2"]]


def test_an_order_about_another_model_does_not_try_it_again(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", more="}, {name: other, handler: 'h:H'")
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    daemon.look()
    told: list[Any] = []
    daemon.models.load("other", told.append)
    daemon.go_on()
    processes = len(daemon.scene.launched)
    daemon.look()
    assert len(daemon.scene.launched) == processes
    daemon.models.load("m", told.append)
    daemon.go_on()
    assert len(daemon.scene.launched) > processes, "this is about the model"
    assert [isinstance(answer, MultitowerError) for answer in told] == [False, True]


def test_a_reload_that_ends_early_leaves_the_labels_as_they_were(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", more=", version_labels: {stable: 1}")
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    daemon.write(", version_labels: {stable: 2, canary: 2}", 1)
    told: list[Any] = []
    daemon.orders.reload(told.append)
    daemon.go_on()
    assert isinstance(told[0], MultitowerError)
    assert daemon.scene.router.admission.catalog.labels("m") == {"stable": "1"}


def test_a_look_that_was_under_way_says_nothing_of_what_a_reload_has_brought(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2", "3", "4", "5")
    slow: list[Callable[[], None]] = []

    class Slow:
        def run(self, errand: Callable[[], Any], then: Callable[[Any], None]) -> None:
            seen = errand()
            slow.append(lambda: then(seen))

    daemon.watch = Watch(daemon.manager, daemon.reporter, daemon.orders, cast(BackgroundJobs, Slow()))
    daemon.watch.tick(daemon.scene.now)
    daemon.write(", versions: {specific: [1, 5]}", 1)
    daemon.orders.reload(lambda _: None)
    daemon.go_on()
    assert daemon.served() == [["1", "5"]]
    (come_home,) = slow
    come_home()
    assert not daemon.orders.changing, "the first was not looked at, and is there"
    daemon.watch.due = 0.0
    daemon.watch.tick(daemon.scene.now)
    assert len(slow) == 2, "it looks again"


def test_a_reload_tries_again_what_could_not_be_loaded(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1")
    daemon.bad["2"] = {0}
    version(tmp_path / "model", "2")
    daemon.look()
    answers: list[Any] = []
    daemon.orders.reload(answers.append)
    daemon.go_on()
    assert isinstance(answers[0], MultitowerError)
    assert "no weights" in answers[0].message
    daemon.bad.clear()
    daemon.orders.reload(answers.append)
    daemon.go_on()
    assert answers[1:] == [{"renewed": [0], "added": [], "removed": []}]
    daemon.look()
    assert daemon.rows() == {"2": ("ready", None)}


def test_an_unloaded_model_is_not_brought_back_by_a_new_version_and_is_loaded_with_it(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", more=", version_labels: {stable: 2}")
    answers: list[Any] = []
    daemon.models.unload("m", answers.append)
    daemon.go_on()
    assert daemon.rows() == {"1": ("unloaded", "'m' is unloaded; `multitower load m` loads it")}
    version(tmp_path / "model", "2")
    daemon.look()
    assert daemon.scene.alive() == []
    daemon.models.load("m", answers.append)
    daemon.go_on()
    assert answers == [{"model_name": "m", "slots": [0]}] * 2
    assert daemon.served() == [["2"]]
    assert [row["labels"] for row in daemon.reporter.status(0.0)["models"]] == [["stable"]]


def test_a_label_that_is_moved_stands_for_the_former_version_until_the_reload_is_over(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1", "2", more=", versions: {specific: [1]}, version_labels: {stable: 1}")
    catalog = daemon.scene.router.admission.catalog
    daemon.write(", versions: {specific: [1, 2]}, version_labels: {stable: 2, next: 2}", 1)
    daemon.orders.reload(lambda _: None)
    assert catalog.labels("m") == {"stable": "1", "next": "2"}
    daemon.go_on()
    assert catalog.labels("m") == {"stable": "2", "next": "2"}
    assert daemon.served() == [["1", "2"]]
    rows = daemon.reporter.status(0.0)["models"]
    assert [(row["version"], row["labels"]) for row in rows] == [("1", []), ("2", ["stable", "next"])]
    # Back again: the labels alone, at once.
    daemon.write(", versions: {specific: [1, 2]}, version_labels: {stable: 1}", 1)
    daemon.orders.reload(lambda _: None)
    assert catalog.labels("m") == {"stable": "1"}


def test_a_folder_that_cannot_be_read_changes_nothing_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = daemon_of(tmp_path, "1")
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    for _ in range(2):
        daemon.look()
    assert daemon.served() == [["1"]]
    assert [record.message for record in caplog.records].count("versions cannot be followed") == 1
    version(tmp_path / "model", "2")
    daemon.look()
    assert daemon.served() == [["2"]]


def test_one_savedmodel_is_not_watched(tmp_path: Path) -> None:
    version(tmp_path, "model")
    daemon = Daemon(tmp_path)
    daemon.go_on()
    version(tmp_path / "model", "2")
    daemon.look()
    assert daemon.served() == [["1"]]
    assert len(daemon.scene.launched) == 1


def test_nothing_is_looked_at_where_the_watch_is_off(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, "1")
    version(tmp_path / "model", "2")
    text = (tmp_path / "config.yaml").read_text().replace("settle: 0s", "interval: 0")
    (tmp_path / "config.yaml").write_text(text.replace("model}", "model, versions: {specific: [1]}}"))
    daemon.orders.reload(lambda _: None)
    daemon.go_on()
    daemon.look()
    assert daemon.watch.due == float("inf")
