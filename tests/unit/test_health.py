"""Which workers are killed because their device is gone, or are over their limits. Hangs: test_hang_detector.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_workers import FakeCapacity, FakeChild

from multitower.supervisor.machine.resources import Sampler
from multitower.supervisor.routing.routes import Route
from multitower.supervisor.workers.capacity import Capacity
from multitower.supervisor.workers.child_process import ChildProcess
from multitower.supervisor.workers.exit_cause import Fault
from multitower.supervisor.workers.hang_detector import HangDetector
from multitower.supervisor.workers.health import Health
from multitower.supervisor.workers.restart_budget import RestartPolicy
from multitower.supervisor.workers.settings import WorkerSettings
from multitower.supervisor.workers.slot import Slot, WorkerProcess
from multitower.supervisor.workers.slot_state_machine import State


class Child(FakeChild):
    """A process whose heartbeats never stop."""

    def __init__(self) -> None:
        super().__init__(1, {}, None)
        self._calls = 0

    def read_heartbeat(self) -> tuple[int]:
        self._calls += 1
        return (self._calls,)


class Workers:
    """A slot's worker and what is known of its device, a second at a time."""

    def __init__(self, **limits: int) -> None:
        self.capacity = FakeCapacity()
        self.health = Health(self.capacity, WorkerSettings((), {}, RestartPolicy(), **limits))
        self.slot = cast(Slot, SimpleNamespace(number=0, state=State.READY, process=None))
        self.process = self.serving()
        self.slot.process = self.process
        self.now = 0.0

    def serving(self) -> WorkerProcess:
        worker = SimpleNamespace(batch=None)
        route = cast(Route, SimpleNamespace(worker=worker, workers=(worker,), requests=0))
        return WorkerProcess(cast(ChildProcess, Child()), HangDetector(0.0, 1.0), self.slot, route, "ready")

    def check(self, present: bool | None, *others: WorkerProcess) -> list[tuple[WorkerProcess, Fault]]:
        self.capacity.present = present
        self.now += 1.0
        found = self.health.check([self.process, *others], self.now)
        return [(process, verdict.fault) for process, verdict in found]


@pytest.mark.parametrize(
    ("seen", "killed"),
    [
        ([True, True, True], False),
        ([True, False], True),
        ([True, None, None], False),  # NVML does not answer
        ([True, None, False], True),
        ([None, False, False], False),  # it started without: perhaps it needs none, or NVML does not know it yet
        ([False, False, True, False], True),
    ],
)
def test_a_worker_whose_device_disappears_is_killed(seen: list[bool | None], killed: bool) -> None:
    workers = Workers()
    for present in seen[:-1]:
        assert workers.check(present) == []
    assert workers.check(seen[-1]) == ([(workers.process, Fault.DEVICE_LOST)] if killed else [])


def test_a_device_seen_only_while_its_worker_loaded_can_be_lost() -> None:
    workers = Workers()
    route, workers.process.route = workers.process.route, None
    assert workers.check(True) == []
    assert workers.check(False) == [], "it loads: it may not need the device"
    workers.process.route = route
    assert workers.check(False) == [(workers.process, Fault.DEVICE_LOST)]


@pytest.mark.parametrize("ending", [True, False])
def test_a_process_that_is_ending_is_not_checked_again(ending: bool) -> None:
    workers = Workers()
    assert workers.check(True) == []
    workers.process.ending = ending
    assert (workers.check(False) == []) is ending


def test_only_the_current_process_of_a_slot_loses_a_device() -> None:
    workers = Workers()
    replaced, loading, spare = workers.serving(), workers.serving(), workers.serving()
    loading.route, spare.slot = None, None
    others = (replaced, loading, spare)
    assert workers.check(True, *others) == []
    assert workers.check(False, *others) == [(workers.process, Fault.DEVICE_LOST)]


def test_a_check_that_raises_costs_the_worker_and_no_other() -> None:
    workers = Workers()
    other = workers.serving()
    cast(Any, workers.process.child).read_heartbeat = lambda: 1 / 0
    assert workers.check(True, other) == [(workers.process, Fault.DEFECT)]


@pytest.mark.parametrize(
    ("limits", "replacement_jitter", "requests", "rss", "why"),
    [
        ({}, 0.5, 10**9, 10**12, None),
        ({"max_requests": 100}, 0.0, 89, None, None),
        ({"max_requests": 100}, 0.0, 90, None, "90 requests (max_requests)"),
        ({"max_requests": 100}, 0.5, 99, None, None),
        ({"max_requests": 100}, 0.5, 100, None, "100 requests (max_requests)"),
        ({"max_requests": 100}, 1.0, 109, None, None),
        ({"max_requests": 100}, 1.0, 111, None, "111 requests (max_requests)"),
        ({"max_rss": 1000}, 0.0, 10**9, 900, None),
        ({"max_rss": 1000}, 0.0, 0, 901, "901 bytes of memory (max_rss)"),
        ({"max_rss": 1000}, 1.0, 0, 1000, None),
        ({"max_rss": 1000}, 1.0, 0, 1001, "1001 bytes of memory (max_rss)"),
        ({"max_rss": 1000}, 0.0, 0, None, None),  # not measured yet
        ({"max_requests": 100, "max_rss": 1000}, 0.5, 99, 951, "951 bytes of memory (max_rss)"),
    ],
)
def test_workers_over_their_limits_are_found(
    limits: dict[str, int], replacement_jitter: float, requests: int, rss: int | None, why: str | None
) -> None:
    workers = Workers(**limits)
    route: Any = workers.process.route
    workers.process.replacement_jitter, route.requests, workers.capacity.rss = replacement_jitter, requests, rss
    assert list(workers.health.find_over_limits([workers.slot])) == ([(workers.slot, why)] if why else [])


@pytest.mark.parametrize("state", [state for state in State if state is not State.READY])
def test_a_slot_that_does_not_serve_is_not_over_its_limits(state: State) -> None:
    workers = Workers(max_requests=1)
    slot, route = cast(Any, workers.slot), cast(Any, workers.process.route)
    slot.state, route.requests = state, 10**9
    assert not list(workers.health.find_over_limits([workers.slot]))


def test_the_memory_of_a_replaced_process_is_not_taken_for_its_successors() -> None:
    samples = {0: SimpleNamespace(pid=7, rss_bytes=1000)}
    capacity = Capacity(cast(Sampler, SimpleNamespace(sample=samples.get)))
    worker, next_process = (SimpleNamespace(child=SimpleNamespace(pid=pid)) for pid in (7, 8))
    assert capacity.rss_bytes(cast(Slot, SimpleNamespace(number=0, process=worker))) == 1000
    assert capacity.rss_bytes(cast(Slot, SimpleNamespace(number=0, process=next_process))) is None
    assert capacity.rss_bytes(cast(Slot, SimpleNamespace(number=0, process=None))) is None
    samples.clear()
    assert capacity.rss_bytes(cast(Slot, SimpleNamespace(number=0, process=worker))) is None
