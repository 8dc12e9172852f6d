"""Measurements of real processes."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from new_threads import NewThreads
from waiting import wait_for

from multitower.supervisor.machine import resources
from multitower.supervisor.machine.process_limits import ProcessLimits
from multitower.supervisor.machine.resources import Sampler

MIB = 2**20
WAIT_S = 60.0

CHILD = """
import sys
memory = []
for line in sys.stdin:
    if line == "spin\\n":
        print("done", flush=True)
        while True:
            pass
    memory.append(bytearray(b"x") * (int(line) * 2**20))
    print("done", flush=True)
"""


class Child:
    """A process that uses memory, or the CPU, on request."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid

    def request(self, order: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=WAIT_S)


@pytest.fixture
def children() -> Iterator[Callable[[], Child]]:
    started: list[Child] = []

    def start() -> Child:
        started.append(Child())
        return started[-1]

    yield start
    for child in started:
        child.end()


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    sampler = Sampler(ProcessLimits(), 0.05)
    yield sampler
    sampler.close()


def test_memory_of_clients_that_a_worker_maps_is_not_counted() -> None:
    descriptor = os.memfd_create("client")
    os.ftruncate(descriptor, 64 * MIB)
    with mmap.mmap(descriptor, 64 * MIB) as mapped:
        os.close(descriptor)
        mapped[:] = bytes(64 * MIB)
        sampler = Sampler(ProcessLimits(), 0.3)
        try:
            sampler.watch({0: (os.getpid(), "cpu:0")})
            sample = wait_for(lambda: sampler.sample(0), bool)
        finally:
            sampler.close()
        assert sample is not None
        assert 0 < sample.rss_bytes < psutil.Process().memory_info().rss - 48 * MIB


def test_memory_and_cpu_of_processes_are_measured(children: Callable[[], Child]) -> None:
    busy, idle = children(), children()
    sampler = Sampler(ProcessLimits(), 0.3)
    try:
        busy.request("1")
        idle.request("1")
        sampler.watch({0: (busy.pid, ("cpu:0",)), 7: (idle.pid, ("cpu:1",))})
        first = wait_for(lambda: sampler.sample(0), bool)
        assert first is not None
        assert first.pid == busy.pid
        assert first.cpu_percent is None
        assert first.rss_bytes > MIB
        assert (first.device_memory_bytes, first.device_memory_of, first.utilization_percent) == (None, None, None)
        assert [device.present for device in first.devices] == [True]
        busy.request("64")
        busy.request("spin")
        later = wait_for(
            lambda: sampler.sample(0),
            lambda sample: sample is not None and (sample.cpu_percent or 0) > 20,
        )
        assert later is not None
        assert later.at > first.at
        assert later.rss_bytes >= first.rss_bytes + 63 * MIB
        calm = wait_for(lambda: sampler.sample(7), lambda sample: sample is not None and sample.cpu_percent == 0.0)
        assert calm is not None
        assert calm.rss_bytes < later.rss_bytes
        assert sampler.sample(1) is None
    finally:
        sampler.close()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_dead_process_has_no_sample_and_the_others_keep_theirs(
    children: Callable[[], Child], sampler: Sampler, reaped: bool
) -> None:
    dead, alive = children(), children()
    sampler.watch({0: (dead.pid, ("cpu:0",)), 1: (alive.pid, ("cpu:1",))})
    wait_for(lambda: sampler.sample(0), bool)
    if reaped:
        dead.end()
    else:
        dead.process.kill()
    wait_for(lambda: sampler.sample(0), lambda sample: sample is None)
    before = wait_for(lambda: sampler.sample(1), bool)
    assert before is not None
    wait_for(lambda: sampler.sample(1), lambda sample: sample is not None and sample.at > before.at)
    assert sampler.failures == 0


def test_a_new_incarnation_never_has_the_sample_of_the_previous_one(
    children: Callable[[], Child], sampler: Sampler
) -> None:
    old, new = children(), children()
    sampler.watch({0: (old.pid, ("cpu:0",))})
    wait_for(lambda: sampler.sample(0), bool)
    sampler.watch({0: (new.pid, ("cpu:0",))})
    first = wait_for(lambda: sampler.sample(0), bool)
    assert first is not None
    assert first.pid == new.pid
    sampler.watch({})
    assert sampler.sample(0) is None


def test_unexpected_errors_are_counted_and_end_nothing(
    children: Callable[[], Child], monkeypatch: pytest.MonkeyPatch, sampler: Sampler
) -> None:
    child = children()

    def broken(pid: int) -> psutil.Process:
        raise ValueError(f"/proc/{pid}/stat reads strangely")

    with monkeypatch.context() as patch:
        patch.setattr(psutil, "Process", broken)
        sampler.watch({0: (child.pid, ("cpu:0",))})
        wait_for(lambda: sampler.failures, lambda failures: failures > 1)
    wait_for(lambda: sampler.sample(0), bool)


def test_old_figures_are_ignored(children: Callable[[], Child], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "STALE_S", 0.5)
    sampler = Sampler(ProcessLimits(), 0.05)
    sampler.watch({0: (children().pid, ("cpu:0",))})
    wait_for(lambda: sampler.sample(0), bool)
    sampler.close()
    wait_for(lambda: sampler.sample(0), lambda sample: sample is None)


def test_close_ends_the_threads_at_once_whatever_the_interval() -> None:
    new = NewThreads()
    sampler = Sampler(ProcessLimits(), 3600.0)
    threads = new.named("sampler")
    assert len(threads) == 2
    began = time.monotonic()
    sampler.close()
    assert not any(thread.is_alive() for thread in threads)
    assert time.monotonic() - began < 60.0
    sampler.close()
