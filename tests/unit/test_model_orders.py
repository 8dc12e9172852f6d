"""Orders of an operator, as histories of a fleet without processes."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from daemon_scene import DaemonScene, error_of, slots_of
from fake_workers import child

from multitower.errors import MultitowerError, NotFound, Reason, Unavailable
from multitower.supervisor.operations.orders import MAX_RESTARTS, Orders
from multitower.supervisor.scheduling.scheduler import StateError
from multitower.supervisor.workers.slot_state_machine import State


@pytest.fixture
def daemon(tmp_path: Path) -> DaemonScene:
    """A daemon of two slots, one of which has one model more."""
    return DaemonScene(tmp_path, [("m", "n"), ("m",)])


def test_an_unloaded_model_answers_accepted_requests_and_refuses_new_ones(daemon: DaemonScene) -> None:
    scene = daemon.scene
    old, neighbour = scene.process(0), scene.process(1)
    for _ in range(5):
        scene.submit(model="n")
    daemon.give("unload", "n")
    assert daemon.state("n") == "unloading"
    assert daemon.refused("n") == "'n' is unloaded; `multitower load n` loads it"
    scene.serve(scene.next_process(0))
    assert not child(old).told_to_end, "it has something to answer"
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list] * 5
    assert [slots_of(answer) for answer in daemon.answers] == [[0]]
    assert daemon.loads() == ["m", "m"]
    assert scene.process(1) is neighbour
    assert (daemon.state("n"), daemon.state("m")) == ("unloaded", "ready")
    assert daemon.refused("n") == "'n' is unloaded; `multitower load n` loads it"
    assert daemon.operations.readiness.report() == {"ready": True, "slots_ready": 2, "slots_total": 2}
    with pytest.raises(Unavailable, match="'n' is unloaded; `multitower load n` loads it"):
        daemon.operations.queries.answer(b"MT1:model_metadata", {"model_name": "n"}, scene.now)
    assert slots_of(daemon.carry_out("unload", "n")) == [], "again"


def test_a_model_loaded_again_serves_on_the_same_slots(daemon: DaemonScene) -> None:
    daemon.carry_out("unload", "n")
    neighbour = daemon.scene.process(1)
    daemon.give("load", "n")
    assert daemon.state("n") == "loading"
    daemon.scene.settle()
    assert [slots_of(answer) for answer in daemon.answers[1:]] == [[0]]
    assert (daemon.loads(), daemon.state("n")) == (["mn", "m"], "ready")
    assert daemon.scene.process(1) is neighbour
    daemon.scene.submit(model="n")
    daemon.scene.settle()
    assert [type(answer) for answer in daemon.scene.replies()] == [list]
    assert slots_of(daemon.carry_out("load", "n")) == [], "again"


@pytest.mark.parametrize("fits", [True, False])
def test_a_slot_without_loaded_models_has_no_process(tmp_path: Path, fits: bool) -> None:
    daemon = DaemonScene(tmp_path, [("m",), ("n",)], fits=fits)
    assert slots_of(daemon.carry_out("unload", "n")) == [1]
    scene = daemon.scene
    assert (scene.state(1), daemon.loads(), len(scene.alive())) == (State.STOPPED, ["m", ""], 1)
    assert daemon.operations.readiness.report() == {"ready": True, "slots_ready": 1, "slots_total": 1}
    daemon.restart(1)
    assert error_of(daemon.answers[-1]) == (Reason.SLOT_EMPTY, "slot 1 has no model to load")
    daemon.carry_out("unload", "m")
    assert scene.alive() == []
    assert not scene.manager.unavailable, "exit_when_failed must not end the daemon now"
    assert slots_of(daemon.carry_out("load", "n")) == [1]
    assert (scene.state(1), daemon.loads()) == (State.READY, ["", "n"])


@pytest.mark.parametrize("fits", [True, False])
def test_the_last_model_can_be_unloaded_where_failed_slots_end_the_daemon(tmp_path: Path, fits: bool) -> None:
    daemon = DaemonScene(tmp_path, [("m",), ("m",)], fits=fits)
    scene = daemon.scene
    scene.submit(model="m")  # its worker drains before it ends
    daemon.give("unload", "m")
    unavailable = [scene.manager.unavailable]
    scene.settle(lambda: unavailable.append(scene.manager.unavailable) or bool(daemon.answers))
    assert slots_of(daemon.answers[-1]) == [0, 1]
    assert scene.alive() == []
    assert True not in unavailable, "exit_when_failed must not end the daemon meanwhile"


def test_a_failed_slot_recovers_when_its_bad_model_is_unloaded(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m", "n")])
    scene = daemon.scene
    daemon.restart(0)
    scene.die(scene.process())
    while scene.slot().process is not None or scene.state() is not State.FAILED:
        scene.tick(1.0)
        if scene.slot().process is not None:
            scene.report(scene.process(), "failed", "n: no weights")
            scene.let_processes_end()
    assert slots_of(daemon.carry_out("unload", "n")) == [0]
    assert (scene.state(), daemon.loads()) == (State.READY, ["m"])


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("ends", ["it reports", "it dies"])
def test_the_last_model_that_works_is_unloaded_also_beside_broken_ones(tmp_path: Path, fits: bool, ends: str) -> None:
    daemon = DaemonScene(tmp_path, [("m", "n")], fits=fits)
    scene = daemon.scene
    scene.die(scene.process())
    scene.report(scene.process(), "loading")
    scene.report(scene.process(), "ready", failed={"n"})
    scene.tick()
    assert (daemon.state("m"), daemon.state("n")) == ("ready", "failed")
    old = scene.process()
    scene.submit()
    daemon.give("unload", "m")
    assert not child(old).told_to_end, "it has something to answer"
    scene.answer(old)
    scene.let_processes_end()
    scene.tick()
    assert daemon.loads() == ["n"]
    if ends == "it reports":
        scene.report(scene.process(), "loading")
        scene.report(scene.process(), "failed", "n: no weights")
        scene.tick()
        scene.let_processes_end()
        assert scene.state() is State.FAILED
    else:
        scene.die(scene.process())
    assert slots_of(daemon.answers[-1]) == [0]
    assert (daemon.specs(0), daemon.state("m")) == ([("n", 1)], "unloaded")
    assert slots_of(daemon.carry_out("load", "m")) == [0]
    assert daemon.state("m") == "ready"


def test_a_model_is_unloaded_from_a_slot_that_serves_none(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m", "n")])
    scene = daemon.scene
    scene.die(scene.process())
    scene.report(scene.process(), "failed", "m and n: no weights")
    scene.let_processes_end()
    assert scene.state() is State.FAILED
    daemon.give("unload", "m")
    scene.report(scene.process(), "failed", "n: no weights")
    scene.tick()
    assert slots_of(daemon.answers[-1]) == [0]
    assert (scene.state(), daemon.specs(0), daemon.state("m")) == (State.FAILED, [("n", 1)], "unloaded")


def test_new_versions_of_other_models_do_not_restart_a_failed_slot(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m",), ("n",)])
    scene = daemon.scene
    daemon.restart(1)
    scene.die(scene.process(1))
    while scene.slot(1).process is not None or scene.state(1) is not State.FAILED:
        scene.tick(1.0)
        if scene.slot(1).process is not None:
            scene.report(scene.process(1), "failed", "n: no weights")
            scene.let_processes_end()
    processes = len(scene.launched)
    ended: list[str | None] = []
    (spec,) = scene.slot(0).specs
    daemon.operations.model_orders.serve_versions("m", {spec.version: spec.fingerprint}, ended.append)
    scene.settle(lambda: bool(ended))
    assert (ended, scene.state(1), len(scene.launched)) == ([None], State.FAILED, processes)
    daemon.carry_out("reload")
    assert scene.state(1) is State.READY


def test_an_order_to_restart_a_gateway_that_is_not_configured_is_refused(daemon: DaemonScene) -> None:
    daemon.operations.orders.restart_gateway(daemon.answers.append)
    (answer,) = daemon.answers
    assert isinstance(answer, NotFound)
    assert (answer.reason, answer.message) == ("slot_unknown", "the configuration has no gateway")


def test_orders_to_restart_a_gateway_that_raise_leave_room_for_others(daemon: DaemonScene) -> None:
    gateway = Mock(pid=7)
    gateway.restart.side_effect = RuntimeError("a defect")
    orders = Orders(daemon.operations.context, gateway)
    for _ in range(MAX_RESTARTS):
        with pytest.raises(RuntimeError, match="a defect"):
            orders.restart_gateway(daemon.answers.append)
    gateway.restart.side_effect = lambda _, done, wanted: done(None)
    orders.restart_gateway(daemon.answers.append)
    assert daemon.answers == [{"pid": 7}]


def test_a_model_that_cannot_be_unloaded_serves_as_before(daemon: DaemonScene) -> None:
    daemon.scene.no_room = True
    daemon.give("unload", "n")
    assert error_of(daemon.answers[-1])[1] == "'n' could not be unloaded: slot 0: no process could be started"
    assert daemon.state("n") == "ready"
    scene = daemon.scene
    scene.submit(model="n")
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list]


def test_a_load_applies_only_the_section_of_its_model(daemon: DaemonScene) -> None:
    neighbour = daemon.scene.process(1)
    daemon.configure(m=2, n=2, more="dispatch: least_depth")
    assert slots_of(daemon.carry_out("load", "n")) == [0]
    assert daemon.specs(0) == [("m", 1), ("n", 2)]
    assert daemon.scene.process(1) is neighbour
    assert daemon.operations.settings.current.config.dispatch == "earliest_finish"
    assert isinstance(daemon.carry_out("reload"), dict)
    assert daemon.specs(0) == [("m", 2), ("n", 2)]


def test_a_reload_reports_a_heartbeat_that_running_workers_do_not_have_yet(daemon: DaemonScene) -> None:
    daemon.configure(more="heartbeat: 2s")
    answer = daemon.carry_out("reload")
    assert answer == {"renewed": [], "added": [], "removed": [], "at_next_start": ["heartbeat"]}
    assert daemon.operations.context.manager.settings.heartbeat_s == 2.0
    assert daemon.carry_out("reload") == {"renewed": [], "added": [], "removed": []}


def test_a_changed_heartbeat_applies_where_all_workers_are_replaced(daemon: DaemonScene) -> None:
    daemon.configure(m=2, n=2, more="heartbeat: 2s")
    assert daemon.carry_out("reload") == {"renewed": [0, 1], "added": [], "removed": []}


@pytest.mark.parametrize(
    "mistake",
    [
        "sparse: 1",
        "drain_timeout: never",
        "- {name: o, handler: 'h:M', retry: many}",
        "- {name: m, handler: 'h:M'}",
        "- {name: [n]}",
        "- n",
    ],
)
def test_a_mistake_elsewhere_in_the_file_does_not_stop_a_load(daemon: DaemonScene, mistake: str) -> None:
    daemon.configure(n=2, more=mistake)
    assert error_of(daemon.carry_out("reload"))[0] == Reason.CONFIG_REFUSED
    assert slots_of(daemon.carry_out("load", "n")) == [0]
    assert daemon.specs(0) == [("m", 1), ("n", 2)]


def test_a_file_that_is_no_yaml_stops_a_load(daemon: DaemonScene) -> None:
    daemon.configure(n=2, more="]")
    assert error_of(daemon.carry_out("load", "n"))[0] == Reason.CONFIG_REFUSED
    assert daemon.specs(0) == [("m", 1), ("n", 1)]


def test_a_model_that_is_new_in_the_file_is_loaded_on_its_devices(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m",), ("m",)])
    daemon.configure(n=1)
    assert slots_of(daemon.carry_out("load", "n")) == [0, 1]
    assert (daemon.loads(), daemon.state("n")) == (["mn", "mn"], "ready")
    assert slots_of(daemon.carry_out("unload", "n")) == [0, 1]
    assert (daemon.loads(), daemon.state("n")) == (["m", "m"], "unloaded")


def test_a_reload_loads_an_unloaded_model_again(daemon: DaemonScene) -> None:
    daemon.carry_out("unload", "n")
    answer = daemon.carry_out("reload")
    assert isinstance(answer, dict)
    assert answer["renewed"] == [0]
    assert (daemon.loads(), daemon.state("n")) == (["mn", "m"], "ready")


def test_a_reload_leaves_models_with_load_at_startup_false_as_they_are(daemon: DaemonScene) -> None:
    daemon.configure(at_startup="false")
    processes = [daemon.scene.process(slot) for slot in (0, 1)]
    assert isinstance(daemon.carry_out("reload"), dict)
    assert [daemon.scene.process(slot) for slot in (0, 1)] == processes
    daemon.carry_out("unload", "n")
    assert isinstance(daemon.carry_out("reload"), dict)
    assert (daemon.loads(), daemon.state("n"), daemon.state("m")) == (["m", "m"], "unloaded", "ready")
    daemon.configure()
    daemon.carry_out("reload")
    assert daemon.loads() == ["mn", "m"]


@pytest.mark.parametrize(
    ("order", "name", "more", "reason", "words"),
    [
        ("unload", "x", "", Reason.MODEL_UNKNOWN, "there is no model 'x', only m, n"),
        ("load", "x", "", Reason.MODEL_UNKNOWN, "the configuration names no model 'x', only m, n"),
        ("load", "n", "- {name: n, handler: 'h:M', sparse: 1}", Reason.CONFIG_REFUSED, "models[2].sparse: unknown key"),
        ("load", "n", "- {name: n, handler: 'h:M', devices: [cpu:7]}", Reason.CONFIG_REFUSED, "nothing has changed"),
    ],
)
def test_a_wrong_order_changes_nothing(
    daemon: DaemonScene, order: str, name: str, more: str, reason: Reason, words: str
) -> None:
    daemon.configure(more=more)
    answer = error_of(daemon.carry_out(order, name))
    assert answer[0] == reason
    assert words in answer[1]
    assert len(daemon.scene.launched) == 2
    assert daemon.state("n") == "ready"
    daemon.configure()
    assert slots_of(daemon.carry_out("unload", "n")) == [0]


def test_a_model_that_cannot_be_loaded_stays_unloaded_and_can_be_retried(daemon: DaemonScene) -> None:
    daemon.carry_out("unload", "n")
    old = daemon.scene.process(0)
    daemon.give("load", "n")
    daemon.scene.report(daemon.scene.next_process(0), "failed", "n: no weights")
    daemon.scene.settle()
    assert error_of(daemon.answers[-1]) == (Reason.ORDER_FAILED, "'n' could not be loaded: slot 0: n: no weights")
    assert daemon.scene.process(0) is old
    assert daemon.state("n") == "unloaded"
    assert daemon.refused("n") == "'n' is unloaded; `multitower load n` loads it"
    assert slots_of(daemon.carry_out("load", "n")) == [0]


def test_a_failed_load_is_undone_where_two_processes_do_not_fit(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m", "n")], fits=False)
    daemon.carry_out("unload", "n")
    daemon.give("load", "n")
    daemon.scene.let_processes_end()
    daemon.scene.report(daemon.scene.process(), "loading")
    daemon.scene.report(daemon.scene.process(), "ready", failed=["n"])
    daemon.scene.submit(model="m")
    daemon.scene.settle()
    assert error_of(daemon.answers[-1]) == (Reason.ORDER_FAILED, "'n' could not be loaded: slot 0: n: no weights")
    assert (daemon.state("m"), daemon.state("n"), daemon.loads()) == ("ready", "unloaded", ["m"])
    assert [type(answer) for answer in daemon.scene.replies()] == [list]
    assert slots_of(daemon.carry_out("load", "n")) == [0]
    assert daemon.state("n") == "ready"


def test_a_new_model_that_cannot_be_loaded_stays_unknown(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m",)])
    daemon.configure(n=1)
    daemon.give("load", "n")
    daemon.scene.report(daemon.scene.next_process(), "failed", "n: no weights")
    daemon.scene.settle()
    assert error_of(daemon.answers[-1])[0] == Reason.ORDER_FAILED
    assert [model["name"] for model in daemon.status()] == ["m"]
    assert error_of(daemon.carry_out("unload", "n"))[0] == Reason.MODEL_UNKNOWN
    assert slots_of(daemon.carry_out("load", "n")) == [0]


def test_a_model_that_fails_on_one_slot_is_unloaded_on_all(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m", "n"), ("m", "n")])
    daemon.carry_out("unload", "n")
    daemon.give("load", "n")
    daemon.scene.serve(daemon.scene.next_process(0))
    daemon.scene.let_processes_end()
    daemon.scene.tick()
    daemon.scene.submit(model="n")
    daemon.scene.report(daemon.scene.next_process(1), "failed", "n: no memory")
    daemon.scene.settle()
    assert error_of(daemon.answers[-1])[1] == "'n' could not be loaded: slot 1: n: no memory"
    assert [type(answer) for answer in daemon.scene.replies()] == [list]
    assert (daemon.loads(), daemon.state("n")) == (["m", "m"], "unloaded")


def test_a_new_generation_that_fails_on_one_slot_is_undone_on_all(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m", "n"), ("n",)])
    daemon.configure(n=2)
    daemon.give("load", "n")
    daemon.scene.serve(daemon.scene.next_process(0))
    daemon.scene.let_processes_end()
    daemon.scene.tick()
    daemon.scene.report(daemon.scene.next_process(1), "failed", "n: no weights")
    daemon.scene.settle()
    assert error_of(daemon.answers[-1])[0] == Reason.ORDER_FAILED
    assert daemon.specs(0) == [("m", 1), ("n", 1)]
    assert (daemon.state("n"), daemon.specs(1)) == ("ready", [("n", 1)])


def test_orders_are_carried_out_one_after_the_other(daemon: DaemonScene) -> None:
    daemon.configure(m=2)
    for order in (("reload",), ("unload", "n"), ("load", "n"), ("unload", "m")):
        daemon.give(*order)
    assert daemon.answers == []
    daemon.scene.settle()
    assert [isinstance(answer, dict) for answer in daemon.answers] == [True] * 4
    assert (daemon.loads(), daemon.specs(0)) == (["n", ""], [("n", 1)])


def test_a_reload_that_fails_leaves_limits_as_they_were(daemon: DaemonScene) -> None:
    router, settings = daemon.scene.router, daemon.operations.settings
    daemon.carry_out("reload")
    before = settings.current
    daemon.configure(m=2, more="dispatch: least_depth\nrestart: {max_restarts: 1}\nmax_unread_bytes: 2MiB")
    daemon.give("reload")
    assert (router.scheduler.pool.rule, router.unread.limit) == ("least_depth", 2 << 20)
    daemon.scene.report(daemon.scene.next_process(0), "failed", "m: no weights")
    daemon.scene.settle()
    assert error_of(daemon.answers[-1])[0] == Reason.ORDER_FAILED
    assert settings.current is before
    assert router.scheduler.pool.rule == before.dispatch != "least_depth"
    assert router.unread.limit == before.config.max_unread_bytes != 2 << 20
    assert daemon.scene.manager.settings.policy == before.worker_settings.policy


def test_a_hanging_call_does_not_keep_a_reload_from_removing_its_model(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m", "n")])
    scene = daemon.scene
    old = scene.process()
    scene.submit(model="m")
    daemon.remove_model("m")
    daemon.give("reload")
    scene.serve(scene.next_process())
    assert (scene.slot().process is old, daemon.answers) == (False, []), "the old one has a batch"
    for _ in range(32):
        scene.tick(1.0)
    assert old.verdict is not None, "max_execution_time of the removed model applies as long as a worker has it"
    scene.die(old)
    scene.settle()
    assert [isinstance(answer, dict) for answer in daemon.answers] == [True]
    assert "m" not in scene.router.scheduler.models
    daemon.carry_out("reload")
    assert list(scene.manager.settings.execution_s) == ["n"], "nothing is kept of it afterwards"


def test_a_model_that_a_worker_still_serves_is_removed_when_that_worker_is(daemon: DaemonScene) -> None:
    scene = daemon.scene
    scene.submit(model="n")
    scene.router.models.retain_models({"m"})
    assert "n" in scene.router.scheduler.models
    scene.answer(scene.process(0))
    assert [type(answer) for answer in scene.replies()] == [list]
    scene.die(scene.process(0))
    assert "n" not in scene.router.scheduler.models


@pytest.mark.parametrize("change", ["abandon", "remove_model"])
def test_an_error_while_requests_are_answered_for_good_is_a_state_error(daemon: DaemonScene, change: str) -> None:
    scheduler = daemon.scene.router.scheduler
    daemon.scene.submit(model="n")
    del scheduler.queues["n"]
    with pytest.raises(StateError):
        getattr(scheduler, change)("n")


@pytest.mark.parametrize("seed", range(40))
def test_each_request_has_one_answer_in_any_history_of_orders_and_deaths(tmp_path: Path, seed: int) -> None:
    """Orders, requests, answers, loading, deaths in any order."""
    rng = random.Random(seed)
    daemon = DaemonScene(tmp_path, [("m", "n"), ("m",), ("n",)], fits=rng.random() < 0.7)
    scene = daemon.scene
    accepted = deaths = 0
    answers: list[Any] = []
    for _ in range(120):
        step = rng.choice(["m", "n", "n", "answer", "answer", "load", "ready", "ready", "obey", "die", "order"])
        if step in ("m", "n"):
            with contextlib.suppress(Unavailable) if step == "n" else contextlib.nullcontext():
                scene.submit(rows=rng.choice([1, 2, 5]), model=step)
                accepted += 1
        elif step == "answer" and scene.running:
            worker = rng.choice(list(scene.running))
            process = next(m for m in scene.launched if m.route is not None and m.route.worker is worker)
            scene.answer(process)
        elif step == "ready":
            loading = [m for m in scene.alive() if m.slot is not None and m.route is None and not child(m).told_to_end]
            if loading:
                scene.serve(rng.choice(loading))
        elif step == "obey":
            scene.let_processes_end()
        elif step == "die" and scene.alive() and deaths < 3:
            deaths += 1
            scene.die(rng.choice(scene.alive()))
        elif step == "order" and len(daemon.answers) % 3 < 2:
            daemon.give(rng.choice(["load", "unload"]), "n")
        scene.tick(rng.choice([0.0, 0.5]))
        scene.dispatch()
        answers += scene.replies()
    scene.settle()
    answers += scene.replies()
    assert len(answers) == accepted
    errors = [answer for answer in answers if isinstance(answer, MultitowerError)]
    if not deaths:
        assert errors == []
        assert all(isinstance(answer, dict) for answer in daemon.answers)
    daemon.carry_out("load", "n")
    assert daemon.loads() == ["mn", "m", "n"]
    for name in ("m", "n"):
        scene.submit(model=name)
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list] * 2
