"""The worker as a process, through its socket. Its models are handlers, so it needs no TensorFlow."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_child import Arrays, WorkerChild, assignment

from multitower import batch_results, worker_wire
from multitower.errors import MultitowerError, from_wire
from multitower.spec import UNREADABLE_MESSAGE, ModelSpec, TensorReport, WorkerReport
from multitower.worker_wire import KeySpec

HANDLERS = '''
import gc
import logging
import os
import sys
import threading
import time
import weakref

import numpy as np

SEEN = os.environ.get("CUDA_VISIBLE_DEVICES")


class Echo:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        return inputs


class Double:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    outputs = [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]

    def load(self, devices, parameters):
        self.factor = np.float32(parameters.get("factor", 2))

    def infer(self, inputs):
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        return {"y": inputs["x"] * self.factor}


class Told:
    """What the process is like."""

    def load(self, devices, parameters):
        logging.getLogger("mine").warning("loaded by %d", os.getpid())
        self.many = [[] for _ in range(50_000)]
        rubbish = Double()
        rubbish.itself = rubbish
        self.rubbish = weakref.ref(rubbish)

    def infer(self, inputs):
        tasks = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
        return {
            "seen": [SEEN],
            "tensorflow": np.array(["tensorflow" in sys.modules]),
            "collectable": np.array([len(gc.get_objects())]),
            "rubbish": np.array([self.rubbish() is not None]),
            "cores": np.array(sorted({core for cores in tasks for core in cores})),
        }


class Broken:
    def load(self, devices, parameters):
        raise FileNotFoundError("the weights are missing")

    def infer(self, inputs):
        pass


class Slow:
    def load(self, devices, parameters):
        threading.Thread(target=time.sleep, args=(600,)).start()

    def infer(self, inputs):
        time.sleep(0.2)
        return inputs

    def close(self):
        print("closed", flush=True)
        raise RuntimeError("late")


class Quitter:
    """Calls sys.exit where `where` says so."""

    def load(self, devices, parameters):
        self.where = parameters["where"]
        if self.where == "load":
            sys.exit("no weights")

    def infer(self, inputs):
        if self.where == "infer" and inputs["x"][0] < 0:
            sys.exit(5)
        return inputs

    def close(self):
        sys.exit(6)


class Leaver:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        os._exit(5)


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class BrokenWithoutWords:
    def load(self, devices, parameters):
        raise Unprintable

    def infer(self, inputs):
        pass
'''

X = ("x", "FP32", (2,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handlers")
    (folder / "worker_handlers.py").write_text(HANDLERS)
    return folder


def handler(name: str, cls: str, **more: Any) -> ModelSpec:
    return ModelSpec(name=name, handler=f"worker_handlers:{cls}", **more)


WORK = assignment(
    handler("echo", "Echo", max_batch_size=4),
    handler("broken", "Broken"),
    handler("double", "Double", max_batch_size=8, allowed_batch_sizes=(2, 8), parameters={"factor": 3}),
    handler("told", "Told"),
    environment={"CUDA_VISIBLE_DEVICES": "GPU-1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    cores=(min(os.sched_getaffinity(0)),),
)


@pytest.fixture(scope="module")
def started(folder: Path) -> Iterator[tuple[WorkerChild, list[WorkerReport]]]:
    with WorkerChild(WORK, import_path=[folder]) as child:
        yield child, child.reports("ready")


@pytest.fixture
def child(started: tuple[WorkerChild, list[WorkerReport]]) -> WorkerChild:
    return started[0]


def test_a_worker_reports_every_step(started: tuple[WorkerChild, list[WorkerReport]]) -> None:
    child, reports = started
    assert [report.state for report in reports] == ["importing", "loading", "ready"]
    assert {report.pid for report in reports} == {child.pid}
    assert [report.visible_devices for report in reports[1:]] == ["GPU-1", "GPU-1"]


def test_each_model_is_reported_in_order_and_those_that_load_are_served(
    started: tuple[WorkerChild, list[WorkerReport]],
) -> None:
    child, reports = started
    echo, broken, double, _ = reports[-1].models
    assert (echo.name, echo.state, echo.platform, echo.version) == ("echo", "ready", "python", "1")
    assert (echo.inputs, echo.outputs, echo.max_batch_size) == (None, None, 4)
    assert (broken.name, broken.state) == ("broken", "failed")
    line = 1 + HANDLERS[: HANDLERS.index("raise FileNotFoundError")].count("\n")
    assert broken.cause == f"FileNotFoundError: the weights are missing (worker_handlers.py:{line})"
    assert double.inputs == (TensorReport(name="x", datatype="FP32", shape=(-1, 2)),)
    assert double.max_batch_size == 8
    assert "in load" in child.log(), "the traceback is for its author"


def test_the_device_is_set_before_the_handlers_module_is_imported(child: WorkerChild) -> None:
    (told,) = child.ask(KeySpec("told", (("x", "BOOL", ()),), None, False), {"x": True})
    assert isinstance(told, dict)
    assert told["seen"].tolist() == [b"GPU-1"]
    assert told["tensorflow"].tolist() == [False]
    assert told["cores"].tolist() == list(WORK.cores)


def test_the_garbage_collector_skips_imported_modules_and_models(child: WorkerChild) -> None:
    (told,) = child.ask(KeySpec("told", (("x", "BOOL", ()),), None, False), {"x": True})
    assert isinstance(told, dict)
    assert told["collectable"][0] < 5_000, "of the 50,000 that `load` has made, and of all that the imports have"
    assert not told["rubbish"][0], "and what nobody holds any more was not kept"


def test_output_and_logging_of_models_go_to_stderr(child: WorkerChild) -> None:
    assert f"WARNING loaded by {child.pid}\n" in child.log()


def floats(*rows: float) -> Arrays:
    return {"x": np.array([[row, row + 0.5] for row in rows], np.float32)}


def test_each_entry_of_a_batch_gets_its_rows(child: WorkerChild) -> None:
    key = KeySpec("double", (X,), None, True)
    for _ in range(3):
        answers = child.ask(key, floats(1), floats(2, 3), floats(4))
        assert [answer["y"].tolist() for answer in answers if isinstance(answer, dict)] == [
            [[3, 4.5]],
            [[6, 7.5], [9, 10.5]],
            [[12, 13.5]],
        ]


LONE = 300
"""Requests, each sent when the one before it has been answered."""


def waits(pid: int) -> dict[str, int]:
    """How often each thread of a process has waited, by the thread's number."""
    found: dict[str, int] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        found[task.name] = int(status["voluntary_ctxt_switches"])
    return found


def test_a_lone_request_is_computed_in_the_thread_that_received_it(child: WorkerChild) -> None:
    key = KeySpec("double", (X,), None, True)
    child.ask(key, floats(1))
    before = waits(child.pid)
    for _ in range(LONE):
        child.ask(key, floats(1))
    after = waits(child.pid)
    waited = {thread: count - before.get(thread, 0) for thread, count in after.items()}
    # It waits for the next request, and nothing else; the heartbeats have a thread of their own.
    assert waited.pop(str(child.pid)) < 1.5 * LONE
    assert sum(waited.values()) < 0.5 * LONE


def test_a_batch_may_have_errors_beside_answers(child: WorkerChild) -> None:
    good, bad, also = child.ask(KeySpec("double", (X,), None, True), floats(1), floats(-9), floats(2))
    assert isinstance(good, dict)
    assert isinstance(also, dict)
    assert isinstance(bad, MultitowerError)
    assert (bad.reason, bad.message) == ("model_error", "'double' raised ValueError: negative")


def test_strings_and_large_frames_travel_in_both_directions(child: WorkerChild) -> None:
    key = KeySpec("echo", (("large", "FP64", (30_000,)), ("text", "BYTES", (2,))), None, True)
    entries = [
        {
            "large": np.full((rows, 30_000), rows, np.float64),
            "text": np.array([[b"a\0", b"x" * 100_000]] * rows, object),
        }
        for rows in (1, 2, 1)
    ]
    for entry, answer in zip(entries, child.ask(key, *entries), strict=True):
        assert isinstance(answer, dict)
        assert (answer["large"] == entry["large"]).all()
        assert answer["text"].tolist() == entry["text"].tolist()


def test_only_the_malformed_entry_is_refused(child: WorkerChild) -> None:
    key = KeySpec("echo", (("text", "BYTES", ()),), None, True)
    good = np.array([b"a"], object)
    first, bad, last = child.ask(key, {"text": good}, {"text": b"\7\0\0\0a"}, {"text": good})
    assert isinstance(bad, MultitowerError)
    assert bad.reason == "size_mismatch"
    assert isinstance(first, dict)
    assert isinstance(last, dict)
    assert first["text"].tolist() == last["text"].tolist() == [b"a"]


def test_outputs_can_be_chosen_by_key(child: WorkerChild) -> None:
    key = KeySpec("echo", (("a", "INT8", ()), ("b", "INT8", ())), ("b",), True)
    (answer,) = child.ask(key, {"a": np.int8([1]), "b": np.int8([2])})
    assert isinstance(answer, dict)
    assert {name: array.tolist() for name, array in answer.items()} == {"b": [2]}


def test_a_key_with_a_long_description_is_served(child: WorkerChild) -> None:
    inputs = tuple((f"{'long' * 30}{number:04}", "INT8", ()) for number in range(1000))
    (answer,) = child.ask(KeySpec("echo", inputs, None, True), {name: np.int8([5]) for name, _, _ in inputs})
    assert isinstance(answer, dict)
    assert set(answer) == {name for name, _, _ in inputs}


def test_a_batch_of_20000_requests_is_served(child: WorkerChild) -> None:
    key = KeySpec("echo", (("x", "INT32", ()),), None, True)
    answers = child.ask(key, *({"x": np.int32([number])} for number in range(20_000)))
    assert [answer["x"].item() for answer in answers if isinstance(answer, dict)] == list(range(20_000))


def test_keys_are_forgotten_in_step_with_the_router(child: WorkerChild) -> None:
    for number in range(worker_wire.MAX_KEYS + 10):
        (answer,) = child.ask(KeySpec("echo", ((f"x{number}", "INT8", ()),), None, True), {f"x{number}": np.int8([1])})
        assert isinstance(answer, dict)
    (answer,) = child.ask(KeySpec("echo", (("x0", "INT8", ()),), None, True), {"x0": np.int8([1])})
    assert isinstance(answer, dict)


def test_a_spare_waits_for_its_work(folder: Path) -> None:
    with WorkerChild(None, import_path=[folder]) as child:
        assert [report.state for report in child.reports("idle")] == ["importing", "idle"]
        child.assign(WORK)
        loading, ready = child.reports("ready")
        assert (loading.state, loading.visible_devices) == ("loading", "GPU-1")
        assert [model.state for model in ready.models] == ["ready", "failed", "ready", "ready"]
        (answer,) = child.ask(KeySpec("double", (X,), None, True), floats(1))
        assert isinstance(answer, dict)
        assert child.stop() == 0


def test_a_spare_that_is_not_needed_ends(folder: Path) -> None:
    with WorkerChild(None, import_path=[folder]) as child:
        child.reports("idle")
        assert child.stop() == 0


def test_a_worker_reports_that_no_model_loads_and_waits_for_stop(folder: Path) -> None:
    with WorkerChild(assignment(handler("a", "Broken"), handler("b", "Missing")), import_path=[folder]) as child:
        failed = child.reports("failed")[-1]
        line = 1 + HANDLERS[: HANDLERS.index("raise FileNotFoundError")].count("\n")
        assert failed.cause == (
            f"a: FileNotFoundError: the weights are missing (worker_handlers.py:{line}); "
            "b: the module worker_handlers has no Missing"
        )
        assert [model.state for model in failed.models] == ["failed", "failed"]
        assert child.stop() == 0


def test_a_tensorflow_that_cannot_be_imported_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ImportError('libsomething.so.9: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with WorkerChild(None, import_tensorflow=True) as child:
        assert [report.state for report in child.reports("failed")] == ["importing", "failed"]
        assert child.stop() == 0
    with WorkerChild(WORK, import_tensorflow=True) as child:
        failed = child.reports("failed")[-1]
        assert failed.cause == "TensorFlow cannot be imported: ImportError: libsomething.so.9: cannot open"
        assert child.stop() == 0


def test_a_missing_tensorflow_is_reported_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ModuleNotFoundError('No module', name='tensorflow')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with WorkerChild(WORK, import_tensorflow=True) as child:
        failed = child.reports("failed")[-1]
        remedy = "pip install tensorflow; for GPUs, pip install 'tensorflow[and-cuda]'"
        assert failed.cause == f"TensorFlow is not installed for {sys.executable}: {remedy}"
        assert child.stop() == 0


def test_received_batches_are_answered_before_the_worker_stops(folder: Path) -> None:
    with WorkerChild(assignment(handler("slow", "Slow")), import_path=[folder]) as child:
        child.reports("ready")
        key = KeySpec("slow", (("x", "INT8", (1,)),), None, False)
        batches = [child.send(key, {"x": np.int8([number])}) for number in range(3)]
        assert child.stop() == 0
        for number, batch in enumerate(batches):
            (answer,) = child.result(batch)
            assert isinstance(answer, dict)
            assert answer["x"].tolist() == [number]
        assert "closed" in child.log()
        assert "model raised an exception when it was closed\nslow\n" in child.log()


def test_sys_exit_in_a_model_fails_only_its_load_its_request_or_its_close(folder: Path) -> None:
    """`SystemExit` is no `Exception`; argument parsers in a handler raise it."""
    work = assignment(
        handler("at_load", "Quitter", parameters={"where": "load"}),
        handler("wordless", "BrokenWithoutWords"),
        handler("at_infer", "Quitter", parameters={"where": "infer"}, max_batch_size=4),
    )
    with WorkerChild(work, import_path=[folder]) as child:
        at_load, wordless, at_infer = child.reports("ready")[-1].models
        line = 1 + HANDLERS[: HANDLERS.index('sys.exit("no weights")')].count("\n")
        assert at_load.cause == f"SystemExit: no weights (worker_handlers.py:{line})"
        assert (wordless.cause or "").startswith("Unprintable: (its message cannot be shown) (worker_handlers.py:")
        assert at_infer.state == "ready"
        key = KeySpec("at_infer", (("x", "INT8", ()),), None, True)
        for _ in range(2):
            first, bad, last = child.ask(key, {"x": np.int8([1])}, {"x": np.int8([-1])}, {"x": np.int8([2])})
            assert isinstance(bad, MultitowerError)
            assert (bad.reason, bad.message) == ("model_error", "'at_infer' raised SystemExit: 5")
            assert [answer["x"].tolist() for answer in (first, last) if isinstance(answer, dict)] == [[1], [2]]
        assert child.stop() == 0
        assert "model raised an exception when it was closed\nat_infer\n" in child.log()


READABLE = worker_wire.batch_head(900, 7, [1, 1], joined=True, described=True)
DOUBLE = KeySpec("double", (X,), None, True).to_json()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param([READABLE, b"no JSON", bytes(16)], id="a key that is no JSON"),
        pytest.param([READABLE, b'["double"]', bytes(16)], id="a key with parts missing"),
        pytest.param([READABLE], id="no key"),
        pytest.param([READABLE, KeySpec("absent", (X,), None, True).to_json(), bytes(16)], id="an unknown model"),
        pytest.param([READABLE, DOUBLE], id="no inputs"),
        pytest.param([worker_wire.shared_head(READABLE), DOUBLE], id="no table"),
        pytest.param([worker_wire.shared_head(READABLE), DOUBLE, b"{", bytes(16)], id="a table that is no JSON"),
        pytest.param(
            [worker_wire.batch_head(900, 12345, [1, 1], joined=True, described=False), bytes(16)],
            id="a key that was never described",
        ),
    ],
)
def test_a_batch_that_cannot_be_read_is_answered_and_the_worker_goes_on(folder: Path, message: list[bytes]) -> None:
    with WorkerChild(assignment(handler("double", "Double", max_batch_size=8)), import_path=[folder]) as child:
        child.reports("ready")
        child.send_raw(*message)
        result = batch_results.read_result(child.receive())
        assert result.batch_id == 900
        errors = [from_wire(json.loads(bytes(answer))) for answer in result.answers if isinstance(answer, bytes)]
        assert [error.reason for error in errors] == ["model_error", "model_error"]
        assert "Traceback" in child.log()
        (answer,) = child.ask(KeySpec("double", (X,), None, True), floats(1))
        assert isinstance(answer, dict)
        assert child.stop() == 0


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ([b""], "the unknown kind b''"),
        ([b"?", b"x"], "the unknown kind b'?', of 2 frames"),
        ([READABLE[:10]], "the head of a batch, of 10 bytes"),
        ([READABLE[:-3]], "the head of a batch"),
    ],
)
def test_a_message_without_a_readable_head_ends_the_worker_with_code_76(
    folder: Path, message: list[bytes], what: str
) -> None:
    with WorkerChild(assignment(handler("echo", "Echo")), import_path=[folder]) as child:
        child.reports("ready")
        child.send_raw(*message)
        assert child.end() == UNREADABLE_MESSAGE
        assert "a message of the supervisor cannot be read" in child.log()
        assert what in child.log()
        assert "Traceback" not in child.log()


@pytest.mark.parametrize("message", [b"no JSON", b"{}", b'{"devices": 1}'])
def test_an_unreadable_assignment_ends_the_spare_with_code_76(message: bytes) -> None:
    with WorkerChild(None) as child:
        child.reports("idle")
        child.send_raw(worker_wire.ASSIGN, message)
        assert child.end() == UNREADABLE_MESSAGE
        assert "the assignment" in child.log()


def test_a_model_that_ends_its_process_ends_its_worker(folder: Path) -> None:
    with WorkerChild(assignment(handler("leaver", "Leaver")), import_path=[folder]) as child:
        child.reports("ready")
        child.send(KeySpec("leaver", (("x", "INT8", (1,)),), None, False), {"x": np.int8([1])})
        assert child.end() == 5
