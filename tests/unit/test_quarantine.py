"""Which requests are refused because an equal one crashed a worker, and for how long."""

from __future__ import annotations

import os

import pytest
from scheduler_scene import add_worker

from multitower.errors import MultitowerError, Poisoned
from multitower.supervisor.scheduling import quarantine as quarantine_module
from multitower.supervisor.scheduling.pool_worker import Served
from multitower.supervisor.scheduling.quarantine import MAX_DIGESTED_BYTES, MAX_REQUESTS, RequestQuarantine
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request, SharedRequest
from multitower.supervisor.scheduling.scheduler import Scheduler
from multitower.supervisor.scheduling.shared_memory_areas import OpenArea
from multitower.supervisor.scheduling.shared_memory_region import Region
from multitower.worker_wire import KeySpec

KEYS = {name: BatchKey(KeySpec("m", ((name, "UINT8", ()),), None, True), 4) for name in "xy"}


def request(content: bytes = b"bad", *, key: str = "x", id: bytes = b"1", time: float = 30.0) -> Request:
    plan = Plan(KEYS[key], len(content), (0,), (len(content),), (False,), (key,), time)
    return Request(("sender",), id, plan, [content], len(content), 0.0)


def test_an_equal_request_is_found_until_the_quarantine_ends() -> None:
    quarantine = RequestQuarantine()
    quarantine.add(request(), 10.0, 60.0)
    entry = quarantine.find(request(id=b"another", time=1.0), 69.0)
    assert entry is not None
    assert (entry.until, entry.refused) == (70.0, 1)
    assert quarantine.find(request(b"god"), 69.0) is None, "of the same size"
    assert quarantine.find(request(b"good"), 69.0) is None
    assert quarantine.find(request(key="y"), 69.0) is None, "another input"
    assert quarantine.find(request(), 70.0) is None
    assert quarantine.entries(70.0) == []


def test_the_last_requests_are_kept_and_none_for_zero_seconds() -> None:
    quarantine = RequestQuarantine()
    quarantine.add(request(), 0.0, 0.0)
    assert quarantine.entries(0.0) == []
    for number in range(MAX_REQUESTS + 10):
        quarantine.add(request(bytes([number])), 0.0, 60.0)
        quarantine.add(request(bytes([number])), 0.0, 60.0)
    assert len(quarantine.entries(1.0)) == MAX_REQUESTS
    assert quarantine.find(request(bytes([9])), 1.0) is None
    assert quarantine.find(request(bytes([10])), 1.0) is not None


def shared(content: bytes, region: Region) -> SharedRequest:
    os.pwrite(region.descriptor, content, 0)
    plan = request(content).plan
    return SharedRequest(("sender",), b"1", plan, [OpenArea(region, 0, len(content))], len(content), 0.0, {})


@pytest.mark.parametrize("share", [False, True])
def test_samples_of_large_requests_are_compared(share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine_module, "MAX_DIGESTED_BYTES", 80)
    region = Region("r", os.memfd_create("r"))

    def found(content: bytes) -> bool:
        return quarantine.find(shared(content, region) if share else request(content), 1.0) is not None

    for size, skipped in ((80, set()), (150, set(range(10, 20)) | set(range(130, 140)))):
        quarantine = RequestQuarantine()
        content = bytes(range(size))
        quarantine.add(request(content), 0.0, 60.0)  # in frames; equal to shared memory
        changed = [content[:at] + b"\xff" + content[at + 1 :] for at in range(size)]
        equal = {at for at in range(size) if found(changed[at])}
        assert found(content)
        assert skipped <= equal
        assert len(equal) == max(0, size - 80)
        assert not equal & {0, size - 1}


@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_number_of_digested_bytes_is_bounded(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (60 << 20) // count
    region = Region("r", os.memfd_create("r"))
    os.ftruncate(region.descriptor, size)
    inputs = tuple((str(number), "UINT8", (size,)) for number in range(count))
    plan = Plan(BatchKey(KeySpec("m", inputs, None, True), 4), 1, (), (), (), (), 30.0)
    areas = [OpenArea(region, 0, size)] * count
    large = SharedRequest(("sender",), b"1", plan, areas, size * count, 0.0, {})
    read = []
    real = os.pread

    def pread(descriptor: int, bytes: int, offset: int) -> bytes:
        read.append(bytes)
        return real(descriptor, bytes, offset)

    monkeypatch.setattr(os, "pread", pread)
    quarantine = RequestQuarantine()
    quarantine.add(large, 0.0, 60.0)
    assert quarantine.find(large, 1.0) is not None
    assert 0 < sum(read) <= 2 * MAX_DIGESTED_BYTES


class Deaths:
    """A scheduler, and a new worker for each one that a request kills."""

    def __init__(self, retry: int = 1, quarantine_s: float = 60.0) -> None:
        self.scheduler = Scheduler({"m": QueueLimits(1000, 1 << 20, retry=retry, quarantine_s=quarantine_s)})
        self.answers: list[MultitowerError] = []

    def kill_with(self, *requests: Request, crashed: bool) -> None:
        """The requests run, in one batch if they may, and kill its worker."""
        for each in requests:
            self.scheduler.submit(each)
        self.kill_again(crashed=crashed)

    def kill_again(self, *, crashed: bool) -> None:
        worker = add_worker(self.scheduler, 0, "cpu:0", {"m": Served()}, 0.0)
        assert self.scheduler.dispatch(0.0)
        self.scheduler.remove_process(worker, 0.0, crashed=crashed)
        self.answers += [
            reply.answer for reply in self.scheduler.pop_replies() if isinstance(reply.answer, MultitowerError)
        ]

    @property
    def quarantined(self) -> int:
        return len(self.scheduler.quarantined_requests(0.0))


@pytest.mark.parametrize(
    ("crashes", "retry", "seconds", "reason", "quarantined"),
    [
        ([True, True], 1, 60.0, "poisoned", 1),
        ([True, False], 1, 60.0, "poisoned", 0),  # anyone may have sent SIGKILL
        ([False, True], 1, 60.0, "poisoned", 1),
        ([True, True], 1, 0.0, "poisoned", 0),
        ([True], 0, 60.0, "worker_died", 1),
        ([False], 0, 60.0, "worker_died", 0),
        ([True, True, True, True], 3, 60.0, "poisoned", 1),
        ([True, True, True, False], 3, 60.0, "poisoned", 0),
    ],
)
def test_a_request_that_crashes_alone_is_quarantined(
    crashes: list[bool], retry: int, seconds: float, reason: str, quarantined: int
) -> None:
    scene = Deaths(retry, seconds)
    scene.kill_with(request(), crashed=crashes[0])
    for crashed in crashes[1:]:
        assert scene.answers == []
        scene.kill_again(crashed=crashed)
    assert [answer.reason for answer in scene.answers] == [reason]
    assert scene.quarantined == quarantined
    if quarantined:
        with pytest.raises(Poisoned, match="an equal request crashed a worker; it is refused for 60 s more"):
            scene.scheduler.submit(request(id=b"2"))
        assert scene.scheduler.outstanding == 0
        scene.scheduler.submit(request(b"god", id=b"3"))


def test_requests_that_crash_together_are_not_quarantined() -> None:
    scene = Deaths(retry=0)
    scene.kill_with(request(b"a", id=b"1"), request(b"b", id=b"2"), crashed=True)
    assert len(scene.answers) == 2
    assert scene.quarantined == 0


@pytest.mark.parametrize("share", [False, True])
def test_a_request_that_crashes_after_its_deadline_is_quarantined_too(share: bool) -> None:
    region = Region("r", os.memfd_create("r"))
    scene = Deaths()
    scene.scheduler.submit(shared(b"bad", region) if share else request())
    worker = add_worker(scene.scheduler, 0, "cpu:0", {"m": Served()}, 0.0)
    assert scene.scheduler.dispatch(0.0)
    scene.scheduler.expire(40.0)
    os.pwrite(region.descriptor, b"god", 0)  # the client has its answer, and reuses the memory
    scene.scheduler.remove_process(worker, 40.0, crashed=True)
    assert len(scene.scheduler.quarantined_requests(40.0)) == (0 if share else 1)
    scene.scheduler.submit(request(b"god", id=b"2"))


def test_a_request_whose_shared_memory_cannot_be_read_is_not_quarantined() -> None:
    region = Region("r", os.memfd_create("r"))
    quarantine = RequestQuarantine()
    quarantine.add(shared(b"bad", region), 0.0, 60.0)
    cut = shared(b"bad", region)
    os.ftruncate(region.descriptor, 1)
    assert quarantine.find(cut, 1.0) is None, "unreadable, so it cannot be known to be equal"
    quarantine.add(cut, 1.0, 60.0)
    assert len(quarantine.entries(1.0)) == 1


def test_a_worker_that_dies_with_unreadable_shared_memory_costs_nothing_else() -> None:
    region = Region("r", os.memfd_create("r"))
    scene = Deaths(retry=0)
    scene.scheduler.submit(shared(b"bad", region))
    os.ftruncate(region.descriptor, 1)
    scene.kill_again(crashed=True)
    assert [answer.reason for answer in scene.answers] == ["worker_died"]
    assert scene.quarantined == 0
