"""Lets worker processes load the models, one each, on the CPU, as the daemon lets them; and what that shows."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import select
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psutil
import zmq

from multitower import worker_wire
from multitower.spec import Assignment, ModelReport, ModelSpec, ProcessSpec, TensorReport, WorkerReport
from multitower.supervisor.machine.devices import format_bytes
from multitower.supervisor.machine.placement import NO_GPU
from multitower.supervisor.workers.child_process import ChildProcess
from multitower.supervisor.workers.output import OutputReader
from multitower.tools.doctor.findings import Finding, Level

SECTION: Final = "models"
END_S: Final = 10.0
"""A worker that was told to end gets this long."""

_WARNING: Final = re.compile(r"(?:WARNING|ERROR) (.*)", re.DOTALL)
_MOST_WORDS: Final = 3


@dataclass(kw_only=True, slots=True)
class Loaded:
    """What became of a model in a worker.

    Attributes:
        spec: the model.
        report: the worker's; None where it gave none.
        cause: why there is none.
        before_bytes: resident memory of the process before it loaded the model; 0 where it did not get there.
        after_bytes: when the model was ready.
        words: what the worker's log warned of; the last lines that it wrote, where it gave no report.
    """

    spec: ModelSpec
    report: ModelReport | None = None
    cause: str | None = None
    before_bytes: int = 0
    after_bytes: int = 0
    words: list[str] = field(default_factory=list)


def load(
    specs: Sequence[ModelSpec], *, import_path: str, intra_op: int, inter_op: int, timeout_s: float
) -> Iterator[Loaded]:
    """Loads each model once, in a process of its own that sees no GPU.

    Call it in the main thread, as `ChildProcess` has it.

    Args:
        specs: the models, with their versions.
        import_path: the configuration's folder, for handlers.
        intra_op: threads, as a worker of the daemon has.
        inter_op: threads.
        timeout_s: for each model, the start of its process included.
    """
    with tempfile.TemporaryDirectory(prefix="multitower-doctor-") as folder, zmq.Context() as context:
        for number, spec in enumerate(specs):
            assignment = Assignment(
                slot=0,
                incarnation=1,
                devices=("cpu:0",),
                environment={"CUDA_VISIBLE_DEVICES": NO_GPU},
                intra_op_threads=intra_op,
                inter_op_threads=inter_op,
                models=(spec,),
            )
            process_spec = ProcessSpec(
                endpoint=f"ipc://{folder}/w{number}.sock",
                parent_pid=os.getpid(),
                name="mt-doctor",
                import_tensorflow=spec.path is not None,
                import_path=(import_path,),
            )
            yield _load_one(context, process_spec, assignment, timeout_s)


def _load_one(
    context: zmq.Context[zmq.Socket[bytes]], process_spec: ProcessSpec, assignment: Assignment, timeout_s: float
) -> Loaded:
    (spec,) = assignment.models
    loaded = Loaded(spec=spec)
    with _lines() as lines:
        output = OutputReader()
        try:
            spawn = multiprocessing.get_context("spawn")
            verdict = False
            try:
                process = ChildProcess(context, spawn, process_spec, output, {"model": spec.name})
            except (OSError, zmq.ZMQError) as error:
                loaded.cause = f"no process could be started: {error}"
                return loaded
            try:
                verdict = _follow(process, assignment, loaded, timeout_s)
            finally:
                _end(process, loaded, gently=verdict)
        finally:
            output.close()  # reads what there still is
    if verdict:
        loaded.words += [match[1] for line in lines if (match := _WARNING.fullmatch(line))][:_MOST_WORDS]
    else:
        loaded.words += _last_words(lines)
    return loaded


def _last_words(lines: Sequence[str]) -> list[str]:
    """What a dead worker wrote last, up to the first line of the stacks that a crash writes."""
    stacks = (number for number, line in enumerate(lines, 1) if line.startswith("Fatal Python error"))
    return list(lines[: next(stacks, len(lines))][-_MOST_WORDS:])


def _follow(process: ChildProcess, assignment: Assignment, loaded: Loaded, timeout_s: float) -> bool:
    """From the worker's start to its verdict on the model; False when there was none."""
    poller = zmq.Poller()
    poller.register(process.connection.socket, zmq.POLLIN)
    poller.register(process.pidfd, zmq.POLLIN)
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        ended = process.pidfd in dict(poller.poll(int(left * 1000) + 1))
        while (message := process.connection.receive()) is not None:
            if message[0] != worker_wire.REPORT:
                continue
            report = WorkerReport.from_json(bytes(message[1]))
            if report.state == "idle":
                loaded.before_bytes = _resident(process.pid)
                process.connection.send([worker_wire.ASSIGN, assignment.to_json()])
            elif report.state in ("ready", "failed"):
                loaded.after_bytes = _resident(process.pid)
                loaded.report = next(iter(report.models), None)
                loaded.cause = report.cause
                return True
        if ended:
            return False  # `_end` says how
    loaded.cause = f"it was not ready within {timeout_s:g} s"
    return False


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0  # it has just ended


def _end(process: ChildProcess, loaded: Loaded, *, gently: bool) -> None:
    """Ends the process, and tells of a death of its own."""
    if gently:
        process.connection.send([worker_wire.STOP])
    if not _has_ended(process, END_S if gently else 0):
        process.kill()
        _has_ended(process, None)
    cause = process.reap()
    process.close()
    if not gently and loaded.cause is None:
        loaded.cause = f"its process {cause}: {cause.advice}"


def _has_ended(process: ChildProcess, timeout_s: float | None) -> bool:
    ready, _, _ = select.select([process.pidfd], [], [], timeout_s)
    return bool(ready)


@contextlib.contextmanager
def _lines() -> Iterator[list[str]]:
    """The lines that workers write, and what this side logs of them, instead of a log."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("multitower")
    former = logger.level, logger.propagate
    handler = Keep()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = former


def findings(loaded: Loaded) -> Iterator[Finding]:
    """What there is to say of a model."""
    name, report = loaded.spec.name, loaded.report
    if report is not None and report.state == "ready":
        yield from _of_report(loaded, report)
    else:
        cause = (report.cause if report is not None else None) or loaded.cause
        page = "docs/handlers.md" if loaded.spec.handler is not None else "docs/models.md"
        advice = f"the daemon would show it as failed, and serve the others; {page} tells what can be served"
        yield Finding(SECTION, Level.PROBLEM, f"{name} cannot be loaded: {cause}", advice)
    for line in loaded.words:
        yield Finding(SECTION, Level.NOTE, f"{name}: its worker says: {line.removeprefix(f'{name}: ')}")


def _of_report(loaded: Loaded, report: ModelReport) -> Iterator[Finding]:
    name = loaded.spec.name
    took = f"loaded in {report.load_s:.1f} s, warmed up in {report.warmup_s:.1f} s"
    grown = format_bytes(max(0, loaded.after_bytes - loaded.before_bytes))
    version = f"version {report.version}, " if loaded.spec.version is not None else ""
    yield Finding(SECTION, Level.OK, f"{name}: {version}{report.platform}, {took}, {grown} of host memory")
    signature = f"{name}, signature {report.signature}" if report.signature else name
    yield Finding(SECTION, Level.OK, f"{signature}: {_shown(report.inputs)} → {_shown(report.outputs)}")
    yield _batching(loaded.spec, report)
    for other in report.signatures:
        if other.cause is None:
            text = f"requests to {name} may name {other.name}: {_shown(other.inputs)} → {_shown(other.outputs)}"
            yield Finding(SECTION, Level.OK, text)
        else:
            text = f"requests to {name} cannot name its signature {other.name}: {other.cause}"
            yield Finding(SECTION, Level.NOTE, text)


def _batching(spec: ModelSpec, report: ModelReport) -> Finding:
    if report.unbatched_because is not None:
        advice = "docs/models.md#batching tells what a model needs for that"
        text = f"{spec.name} runs its requests singly: {report.unbatched_because}"
        return Finding(SECTION, Level.WARNING, text, advice)
    if report.max_batch_size == 0:
        advice = "give it `batching` where row i of its outputs depends on row i of its inputs alone"
        text = f"{spec.name} runs its requests singly, as configured"
        return Finding(SECTION, Level.NOTE, text, advice if spec.handler is not None else None)
    varying = ", inputs of varying length padded" if report.pad_variable_length_inputs else ""
    sizes = f", padded to {', '.join(map(str, spec.allowed_batch_sizes))}" if spec.allowed_batch_sizes else ""
    return Finding(SECTION, Level.OK, f"{spec.name} is batched: up to {report.max_batch_size} rows{sizes}{varying}")


def _shown(tensors: tuple[TensorReport, ...] | None) -> str:
    if tensors is None:
        return "anything"
    return ", ".join(f"{tensor.name} {tensor.datatype} {_shape(tensor)}" for tensor in tensors) or "nothing"


def _shape(tensor: TensorReport) -> Any:
    return "of any shape" if tensor.shape is None else list(tensor.shape)
