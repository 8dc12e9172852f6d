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
from multitower.errors import Reason
from multitower.spec import SignatureReport
from multitower.supervisor.machine.process_limits import ProcessLimits
from multitower.supervisor.machine.resources import Sampler
from multitower.supervisor.workers.planned_replacement_queue import Replacement

QUERIES = sorted(wire.KINDS - {wire.INFER, wire.CANCEL, wire.METRICS})
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
    daemon.scene.router.planner.add_version(replace(report, signatures=others), newest=True, generation=0)
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


def test_metadata_has_the_signature_defs_of_the_generation_that_serves(tmp_path: Path, sampler: Sampler) -> None:
    daemon = daemon_of(tmp_path, sampler)
    planner, queries = daemon.scene.router.planner, daemon.operations.queries
    (report,) = planner.catalog.newest.values()
    for generation, definitions in enumerate(("Zmlyc3Q=", "c2Vjb25k"), 1):
        planner.add_version(replace(report, signature_defs=definitions), newest=True, generation=generation)
        metadata = queries.answer(wire.MODEL_METADATA, {"model_name": "m"}, daemon.scene.now)
        assert metadata["signature_defs"] == definitions
    planner.add_version(report, newest=True, generation=3)  # of another format
    assert "signature_defs" not in queries.answer(wire.MODEL_METADATA, {"model_name": "m"}, daemon.scene.now)


def test_the_status_of_one_model_has_its_versions(tmp_path: Path, sampler: Sampler) -> None:
    daemon = daemon_of(tmp_path, sampler)
    planner, queries, now = daemon.scene.router.planner, daemon.operations.queries, daemon.scene.now
    (report,) = planner.catalog.newest.values()
    planner.add_version(replace(report, version="12"), newest=False, generation=1)
    daemon.scene.router.models.set_labels({"m": {"stable": "12", "canary": "13"}})

    def versions(**header: object) -> list[str | None]:
        answer = queries.answer(wire.STATUS, {"model_name": "m", **header}, now)
        assert set(answer) == {"models"}
        return [row["version"] for row in answer["models"]]

    whole = queries.answer(wire.STATUS, {}, now)
    assert queries.answer(wire.STATUS, {"model_name": "m"}, now)["models"] == whole["models"]
    assert versions() == versions(model_version="") == ["1", "12"]
    assert versions(model_version="012") == versions(parameters={"version_label": "stable"}) == ["12"]
    for header, reason in (
        ({"model_name": "other"}, Reason.MODEL_UNKNOWN),
        ({"model_name": 1}, Reason.MALFORMED),
        ({"model_name": "m", "model_version": "2"}, Reason.VERSION_UNKNOWN),
        ({"model_name": "m", "model_version": "one"}, Reason.VERSION_UNKNOWN),
        ({"model_name": "m", "parameters": {"version_label": "canary"}}, Reason.VERSION_UNKNOWN),
        ({"model_name": "m", "parameters": {"version_label": "none"}}, Reason.VERSION_UNKNOWN),
    ):
        with pytest.raises(MultitowerError) as refused:
            queries.answer(wire.STATUS, header, now)
        assert refused.value.reason == reason


def test_the_status_of_a_slot_has_the_output_of_its_dead_and_its_present_process(
    tmp_path: Path, sampler: Sampler
) -> None:
    daemon = daemon_of(tmp_path, sampler)
    scene = daemon.scene
    dead = scene.process(1)
    scene.exit(dead)
    scene.settle()
    (slot,) = daemon.operations.queries.answer(wire.STATUS, {"slot": 1}, scene.now)["slots"]
    assert slot["slot"] == 1
    ended = [(each["pid"], each["ended"]) for each in slot["output"]]
    assert ended == [(dead.child.pid, "killed by SIGKILL (9)"), (scene.process(1).child.pid, None)]
    line = {"time": "1970-01-01T00:00:00.000Z", "level": "info", "text": f"output of {dead.child.pid}"}
    assert slot["output"][0]["lines"] == [line]
    for wrong in (2, -1, "1", True, None):
        with pytest.raises(MultitowerError, match="there is no slot") as caught:
            daemon.operations.queries.answer(wire.STATUS, {"slot": wrong}, scene.now)
        assert caught.value.reason == Reason.MALFORMED


def test_a_slot_is_found_by_its_number_after_a_reload_has_removed_another_one(tmp_path: Path, sampler: Sampler) -> None:
    daemon = daemon_of(tmp_path, sampler)
    scene, queries = daemon.scene, daemon.operations.queries
    kept = scene.process(1).child.pid
    scene.manager.request_replacement(Replacement(scene.slot(0), "no longer configured", remove=True))
    scene.settle()
    assert [slot.number for slot in scene.manager.slots] == [1]
    (slot,) = queries.answer(wire.STATUS, {"slot": 1}, scene.now)["slots"]
    assert (slot["slot"], slot["pid"], [each["pid"] for each in slot["output"]]) == (1, kept, [kept])
    with pytest.raises(MultitowerError, match="there is no slot 0, only 1"):
        queries.answer(wire.STATUS, {"slot": 0}, scene.now)


def test_readiness_ends_when_the_daemon_drains(tmp_path: Path, sampler: Sampler) -> None:
    daemon = daemon_of(tmp_path, sampler)
    queries, now = daemon.operations.queries, daemon.scene.now
    assert queries.answer(wire.SERVER_READY, {}, now) == {"ready": True, "slots_ready": 2, "slots_total": 2}
    daemon.operations.lifecycle.request_stop(now, 30.0)
    assert queries.answer(wire.SERVER_READY, {}, now) == {"ready": False, "slots_ready": 2, "slots_total": 2}
    assert queries.answer(wire.MODEL_READY, {"model_name": "m"}, now) == {"name": "m", "ready": True}
    assert queries.answer(wire.STATUS, {}, now)["daemon"]["state"] == "draining"
