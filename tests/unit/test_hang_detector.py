"""What is a hang and what is not, as histories of heartbeats and of states of the process."""

from __future__ import annotations

import pytest

from multitower.supervisor.workers.exit_cause import Fault, Verdict
from multitower.supervisor.workers.hang_detector import Call, HangDetector, ProcessStat

BEAT = 1.0


class Scene:
    """A process that is checked once a second."""

    def __init__(self) -> None:
        self.now = 100.0
        self.hang_detector = HangDetector(self.now, BEAT)
        self.calls = 0
        self.state, self.cpu = "S", 0.0

    def second(
        self,
        *,
        beats: bool = True,
        calls: int = 0,
        state: str = "S",
        cpu: float = 0.0,
        dumping: bool = False,
        work: object = None,
        since: float = 100.0,
        limit: float | None = None,
    ) -> Verdict | None:
        self.now += 1
        self.calls += calls
        self.cpu += cpu
        if beats:
            self.hang_detector.record_heartbeat(self.now, [self.calls])
        call = Call(work, since, limit) if work is not None and limit is not None else None
        stat = ProcessStat(state, self.cpu, dumping)
        return self.hang_detector.check(self.now, [call], lambda: stat, loading=limit is None)


IDLE = {"limit": float("inf")}
BUSY = {"work": "a batch", "limit": 5.0}
LOADING: dict[str, object] = {}


@pytest.mark.parametrize(
    ("name", "steps", "cause"),
    [
        ("it beats between batches", [({}, IDLE)] * 60, None),
        ("stopped for two seconds", [({}, IDLE), *[({"beats": False, "state": "T"}, IDLE)] * 2], None),
        ("stopped for three seconds", [({"beats": False, "state": "T"}, IDLE)] * 3, "stopped"),
        ("stopped while it loads", [({"beats": False, "state": "T"}, LOADING)] * 3, "stopped"),
        ("stopped in a batch", [({"beats": False, "state": "T"}, BUSY)] * 3, "stopped"),
        ("a debugger looks at it", [({"beats": False, "state": "t", "cpu": 0.0}, LOADING)] * 9, None),
        ("loads for long, and beats", [({}, LOADING)] * 600, None),
        ("loads for long in C, computing", [({"beats": False, "state": "R", "cpu": 0.9}, LOADING)] * 600, None),
        ("loads for long from a slow disk", [({"beats": False, "state": "D"}, LOADING)] * 600, None),
        ("sleeps in C while it loads", [({"beats": False}, LOADING)] * 5, "uses no CPU"),
        ("sleeps in C in a batch", [({"beats": False}, BUSY | {"limit": 60.0})] * 5, "uses no CPU"),
        ("computes in C in a batch", [({"beats": False, "cpu": 0.5}, BUSY | {"limit": 60.0})] * 50, None),
        ("computes in C between batches", [({"beats": False, "cpu": 0.5, "state": "R"}, IDLE)] * 11, "between batches"),
        ("a call too long, though it beats", [({"cpu": 1.0}, BUSY)] * 6, "max_execution_time"),
        ("many calls in a long batch", [({"calls": 1}, BUSY)] * 60, None),
        ("few calls in a long batch", [({"calls": 1}, BUSY), *[({}, BUSY)] * 4] * 12, None),
        ("dumps its core between batches", [({"beats": False, "dumping": True}, IDLE)] * 600, None),
        ("dumps its core in a batch", [({"beats": False, "dumping": True, "state": "D"}, BUSY)] * 600, None),
        ("dumps its core while it loads", [({"beats": False, "dumping": True}, LOADING)] * 600, None),
        ("dumps its core without end", [({"beats": False, "dumping": True}, IDLE)] * 604, "core took over 10 min"),
        ("starved by its neighbours", [({"beats": False, "state": "R"}, LOADING)] * 60, None),
    ],
)
def test_heartbeats_and_system_states_lead_to_the_expected_verdict(
    name: str, steps: list[tuple[dict[str, object], dict[str, object]]], cause: str | None
) -> None:
    scene = Scene()
    verdicts = [scene.second(**happens, **doing) for happens, doing in steps]  # type: ignore[arg-type]
    assert all(verdict is None for verdict in verdicts[:-1]), name
    found = verdicts[-1].cause if verdicts[-1] is not None else None
    assert (found is None) == (cause is None), found
    assert cause is None or (found is not None and cause in found)


def test_a_call_is_measured_from_its_own_beginning() -> None:
    scene = Scene()
    for number in range(20):
        assert scene.second(work=f"batch {number}", since=scene.now, limit=2.0) is None


def test_a_suspended_machine_is_no_hang() -> None:
    scene = Scene()
    assert scene.second(work="a batch", since=scene.now, limit=5.0) is None
    scene.now += 3600
    scene.hang_detector.excuse_stall(3600)
    assert scene.second(beats=False, state="S", work="a batch", since=101.0, limit=5.0) is None
    assert scene.second(work="a batch", since=101.0, limit=5.0) is None


def test_a_dump_is_not_measured_while_the_machine_is_suspended() -> None:
    scene = Scene()
    for _ in range(5):
        assert scene.second(beats=False, dumping=True) is None
    assert scene.hang_detector.dumping
    scene.now += 3600
    scene.hang_detector.excuse_stall(3600)
    assert scene.second(beats=False, dumping=True) is None


@pytest.mark.parametrize("doing", [IDLE, BUSY | {"limit": 60.0}, LOADING], ids=["idle", "in a batch", "loading"])
def test_a_process_that_closes_its_socket_and_runs_on_hangs(doing: dict[str, object]) -> None:
    scene = Scene()
    assert scene.second(**doing) is None  # type: ignore[arg-type]
    scene.hang_detector.record_closed_socket(scene.now)
    verdicts = [scene.second(cpu=1.0, **doing) for _ in range(6)]  # type: ignore[arg-type]
    assert verdicts[:5] == [None] * 5
    assert verdicts[5] == Verdict(Fault.HANGS, "it closed its socket 6.0 s ago and has not exited")


def test_a_process_may_take_long_to_free_its_memory_after_its_socket_is_closed() -> None:
    scene = Scene()
    scene.hang_detector.record_closed_socket(scene.now)
    assert [scene.second(dumping=True) for _ in range(60)] == [None] * 60


def test_a_closed_socket_is_not_measured_while_the_machine_is_suspended() -> None:
    scene = Scene()
    scene.hang_detector.record_closed_socket(scene.now)
    scene.now += 3600
    scene.hang_detector.excuse_stall(3600)
    assert scene.second() is None


def test_a_process_that_has_ended_does_not_hang() -> None:
    hang_detector = HangDetector(0.0, BEAT)
    assert hang_detector.check(60.0, [], lambda: None, loading=True) is None


def test_verdicts_say_whether_the_process_can_still_dump_its_stacks() -> None:
    stopped = HangDetector(0.0, BEAT).check(3.0, [None], lambda: ProcessStat("T", 0.0), loading=False)
    overrun = HangDetector(0.0, BEAT).check(
        3.0, [Call("a batch", 0.0, 2.0)], lambda: ProcessStat("R", 0.0), loading=False
    )
    assert stopped is not None
    assert (stopped.fault, stopped.wants_stacks) == (Fault.STOPPED, False)
    assert overrun is not None
    assert (overrun.fault, overrun.wants_stacks) == (Fault.OVERRUN, True)
