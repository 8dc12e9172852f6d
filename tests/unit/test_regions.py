"""Which shared memory the daemon takes, for how long it keeps it, and what becomes of a request's tensors there."""

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
from memfds import NONCE, name_of, region

from multitower import wire, worker_wire
from multitower.errors import InvalidRequest
from multitower.spec import ModelReport
from multitower.supervisor.routing import regions
from multitower.supervisor.routing.front_socket import Incoming
from multitower.supervisor.routing.regions import IDLE_S, Regions, open_region
from multitower.supervisor.routing.router import Router
from multitower.supervisor.scheduling.areas import OpenArea, Region
from multitower.supervisor.scheduling.quarantine import Quarantine
from multitower.supervisor.scheduling.queue import Batch, QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request, Shared, SharedRequest
from multitower.supervisor.scheduling.split_requests import Join
from multitower.worker_wire import KeySpec


def test_a_region_is_opened_by_its_name() -> None:
    with region(b"hello") as (name, descriptor):
        opened = open_region(name)
        assert opened.descriptor != descriptor
        assert not os.get_inheritable(opened.descriptor)
        assert (opened.name, opened.size) == (name, 1 << 16)
        assert os.path.sameopenfile(opened.descriptor, descriptor)
    # Its own descriptor keeps it, whatever becomes of the client's.
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
def test_nothing_else_is_opened(what: str, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with FOREIGN[what](tmp_path / "it") as name, pytest.raises(OSError, match=r"\w"):
        open_region(name)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("what", ["a file", "a file in /dev/shm", "a folder"])
def test_no_other_file_is_opened_even_for_a_moment(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # To open a file for writing can do something, and its file system can be one that never answers.
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
        with pytest.raises(OSError, match="no shared memory"):
            open_region(name)
        assert asked == []
        open_region(good)
        assert len(asked) == 2


@pytest.mark.timeout(10)
def test_a_lease_on_a_region_holds_nobody_up() -> None:
    # A lease can be had while nobody has the file open for writing; breaking it would take up to 45 s.
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
        name_of(0, pid=2**22),  # more than Linux has
        f"mt-self-0-{NONCE}",
        f"mt-{os.getpid()}-0/../0-{NONCE}",
        "",
    ],
    # Each process of `make test` has to call them the same.
    ids=["no descriptor", "nor this", "no process", "no number", "a path", "empty"],
)
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(OSError, match=r"\w"):
        open_region(name)


class Made:
    """Makes regions, and counts how often it is asked."""

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


def test_a_region_is_opened_once_and_closed_when_it_has_been_idle() -> None:
    made = Made()
    known = Regions(made)
    known.get("a", 0.0)
    known.get("b", 1.0)
    known.get("a", 5.0)
    known.tick(1.0 + IDLE_S - 0.1)
    assert (made.asked, made.open, len(known)) == (["a", "b"], 2, 2)
    known.tick(1.0 + IDLE_S)
    assert (made.open, len(known)) == (1, 1)
    known.get("b", 12.0)
    known.tick(5.0 + IDLE_S)
    assert (made.asked, len(known)) == (["a", "b", "b"], 1)


def test_a_region_stays_open_for_what_uses_it() -> None:
    made = Made()
    known = Regions(made)
    area = OpenArea(known.get("a", 0.0), 0, 0)
    known.tick(100.0)
    assert made.open == 1
    del area
    assert made.open == 0


def test_descriptors_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "MAX_REGIONS", 3)
    made = Made()
    known = Regions(made)
    for name in "abcdef":
        known.get(name, 0.0)
    assert (made.open, len(known)) == (3, 3)
    held = [known.get(name, 1.0) for name in "ghi"]
    with pytest.raises(OSError, match="3 regions are in use"):
        known.get("j", 2.0)
    del held[0]
    assert known.get("k", 3.0).name == "k"


def test_what_requests_need_stays_known_however_many_names_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "MAX_REGIONS", 3)
    made = Made()
    known = Regions(made)
    held = {name: known.get(name, 0.0) for name in "abc"}
    for name in "defg":
        with pytest.raises(OSError, match="3 regions are in use"):
            known.get(name, 1.0)
    assert all(known.get(name, 2.0) is region for name, region in held.items())
    assert made.asked == ["a", "b", "c"]
    # The first that nothing needs makes room, though others were used longer ago.
    del held["b"]
    known.get("d", 3.0)
    assert (made.open, known.get("a", 4.0)) == (3, held["a"])
    # It is found by its name even after it was idle, and is opened again only once it was closed.
    known.tick(4.0 + IDLE_S)
    assert known.get("c", 20.0) is held["c"]
    known.get("b", 20.0)
    assert made.asked == ["a", "b", "c", "d", "b"]


# Requests.

SPEC = KeySpec("m", (("x", "UINT8", (2,)), ("n", "UINT8", ())), None, True)
KEY = BatchKey(SPEC, 2)


def plan(name: str, offset: int = 4096, rows: int = 3, **outputs: wire.Area) -> Plan:
    """Of a request whose `x` lies in shared memory, and its `n` comes in a frame before it."""
    shared = Shared((None, wire.Area(name, offset, 2 * rows)), outputs)
    return Plan(KEY, rows, (1, 0), (rows, 2 * rows), (False,) * 2, ("n", "x"), 30.0, shared=shared)


def request(known: Regions, made: Plan, frames: list[bytes]) -> SharedRequest:
    tensors, output_areas = known.resolve(made, frames, 0.0)
    in_order = [tensors[index] for index in made.order]
    return SharedRequest(("front",), b"id", made, in_order, sum(map(len, tensors)), 0.0, output_areas)


def test_tensors_are_put_in_order_and_places_by_name() -> None:
    with region(b"abcdef") as (name, _):
        made = request(Regions(), plan(name, y=wire.Area(name, 5000, 10)), [b"123"])
        assert [len(frame) for frame in made.frames] == [6, 3]
        assert made.frames[0].read() == b"abcdef"
        assert (made.size, made.shared, made.output_areas["y"].offset) == (9, True, 5000)


@pytest.mark.parametrize(
    ("offset", "within"), [(65536 - 6, True), (65536 - 5, False), (65536, False), (2**63 - 1, False)]
)
def test_no_byte_outside_the_region(offset: int, within: bool) -> None:
    with region() as (name, _):
        output_areas = {"inputs[1]": plan(name, offset), "y": plan(name, y=wire.Area(name, offset, 6))}
        for whose, made in output_areas.items():
            if within:
                Regions().resolve(made, [b"123"], 0.0)
                continue
            with pytest.raises(InvalidRequest, match="the region has 65536") as raised:
                Regions().resolve(made, [b"123"], 0.0)
            assert raised.value.reason == "malformed"
            assert raised.value.details["field"] == f"{whose}.parameters.shared_memory_offset"


@pytest.mark.parametrize("frames", [[], [b"123", b"123456"]])
def test_the_number_of_frames_is_that_of_the_other_inputs(frames: list[bytes]) -> None:
    with region() as (name, _), pytest.raises(InvalidRequest, match="1 inputs outside shared memory"):
        Regions().resolve(plan(name), frames, 0.0)


def test_what_cannot_be_opened_is_told_by_its_field() -> None:
    gone = name_of(999_999)
    with pytest.raises(InvalidRequest, match="cannot take this shared memory: No such file") as raised:
        Regions().resolve(plan(gone), [b"123"], 0.0)
    assert (raised.value.reason, raised.value.details) == (
        "malformed",
        {"field": "inputs[1].parameters.shared_memory_region"},
    )
    assert regions.refusal(plan(gone), "why").details == raised.value.details


@pytest.mark.parametrize(("number", "passing"), [(errno.EMFILE, True), (errno.ENOENT, False), (errno.EAGAIN, False)])
def test_a_passing_shortage_is_told_from_what_lasts(number: int, passing: bool) -> None:
    def refuse(_: str) -> Region:
        raise OSError(number, "why")

    with pytest.raises(InvalidRequest, match="cannot take this shared memory: why") as raised:
        Regions(refuse).resolve(plan(name_of(0)), [b"123"], 0.0)
    assert raised.value.details.get("retry_after_ms") == (regions.PASSING_MS if passing else None)


def test_too_many_regions_are_a_passing_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "MAX_REGIONS", 1)
    known = Regions(Made())
    held = known.get("a", 0.0)
    with pytest.raises(InvalidRequest, match="1 regions are in use") as raised:
        known.resolve(plan(name_of(0)), [b"123"], 0.0)
    assert raised.value.details["retry_after_ms"] == regions.PASSING_MS
    assert known.get("a", 1.0) is held


def test_a_large_request_is_split_where_it_lies() -> None:
    with region(b"abcdef") as (name, _):
        whole = request(Regions(), plan(name, y=wire.Area(name, 5000, 10)), [b"123"])
        join = Join(whole)
        parts = [join.peel(2), join.peel(1)]
        assert [part.frames[0].read() for part in parts] == [b"abcd", b"ef"]
        assert [bytes(part.frames[1]) for part in parts] == [b"12", b"3"]
        assert [part.size for part in parts] == [6, 3]
        # Their outputs are joined by the router, so they come in frames.
        (_, table, *frames) = regions.batch_message(Batch(7, KEY, parts, 3), [])
        assert worker_wire.Table.unpack(table).outputs == []
        assert [bytes(frame) for frame in frames] == [b"12", b"3"]


def test_the_message_of_a_batch_names_what_is_not_in_it() -> None:
    with region(b"abcdef") as (name, _):
        shared = request(Regions(), plan(name, y=wire.Area(name, 5000, 10)), [b"123"])
        plain = Request(("front",), b"id", plan(name), [b"ghijkl", b"456"], 9, 0.0)
        head, description, table, *frames = regions.batch_message(Batch(7, KEY, [plain, shared], 6), [b"{}"])
        assert head[:1] == worker_wire.SHARED
        assert worker_wire.read_batch_head(head) == (7, KEY.id, True, False, (3, 3))
        assert (description, frames) == (b"{}", [b"ghijkl", b"456", b"123"])
        told = worker_wire.Table.unpack(table)
        status = os.fstat(shared.frames[0].region.descriptor)
        where = (name, shared.frames[0].region.descriptor, status.st_dev, status.st_ino)
        assert told.inputs == [(1, 0, *where, 4096, 6)]
        assert told.outputs == [(1, "y", *where, 5000, 10)]


def test_a_request_in_quarantine_is_known_by_its_bytes_however_it_comes() -> None:
    with ExitStack() as stack:
        (bad, _), (good, _) = (stack.enter_context(region(content)) for content in (b"poison", b"potion"))
        quarantine = Quarantine()
        quarantine.add(request(Regions(), plan(bad), [b"123"]), 0.0, 60.0)
        assert quarantine.find(request(Regions(), plan(good), [b"123"]), 1.0) is None
        assert quarantine.find(request(Regions(), plan(bad), [b"123"]), 1.0) is not None
        in_frames = Request(("front",), b"id", plan(bad), [b"poison", b"123"], 9, 0.0)
        assert quarantine.find(in_frames, 1.0) is not None


# The front.


class OneRequest:
    """Stands for a front socket: gives one request for a model, and keeps what is answered."""

    def __init__(self, header: bytes, *frames: bytes, local: bool) -> None:
        self.local = local
        self.readable = False
        self.errors: list[dict[str, str]] = []
        self._incoming: Incoming | None = Incoming((b"client",), [wire.INFER, b"1", header, *frames])

    def receive(self) -> Incoming | None:
        incoming, self._incoming = self._incoming, None
        return incoming

    def reply(self, address: tuple[bytes, ...], kind: bytes, id: bytes, body: tuple[bytes]) -> None:
        assert (address, kind, id) == ((b"client",), wire.ERROR, b"1")
        error = json.loads(body[0])["error"]
        self.errors.append({"reason": error["reason"], "field": error["details"]["field"]})


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
def test_the_router_takes_shared_memory_of_local_clients(
    local: bool, spare: int, frames: list[bytes], error: dict[str, str] | None
) -> None:
    with region(b"abcdef") as (name, _):
        tensors = [wire.Tensor("n", "UINT8", (2,)), wire.Tensor("x", "UINT8", (2, 3), wire.Area(name, 4096, 6))]
        header = wire.infer_header("m", tensors)
        front = OneRequest(header, *frames, local=local)
        # What lies in shared memory counts as if it were in a frame.
        limit = len(header) + 2 + 6 + spare
        router = Router({"m": QueueLimits(10, 1 << 20)}, {"m": 30.0}, limit, lambda *_: {})
        router.admission.describe(ModelReport(name="m", max_batch_size=2))
        router.receive(front)  # type: ignore[arg-type]
        assert front.errors == ([] if error is None else [error])
        queue = router.scheduler.queues["m"]
        assert (queue.size, queue.bytes) == ((0, 0) if error else (1, 2 + 6))
