"""Models that an operator unloads and loads, as histories of a fleet without processes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from fake_workers import Scene, child, spec

from multitower.errors import MultitowerError, Reason, Unavailable
from multitower.supervisor import settings
from multitower.supervisor.config import config
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.operations.model_orders import ModelOrders
from multitower.supervisor.operations.orders import Orders
from multitower.supervisor.operations.status import StatusReporter
from multitower.supervisor.workers.slot_state_machine import State

MODEL = (
    "- {{name: {name}, handler: 'h:M', parameters: {{version: {version}}}, batching: {{max_batch_size: 2}}, "
    "devices: {on}, load_at_startup: {at_startup}}}"
)


class AtOnce:
    """What the orders need of `Errands`; an errand is over when `run` returns."""

    def run(self, errand: Callable[[], Any], then: Callable[[Any], None]) -> None:
        try:
            outcome = errand()
        except Exception as error:  # noqa: BLE001  as `Errands` does
            outcome = error
        then(outcome)


class Daemon:
    """A scene with the orders' side of a daemon.

    Args:
        folder: for its configuration.
        models: the names of each slot's models.
        fits: whether two processes of a slot fit.

    Attributes:
        told: the answers to orders.
    """

    def __init__(self, folder: Path, models: list[tuple[str, ...]], *, fits: bool = True) -> None:
        self._path = folder / "config.yaml"
        self._slots = models
        self.configure()
        self.scene = Scene(models=models, fits=fits)
        for slot in range(len(models)):
            self.scene.serve(self.scene.process(slot))
        manager, router = self.scene.manager, self.scene.router
        made = settings.build_settings(self._read())
        for slot, placement in zip(manager.slots, made.placements, strict=True):
            slot.placement = placement
        self.reporter = StatusReporter(router, manager, made.worker_settings.models, 1 << 20, self.scene.now)
        background = cast(BackgroundJobs, AtOnce())
        self.orders = Orders(
            manager, router, self.reporter, background, made, self._read, begun=lambda: None, ended=lambda: None
        )
        self._models = ModelOrders(self.orders, manager, router, self.reporter, background, self._read)
        self.told: list[dict[str, Any] | MultitowerError] = []

    def configure(self, *, more: str = "", at_startup: str = "true", **versions: int) -> None:
        """Writes the file: versions of models, whether they are loaded at the start, and a text behind."""
        names = sorted({name for slot in self._slots for name in slot} | set(versions))
        lines = [f"devices: {{cpu: {len(self._slots)}}}", "spares: 0", "models:"]
        for name in names:
            on = [f"cpu:{number}" for number, slot in enumerate(self._slots) if name in slot] or "all"
            lines.append(MODEL.format(name=name, version=versions.get(name, 1), on=on, at_startup=at_startup))
        self._path.write_text("\n".join([*lines, more]))

    def _read(self) -> config.Config:
        return config.load(self._path, environment={})

    def order(self, what: str, *arguments: str) -> None:
        """Begins to carry it out."""
        {"load": self._models.load, "unload": self._models.unload, "reload": self.orders.reload}[what](
            *arguments, self.told.append
        )
        self.scene.tick()

    def carry_out(self, what: str, *arguments: str) -> dict[str, Any] | MultitowerError:
        """Does it, while everything goes well; its answer."""
        before = len(self.told)
        self.order(what, *arguments)
        self.scene.settle(lambda: len(self.told) > before)
        self.scene.settle()
        return self.told[before]

    def state(self, name: str) -> str:
        """Of a model, in the status."""
        return {model["name"]: str(model["state"]) for model in self.reporter.status(self.scene.now)["models"]}[name]

    def refused(self, name: str) -> str:
        """Why a request to the model is refused."""
        with pytest.raises(Unavailable) as caught:
            self.scene.submit(model=name)
        assert caught.value.reason == Reason.NO_WORKER
        return caught.value.message

    def loads(self) -> list[str]:
        """The models of each slot's process."""
        processes = [slot.process for slot in self.scene.manager.slots]
        return [
            "".join(name for name, _ in process.generations) if process is not None else "" for process in processes
        ]


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """Of two slots, one of which has one model more."""
    return Daemon(tmp_path, [("m", "n"), ("m",)])


def of(answer: dict[str, Any] | MultitowerError) -> list[int]:
    """The slots that were renewed."""
    assert isinstance(answer, dict), answer
    return cast(list[int], answer["slots"])


def why(answer: dict[str, Any] | MultitowerError) -> tuple[str, str]:
    assert isinstance(answer, MultitowerError), answer
    return answer.reason, answer.message


def test_an_unloaded_model_answers_what_was_accepted_and_refuses_what_comes(daemon: Daemon) -> None:
    scene = daemon.scene
    old, neighbour = scene.process(0), scene.process(1)
    for _ in range(5):
        scene.submit(model="n")
    daemon.order("unload", "n")
    assert daemon.state("n") == "unloading"
    assert daemon.refused("n") == "'n' is unloaded; `multitower load n` loads it"
    scene.serve(scene.next_process(0))
    assert not child(old).told, "it has something to answer"
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list] * 5
    assert [of(answer) for answer in daemon.told] == [[0]]
    assert daemon.loads() == ["m", "m"]
    assert scene.process(1) is neighbour
    assert (daemon.state("n"), daemon.state("m")) == ("unloaded", "ready")
    assert daemon.refused("n") == "'n' is unloaded; `multitower load n` loads it"
    assert daemon.reporter.readiness() == {"ready": True, "slots_ready": 2, "slots_total": 2}
    with pytest.raises(Unavailable, match="'n' is unloaded; `multitower load n` loads it"):
        daemon.reporter.answer(b"MT1:model_metadata", {"model_name": "n"}, scene.now)
    assert of(daemon.carry_out("unload", "n")) == [], "again"


def test_loaded_again_it_serves_where_it_did(daemon: Daemon) -> None:
    daemon.carry_out("unload", "n")
    neighbour = daemon.scene.process(1)
    daemon.order("load", "n")
    assert daemon.state("n") == "loading"
    daemon.scene.settle()
    assert [of(answer) for answer in daemon.told[1:]] == [[0]]
    assert (daemon.loads(), daemon.state("n")) == (["mn", "m"], "ready")
    assert daemon.scene.process(1) is neighbour
    daemon.scene.submit(model="n")
    daemon.scene.settle()
    assert [type(answer) for answer in daemon.scene.replies()] == [list]
    assert of(daemon.carry_out("load", "n")) == [], "again"


@pytest.mark.parametrize("fits", [True, False])
def test_a_slot_whose_last_model_is_unloaded_has_no_process_until_it_is_loaded(tmp_path: Path, fits: bool) -> None:
    daemon = Daemon(tmp_path, [("m",), ("n",)], fits=fits)
    assert of(daemon.carry_out("unload", "n")) == [1]
    scene = daemon.scene
    assert (scene.state(1), daemon.loads(), len(scene.alive())) == (State.STOPPED, ["m", ""], 1)
    assert daemon.reporter.readiness() == {"ready": True, "slots_ready": 1, "slots_total": 1}
    daemon.orders.restart(1, daemon.told.append)
    assert why(daemon.told[-1]) == (Reason.MALFORMED, "slot 1 has no model to load")
    daemon.carry_out("unload", "m")
    assert scene.alive() == []
    assert not scene.manager.unavailable, "exit_when_failed must not end the daemon now"
    assert of(daemon.carry_out("load", "n")) == [1]
    assert (scene.state(1), daemon.loads()) == (State.READY, ["", "n"])


def test_a_slot_that_failed_comes_back_without_the_model_that_is_unloaded(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, [("m", "n")])
    scene = daemon.scene
    daemon.orders.restart(0, daemon.told.append)
    scene.die(scene.process())
    while scene.slot().process is not None or scene.state() is not State.FAILED:
        scene.tick(1.0)
        if scene.slot().process is not None:
            scene.report(scene.process(), "failed", "n: no weights")
            scene.obey()
    assert of(daemon.carry_out("unload", "n")) == [0]
    assert (scene.state(), daemon.loads()) == (State.READY, ["m"])


def test_one_that_could_not_be_unloaded_is_there_as_before(daemon: Daemon) -> None:
    daemon.scene.no_room = True
    daemon.order("unload", "n")
    assert why(daemon.told[-1])[1] == "'n' could not be unloaded: slot 0: no process could be started"
    assert daemon.state("n") == "ready"
    scene = daemon.scene
    scene.submit(model="n")
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list]


def test_a_load_takes_one_section_of_the_file_and_no_other(daemon: Daemon) -> None:
    neighbour = daemon.scene.process(1)
    daemon.configure(m=2, n=2, more="dispatch: least_depth")
    assert of(daemon.carry_out("load", "n")) == [0]
    slot = daemon.scene.slot(0)
    assert slot.specs == (spec(1, "m"), spec(2, "n"))
    assert daemon.scene.process(1) is neighbour
    assert daemon.orders.settings.config.dispatch == "earliest_finish"
    assert isinstance(daemon.carry_out("reload"), dict)
    assert daemon.scene.slot(0).specs == (spec(2, "m"), spec(2, "n"))


def test_a_model_that_is_new_in_the_file_is_loaded_on_its_devices(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, [("m",), ("m",)])
    daemon.configure(n=1)
    assert of(daemon.carry_out("load", "n")) == [0, 1]
    assert (daemon.loads(), daemon.state("n")) == (["mn", "mn"], "ready")
    assert of(daemon.carry_out("unload", "n")) == [0, 1]
    assert (daemon.loads(), daemon.state("n")) == (["m", "m"], "unloaded")


def test_a_reload_returns_to_what_the_file_says(daemon: Daemon) -> None:
    daemon.carry_out("unload", "n")
    answer = daemon.carry_out("reload")
    assert isinstance(answer, dict)
    assert answer["renewed"] == [0]
    assert (daemon.loads(), daemon.state("n")) == (["mn", "m"], "ready")


def test_a_reload_leaves_what_need_not_be_loaded_at_the_start_as_it_is(daemon: Daemon) -> None:
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
    ("what", "name", "more", "reason", "words"),
    [
        ("unload", "x", "", Reason.MODEL_UNKNOWN, "there is no model 'x', only m, n"),
        ("load", "x", "", Reason.MODEL_UNKNOWN, "config.yaml names no model 'x', only m, n"),
        ("load", "n", "sparse: 1", Reason.MALFORMED, "and nothing has changed:"),
        ("load", "n", "- {name: n, handler: 'h:M', devices: [cpu:7]}", Reason.MALFORMED, "nothing has changed"),
    ],
)
def test_a_wrong_order_changes_nothing(
    daemon: Daemon, what: str, name: str, more: str, reason: Reason, words: str
) -> None:
    daemon.configure(more=more)
    told = why(daemon.carry_out(what, name))
    assert told[0] == reason
    assert words in told[1]
    assert len(daemon.scene.launched) == 2
    assert daemon.state("n") == "ready"
    daemon.configure()
    assert of(daemon.carry_out("unload", "n")) == [0]


def test_one_that_cannot_be_loaded_stays_unloaded_and_is_tried_again(daemon: Daemon) -> None:
    daemon.carry_out("unload", "n")
    old = daemon.scene.process(0)
    daemon.order("load", "n")
    daemon.scene.report(daemon.scene.next_process(0), "failed", "n: no weights")
    daemon.scene.settle()
    assert why(daemon.told[-1]) == (Reason.MODEL_ERROR, "'n' could not be loaded: slot 0: n: no weights")
    assert daemon.scene.process(0) is old
    assert daemon.state("n") == "unloaded"
    assert daemon.refused("n") == "'n' is unloaded; `multitower load n` loads it"
    assert of(daemon.carry_out("load", "n")) == [0]


def test_one_that_cannot_be_loaded_where_two_do_not_fit_is_given_up_again(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, [("m", "n")], fits=False)
    daemon.carry_out("unload", "n")
    daemon.order("load", "n")
    daemon.scene.obey()
    daemon.scene.report(daemon.scene.process(), "loading")
    daemon.scene.report(daemon.scene.process(), "ready", failed=["n"])
    daemon.scene.submit(model="m")
    daemon.scene.settle()
    assert why(daemon.told[-1]) == (Reason.MODEL_ERROR, "'n' could not be loaded: slot 0: n: no weights")
    assert (daemon.state("m"), daemon.state("n"), daemon.loads()) == ("ready", "unloaded", ["m"])
    assert [type(answer) for answer in daemon.scene.replies()] == [list]
    assert of(daemon.carry_out("load", "n")) == [0]
    assert daemon.state("n") == "ready"


def test_a_new_one_that_cannot_be_loaded_is_not_known(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, [("m",)])
    daemon.configure(n=1)
    daemon.order("load", "n")
    daemon.scene.report(daemon.scene.next_process(), "failed", "n: no weights")
    daemon.scene.settle()
    assert why(daemon.told[-1])[0] == Reason.MODEL_ERROR
    assert [model["name"] for model in daemon.reporter.status(daemon.scene.now)["models"]] == ["m"]
    assert why(daemon.carry_out("unload", "n"))[0] == Reason.MODEL_UNKNOWN
    assert of(daemon.carry_out("load", "n")) == [0]


def test_one_that_cannot_be_loaded_on_one_of_its_slots_is_given_up_on_all(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, [("m", "n"), ("m", "n")])
    daemon.carry_out("unload", "n")
    daemon.order("load", "n")
    daemon.scene.serve(daemon.scene.next_process(0))
    daemon.scene.obey()
    daemon.scene.tick()
    daemon.scene.submit(model="n")
    daemon.scene.report(daemon.scene.next_process(1), "failed", "n: no memory")
    daemon.scene.settle()
    assert why(daemon.told[-1])[1] == "'n' could not be loaded: slot 1: n: no memory"
    assert [type(answer) for answer in daemon.scene.replies()] == [list]
    assert (daemon.loads(), daemon.state("n")) == (["m", "m"], "unloaded")


def test_one_whose_new_edition_cannot_be_loaded_everywhere_stays_what_it_was(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, [("m", "n"), ("n",)])
    daemon.configure(n=2)
    daemon.order("load", "n")
    daemon.scene.serve(daemon.scene.next_process(0))
    daemon.scene.obey()
    daemon.scene.tick()
    daemon.scene.report(daemon.scene.next_process(1), "failed", "n: no weights")
    daemon.scene.settle()
    assert why(daemon.told[-1])[0] == Reason.MODEL_ERROR
    assert daemon.scene.slot(0).specs == (spec(1, "m"), spec(1, "n"))
    assert (daemon.state("n"), daemon.scene.slot(1).specs) == ("ready", (spec(1, "n"),))


def test_orders_are_carried_out_one_after_the_other(daemon: Daemon) -> None:
    daemon.configure(m=2)
    for order in (("reload",), ("unload", "n"), ("load", "n"), ("unload", "m")):
        daemon.order(*order)
    assert daemon.told == []
    daemon.scene.settle()
    assert [isinstance(answer, dict) for answer in daemon.told] == [True] * 4
    assert (daemon.loads(), daemon.scene.slot(0).specs) == (["n", ""], (spec(1, "n"),))


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_request_has_one_answer_and_the_neighbours_are_served(tmp_path: Path, seed: int) -> None:
    """Orders, requests, answers, loading, deaths in any order."""
    rng = random.Random(seed)
    daemon = Daemon(tmp_path, [("m", "n"), ("m",), ("n",)], fits=rng.random() < 0.7)
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
            loading = [m for m in scene.alive() if m.slot is not None and m.route is None and not child(m).told]
            if loading:
                scene.serve(rng.choice(loading))
        elif step == "obey":
            scene.obey()
        elif step == "die" and scene.alive() and deaths < 3:
            deaths += 1
            scene.die(rng.choice(scene.alive()))
        elif step == "order" and len(daemon.told) % 3 < 2:
            daemon.order(rng.choice(["load", "unload"]), "n")
        scene.tick(rng.choice([0.0, 0.5]))
        scene.dispatch()
        answers += scene.replies()
    scene.settle()
    answers += scene.replies()
    assert len(answers) == accepted
    errors = [answer for answer in answers if isinstance(answer, MultitowerError)]
    if not deaths:
        assert errors == []
        assert all(isinstance(answer, dict) for answer in daemon.told)
    daemon.carry_out("load", "n")
    assert daemon.loads() == ["mn", "m", "n"]
    for name in ("m", "n"):
        scene.submit(model=name)
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list] * 2
