"""Which workers are condemned as their device is gone, or have served their time; hangs: tests/unit/test_pulse.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from multitower.supervisor.machine.resources import Sampler
from multitower.supervisor.routing.router import Router
from multitower.supervisor.routing.routes import Route
from multitower.supervisor.workers.capacity import Capacity
from multitower.supervisor.workers.child_process import ChildProcess
from multitower.supervisor.workers.hang_detector import HangDetector
from multitower.supervisor.workers.health import Health
from multitower.supervisor.workers.restart_budget import RestartPolicy
from multitower.supervisor.workers.settings import WorkerSettings
from multitower.supervisor.workers.slot import Slot, WorkerProcess
from multitower.supervisor.workers.slot_state_machine import State


class Process:
    """One that beats without a break."""

    def __init__(self) -> None:
        self.fields: dict[str, object] = {}
        self.asked_for_stacks = False
        self._calls = 0

    def heartbeat(self) -> tuple[int]:
        self._calls += 1
        return (self._calls,)

    def look(self) -> None:
        return None

    def show_stacks(self) -> None:
        self.asked_for_stacks = True


class Workers:
    """A slot's worker and what the daemon knows of its device, a second at a time."""

    def __init__(self) -> None:
        self.retired: list[object] = []
        self.present: bool | None = None
        self.rss: int | None = None
        scheduler = SimpleNamespace(retire=self.retired.append)
        self.health = Health(
            cast(Router, SimpleNamespace(scheduler=scheduler)), lambda slot: self.rss, lambda slot: self.present
        )
        self.slot = cast(Slot, SimpleNamespace(number=0, state=State.READY, process=None))
        self.process = self.serving()
        self.slot.process = self.process
        self.now = 0.0

    def serving(self) -> WorkerProcess:
        worker = SimpleNamespace(batch=None)
        route = cast(Route, SimpleNamespace(worker=worker, workers=(worker,), requests=0))
        child: Any = Process()
        return WorkerProcess(cast(ChildProcess, child), HangDetector(0.0, 1.0), self.slot, route, "ready")

    def see(self, present: bool | None, *others: WorkerProcess) -> list[WorkerProcess]:
        self.present = present
        self.now += 1.0
        return self.health.look([self.process, *others], self.now)


@pytest.mark.parametrize(
    ("seen", "condemned"),
    [
        ([True, True, True], False),
        ([True, False], True),
        ([True, None, None], False),  # NVML does not answer
        ([True, None, False], True),
        ([None, False, False], False),  # it began without: perhaps it needs none, or NVML does not know yet
        ([False, False, True, False], True),
    ],
)
def test_a_worker_whose_device_goes_is_condemned_at_once_and_once(seen: list[bool | None], condemned: bool) -> None:
    workers = Workers()
    for present in seen[:-1]:
        assert workers.see(present) == []
    assert workers.see(seen[-1]) == ([workers.process] if condemned else [])
    assert (workers.process.verdict is not None) == condemned
    assert len(workers.retired) == condemned
    assert workers.see(False) == [] or not condemned
    assert not cast(Any, workers.process.child).asked_for_stacks


def test_who_does_not_serve_the_slot_is_let_be() -> None:
    workers = Workers()
    leaving, loading, spare = workers.serving(), workers.serving(), workers.serving()
    loading.route, spare.slot = None, None
    everybody = (leaving, loading, spare)
    assert workers.see(True, *everybody) == []
    assert workers.see(False, *everybody) == [workers.process]


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
def test_who_has_served_its_time(
    limits: dict[str, int], replacement_jitter: float, requests: int, rss: int | None, why: str | None
) -> None:
    workers = Workers()
    route: Any = workers.process.route
    workers.process.replacement_jitter, route.requests, workers.rss = replacement_jitter, requests, rss
    settings = WorkerSettings((), {}, RestartPolicy(), **limits)
    assert list(workers.health.recycle([workers.slot], settings)) == ([(workers.slot, why)] if why else [])


@pytest.mark.parametrize("state", [state for state in State if state is not State.READY])
def test_who_does_not_serve_has_not_served_its_time(state: State) -> None:
    workers = Workers()
    slot, route = cast(Any, workers.slot), cast(Any, workers.process.route)
    slot.state, route.requests = state, 10**9
    assert not list(workers.health.recycle([workers.slot], WorkerSettings((), {}, RestartPolicy(), max_requests=1)))


def test_the_memory_of_one_that_has_left_is_not_its_successors() -> None:
    samples = {0: SimpleNamespace(pid=7, rss_bytes=1000)}
    capacity = Capacity(cast(Sampler, SimpleNamespace(sample=samples.get)))
    worker, next_process = (SimpleNamespace(child=SimpleNamespace(pid=pid)) for pid in (7, 8))
    assert capacity.rss(cast(Slot, SimpleNamespace(number=0, process=worker))) == 1000
    assert capacity.rss(cast(Slot, SimpleNamespace(number=0, process=next_process))) is None
    assert capacity.rss(cast(Slot, SimpleNamespace(number=0, process=None))) is None
    samples.clear()
    assert capacity.rss(cast(Slot, SimpleNamespace(number=0, process=worker))) is None
