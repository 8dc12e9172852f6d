"""Orders that change the settings: one after the other, bounded, each with one answer whatever its steps raise."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from daemon_scene import DaemonScene, error_of
from fake_operations import Answer, DelayedJobs

from multitower.errors import MultitowerError, Reason, make
from multitower.supervisor.lifecycle import Lifecycle, LifecycleState
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.operations.order_queue import MAX_WAITING, Order, OrderQueue
from multitower.supervisor.operations.orders import MAX_RESTARTS
from multitower.supervisor.workers.planned_replacement_queue import Replacement, ReplacementQueue


@pytest.fixture
def lifecycle() -> Lifecycle:
    return Lifecycle(LifecycleState.RUNNING)


@pytest.fixture
def jobs() -> DelayedJobs:
    return DelayedJobs()


@pytest.fixture
def queue(lifecycle: Lifecycle, jobs: DelayedJobs) -> OrderQueue:
    return OrderQueue(lifecycle, cast(BackgroundJobs, jobs), max_waiting=10_000)


def reasons(answers: list[Answer]) -> list[str]:
    return [error_of(answer)[0] if isinstance(answer, MultitowerError) else "ok" for answer in answers]


def test_thousands_of_waiting_orders_that_end_as_they_begin_are_all_answered(queue: OrderQueue) -> None:
    waiting: list[Order] = []
    answers: list[Answer] = []
    queue.submit(waiting.append, answers.append)
    for number in range(5000):
        queue.submit(lambda order, number=number: order.end({"number": number}), answers.append)  # type: ignore[misc]
    assert answers == []
    waiting[0].end({"number": -1})
    assert answers == [{"number": number} for number in range(-1, 5000)]
    assert not queue.busy


def test_an_order_given_by_the_answer_to_another_one_is_carried_out_after_it(queue: OrderQueue) -> None:
    answers: list[Answer] = []

    def done(answer: Answer) -> None:
        answers.append(answer)
        if len(answers) < 3000:
            queue.submit(lambda order: order.end({}), done)

    queue.submit(lambda order: order.end({}), done)
    assert len(answers) == 3000


def test_more_orders_than_may_wait_are_refused_with_a_time_to_try_again(
    lifecycle: Lifecycle, jobs: DelayedJobs
) -> None:
    queue = OrderQueue(lifecycle, cast(BackgroundJobs, jobs), max_waiting=2)
    waiting: list[Order] = []
    answers: list[Answer] = []
    for _ in range(5):
        queue.submit(waiting.append, answers.append)
    assert reasons(answers) == ["too_many_orders"] * 2
    assert isinstance(answers[0], MultitowerError)
    assert answers[0].details == {"retry_after_ms": 1000}
    while waiting:
        waiting.pop().end({})
    assert reasons(answers) == ["too_many_orders"] * 2 + ["ok"] * 3


def defect(*_: object) -> None:
    raise ZeroDivisionError("a defect")


def refusal(*_: object) -> None:
    raise make(Reason.CONFIG_REFUSED, "why")


@pytest.mark.parametrize(("step", "reason"), [(defect, "internal_error"), (refusal, "config_refused")])
@pytest.mark.parametrize("later", [False, True])
def test_a_step_that_raises_ends_its_order_and_no_other_one(
    queue: OrderQueue, step: Callable[..., None], reason: str, later: bool
) -> None:
    answers: list[Answer] = []
    guarded: list[Callable[[], None]] = []
    queue.submit(lambda order: guarded.append(order.guard(step)) if later else step(order), answers.append)
    queue.submit(lambda order: order.end({}), answers.append)
    if later:
        assert answers == []
        guarded[0]()
        guarded[0]()  # the order has ended: no-op
    assert reasons(answers) == [reason, "ok"]


def test_an_answer_that_cannot_be_delivered_does_not_block_the_queue(queue: OrderQueue) -> None:
    answers: list[Answer] = []
    queue.submit(lambda order: order.end({}), defect)
    queue.submit(lambda order: order.end({}), answers.append)
    assert reasons(answers) == ["ok"]


def test_orders_whose_turn_comes_while_the_daemon_drains_are_refused(lifecycle: Lifecycle, queue: OrderQueue) -> None:
    waiting: list[Order] = []
    answers: list[Answer] = []
    queue.submit(waiting.append, answers.append)
    queue.submit(waiting.append, answers.append)
    lifecycle.request_stop(0.0, 30.0)
    waiting[0].end({})
    assert reasons(answers) == ["ok", "draining"]


@pytest.fixture
def daemon(tmp_path: Path) -> DaemonScene:
    return DaemonScene(tmp_path, [("m", "n"), ("m",)])


def test_failing_orders_behind_a_slow_one_are_all_answered(daemon: DaemonScene) -> None:
    daemon.configure(m=2)
    daemon.give("reload")
    for _ in range(MAX_WAITING + 50):
        daemon.give("unload", "x")
    assert reasons(daemon.answers) == ["too_many_orders"] * 50
    daemon.scene.settle()
    assert reasons(daemon.answers) == ["too_many_orders"] * 50 + ["ok"] + ["model_unknown"] * MAX_WAITING
    assert reasons([daemon.carry_out("unload", "n")]) == ["ok"]


def test_a_reload_while_one_is_under_way_is_refused_and_follows_it(daemon: DaemonScene) -> None:
    daemon.configure(m=2)
    daemon.give("reload")
    daemon.configure(m=3)
    daemon.give("reload")
    assert error_of(daemon.answers[0]) == (
        Reason.RELOAD_IN_PROGRESS,
        "a reload is under way; another one follows it",
    )
    daemon.scene.settle()
    assert reasons(daemon.answers) == ["reload_in_progress", "ok"]
    daemon.scene.settle()
    assert [dict(spec.parameters) for spec in daemon.scene.slot(1).specs] == [{"version": 3}]


def test_a_configuration_that_cannot_be_applied_is_refused(
    daemon: DaemonScene, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.configure(more="max_message_size: 1MiB")
    reason, message = error_of(daemon.carry_out("reload"))
    assert reason == Reason.CONFIG_REFUSED
    assert message.endswith("max_message_size cannot change while the daemon runs: restart it")
    (refused,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert refused.getMessage() == "reload refused: nothing has changed"
    (cause,) = refused.__dict__["fields"].values()
    assert cause.endswith("max_message_size cannot change while the daemon runs: restart it")
    assert "nothing has changed" not in cause, "the message says so"


def test_the_log_of_an_order_names_the_slots_and_no_reload(
    daemon: DaemonScene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    daemon.carry_out("unload", "n")
    (line,) = [record for record in caplog.records if record.getMessage() == "workers replaced"]
    assert line.__dict__["fields"] == {"why": "unload n", "replaced": [0], "added": [], "removed": []}
    assert not any("reload" in record.getMessage() for record in caplog.records)


def test_a_reload_that_was_read_while_the_daemon_began_to_drain_is_refused(
    daemon: DaemonScene, jobs: DelayedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.operations.queue, "_background", jobs)
    daemon.give("reload")
    daemon.give("load", "n")
    daemon.operations.lifecycle.request_stop(daemon.scene.now, 30.0)
    for ended in jobs.ended:
        ended()
    assert reasons(daemon.answers) == ["draining", "draining"]


@pytest.mark.parametrize(("slot", "reason"), [(7, "slot_unknown"), (-1, "slot_unknown")])
def test_a_slot_that_is_not_there_cannot_be_restarted(daemon: DaemonScene, slot: int, reason: str) -> None:
    daemon.restart(slot)
    assert error_of(daemon.answers[0]) == (reason, f"there is no slot {slot}, only 0, 1")


def test_restarts_that_wait_are_bounded(daemon: DaemonScene) -> None:
    for _ in range(MAX_RESTARTS + 3):
        daemon.restart(0)
    assert reasons(daemon.answers) == ["too_many_orders"] * 3
    daemon.scene.settle(lambda: len(daemon.answers) == MAX_RESTARTS + 3)
    daemon.restart(1)
    daemon.scene.settle()
    assert reasons(daemon.answers) == ["too_many_orders"] * 3 + ["ok"] * (MAX_RESTARTS + 1)


def test_a_defect_while_a_reload_is_applied_ends_it_and_the_next_one_is_carried_out(
    daemon: DaemonScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(daemon.scene.router.models, "set_labels", defect)
        daemon.configure(m=2)
        assert reasons([daemon.carry_out("reload")]) == ["internal_error"]
    daemon.configure(m=3)
    assert reasons([daemon.carry_out("reload")]) == ["ok"]
    assert daemon.loads() == ["mn", "m"]


def fail_second_replacement(daemon: DaemonScene, patched: pytest.MonkeyPatch, *, in_progress: bool) -> None:
    """Has the request for a second replacement raise, while the first one waits or is in progress."""
    request = daemon.scene.manager.request_replacement
    requested: list[Replacement] = []

    def request_or_raise(replacement: Replacement) -> None:
        requested.append(replacement)
        if len(requested) == 2:
            defect()
        request(replacement)
        if in_progress:
            daemon.scene.tick()

    patched.setattr(daemon.scene.manager, "request_replacement", request_or_raise)


def test_a_defect_in_a_reload_withdraws_what_has_not_begun(
    daemon: DaemonScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = daemon.scene
    before = [slot.specs for slot in scene.manager.slots]
    daemon.configure(m=2, more="restart: {max_restarts: 7}")
    with monkeypatch.context() as patched:
        fail_second_replacement(daemon, patched, in_progress=False)
        daemon.give("reload")
    assert reasons(daemon.answers) == ["internal_error"]
    assert not scene.manager.replacing
    assert scene.manager.settings == daemon.operations.settings.current.worker_settings
    scene.settle()
    assert [slot.specs for slot in scene.manager.slots] == before
    assert reasons([daemon.carry_out("reload")]) == ["ok"]


def test_a_defect_in_a_reload_keeps_the_models_that_it_was_to_remove(
    daemon: DaemonScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.remove_model("n", m=2)
    with monkeypatch.context() as patched:
        fail_second_replacement(daemon, patched, in_progress=False)
        assert reasons([daemon.carry_out("reload")]) == ["internal_error"]
    assert daemon.scene.router.models.to_remove == set()
    daemon.scene.submit(model="n")
    daemon.scene.settle()
    assert [type(answer) for answer in daemon.scene.replies()] == [list]


@pytest.mark.parametrize("ends", ["defect in an order", "defects in an order and its undoing", "failed worker"])
def test_a_model_that_a_reload_took_from_all_slots_is_gone_where_the_reload_ends_early(
    daemon: DaemonScene, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    scene = daemon.scene
    daemon.remove_model("n", m=2)
    if ends == "failed worker":
        daemon.give("reload")
        scene.serve(scene.next_process(0))
        scene.let_processes_end()
        scene.tick()
        scene.report(scene.next_process(1), "failed", "m: no weights")
        scene.settle()
    else:
        with monkeypatch.context() as patched:
            if ends == "defect in an order":
                patched.setattr(scene.router.scheduler, "reset_crash_count", defect)
            else:
                patched.setattr(scene.router.models, "set_labels", defect)
            daemon.carry_out("reload")
    assert reasons(daemon.answers) == ["order_failed" if ends == "failed worker" else "internal_error"]
    assert [model["name"] for model in daemon.status()] == ["m"]
    assert daemon.operations.status.report(scene.now)["daemon"]["ready"], "nothing else lacks a worker"
    assert reasons([daemon.carry_out("unload", "m"), daemon.carry_out("reload")]) == ["ok", "ok"]
    assert [model["name"] for model in daemon.status()] == ["m"]


def test_a_reload_with_a_defect_ends_after_its_replacement_in_progress(
    daemon: DaemonScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.configure(m=2)
    with monkeypatch.context() as patched:
        fail_second_replacement(daemon, patched, in_progress=True)
        daemon.give("reload")
    daemon.give("unload", "n")
    assert (daemon.answers, daemon.scene.manager.replacing) == ([], True)
    daemon.scene.settle()
    assert reasons(daemon.answers) == ["internal_error", "ok"]
    assert reasons([daemon.carry_out("reload")]) == ["ok"]


def test_an_order_whose_undoing_raises_is_answered_all_the_same(queue: OrderQueue) -> None:
    answers: list[Answer] = []

    def begin(order: Order) -> None:
        order.on_defect = defect
        defect()

    queue.submit(begin, answers.append)
    assert reasons(answers) == ["internal_error"]
    assert not queue.busy


def test_a_reload_is_answered_although_its_end_cannot_be_announced(
    daemon: DaemonScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.operations.context.announcer, "reload_ended", defect)
    assert reasons([daemon.carry_out("reload")]) == ["ok"]


def test_a_change_of_versions_ends_although_its_end_cannot_be_announced(
    daemon: DaemonScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.operations.context.announcer, "reload_began", defect)
    monkeypatch.setattr(daemon.operations.context.announcer, "reload_ended", defect)
    ended: list[str | None] = []
    daemon.operations.model_orders.serve_versions("m", {"1": "fingerprint"}, ended.append)
    assert len(ended) == 1
    assert ended[0] is not None


def test_a_restart_that_raises_is_not_counted_as_waiting(daemon: DaemonScene, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(ReplacementQueue, "add", defect)
        for _ in range(MAX_RESTARTS):
            with pytest.raises(ZeroDivisionError):
                daemon.restart(0)
    assert not daemon.scene.slot(0).operator_restart
    daemon.restart(0)
    daemon.scene.settle()
    assert reasons(daemon.answers) == ["ok"]


def test_orders_whose_files_do_not_answer_do_not_pile_up_threads(queue: OrderQueue, jobs: DelayedJobs) -> None:
    answers: list[Answer] = []

    def read(order: Order) -> None:
        queue.read_files(order, dict, lambda _: order.end({}), 60.0)

    for _ in range(10):
        queue.submit(read, answers.append)
        if queue.due is not None:
            queue.tick(queue.due)
    assert len(jobs.ended) == 4, "each has a thread that is stuck"
    causes = [error_of(answer)[1] for answer in answers if isinstance(answer, MultitowerError)]
    assert "could not be read within 60 s, and nothing has changed" in causes[3]
    assert "4 earlier orders still read the configuration or the models' folders" in causes[4]
    jobs.ended.pop()()
    queue.submit(read, answers.append)
    jobs.ended.pop()()
    assert answers[-1] == {}, "one of them has ended, so that files are read again"


def test_an_order_is_decided_again_once_its_files_have_been_read(queue: OrderQueue, jobs: DelayedJobs) -> None:
    answers, applied = list[Answer](), list[Order]()
    allowed = [None, make(Reason.FORBIDDEN, "it may not any more")]

    def read(order: Order) -> None:
        queue.read_files(order, dict, lambda _: applied.append(order), 60.0)

    queue.submit(read, answers.append, recheck=lambda: allowed.pop(0))
    assert answers == []
    jobs.ended.pop()()
    assert (reasons(answers), applied, queue.busy) == (["forbidden"], [], False)
