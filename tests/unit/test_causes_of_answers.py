"""Answers that a limit or a death brings about name the cause, the limit and its value."""

from __future__ import annotations

from typing import Any

import pytest
from fake_workers import Scene as Fleet
from scheduler_scene import add_worker

from multitower.errors import MultitowerError, Overloaded, Poisoned, Unavailable
from multitower.supervisor.scheduling.deaths import Death
from multitower.supervisor.scheduling.pool_worker import Served
from multitower.supervisor.scheduling.quarantine import MIN_CRASHES
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.supervisor.workers.exit_cause import ExitCause, Fault, Verdict
from multitower.worker_wire import KeySpec

KEY = BatchKey(KeySpec("m", (("x", "UINT8", ()),), None, True), 4)
SEGFAULT = Death("killed by SIGSEGV (11)")
OVERRUN = Death("killed because it hung: a model call took over 2 s (max_execution_time)", hung=True, limit_s=2.0)


def request(content: bytes = b"bad", *, id: bytes = b"1", own: bool = False, now: float = 0.0) -> Request:
    plan = Plan(KEY, len(content), (0,), (len(content),), (False,), ("x",), 30.0, timeout_is_own=own)
    return Request(("sender",), id, plan, [content], len(content), now)


class Scene:
    """A scheduler, and a new worker for each one that dies."""

    def __init__(self, **limits: Any) -> None:
        settings: dict[str, Any] = {"max_size": 1000, "max_bytes": 1 << 20, "quarantine_s": 60.0}
        self.scheduler = Scheduler({"m": QueueLimits(**(settings | limits))})

    def run(self) -> Any:
        worker = add_worker(self.scheduler, 0, "cpu:0", {"m": Served()}, 0.0)
        assert self.scheduler.dispatch(0.0)
        return worker

    def die(self, *deaths: Death | None) -> None:
        for death in deaths:
            self.scheduler.remove_process(self.run(), 0.0, crashed=True, death=death)

    def error(self) -> MultitowerError:
        (reply,) = self.scheduler.pop_replies()
        assert isinstance(reply.answer, MultitowerError)
        return reply.answer


@pytest.mark.parametrize(
    ("own", "text", "limit"),
    [(True, "the request's timeout is 30 s", "timeout"), (False, "queue.timeout of 'm' is 30 s", "queue.timeout")],
)
@pytest.mark.parametrize("running", [True, False])
def test_a_passed_deadline_names_whose_it_was(own: bool, text: str, limit: str, running: bool) -> None:
    scene = Scene()
    scene.scheduler.submit(request(own=own))
    if running:
        scene.run()
    scene.scheduler.expire(31.0)
    error = scene.error()
    where = "while it was being executed" if running else "before a worker was free"
    assert error.message == f"the deadline passed {where}: {text}"
    assert error.details == {"limit": limit, "limit_value": 30.0}


def test_a_deadline_that_is_noticed_when_a_batch_is_formed_names_it_too() -> None:
    scene = Scene()
    scene.scheduler.submit(request())
    add_worker(scene.scheduler, 0, "cpu:0", {"m": Served()}, 31.0)
    assert not scene.scheduler.dispatch(31.0)
    assert scene.error().details == {"limit": "queue.timeout", "limit_value": 30.0}


@pytest.mark.parametrize(
    ("deaths", "message", "details"),
    [
        (
            [SEGFAULT, SEGFAULT],
            "2 workers died while they executed this request (killed by SIGSEGV (11)), and retry of 'm' is 1: do not "
            "send it again",
            {"cause": "killed by SIGSEGV (11)", "limit": "retry", "limit_value": 1},
        ),
        (
            [SEGFAULT, OVERRUN],
            f"2 workers died while they executed this request (killed by SIGSEGV (11); {OVERRUN.cause}), and retry of "
            "'m' is 1: do not send it again",
            {
                "cause": f"killed by SIGSEGV (11); {OVERRUN.cause}",
                "limit": "max_execution_time",
                "limit_value": 2.0,
            },
        ),
        (
            [None, None],
            "2 workers died while they executed this request, and retry of 'm' is 1: do not send it again",
            {"limit": "retry", "limit_value": 1},
        ),
    ],
    ids=["crashes", "a crash and a hang", "unknown"],
)
def test_a_poisoned_request_is_told_how_its_workers_died(
    deaths: list[Death | None], message: str, details: dict[str, Any]
) -> None:
    scene = Scene()
    scene.scheduler.submit(request())
    scene.die(*deaths)
    error = scene.error()
    assert (error.reason, error.message, error.details) == ("poisoned", message, details)


def test_without_retry_the_answer_has_the_cause_of_the_death() -> None:
    scene = Scene(retry=0)
    scene.scheduler.submit(request())
    scene.die(OVERRUN)
    error = scene.error()
    assert error.message == f"the worker died with this request ({OVERRUN.cause}), and retry of 'm' is 0"
    assert (error.reason, error.details["limit"]) == ("worker_died", "max_execution_time")


@pytest.mark.parametrize(
    ("death", "what"),
    [(SEGFAULT, "crashed a worker"), (OVERRUN, "made a worker hang")],
    ids=["crash", "hang"],
)
def test_an_equal_request_is_told_what_the_first_one_did(death: Death, what: str) -> None:
    scene = Scene()
    scene.scheduler.submit(request())
    scene.die(death, death)
    with pytest.raises(Poisoned) as raised:
        scene.scheduler.submit(request(id=b"2", now=20.0))
    assert raised.value.message == (
        f"an equal request {what} ({death.cause}); it is refused for 40 s more, and quarantine of 'm' is 60 s"
    )
    assert raised.value.details == {"cause": death.cause, "limit": "quarantine", "limit_value": 60.0}


@pytest.mark.parametrize(
    ("deaths", "what"),
    [
        ([SEGFAULT] * MIN_CRASHES, "crashed their workers"),
        ([OVERRUN] * MIN_CRASHES, "made their workers hang"),
        ([OVERRUN] * (MIN_CRASHES - 1) + [SEGFAULT], "crashed their workers or made them hang"),
    ],
    ids=["crashes", "hangs", "both"],
)
def test_a_model_in_quarantine_is_refused_with_what_its_requests_did(deaths: list[Death], what: str) -> None:
    scene = Scene(retry=0)
    for number, death in enumerate(deaths):
        scene.scheduler.submit(request(bytes([number]), id=bytes([number])))
        scene.die(death)
    with pytest.raises(Unavailable) as raised:
        scene.scheduler.submit(request(b"other"))
    assert raised.value.message == (
        f"'m' is in quarantine: {MIN_CRASHES} requests in a row {what} (the last one: {deaths[-1].cause}); it is tried "
        "again when its quarantine of 60 s is over, or after `multitower restart SLOT`"
    )
    assert raised.value.details == {"cause": deaths[-1].cause, "limit": "quarantine", "limit_value": 60.0}


@pytest.mark.parametrize(
    ("limits", "limit", "value"),
    [({"max_size": 1}, "queue.max_size", 1), ({"max_bytes": 5}, "queue.max_bytes", 5)],
)
def test_a_full_queue_names_the_limit_that_binds(limits: dict[str, Any], limit: str, value: int) -> None:
    scene = Scene(**limits)
    scene.scheduler.submit(request())
    with pytest.raises(Overloaded) as raised:
        scene.scheduler.submit(request(id=b"2"))
    assert raised.value.message.endswith(f"and {limit} is {value}")
    assert (raised.value.details["limit"], raised.value.details["limit_value"]) == (limit, value)


def test_deaths_of_answered_requests_are_forgotten() -> None:
    scene = Scene(retry=5)
    scene.scheduler.submit(request())
    scene.die(SEGFAULT)
    scene.scheduler.expire(31.0)
    scene.error()
    scene.scheduler.submit(request(id=b"2"))
    scene.die(*[OVERRUN] * 6)
    assert scene.error().details["cause"] == OVERRUN.cause, "and not the other one's"


@pytest.mark.parametrize(
    ("fault", "hung"),
    [
        (Fault.HANGS, True),
        (Fault.STOPPED, True),
        (Fault.OVERRUN, True),
        (Fault.DEVICE_LOST, False),
        (Fault.FILES_CHANGED, False),
        (Fault.DEFECT, False),
    ],
)
def test_only_processes_without_progress_hung(fault: Fault, hung: bool) -> None:
    verdict = Verdict(fault, "why")
    assert verdict.hung is hung
    assert ("hung" in str(verdict)) is hung


def test_the_death_of_a_process_is_described_as_in_the_log() -> None:
    process = Fleet().process()
    process.exit_cause = ExitCause(-11)
    assert process.death == SEGFAULT
    process.verdict = Verdict(Fault.OVERRUN, "a model call took over 2 s (max_execution_time)", 2.0)
    assert process.death == OVERRUN
