"""The request log: the lines for requests, their file and its rotation, and what happens where it cannot be written."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest
from waiting import wait_until

from multitower import tensors, wire
from multitower.errors import Reason, make
from multitower.supervisor.config.request_log import RequestLogConfig
from multitower.supervisor.observability import line_writer
from multitower.supervisor.observability.line_writer import LineWriter
from multitower.supervisor.observability.request_log import RequestLog
from multitower.supervisor.observability.request_log_entries import MAX_VALUES, Entry, Noted, format_entry
from multitower.supervisor.observability.rotated_file import RotatedFile
from multitower.supervisor.observability.switch_interval import SWITCH_S
from multitower.supervisor.routing.front_socket import FrontSocket
from multitower.supervisor.routing.router import Router
from multitower.supervisor.scheduling.batch_run import BatchRun
from multitower.supervisor.scheduling.open_requests import Reply
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.settings import ActiveSettings
from multitower.trace_context import TraceContext
from multitower.worker_wire import KeySpec

WAIT_S = 60.0
KEY = BatchKey(KeySpec("m", (("x", "INT32", (2,)),), None, True), 8)
FRONT = SimpleNamespace(interface="mt1")


class Scene:
    """A request log of a router without sockets."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "requests.log"
        self.router = SimpleNamespace(observers=[])
        self.settings = SimpleNamespace(current=SimpleNamespace(config=SimpleNamespace(request_log=None)))
        self.log = RequestLog(cast(Router, self.router), cast(ActiveSettings, self.settings))

    def configure(self, **more: Any) -> None:
        values = {"path": self.path, "sample": 1.0, "tensors": False, "max_size": 1 << 20, "keep": 2, **more}
        self.settings.current.config.request_log = RequestLogConfig.model_construct(**values)
        self.log.tick()

    def accept(self, rows: int = 2, **plan: Any) -> Request:
        array = np.arange(2 * rows, dtype=np.int32)
        made = Plan(KEY, rows, (0,), (8 * rows,), (False,), ("x",), 1.0, **plan)
        request = Request((FRONT,), b"id-1", made, [array.tobytes()], 8 * rows, 10.0)
        for observer in self.router.observers:
            if observer.sampler.chooses(made.trace, 10.0) and observer.observe_acceptance(request):
                request.observers = (*request.observers, observer)
        return request

    def answer(self, request: Request, answer: Any = (b'{"outputs":[]}',), *, runs: int = 1) -> None:
        request.runs = tuple(
            BatchRun(number, 3, "cpu:3", 2, 5, 8, 10.5, 10.5 + number, 12.0, 0, 250_000_000, 0)
            for number in range(runs)
        )
        request.version = "7" if runs else ""
        for observer in request.observers:
            observer.observe_replies([Reply(request, answer)], 12.25)

    def refuse(self, header: bytes) -> None:
        for observer in self.router.observers:
            observer.observe_refusal(
                cast(FrontSocket, FRONT), b"\xffid", header, make(Reason.MODEL_UNKNOWN, "no model"), 1.0
            )

    def lines(self) -> list[dict[str, Any]]:
        """The lines, once all have been written."""
        self.log.close()
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.log.close()


def test_a_line_has_the_parts_of_the_latency_and_the_batch(scene: Scene) -> None:
    scene.configure()
    scene.answer(scene.accept(trace=TraceContext(0xABC, 1, True)))
    (line,) = scene.lines()
    assert line.pop("time").endswith("Z")
    assert line == {
        "id": "id-1",
        "model": "m",
        "version": "7",
        "outcome": "ok",
        "queue_ms": 500.0,
        "compute_ms": 250.0,
        "total_ms": 2250.0,
        "rows": 2,
        "batch_rows": 5,
        "slot": 3,
        "device": "cpu:3",
        "trace_id": f"{0xABC:032x}",
        "interface": "mt1",
    }
    assert stat.S_IMODE(scene.path.stat().st_mode) == 0o600


def test_failed_refused_and_split_requests_have_lines_too(scene: Scene) -> None:
    scene.configure()
    scene.answer(scene.accept(), make(Reason.DEADLINE, "too late"), runs=0)
    scene.answer(scene.accept(), runs=3)
    scene.refuse(wire.dump_json({"model_name": "nosuch", "model_version": "4"}))
    scene.refuse(b"\xff no JSON")
    late, split, unknown, malformed = scene.lines()
    assert (late["outcome"], late["queue_ms"], late["total_ms"]) == ("deadline", 2250.0, 2250.0)
    assert (late["compute_ms"], late["slot"], late["batch_rows"]) == (None, None, None)
    assert (split["batches"], split["queue_ms"], split["compute_ms"]) == (3, 500.0, 750.0)
    assert (unknown["model"], unknown["version"], unknown["outcome"]) == ("nosuch", "4", "model_unknown")
    assert (malformed["model"], malformed["id"]) == (None, "\\xffid")


def test_tensors_are_noted_when_the_request_is_accepted(scene: Scene) -> None:
    scene.configure(tensors=True)
    request = scene.accept()
    request.frames = ()  # as after its batch
    header = wire.reply_header("m", "7", [wire.Tensor("y", "FP32", (1, 2))])
    scene.answer(request, [header, np.float32([1.5, np.nan]).tobytes()])
    scene.answer(scene.accept(), make(Reason.MODEL_ERROR, "it raised"))
    ok, failed = scene.lines()
    assert ok["inputs"] == [{"name": "x", "datatype": "INT32", "shape": [2, 2], "data": [0, 1, 2, 3]}]
    assert ok["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, "nan"]}]
    assert failed["inputs"] == ok["inputs"]
    assert "outputs" not in failed


ARRAYS = {
    "BOOL": (np.array([True, False]), [True, False]),
    "FP16": (np.float16([0.5]), [0.5]),
    "BF16": (np.array([1.5, -2], ml_dtypes.bfloat16), [1.5, -2.0]),
    "UINT64": (np.array([2**64 - 1], np.uint64), [2**64 - 1]),
    "COMPLEX64": (np.complex64([1 + 2j]), [[1.0, 2.0]]),
    "FP64": (np.array([np.inf]), ["inf"]),
    "BYTES": (np.array(["é", b"\xff"], object), ["é", {"b64": "/w=="}]),
}


@pytest.mark.parametrize("datatype", ARRAYS)
def test_values_of_each_datatype_are_json(datatype: str) -> None:
    array, values = ARRAYS[datatype]
    noted = Noted("x", datatype, array.shape, bytes(tensors.encode(array)))
    assert json.loads(format_entry(Entry(0.0, b"1", {}, [noted])))["inputs"][0]["data"] == values


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_only_the_first_values_of_a_large_tensor_are_written(datatype: str) -> None:
    frame = bytes(4 * 100_000)  # as BYTES: 100 000 empty elements
    line = format_entry(Entry(0.0, b"1", {}, [Noted("x", datatype, (100_000,), frame[:4096])]))
    (written,) = json.loads(line)["inputs"]
    assert (len(written["data"]), written["truncated"], written["shape"]) == (MAX_VALUES, True, [100_000])


def test_a_text_that_is_cut_off_is_left_out() -> None:
    frame = tensors.encode_bytes(["whole", "long" * 5000])
    (written,) = json.loads(format_entry(Entry(0.0, b"1", {}, [Noted("x", "BYTES", (2,), frame[:4096])])))["inputs"]
    assert (written["data"], written["truncated"]) == (["whole"], True)


def test_the_share_of_logged_requests_is_that_of_sample(scene: Scene) -> None:
    for tensors_too in (False, True):
        scene.configure(sample=0.2, tensors=tensors_too)
        for _ in range(2000):
            scene.answer(scene.accept())
    assert 600 < len(scene.lines()) < 1000


def test_a_reload_changes_the_file_or_ends_the_log(scene: Scene, tmp_path: Path) -> None:
    scene.configure()
    scene.answer(scene.accept())
    accepted_before = scene.accept()
    scene.configure(path=tmp_path / "other.log", tensors=True)
    scene.answer(accepted_before)
    scene.answer(scene.accept())
    scene.settings.current.config.request_log = None
    scene.log.tick()
    assert not scene.router.observers, "nothing observes requests any more"
    for thread in threading.enumerate():
        if thread.name == "request log":
            thread.join(WAIT_S)
    assert [len((tmp_path / name).read_text().splitlines()) for name in ("requests.log", "other.log")] == [1, 2]


def test_lines_that_are_dropped_count_also_after_the_file_was_changed(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "full.log.1").mkdir()
    (tmp_path / "full.log.1" / "in the way").touch()
    (tmp_path / "full.log").write_bytes(bytes(100))
    for path, dropped in ((tmp_path / "missing" / "log", 1), (tmp_path / "full.log", 2), (scene.path, 2)):
        scene.configure(path=path, max_size=100, keep=1)
        scene.answer(scene.accept())
        wait_until(lambda dropped=dropped: scene.log.dropped == dropped)
    assert scene.log.failed_rotations == 1
    assert len(scene.lines()) == 1
    scene.log.tick()
    assert (scene.log.dropped, scene.log.failed_rotations) == (2, 1)


# The file.


def test_a_thread_that_cannot_be_started_is_tried_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.configure()
    with monkeypatch.context() as changed:
        changed.setattr(threading.Thread, "start", cannot_start)
        with pytest.raises(RuntimeError):
            scene.configure(keep=3)
    scene.configure(keep=3)
    scene.answer(scene.accept())
    assert len(scene.lines()) == 1


def cannot_start(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_refused_header_that_is_empty_or_too_large_names_nothing(scene: Scene) -> None:
    scene.configure()
    scene.refuse(b"")
    (line,) = scene.lines()
    assert (line["model"], line["version"]) == (None, None)


def test_a_full_file_is_renamed_and_the_oldest_removed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = RotatedFile(path, max_size=10, keep=2)
    for number in range(5):
        file.write(b"line %d\n" % number)
    file.close()
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1", "log.2"]
    assert [(tmp_path / name).read_bytes() for name in ("log", "log.1", "log.2")] == [
        b"line 4\n",
        b"line 3\n",
        b"line 2\n",
    ]


def test_a_file_that_cannot_be_renamed_is_counted_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.with_name("log.1").mkdir()
    (path.with_name("log.1") / "in the way").touch()
    file = RotatedFile(path, max_size=10, keep=1)
    file.write(b"line 1\n")
    for failed in (1, 2):
        with pytest.raises(OSError, match="directory"):
            file.write(b"line 2\n")
        assert file.failed_rotations == failed
    (path.with_name("log.1") / "in the way").unlink()
    path.with_name("log.1").rmdir()
    file.write(b"line 3\n")
    file.close()
    assert path.read_bytes() == b"line 3\n"
    assert file.failed_rotations == 2


@pytest.mark.parametrize("make_it", [lambda p: p.symlink_to("other"), lambda p: os.mkfifo(p), lambda p: p.mkdir()])
def test_links_pipes_and_folders_are_not_written_to(make_it: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "log"
    make_it(path)
    with pytest.raises(OSError, match=r"log|regular"):
        RotatedFile(path, 100, 1).write(b"line\n")
    assert not (tmp_path / "other").exists()


def test_an_existing_file_keeps_its_mode_and_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    path.chmod(0o640)
    file = RotatedFile(path, 100, 1)
    file.write(b"after\n")
    file.close()
    assert path.read_bytes() == b"before\nafter\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    file = RotatedFile(path, 1000, 1)
    file.write(b"first\n")
    write, room = os.write, [3]

    def full(descriptor: int, data: Any) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(descriptor, bytes(data)[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        file.write(b"second\n")
    monkeypatch.undo()
    file.write(b"third\n")
    file.close()
    assert path.read_bytes() == b"first\nthird\n"


# The thread.


class Gate:
    """Stands for a file whose writes wait until the test opens the gate, or fail."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.error: OSError | None = None
        self.written: list[bytes] = []
        self.closes = 0

    def write(self, lines: bytes) -> None:
        assert self.open.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        self.written.append(lines)

    def close(self) -> None:
        self.closes += 1


def writer_of(gate: Gate) -> LineWriter[bytes]:
    return LineWriter(cast(RotatedFile, gate), "/the/log", lambda entry: entry)


def ended(writer: LineWriter[bytes]) -> None:
    writer.end()
    writer._thread.join(WAIT_S)
    assert not writer._thread.is_alive()


def test_a_slow_disk_drops_entries_and_counts_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(line_writer, "MAX_QUEUED_BYTES", 100)
    gate = Gate()
    writer = writer_of(gate)
    for _ in range(50):
        writer.put(b"line\n", 10)
    gate.open.set()
    ended(writer)
    written = b"".join(gate.written).count(b"\n")
    assert 10 <= written <= 20, "what the queue held, and what the thread had taken from it"
    (record,) = [record for record in caplog.records if record.message == "entries of the request log dropped"]
    assert vars(record)["fields"]["dropped"] == 50 - written


def test_a_failing_disk_is_reported_once_and_when_it_is_well_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    gate = Gate()
    gate.open.set()
    gate.error = OSError(errno.ENOSPC, "No space left on device")
    writer = writer_of(gate)
    for _ in range(3):
        writer.put(b"lost\n", 10)
        wait_until(lambda: not writer._entries and not writer._wake.is_set())
    ended(writer)
    gate.error = None
    assert [record.message for record in caplog.records] == ["request log cannot be written"]
    fields = vars(caplog.records[0])["fields"]
    assert (fields["path"], fields["cause"]) == ("/the/log", "No space left on device")


def test_the_log_tells_when_it_is_written_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    gate = Gate()
    gate.open.set()
    gate.error = OSError(errno.ENOSPC, "No space left on device")
    writer = writer_of(gate)
    writer.put(b"lost\n", 10)
    wait_until(lambda: len(caplog.records) == 1)
    gate.error = None
    writer.put(b"kept\n", 10)
    ended(writer)
    assert caplog.records[1].message == "request log can be written again"
    assert gate.written == [b"kept\n"]


def test_an_entry_that_cannot_be_formatted_costs_itself_only(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    gate.open.set()

    def format(entry: bytes) -> bytes:
        if entry == b"bad":
            raise ValueError(entry)
        return entry

    writer = LineWriter(cast(RotatedFile, gate), "/the/log", format)
    for entry in (b"bad", b"good\n"):
        writer.put(entry, 10)
    ended(writer)
    assert b"".join(gate.written) == b"good\n"
    assert "internal error while formatting an entry of the request log" in caplog.text


def test_the_thread_gives_way_while_it_formats_and_rests_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    before, gate = sys.getswitchinterval(), Gate()
    intervals: list[float] = []
    rests: list[float] = []
    monkeypatch.setattr(line_writer, "MAX_BATCH_BYTES", 1)
    monkeypatch.setattr(line_writer.time, "thread_time", itertools.count(0, 3).__next__)

    def format(entry: bytes) -> bytes:
        intervals.append(sys.getswitchinterval())
        return entry

    writer = LineWriter(cast(RotatedFile, gate), "/the/log", format)
    monkeypatch.setattr(writer._ending, "wait", rests.append)
    for _ in range(2):
        writer.put(b"line\n", 10)
    gate.open.set()
    ended(writer)
    assert gate.written == [b"line\n"] * 2
    assert intervals == [pytest.approx(SWITCH_S)] * 2
    assert rests == [3, 3]
    assert sys.getswitchinterval() == before
