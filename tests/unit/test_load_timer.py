"""How long a process may take to start, and to load each model."""

from __future__ import annotations

import pytest

from multitower.load_step import LoadStep
from multitower.supervisor.workers.exit_cause import Fault
from multitower.supervisor.workers.load_timer import LoadTimer

M, N = LoadStep("m", "1"), LoadStep("n", "1")
LIMITS = {"m": 10.0}
START_S = 20.0


def check(timer: LoadTimer, now: float, step: LoadStep | None, *, loading: bool = True) -> str | None:
    verdict = timer.check(now, step, LIMITS, START_S, loading=loading)
    assert verdict is None or (verdict.fault is Fault.LOAD_TIMEOUT and verdict.wants_stacks and not verdict.hung)
    return None if verdict is None else str(verdict)


@pytest.mark.parametrize(
    ("step", "loading", "limit", "cause"),
    [
        (M, True, 10.0, "killed because it took over 10 s (load_timeout)"),
        (N, True, 20.0, "killed because it took over 20 s (load_timeout)"),
        (None, True, 20.0, "killed because its start took over 20 s (load_timeout)"),
        (None, False, 20.0, "killed because its start took over 20 s (load_timeout)"),
    ],
    ids=["a limit of its own", "the limit of all", "before its first model", "while it imports"],
)
def test_each_stage_has_its_limit(step: LoadStep | None, loading: bool, limit: float, cause: str) -> None:
    timer = LoadTimer()
    assert check(timer, 100.0, step, loading=loading) is None
    assert check(timer, 100.0 + limit, step, loading=loading) is None
    assert check(timer, 100.1 + limit, step, loading=loading) == cause


def test_each_model_and_each_version_has_its_own_time() -> None:
    timer = LoadTimer()
    stages = [(None, False), (None, True), (M, True), (LoadStep("m", "2"), True), (N, True), (None, True)]
    for number, (step, loading) in enumerate(stages):
        assert check(timer, 9.0 * number, step, loading=loading) is None
        assert (timer.step, timer.since) == (step, 9.0 * number)


def test_the_start_ends_with_the_assignment_and_does_not_include_the_time_as_a_spare() -> None:
    timer = LoadTimer()
    for now in (10.0, 11.0, 14.0):
        check(timer, now, None, loading=False)
    for now, step in ((60.0, None), (61.0, M), (70.0, M)):
        check(timer, now, step)
    assert timer.start_s == 4.0


def test_the_times_of_one_model_are_added_if_another_one_is_read_between_them() -> None:
    timer = LoadTimer()
    check(timer, 0.0, M)
    check(timer, 6.0, N)
    assert check(timer, 12.0, M) is None
    assert check(timer, 16.0, M) is None
    assert check(timer, 16.1, M) == "killed because it took over 10 s (load_timeout)"


def test_the_warm_up_belongs_to_the_time_of_its_model() -> None:
    timer = LoadTimer()
    check(timer, 0.0, M)
    for rows in (1, 8, 64):
        assert check(timer, 9.0, LoadStep("m", "1", rows=rows)) is None
    assert check(timer, 11.0, LoadStep("m", "1", rows=64)) is not None


def test_time_in_which_the_supervisor_did_not_run_does_not_count() -> None:
    timer = LoadTimer()
    timer.excuse_stall(5.0)
    check(timer, 0.0, M)
    timer.excuse_stall(3600.0)
    assert check(timer, 3609.0, M) is None
    assert check(timer, 3611.0, M) is not None
