"""Which shared memory the daemon opens, for how long, and how requests and batches use it."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from descriptors import leaving_no_descriptor
from fake_front import FakeFront
from memfds import NONCE, name_of, region

from multitower import wire, worker_wire
from multitower.errors import InvalidRequest
from multitower.spec import ModelReport
from multitower.supervisor.routing import shared_memory_regions
from multitower.supervisor.routing.router import Router
from multitower.supervisor.routing.shared_memory_regions import IDLE_S, Regions, open_region
from multitower.supervisor.scheduling.pool_worker import Batch, Worker
from multitower.supervisor.scheduling.quarantine import RequestQuarantine
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request, Shared, SharedRequest, Split
from multitower.supervisor.scheduling.shared_memory_areas import OpenArea
from multitower.supervisor.scheduling.shared_memory_region import Region
from multitower.supervisor.scheduling.split_requests import cut_part
from multitower.worker_wire import KeySpec


def test_a_region_is_opened_by_its_name() -> None:
    with region(b"hello") as (name, descriptor):
        opened = open_region(name)
        assert opened.descriptor != descriptor
        assert not os.get_inheritable(opened.descriptor)
        assert (opened.name, opened.size) == (name, 1 << 16)
        assert os.path.sameopenfile(opened.descriptor, descriptor)
    # The daemon's own descriptor keeps the region after the client has closed its own.
    assert OpenArea(opened, 4096, 5).read() == b"hello"


@contextmanager
def opened(descriptor: int) -> Iterator[str]:
    try:
        yield name_of(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def pipe() -> Iterator[str]:
    reading, writing = os.pipe()
    with opened(writing), opened(reading) as name:
        yield name


@contextmanager
def named_pipe(path: Path) -> Iterator[str]:
    # Opening one for reading waits for a writer.
    os.mkfifo(path)
    with opened(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as name:
        yield name


@contextmanager
def a_socket() -> Iterator[str]:
    with socket.socket() as made:
        yield name_of(made.fileno())


def a_file(path: Path) -> int:
    path.write_bytes(wire.REGION_MAGIC + NONCE.encode() + bytes(8192))
    return os.open(path, os.O_RDWR)


FOREIGN = {
    "a file": lambda path: opened(a_file(path)),
    "a file in /dev/shm": lambda _: in_dev_shm(),
    "a folder": lambda path: opened(os.open(path.parent, os.O_RDONLY)),
    "a device": lambda _: opened(os.open("/dev/zero", os.O_RDWR)),
    "a pipe": lambda _: pipe(),
    "a named pipe": lambda path: named_pipe(path),
    "a socket": lambda _: a_socket(),
    "memory that may shrink": lambda _: names(region(sealed=False)),
    "another's memory": lambda _: names(region(head=b"")),
    "memory of another nonce": lambda _: names(region(head=wire.REGION_MAGIC + b"0" * 32)),
    "memory that is too small": lambda _: names(region(size=20, head=b"")),
}


@contextmanager
def names(made: object) -> Iterator[str]:
    with made as (name, _):  # type: ignore[attr-defined]
        yield name


@contextmanager
def in_dev_shm() -> Iterator[str]:
    path = Path(f"/dev/shm/multitower-test-{os.getpid()}")
    descriptor = a_file(path)
    path.unlink()
    with opened(descriptor) as name:
        yield name


@pytest.mark.timeout(10)
@pytest.mark.parametrize("what", FOREIGN)
def test_descriptors_that_are_no_region_are_refused(what: str, tmp_path: Path) -> None:
    with leaving_no_descriptor():
        with FOREIGN[what](tmp_path / "it") as name, pytest.raises(OSError, match=r"\w"):
            open_region(name)
        gc.collect()


@pytest.mark.parametrize("what", ["a file", "a file in /dev/shm", "a folder"])
def test_files_are_refused_without_opening_them(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Opening a file can have side effects, and its file system may never answer.
    asked = []
    real_open, real_stat = os.open, os.fstat

    def spy_open(path: str, flags: int, *rest: int) -> int:
        asked.extend([] if flags & os.O_PATH else [path])
        return real_open(path, flags, *rest)

    def spy_stat(descriptor: int) -> os.stat_result:
        asked.append(str(descriptor))
        return real_stat(descriptor)

    with FOREIGN[what](tmp_path / "it") as name, monkeypatch.context() as patch, region() as (good, _):
        patch.setattr(os, "open", spy_open)
        patch.setattr(os, "fstat", spy_stat)
        with pytest.raises(OSError, match="not shared memory"):
            open_region(name)
        assert asked == []
        open_region(good)
        assert len(asked) == 2


@pytest.mark.timeout(10)
def test_a_lease_on_a_region_does_not_block() -> None:
    # A lease is granted while no process has the file open for writing; breaking it takes up to 45 s.
    with region() as (_, descriptor):
        reading = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    handler = signal.signal(signal.SIGIO, signal.SIG_IGN)  # how the kernel tells the holder
    try:
        fcntl.fcntl(reading, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        with pytest.raises(BlockingIOError):
            open_region(name_of(reading))
    finally:
        os.close(reading)
        signal.signal(signal.SIGIO, handler)


@pytest.mark.parametrize(
    "name",
    [
        name_of(2**31 - 1),
        name_of(999_999),
        name_of(0, pid=2**22),  # larger than any pid of Linux
        f"mt-self-0-{NONCE}",
        f"mt-{os.getpid()}-0/../0-{NONCE}",
        "",
    ],
    # Test processes must agree on the ids, so they cannot contain the pid.
    ids=["closed descriptor", "unused descriptor", "unknown pid", "pid not a number", "path", "empty"],
)
def test_names_that_lead_to_no_region_are_refused(name: str) -> None:
    with pytest.raises(OSError, match=r"\w"):
        open_region(name)


class FakeOpener:
    """Creates regions, and records the names that it was called with."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.descriptors: list[int] = []

    def __call__(self, name: str) -> Region:
        self.asked.append(name)
        made = Region(name, os.memfd_create(name))
        self.descriptors.append(made.descriptor)
        return made

    @property
    def open(self) -> int:
        return sum(map(is_open, set(self.descriptors)))


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_region_is_opened_once_and_closed_when_idle() -> None:
    opener = FakeOpener()
    known = Regions(opener)
    known.get("a", 0.0)
    known.get("b", 1.0)
    known.get("a", 5.0)
    known.close_idle(1.0 + IDLE_S - 0.1)
    assert (opener.asked, opener.open, len(known)) == (["a", "b"], 2, 2)
    known.close_idle(1.0 + IDLE_S)
    assert (opener.open, len(known)) == (1, 1)
    known.get("b", 12.0)
    known.close_idle(5.0 + IDLE_S)
    assert (opener.asked, len(known)) == (["a", "b", "b"], 1)


def test_a_region_stays_open_while_a_request_uses_it() -> None:
    opener = FakeOpener()
    known = Regions(opener)
    area = OpenArea(known.get("a", 0.0), 0, 0)
    known.close_idle(100.0)
    assert opener.open == 1
    del area
    assert opener.open == 0


def test_the_number_of_open_regions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory_regions, "MAX_REGIONS", 3)
    opener = FakeOpener()
    known = Regions(opener)
    for name in "abcdef":
        known.get(name, 0.0)
    assert (opener.open, len(known)) == (3, 3)
    held = [known.get(name, 1.0) for name in "ghi"]
    with pytest.raises(OSError, match="3 regions are in use"):
        known.get("j", 2.0)
    del held[0]
    assert known.get("k", 3.0).name == "k"


def test_regions_in_use_are_found_by_name_whatever_else_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory_regions, "MAX_REGIONS", 3)
    opener = FakeOpener()
    known = Regions(opener)
    held = {name: known.get(name, 0.0) for name in "abc"}
    for name in "defg":
        with pytest.raises(OSError, match="3 regions are in use"):
            known.get(name, 1.0)
    assert all(known.get(name, 2.0) is region for name, region in held.items())
    assert opener.asked == ["a", "b", "c"]
    # The first region that is not in use is closed, though others were used longer ago.
    del held["b"]
    known.get("d", 3.0)
    assert (opener.open, known.get("a", 4.0)) == (3, held["a"])
    # A region in use is found by its name even when idle; a closed one is opened again.
    known.close_idle(4.0 + IDLE_S)
    assert known.get("c", 20.0) is held["c"]
    known.get("b", 20.0)
    assert opener.asked == ["a", "b", "c", "d", "b"]


# Requests.

SPEC = KeySpec("m", (("x", "UINT8", (2,)), ("n", "UINT8", ())), None, True)
KEY = BatchKey(SPEC, 2)
WORKER = Worker(0, "cpu:0", {}, {}, 0.0)


def plan(name: str, offset: int = 4096, rows: int = 3, **outputs: wire.Area) -> Plan:
    """The plan of a request with `n` in a frame and `x` in shared memory, in this order."""
    shared = Shared((None, wire.Area(name, offset, 2 * rows)), outputs)
    return Plan(KEY, rows, (1, 0), (rows, 2 * rows), (False,) * 2, ("n", "x"), 30.0, shared=shared)


def request(known: Regions, plan: Plan, frames: list[bytes]) -> SharedRequest:
    tensors, output_areas = known.resolve(plan, frames, 0.0)
    in_order = [tensors[index] for index in plan.order]
    return SharedRequest(("front",), b"id", plan, in_order, sum(map(len, tensors)), 0.0, output_areas)


def test_inputs_are_in_the_key_s_order_and_output_areas_by_name() -> None:
    with region(b"abcdef") as (name, _):
        shared = request(Regions(), plan(name, y=wire.Area(name, 5000, 10)), [b"123"])
        assert [len(frame) for frame in shared.frames] == [6, 3]
        assert shared.frames[0].read() == b"abcdef"
        assert (shared.size, shared.shared, shared.output_areas["y"].offset) == (9, True, 5000)


@pytest.mark.parametrize(
    ("offset", "within"), [(65536 - 6, True), (65536 - 5, False), (65536, False), (2**63 - 1, False)]
)
def test_an_area_outside_its_region_is_refused(offset: int, within: bool) -> None:
    with region() as (name, _):
        plans = {"inputs[1]": plan(name, offset), "y": plan(name, y=wire.Area(name, offset, 6))}
        for field, asked in plans.items():
            if within:
                Regions().resolve(asked, [b"123"], 0.0)
                continue
            with pytest.raises(InvalidRequest, match="the region has 65536") as raised:
                Regions().resolve(asked, [b"123"], 0.0)
            assert raised.value.reason == "malformed"
            assert raised.value.details["field"] == f"{field}.parameters.shared_memory_offset"


@pytest.mark.parametrize("frames", [[], [b"123", b"123456"]])
def test_each_input_outside_shared_memory_needs_one_frame(frames: list[bytes]) -> None:
    with region() as (name, _), pytest.raises(InvalidRequest, match="1 inputs outside shared memory"):
        Regions().resolve(plan(name), frames, 0.0)


def test_a_region_that_cannot_be_opened_is_refused_with_its_field() -> None:
    gone = name_of(999_999)
    with pytest.raises(InvalidRequest, match="cannot use this shared memory: No such file") as raised:
        Regions().resolve(plan(gone), [b"123"], 0.0)
    assert (raised.value.reason, raised.value.details) == (
        "malformed",
        {"field": "inputs[1].parameters.shared_memory_region"},
    )
    assert shared_memory_regions.refusal(plan(gone), "why").details == raised.value.details


@pytest.mark.parametrize(("number", "transient"), [(errno.EMFILE, True), (errno.ENOENT, False), (errno.EAGAIN, False)])
def test_only_transient_refusals_say_when_to_try_again(number: int, transient: bool) -> None:
    def refuse(_: str) -> Region:
        raise OSError(number, "why")

    with pytest.raises(InvalidRequest, match="cannot use this shared memory: why") as raised:
        Regions(refuse).resolve(plan(name_of(0)), [b"123"], 0.0)
    assert raised.value.details.get("retry_after_ms") == (shared_memory_regions.RETRY_AFTER_MS if transient else None)


def test_too_many_regions_are_a_transient_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory_regions, "MAX_REGIONS", 1)
    known = Regions(FakeOpener())
    held = known.get("a", 0.0)
    with pytest.raises(InvalidRequest, match="1 regions are in use") as raised:
        known.resolve(plan(name_of(0)), [b"123"], 0.0)
    assert raised.value.details["retry_after_ms"] == shared_memory_regions.RETRY_AFTER_MS
    assert known.get("a", 1.0) is held


def test_parts_of_a_split_request_are_areas_of_its_region() -> None:
    with region(b"abcdef") as (name, _):
        whole = request(Regions(), plan(name, y=wire.Area(name, 5000, 10)), [b"123"])
        split = Split(whole)
        parts = [cut_part(whole, split, 2), cut_part(whole, split, 1)]
        assert [part.frames[0].read() for part in parts] == [b"abcd", b"ef"]
        assert [bytes(part.frames[1]) for part in parts] == [b"12", b"3"]
        assert [part.size for part in parts] == [6, 3]
        # The router joins the outputs of parts, so parts have no output areas.
        (_, table, *frames) = shared_memory_regions.batch_message(Batch(7, KEY, parts, 3, 3, WORKER, 0.0), [])
        assert worker_wire.Table.unpack(table).outputs == []
        assert [bytes(frame) for frame in frames] == [b"12", b"3"]


def test_a_batch_message_lists_its_areas_in_the_table() -> None:
    with region(b"abcdef") as (name, _):
        shared = request(Regions(), plan(name, y=wire.Area(name, 5000, 10)), [b"123"])
        plain = Request(("front",), b"id", plan(name), [b"ghijkl", b"456"], 9, 0.0)
        head, description, table, *frames = shared_memory_regions.batch_message(
            Batch(7, KEY, [plain, shared], 6, 6, WORKER, 0.0), [b"{}"]
        )
        assert head[:1] == worker_wire.SHARED
        read = worker_wire.read_batch_head(head)
        assert (read.batch_id, read.key_id, read.rows) == (7, KEY.id, (3, 3))
        assert (read.described, read.joined) == (True, False)
        assert (description, frames) == (b"{}", [b"ghijkl", b"456", b"123"])
        unpacked = worker_wire.Table.unpack(table)
        status = os.fstat(shared.frames[0].region.descriptor)
        where = (name, shared.frames[0].region.descriptor, status.st_dev, status.st_ino)
        assert unpacked.inputs == [(1, 0, *where, 4096, 6)]
        assert unpacked.outputs == [(1, "y", *where, 5000, 10)]


def test_quarantine_compares_bytes_in_shared_memory_and_in_frames_alike() -> None:
    with ExitStack() as stack:
        (bad, _), (good, _) = (stack.enter_context(region(content)) for content in (b"poison", b"potion"))
        quarantine = RequestQuarantine()
        quarantine.add(request(Regions(), plan(bad), [b"123"]), 0.0, 60.0)
        assert quarantine.find(request(Regions(), plan(good), [b"123"]), 1.0) is None
        assert quarantine.find(request(Regions(), plan(bad), [b"123"]), 1.0) is not None
        in_frames = Request(("front",), b"id", plan(bad), [b"poison", b"123"], 9, 0.0)
        assert quarantine.find(in_frames, 1.0) is not None


# The router.


def errors(front: FakeFront) -> list[dict[str, str]]:
    """The reason and the field of each error that a request was answered with."""
    found = []
    for kind, id, (body,) in front.replies:
        assert (kind, id) == (wire.ERROR, b"1")
        error = json.loads(body)["error"]
        found.append({"reason": error["reason"], "field": error["details"]["field"]})
    return found


@pytest.mark.parametrize(
    ("local", "spare", "frames", "error"),
    [
        (True, 0, [b"12"], None),
        (True, -1, [b"12"], {"reason": "too_large", "field": "frames"}),
        (False, 0, [b"12"], {"reason": "malformed", "field": "inputs[1].parameters.shared_memory_region"}),
        (True, 9, [b"1"], {"reason": "size_mismatch", "field": "n"}),
        (True, 9, [b"12", b"34"], {"reason": "malformed", "field": "inputs"}),
    ],
)
def test_the_router_accepts_shared_memory_of_local_clients_only(
    local: bool, spare: int, frames: list[bytes], error: dict[str, str] | None
) -> None:
    with region(b"abcdef") as (name, _):
        tensors = [wire.Tensor("n", "UINT8", (2,)), wire.Tensor("x", "UINT8", (2, 3), wire.Area(name, 4096, 6))]
        header = wire.infer_header("m", tensors)
        front = FakeFront([wire.INFER, b"1", header, *frames], local=local)
        # Bytes in shared memory count towards the limit as bytes in frames do.
        limit = len(header) + 2 + 6 + spare
        router = Router({"m": QueueLimits(10, 1 << 20)}, {"m": 30.0}, limit)
        router.planner.add_version(ModelReport(name="m", max_batch_size=2), newest=True, generation=0)
        router.receive(front)  # type: ignore[arg-type]
        assert errors(front) == ([] if error is None else [error])
        queue = router.scheduler.queues["m"]
        assert (queue.size, queue.bytes) == ((0, 0) if error else (1, 2 + 6))
