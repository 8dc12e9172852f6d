"""Answers to queries: nothing that they need is looked up in the file system by the event loop."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from daemon_scene import DaemonScene

from multitower import MultitowerError, wire
from multitower.spec import SignatureReport
from multitower.supervisor.machine.process_limits import ProcessLimits
from multitower.supervisor.machine.resources import Sampler

QUERIES = sorted(wire.KINDS - {wire.INFER, wire.CANCEL})
FILE_EVENTS = ("open", "os.listdir", "os.scandir", "import", "subprocess.Popen")


class FileAccess:
    """Records the audit events of this process's file access (docs.python.org/3/library/audit_events.html)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []
        self._recording = False
        sys.addaudithook(self._hook)  # there is no way to remove one

    def _hook(self, name: str, arguments: tuple[object, ...]) -> None:
        if self._recording and name in FILE_EVENTS:
            self.events.append((name, arguments[0] if arguments else None))

    @contextlib.contextmanager
    def recorded(self) -> Iterator[list[tuple[str, object]]]:
        self.events.clear()
        self._recording = True
        try:
            yield self.events
        finally:
            self._recording = False


@pytest.fixture(scope="module")
def file_access() -> FileAccess:
    return FileAccess()


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    sampler = Sampler(ProcessLimits(), 3600.0)
    yield sampler
    sampler.close()


def daemon_of(folder: Path, sampler: Sampler) -> DaemonScene:
    return DaemonScene(folder, [("m",), ("m",)], sampler=sampler)


def test_no_query_opens_a_file(tmp_path: Path, file_access: FileAccess, sampler: Sampler) -> None:
    daemon = daemon_of(tmp_path, sampler)
    queries = daemon.operations.queries
    for kind in QUERIES:
        with contextlib.suppress(MultitowerError):
            queries.answer(kind, {"model_name": "m"}, daemon.scene.now)  # what it imports, it imports once
    with file_access.recorded() as events:
        for kind in QUERIES:
            answer = queries.answer(kind, {"model_name": "m"}, daemon.scene.now)
            assert answer
    assert events == []


def test_file_access_is_noticed(file_access: FileAccess, tmp_path: Path) -> None:
    with file_access.recorded() as events, open(tmp_path / "file", "w"):
        pass
    assert events == [("open", str(tmp_path / "file"))] or events == [("open", tmp_path / "file")]


def test_the_status_reports_the_memory_of_the_daemon_itself(tmp_path: Path, sampler: Sampler) -> None:
    daemon = daemon_of(tmp_path, sampler)
    rss = daemon.operations.status.report(daemon.scene.now)["daemon"]["rss_bytes"]
    assert 10 << 20 < rss < 10 << 30


def test_the_status_tells_how_each_signature_is_batched(tmp_path: Path, sampler: Sampler) -> None:
    daemon = daemon_of(tmp_path, sampler)
    (report,) = daemon.scene.router.planner.catalog.newest.values()
    others = (
        SignatureReport(name="alone", unbatched_because="the values of output 'y' differ"),
        SignatureReport(name="varying", max_batch_size=8, unverified_because="its outputs vary from run to run"),
    )
    daemon.scene.router.planner.add_version(replace(report, signatures=others))
    (row,) = daemon.operations.status.report(daemon.scene.now)["models"]
    assert row["unbatched_because"] is None
    assert row["signatures"] == {
        other.name: {
            "max_batch_size": other.max_batch_size,
            "unbatched_because": other.unbatched_because,
            "unverified_because": other.unverified_because,
            "cause": None,
        }
        for other in others
    }


def test_readiness_ends_when_the_daemon_drains(tmp_path: Path, sampler: Sampler) -> None:
    daemon = daemon_of(tmp_path, sampler)
    queries, now = daemon.operations.queries, daemon.scene.now
    assert queries.answer(wire.SERVER_READY, {}, now) == {"ready": True, "slots_ready": 2, "slots_total": 2}
    daemon.operations.lifecycle.request_stop(now, 30.0)
    assert queries.answer(wire.SERVER_READY, {}, now) == {"ready": False, "slots_ready": 2, "slots_total": 2}
    assert queries.answer(wire.MODEL_READY, {"model_name": "m"}, now) == {"name": "m", "ready": True}
    assert queries.answer(wire.STATUS, {}, now)["daemon"]["state"] == "draining"
