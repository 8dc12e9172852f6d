"""Loads each model in a worker process of its own, on the CPU, and turns the reports into findings."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from multitower import worker_wire
from multitower.cuda_visible_devices import no_gpu_environment
from multitower.durations import exact_duration
from multitower.load_step import LoadStep
from multitower.spec import Assignment, ModelReport, ModelSpec, ProcessSpec, TensorReport, WorkerReport
from multitower.supervisor.loop.log import WORKER_LOGGER
from multitower.supervisor.machine.devices import format_bytes
from multitower.supervisor.workers.child_process import ChildProcess
from multitower.supervisor.workers.descendants import Descendants
from multitower.supervisor.workers.output import OutputReader
from multitower.temporary_folder import temporary_folder
from multitower.tools import documentation
from multitower.tools.doctor.consequences import DEFAULT_SITUATION, Situation
from multitower.tools.doctor.findings import Finding, Level, join_names

SECTION: Final = "models"
END_S: Final = 10.0
"""Seconds that a worker gets to end by itself."""

STACKS_S: Final = 0.5
"""Seconds that a worker that takes too long gets to write its stacks."""

_STACK: Final = re.compile(r"\(most recent call first\):$")
_MAX_LOG_LINES: Final = 3
_MAX_CALLS: Final = 2


@dataclass(kw_only=True, slots=True)
class LoadedModel:
    """The result of loading a model in a worker.

    Attributes:
        spec: the model.
        report: the worker's report on it; None if there is none.
        cause: why there is no report, or why the model failed.
        before_bytes: resident memory of the process before it loaded the model; 0 if it did not get that far.
        after_bytes: resident memory of the process with the model.
        peak_bytes: the most that its resident memory has been, as in the warm-up.
        step: what the process was doing when it ended, without a report.
        crashed: its own code ended the process; SIGKILL may have come from anybody.
        timed_out: the model took longer than its `load_timeout`.
        gave_up: doctor waited no longer, although the daemon would.
        left_running: the names of processes that the model has started and that run beside it.
        executing: what it did when its time was over, from its stacks: the innermost call first; None if unknown.
        log_lines: warnings from the worker's log; without a report, the last lines that the worker wrote.
    """

    spec: ModelSpec
    report: ModelReport | None = None
    cause: str | None = None
    before_bytes: int = 0
    after_bytes: int = 0
    peak_bytes: int = 0
    step: LoadStep | None = None
    crashed: bool = False
    timed_out: bool = False
    gave_up: bool = False
    left_running: tuple[str, ...] = ()
    executing: str | None = None
    log_lines: list[str] = field(default_factory=list)


def load_models(
    specs: Sequence[ModelSpec],
    *,
    import_path: str,
    intra_op: int,
    inter_op: int,
    max_message_size: int,
    timeout_s: float,
    load_s: Mapping[str, float],
) -> Iterator[LoadedModel]:
    """Loads each model once, in a separate process that sees no GPU. Must be called in the main thread.

    Args:
        specs: the models, with their versions.
        import_path: the configuration's folder, from which handlers are imported.
        intra_op: TensorFlow's intra-op threads, as a worker of the daemon would have.
        inter_op: TensorFlow's inter-op threads, likewise.
        max_message_size: bytes that a request may have, as configured.
        timeout_s: seconds for each model, including the start of its process.
        load_s: by model name, its `load_timeout` in seconds, which ends the trial earlier if it is shorter.

    Raises:
        NoTemporaryFolderError: no folder for temporary files can be written.
    """
    if not specs:
        return
    with (
        tempfile.TemporaryDirectory(prefix="multitower-doctor-", dir=temporary_folder()) as folder,
        contextlib.closing(Descendants()) as descendants,
    ):
        for number, spec in enumerate(specs):
            assignment = Assignment(
                slot=0,
                incarnation=1,
                devices=("cpu:0",),
                environment=no_gpu_environment(),
                intra_op_threads=intra_op,
                inter_op_threads=inter_op,
                max_message_size=max_message_size,
                models=(spec,),
            )
            process_spec = ProcessSpec(
                endpoint=f"ipc://{folder}/w{number}.sock",
                parent_pid=os.getpid(),
                name="mt-doctor",
                import_tensorflow=spec.format.uses_tensorflow,
                import_path=(import_path,),
                temporary_folder=_make_folder(f"{folder}/tmp-{number}"),
            )
            yield _load_one(descendants, process_spec, assignment, timeout_s, load_s[spec.name])


def _make_folder(path: str) -> str:
    os.mkdir(path, 0o700)
    return path


def _load_one(
    descendants: Descendants,
    process_spec: ProcessSpec,
    assignment: Assignment,
    timeout_s: float,
    load_s: float,
) -> LoadedModel:
    (spec,) = assignment.models
    loaded = LoadedModel(spec=spec)
    with _captured_log() as records:
        output = OutputReader()
        try:
            has_report = False
            try:
                fields: dict[str, object] = {"device": "cpu:0", "model": spec.name}
                process = ChildProcess(process_spec, output, descendants, fields)
            except OSError as error:
                loaded.cause = f"no process could be started: {error}"
                return loaded
            try:
                has_report = _wait_for_report(process, assignment, loaded, timeout_s, load_s)
                if not has_report:
                    process.dump_stacks()
                    _has_ended(process, STACKS_S)
            finally:
                _end(process, loaded, gently=has_report)
        finally:
            output.close()  # reads the remaining lines
    if has_report:
        warnings = [record for record in records if record.levelno >= logging.WARNING]
        loaded.log_lines += list(map(_text, warnings))[:_MAX_LOG_LINES]
    else:
        lines = [line for record in records for line in _text(record).splitlines()]
        loaded.log_lines += _lines_before_stacks(lines)
        if loaded.timed_out or loaded.gave_up:
            loaded.executing = _innermost_calls(lines)
    return loaded


def _lines_before_stacks(lines: Sequence[str]) -> list[str]:
    """The last lines that a worker wrote, up to the first line of its stacks."""
    for number, line in enumerate(lines):
        if line.startswith("Fatal Python error"):
            return list(lines[: number + 1][-_MAX_LOG_LINES:])
        if _STACK.search(line):
            return list(lines[:number][-_MAX_LOG_LINES:])
    return list(lines[-_MAX_LOG_LINES:])


def _innermost_calls(lines: Sequence[str]) -> str | None:
    """What the main thread did, from the stacks that the worker wrote, in which it is the last one."""
    main = max((number for number, line in enumerate(lines) if _STACK.search(line)), default=None)
    if main is None:
        return None
    calls = [line.strip() for line in lines[main + 1 :] if line.lstrip().startswith("File ")]
    return ", called from ".join(calls[:_MAX_CALLS]) or None


def _wait_for_report(
    process: ChildProcess, assignment: Assignment, loaded: LoadedModel, timeout_s: float, load_s: float
) -> bool:
    """Assigns the model to the worker when that is idle, and waits for its report; False if none came."""
    connection = process.connection
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        poll = select.poll()
        poll.register(process.pidfd, select.POLLIN)
        if not connection.ended:
            watched = connection.fileno() if connection.connected else process.heartbeat_descriptor
            poll.register(watched, select.POLLIN)
        has_exited = process.pidfd in dict(poll.poll(int(left * 1000) + 1))
        process.read_heartbeat()
        connection.read()
        while (message := connection.receive()) is not None:
            if message[0] != worker_wire.REPORT:
                continue
            report = WorkerReport.from_json(bytes(message[1]))
            if report.state == "idle":
                loaded.before_bytes = _resident_bytes(process.pid)
                process.connection.send([worker_wire.ASSIGN, assignment.to_json()])
                loaded.timed_out = time.monotonic() + load_s < deadline
                deadline = min(deadline, time.monotonic() + load_s)
            elif report.state in ("ready", "failed"):
                loaded.after_bytes = _resident_bytes(process.pid)
                loaded.peak_bytes = _peak_resident_bytes(process.pid)
                loaded.timed_out = False
                loaded.left_running = _started_by(process.pid)
                loaded.report = next(iter(report.models), None)
                loaded.cause = report.cause
                return True
        if has_exited:
            loaded.timed_out = False
            return False  # `_end` sets the cause
    loaded.gave_up = not loaded.timed_out
    limit_s, option = (load_s, "load_timeout") if loaded.timed_out else (timeout_s, "--timeout")
    loaded.cause = f"it was not ready within {exact_duration(limit_s)} ({option})"
    return False


def _started_by(pid: int) -> tuple[str, ...]:
    """The names of the processes that a process has started and that run."""
    with contextlib.suppress(psutil.Error):
        return tuple(sorted(child.name() for child in psutil.Process(pid).children(recursive=True)))
    return ()  # one of them has just ended


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0  # it has just ended


def _peak_resident_bytes(pid: int) -> int:
    """The most that a process has had in memory (VmHWM of proc_pid_status(5)); 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_bytes().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(b"VmHWM:")), 0)


def _end(process: ChildProcess, loaded: LoadedModel, *, gently: bool) -> None:
    """Ends the process; if it died by itself, sets the cause."""
    if gently:
        process.connection.send([worker_wire.STOP])
    if not _has_ended(process, END_S if gently else 0):
        process.kill()
        _has_ended(process, None)
    loaded.step = None if gently else process.read_step()
    cause = process.reap()
    process.close()
    loaded.crashed = not gently and cause.crash
    if not gently and loaded.cause is None:
        doing = f" while {loaded.step}" if loaded.step is not None else ""
        loaded.cause = f"its process {cause}{doing}: {cause.advice}"


def _has_ended(process: ChildProcess, timeout_s: float | None) -> bool:
    ready, _, _ = select.select([process.pidfd], [], [], timeout_s)
    return bool(ready)


def _text(record: logging.LogRecord) -> str:
    """What a worker logged, with its cause, without a traceback."""
    cause = getattr(record, "fields", {}).get("cause")
    return record.getMessage() if cause is None else f"{record.getMessage()}: {cause}"


@contextlib.contextmanager
def _captured_log() -> Iterator[list[logging.LogRecord]]:
    """Collects what workers write; other messages are dropped."""
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == WORKER_LOGGER:
                records.append(record)

    logger = logging.getLogger("multitower")
    former = logger.level, logger.propagate
    handler = Collector()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = former


def findings(
    loaded: LoadedModel, situation: Situation = DEFAULT_SITUATION, *, gpus_wanted: bool = False
) -> Iterator[Finding]:
    """Findings about a model.

    Args:
        loaded: what loading it on the CPU has shown.
        situation: what the daemon would do after a failure depends on it.
        gpus_wanted: whether the configuration has workers on GPUs.
    """
    name, report = loaded.spec.name, loaded.report
    if report is not None and report.state == "ready":
        yield from _report_findings(loaded, report)
    elif report is not None and report.needs_gpu and gpus_wanted:
        yield Finding(SECTION, Level.NOTE, f"{name} cannot be tried here, on the CPU: {report.cause}")
    elif loaded.step is not None and loaded.step.fewer_rows and not (loaded.timed_out or loaded.gave_up):
        rows, fewer = loaded.step.rows, loaded.step.fewer_rows
        text = f"{name} ends its process in the warm-up with {rows} rows: {loaded.cause}"
        advice = (
            f"set its batching.max_batch_size to {fewer} or less; the daemon would lose workers until it stops there"
        )
        yield Finding(SECTION, Level.PROBLEM, text, advice)
    else:
        cause = (report.cause if report is not None else None) or loaded.cause
        page = documentation.page("Handlers" if loaded.spec.handler is not None else "Models")
        advice = f"{_consequence(loaded, situation)}; {page} lists what it can serve"
        yield Finding(SECTION, Level.PROBLEM, f"{name} cannot be loaded: {cause}", advice)
    if loaded.executing is not None:
        yield Finding(SECTION, Level.NOTE, f"{name}: its worker was executing {loaded.executing}")
    for line in loaded.log_lines:
        yield Finding(SECTION, Level.NOTE, f"{name}: its worker logged: {line}")


def _consequence(loaded: LoadedModel, situation: Situation) -> str:
    if loaded.gave_up:
        return situation.after_giving_up()
    if loaded.timed_out:
        return situation.after_load_timeout()
    if loaded.report is not None:
        return situation.after_error()
    if loaded.step is None:
        return situation.after_death_at_start()
    return situation.after_death(crashed=loaded.crashed)


def _report_findings(loaded: LoadedModel, report: ModelReport) -> Iterator[Finding]:
    name = loaded.spec.name
    took = f"loaded in {report.load_s:.1f} s, warmed up in {report.warmup_s:.1f} s"
    grown = format_bytes(max(0, loaded.after_bytes - loaded.before_bytes))
    version = f"version {report.version}, " if loaded.spec.version is not None else ""
    yield Finding(SECTION, Level.OK, f"{name}: {version}{report.platform}, {took}, {grown} of host memory")
    signature = f"{name}, signature {report.signature}" if report.signature else name
    yield Finding(SECTION, Level.OK, f"{signature}: {_describe(report.inputs)} → {_describe(report.outputs)}")
    if loaded.left_running:
        text = f"{name} starts processes while it loads, which run beside its worker: {join_names(loaded.left_running)}"
        advice = "the daemon ends them with the worker, whatever group, session or parent they have"
        yield Finding(SECTION, Level.NOTE, text, advice)
    yield _batching_finding(loaded.spec, report)
    trusted = loaded.spec.trust_batching
    if report.unverified_because is not None and not trusted:
        yield _unverified_finding(name, report.unverified_because)
    for other in report.signatures:
        if other.cause is None:
            text = f"requests to {name} may name {other.name}: {_describe(other.inputs)} → {_describe(other.outputs)}"
            yield Finding(SECTION, Level.OK, text)
            if other.unbatched_because is not None:
                yield _unbatched_finding(f"{name}, signature {other.name},", other.unbatched_because)
            elif other.unverified_because is not None and not trusted:
                yield _unverified_finding(f"{name}, signature {other.name},", other.unverified_because)
        else:
            text = f"requests to {name} cannot name its signature {other.name}: {other.cause}"
            advice = "its other signatures are served; correct this one where the model is exported"
            yield Finding(SECTION, Level.WARNING, text, advice)


def _batching_finding(spec: ModelSpec, report: ModelReport) -> Finding:
    if report.unbatched_because is not None:
        return _unbatched_finding(spec.name, report.unbatched_because)
    if report.max_batch_size == 0:
        advice = "set `batching` if row i of its outputs depends only on row i of its inputs"
        text = f"{spec.name} is unbatched, as configured"
        return Finding(SECTION, Level.NOTE, text, advice if spec.handler is not None else None)
    varying = ", inputs of varying length padded" if report.pad_variable_length_inputs else ""
    sizes = f", padded to {', '.join(map(str, spec.allowed_batch_sizes))}" if spec.allowed_batch_sizes else ""
    trust = ", whatever values show (batching.trust)" if spec.trust_batching else ""
    text = f"{spec.name} is batched: up to {report.max_batch_size} rows{sizes}{varying}{trust}"
    return Finding(SECTION, Level.OK, text)


def _unbatched_finding(subject: str, because: str) -> Finding:
    advice = f"{documentation.page('Models')} lists what a model needs for batching, and what `batching.trust` does"
    return Finding(SECTION, Level.WARNING, f"{subject} is unbatched: {because}", advice)


def _unverified_finding(subject: str, because: str) -> Finding:
    text = f"{subject} is batched, but values could not show that rows of a batch are independent: {because}"
    advice = "a `warmup` file with several different rows lets them be compared, if the model repeats its answers"
    return Finding(SECTION, Level.NOTE, text, advice)


def _describe(tensors: tuple[TensorReport, ...] | None) -> str:
    if tensors is None:
        return "anything"
    return join_names(map(_describe_one, tensors)) or "nothing"


def _describe_one(tensor: TensorReport) -> str:
    return f"{tensor.name} {tensor.datatype} {_shape(tensor)}{' (optional)' if tensor.optional else ''}"


def _shape(tensor: TensorReport) -> Any:
    return "of any shape" if tensor.shape is None else list(tensor.shape)
