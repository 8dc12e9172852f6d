"""What the status tells of deaths, restarts, loads, queues and reloads, on a fleet without processes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from daemon_scene import DaemonScene
from fake_workers import child

from multitower.load_step import LoadStep
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.endpoints import Endpoints
from multitower.supervisor.routing.unread import UnreadReplies

CAUSE = "killed by SIGKILL"


@pytest.fixture
def daemon(tmp_path: Path) -> DaemonScene:
    made = DaemonScene(tmp_path, [("m",), ("m",)])
    for slot in made.scene.manager.slots:
        slot.state_since = made.scene.now  # the scene has a clock of its own
    return made


def report(daemon: DaemonScene) -> dict[str, Any]:
    return daemon.operations.status.report(daemon.scene.now)


def events(daemon: DaemonScene, kind: str) -> list[dict[str, Any]]:
    return [each for each in report(daemon)["daemon"]["events"] if each["kind"] == kind]


def test_the_start_of_the_daemon_stays_the_same_while_it_runs(daemon: DaemonScene) -> None:
    began = report(daemon)["daemon"]["started"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", began)
    daemon.scene.tick(7.0)
    assert report(daemon)["daemon"]["started"] == began


def test_why_a_version_is_refused_and_not_served_is_told_once(daemon: DaemonScene) -> None:
    settings, cause = daemon.operations.settings, "slots 0, 1: it was not loaded in time"
    daemon.scene.router.scheduler.mark_unavailable("m", cause)
    watch = daemon.operations.watch
    (spec, *_) = settings.models
    watch._settling("m").refuse(spec.key[1], spec.fingerprint, cause, None)
    (row,) = daemon.status()
    assert row["cause"] == f"no worker serves 'm': {cause}"


class Counted(tuple[Any, ...]):
    """The reports of a slot; counts how often somebody looks at all of them."""

    looks = 0

    def __iter__(self) -> Iterator[Any]:
        Counted.looks += 1
        return super().__iter__()


def test_a_status_looks_at_the_models_of_a_slot_only_when_they_have_changed(daemon: DaemonScene) -> None:
    slots = daemon.scene.manager.slots
    for slot in slots:
        slot.models = Counted(slot.models)
    first = report(daemon)
    looks = Counted.looks
    assert 0 < looks <= 2 * len(slots), "once for the rows of the slot, once for those of the models"
    assert report(daemon)["slots"] == first["slots"]
    assert Counted.looks == looks
    slots[0].models = tuple(dataclasses.replace(model, state="failed", cause="no weights") for model in slots[0].models)
    changed = report(daemon)
    assert [slot["models"][0]["state"] for slot in changed["slots"]] == ["failed", "ready"]
    assert changed["models"][0]["cause"] == "slot 0: no weights"


def test_a_slot_that_has_never_failed_has_no_times_of_failures(daemon: DaemonScene) -> None:
    daemon.scene.tick(7.0)
    slot = report(daemon)["slots"][0]
    assert slot["state_for_s"] == slot["worker_age_s"] == 7.0
    assert {slot[f"last_{what}_age_s"] for what in ("death", "restart", "error")} == {None}


def test_a_death_and_the_restart_have_their_times(daemon: DaemonScene) -> None:
    scene = daemon.scene
    scene.tick(60.0)
    scene.die(scene.process(0))  # after an isolated death the slot restarts at once
    scene.tick(2.0)
    scene.serve(scene.process(0))
    scene.tick(5.0)
    slot, other = report(daemon)["slots"]
    assert (slot["last_death_age_s"], slot["last_error_age_s"]) == (7.0, 7.0)
    assert (slot["last_restart_age_s"], slot["worker_age_s"], slot["state_for_s"]) == (7.0, 7.0, 5.0)
    assert CAUSE in slot["last_error"]
    assert other["state_for_s"] == 67.0
    (death,) = events(daemon, "death")
    assert (death["slot"], death["message"], death["level"]) == (0, "worker died", "warning")
    assert CAUSE in death["cause"]
    (restart,) = events(daemon, "restart")
    assert (restart["slot"], restart["away_s"]) == (0, 2.0)


def test_the_death_of_a_replacement_that_loads_is_the_last_death_too(daemon: DaemonScene) -> None:
    scene = daemon.scene
    scene.order(0)
    scene.tick(1.0)
    replacement = report(daemon)["slots"][0]["replacement"]
    assert replacement["pid"] == scene.next_process(0).child.pid
    assert replacement["age_s"] == 1.0
    scene.die(scene.next_process(0), -11)
    scene.tick(3.0)
    slot = report(daemon)["slots"][0]
    assert slot["replacement"] is None or slot["replacement"]["pid"] != replacement["pid"]
    assert slot["last_death_age_s"] == slot["last_error_age_s"] == 3.0
    assert slot["state_for_s"] == 4.0, "it has served all the time"
    assert [each["message"] for each in events(daemon, "death")] == ["replacement worker died"]


def test_a_model_that_cannot_be_loaded_is_an_event_with_its_cause(daemon: DaemonScene) -> None:
    scene = daemon.scene
    scene.die(scene.process(0))
    scene.tick(2.0)
    process = scene.process(0)
    scene.report(process, "loading")
    scene.report(process, "failed", cause="m: no weights")
    assert [(each["slot"], each["cause"]) for each in events(daemon, "slot_failed")] == [(0, "m: no weights")]
    slot = report(daemon)["slots"][0]
    assert (slot["state"], slot["last_error"], slot["last_error_age_s"]) == ("failed", "m: no weights", 0.0)


def test_what_a_worker_loads_and_since_when(daemon: DaemonScene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = daemon.scene
    scene.die(scene.process(0))
    scene.tick(2.0)
    process = scene.process(0)
    scene.report(process, "loading")
    monkeypatch.setattr(child(process), "step", LoadStep("m", "1", rows=8, began_at=scene.now))
    scene.tick(9.0)
    slot, other = report(daemon)["slots"]
    assert (slot["step"], slot["step_for_s"]) == ("warming up m version 1 with 8 rows", 9.0)
    assert (other["step"], other["step_for_s"]) == (None, None)


def test_the_age_of_the_oldest_request_in_a_queue(daemon: DaemonScene) -> None:
    scene = daemon.scene
    assert report(daemon)["models"][0]["queue_oldest_s"] is None
    for number in (0, 1):
        scene.die(scene.process(number))
    scene.submit(rows=1)
    scene.tick(4.0)
    scene.submit(rows=5)  # more than a batch
    (model,) = report(daemon)["models"]
    assert (model["queue"], model["queue_oldest_s"]) == (2, 4.0)


def test_a_large_request_that_has_begun_to_run_is_still_the_oldest(daemon: DaemonScene) -> None:
    scene = daemon.scene
    large = scene.submit(rows=9)
    scene.now += 3.0
    scene.submit(rows=1)
    (model,) = report(daemon)["models"]
    assert large.split is not None
    assert (model["queue"], model["queue_oldest_s"]) == (2, 3.0)


@pytest.mark.parametrize(
    ("more", "outcome", "cause"),
    [("", "applied", None), ("nonsense: true", "refused", r"nonsense")],
    ids=["a correct file", "a wrong file"],
)
def test_the_last_reload_has_its_outcome(daemon: DaemonScene, more: str, outcome: str, cause: str | None) -> None:
    config = report(daemon)["daemon"]["config"]
    assert config["path"].endswith("config.yaml")
    assert config["last_reload"] is None
    daemon.configure(more=more)
    daemon.carry_out("reload")
    reload = report(daemon)["daemon"]["config"]["last_reload"]
    assert reload["outcome"] == outcome
    assert reload["age_s"] >= 0.0
    assert reload["cause"] is None if cause is None else re.search(cause, reload["cause"])
    (past,) = events(daemon, "reload")
    assert past["level"] == ("info" if outcome == "applied" else "error")


def test_a_reload_that_ends_early_has_failed_with_its_cause(daemon: DaemonScene) -> None:
    daemon.configure(m=2)
    daemon.give("reload")
    scene = daemon.scene
    scene.load_until_quiet(lambda process: scene.report(process, "failed", cause="m: no weights"))
    reload = report(daemon)["daemon"]["config"]["last_reload"]
    assert reload["outcome"] == "failed"
    assert "no weights" in reload["cause"]
    assert [each["message"] for each in events(daemon, "model_refused")] == ["replacement worker cannot load"]
    (past,) = events(daemon, "reload")
    assert past["message"] == "reload ended early"
    assert past["cause"].startswith("slot 0: "), "without what the message says already"


def test_an_order_to_unload_a_model_is_an_event(daemon: DaemonScene) -> None:
    daemon.carry_out("unload", "m")
    assert [(each["message"], each["model"]) for each in events(daemon, "model")] == [("model unloaded", "m")]


@pytest.mark.parametrize("for_gateway", [True, False], ids=["with a gateway", "without"])
def test_replies_that_were_dropped_count_on_each_socket_of_clients(
    daemon: DaemonScene, monkeypatch: pytest.MonkeyPatch, for_gateway: bool
) -> None:
    limits = (1 << 20, UnreadReplies(), 0, Connections(100))
    with closing(Endpoints(["tcp://127.0.0.1:*"], None, *limits, for_gateway=for_gateway)) as endpoints:
        monkeypatch.setattr(daemon.operations.status, "_endpoints", endpoints)
        monkeypatch.setattr(daemon.scene.router, "fronts", endpoints.fronts)
        assert report(daemon)["daemon"]["replies_dropped"] == 0
        endpoints.fronts[0].dropped = 3
        if endpoints.gateway is not None:
            endpoints.gateway.dropped = 4
        assert report(daemon)["daemon"]["replies_dropped"] == (7 if for_gateway else 3)
