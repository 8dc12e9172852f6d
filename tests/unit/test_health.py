"""Which workers are condemned as their device is gone; hangs: tests/unit/test_pulse.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from multitower.supervisor.health import Health
from multitower.supervisor.member import Member, Place
from multitower.supervisor.process import WorkerProcess
from multitower.supervisor.pulse import Pulse
from multitower.supervisor.router import Channel, Router


class Process:
    """One that beats without a break."""

    def __init__(self) -> None:
        self.fields: dict[str, object] = {}
        self.asked_for_stacks = False
        self._calls = 0

    def heartbeat(self) -> int:
        self._calls += 1
        return self._calls

    def look(self) -> None:
        return None

    def show_stacks(self) -> None:
        self.asked_for_stacks = True


class Workers:
    """A slot's worker and what the daemon knows of its device, a second at a time."""

    def __init__(self) -> None:
        self.retired: list[object] = []
        self.present: bool | None = None
        balancer = SimpleNamespace(retire=self.retired.append)
        self.health = Health(
            cast(Router, SimpleNamespace(balancer=balancer)), lambda _: None, lambda slot: self.present
        )
        self.place = cast(Place, SimpleNamespace(slot=SimpleNamespace(number=0), member=None))
        self.member = self.serving()
        self.place.member = self.member
        self.now = 0.0

    def serving(self) -> Member:
        channel = cast(Channel, SimpleNamespace(worker=SimpleNamespace(batch=None)))
        process: Any = Process()
        return Member(cast(WorkerProcess, process), Pulse(0.0, 1.0), self.place, channel, "ready")

    def see(self, present: bool | None, *others: Member) -> list[Member]:
        self.present = present
        self.now += 1.0
        return self.health.look([self.member, *others], self.now)


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
    assert workers.see(seen[-1]) == ([workers.member] if condemned else [])
    assert (workers.member.verdict is not None) == condemned
    assert len(workers.retired) == condemned
    assert workers.see(False) == [] or not condemned
    assert not cast(Any, workers.member.process).asked_for_stacks


def test_who_does_not_serve_the_slot_is_let_be() -> None:
    workers = Workers()
    leaving, loading, spare = workers.serving(), workers.serving(), workers.serving()
    loading.channel, spare.place = None, None
    everybody = (leaving, loading, spare)
    assert workers.see(True, *everybody) == []
    assert workers.see(False, *everybody) == [workers.member]
