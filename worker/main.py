"""The life of a worker process, from its socket to its end; `supervisor/workers/bootstrap.py` calls `run` by name.

It tells the supervisor of each step. TensorFlow is imported only where a model needs it, and no device is touched
before the slot's work has come: a process that waits for it is a spare.
"""

from __future__ import annotations

import functools
import gc
import logging
import mmap
import os
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import zmq

from multitower import frames, worker_wire
from multitower.spec import NO_SOCKET, Assignment, ModelReport, ModelSpec, ProcessSpec, WorkerReport

from .formats.model import Model, Placed, load_towers, preload
from .heartbeat import Counter, Heartbeat
from .memory_use import Gauge
from .model_errors import LoadError, load_cause, log_traceback, one_line
from .service import Executors, serve
from .signatures import executor_of, load_others, rows_of_a_batch
from .tower_service import serve_towers
from .warmup.samples import samples_of
from .warmup.warmup import warm_up

log = logging.getLogger("multitower.worker")

LINGER_MS = 2000
"""The last answers get this long to leave."""

Replicas = list[tuple[Model, Executors]]
"""A model, once on each of its towers, with what runs its batches there."""


def run(spec: ProcessSpec, heartbeat: int, begun: int) -> int:
    """Lives until the supervisor says STOP.

    Args:
        spec: what the process is told.
        heartbeat: the descriptor that heartbeats are written to.
        begun: that of the file in memory which is to tell the batches begun last.

    Returns:
        The exit code; `NO_SOCKET` when there is no room for its socket, before anything was reported.
    """
    pulse = Heartbeat(heartbeat, spec.heartbeat_s)
    page = mmap.mmap(begun, 0)  # all of it
    _set_up_logging(spec.log_level)
    sys.path[:0] = spec.import_path
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        for option, value in {zmq.LINGER: LINGER_MS, zmq.SNDHWM: 0, zmq.RCVHWM: 0}.items():
            socket.set(option, value)
        try:
            socket.bind(spec.endpoint)
        except zmq.ZMQError as error:
            log.error("the worker's socket cannot be made: %s", error)
            return NO_SOCKET
        _Life(context, socket, pulse, page).live(spec)
    return 0


def _set_up_logging(level: str) -> None:
    """Sets the levels of Python's logging and of TensorFlow's C++ logging, for handlers that import it as well.

    Level 1 leaves TensorFlow's warnings and errors. It does not reach what TensorFlow logs while it is being imported:
    two pairs of "I0000 …" lines behind "WARNING: All log messages before absl::InitializeLog() …", and on CPU workers
    "E0000 … failed call to cuInit" at the first look for GPUs. `supervisor/workers/output.py` filters those lines.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    log.setLevel(level)
    if not log.isEnabledFor(logging.DEBUG):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


class _Life:
    """One process's way from `importing` to its end."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], pulse: Heartbeat, page: mmap.mmap
    ) -> None:
        self._context = context
        self._socket = socket
        self._pulse = pulse
        self._page = page

    def live(self, spec: ProcessSpec) -> None:
        self._report("importing")
        if spec.import_tensorflow:
            try:
                preload()
            except BaseException as error:  # noqa: BLE001  a broken installation raises anything
                log_traceback("TensorFlow cannot be imported", error)
                self._report("failed", cause=f"TensorFlow cannot be imported: {one_line(error)}")
                self._wait_for_stop()
                return
        # What imports have made lives as long as the process: the garbage collector need not look at it again.
        gc.freeze()
        assignment = spec.assignment or self._wait_for_assignment()
        if assignment is None:
            return
        os.environ.update(assignment.environment)
        self._report("loading")
        _bind_to_cores(assignment.cores)
        models, reports = _load_all(assignment, self._pulse)
        if not models:
            causes = "; ".join(f"{report.name}: {report.cause}" for report in reports)
            self._report("failed", cause=causes, models=reports)
            self._wait_for_stop()
            return
        # Nor at the models. With TensorFlow a full collection takes 200 ms otherwise, and some batch would wait for it.
        gc.collect()
        gc.freeze()
        self._report("ready", models=reports)
        self._serve(models)
        for (name, _), replicas in models.items():
            for model, _ in replicas:
                try:
                    model.close()
                except BaseException as error:  # noqa: BLE001  a handler may raise anything, sys.exit included
                    log_traceback(f"{name}: close raised", error)

    def _serve(self, models: Mapping[tuple[str, str], Replicas]) -> None:
        # A model that has fewer replicas than others is on the first towers.
        towers = [
            {key: replicas[number][1] for key, replicas in models.items() if number < len(replicas)}
            for number in range(max(map(len, models.values())))
        ]
        size = struct.calcsize(worker_wire.BEGUN)
        begin = [
            functools.partial(struct.pack_into, worker_wire.BEGUN, self._page, number * size)
            for number in range(len(towers))
        ]
        if len(towers) == 1:
            serve(self._socket, towers[0], begin[0])
        else:
            serve_towers(self._context, self._socket, towers, begin)

    def _report(self, state: str, *, cause: str | None = None, models: tuple[ModelReport, ...] = ()) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        report = WorkerReport(state=state, pid=os.getpid(), cause=cause, visible_devices=visible, models=models)
        frames.send(self._socket, [worker_wire.REPORT, report.to_json()], wait=True)

    def _wait_for_assignment(self) -> Assignment | None:
        self._report("idle")
        while True:
            message = frames.receive(self._socket, wait=True)
            assert message is not None  # it has waited for one
            if message[0] == worker_wire.STOP:
                return None
            if message[0] == worker_wire.ASSIGN:
                return Assignment.from_json(bytes(message[1]))

    def _wait_for_stop(self) -> None:
        while True:
            message = frames.receive(self._socket, wait=True)
            assert message is not None  # it has waited for one
            if message[0] == worker_wire.STOP:
                return


def _bind_to_cores(cores: tuple[int, ...]) -> None:
    """Binds all threads there are; later ones inherit it. Best effort: containers may forbid it."""
    if not cores:
        return
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue  # it has ended meanwhile
        except OSError as error:
            log.warning("not bound to cores %s: %s", cores, error)
            return


def _load_all(
    assignment: Assignment, pulse: Heartbeat
) -> tuple[dict[tuple[str, str], Replicas], tuple[ModelReport, ...]]:
    models: dict[tuple[str, str], Replicas] = {}
    reports: list[ModelReport] = []
    setup_error: BaseException | None = None
    if any(spec.path is not None for spec in assignment.models):
        from .formats.tensorflow_setup import configure

        try:
            configure(assignment)
        except BaseException as error:  # noqa: BLE001  the models that need TensorFlow fail with it, the others serve
            setup_error = error
    pulse.counters = [Counter() for _ in assignment.devices]
    for spec in assignment.models:
        try:
            if setup_error is not None and spec.path is not None:
                raise setup_error
            gauge = Gauge(assignment.devices, tensorflow=spec.path is not None)
            replicas, report = _load_one(spec, assignment.devices, pulse.counters)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included; the others serve
            if not issubclass(type(error), LoadError):
                log_traceback(f"{spec.name} cannot be loaded", error)
            name, version = spec.key
            reports.append(ModelReport(name=name, version=version, state="failed", cause=load_cause(error)))
            continue
        models[report.key] = replicas
        reports.append(replace(report, **asdict(gauge.growth())))
    return models, tuple(reports)


def _load_one(spec: ModelSpec, devices: Sequence[str], counters: Sequence[Counter]) -> tuple[Replicas, ModelReport]:
    begun = time.monotonic()
    models = load_towers(spec, devices)
    loaded = time.monotonic()
    samples = samples_of(models[0], spec)
    replicas: Replicas = []
    for model, counter in zip(models, counters, strict=False):
        findings = warm_up(model, spec, samples)
        signature, others, signatures = load_others(model, spec, samples, counter)
        replicas.append((model, {"": executor_of(model, spec, findings, counter), **others}))
    # All replicas are alike; what the last one's warm-up has shown holds for each.
    report = ModelReport(
        name=spec.name,
        version=model.version,
        platform=model.platform,
        inputs=model.inputs,
        outputs=model.outputs,
        max_batch_size=rows_of_a_batch(spec, findings),
        unbatched_because=findings.unbatched_because,
        pad_variable_length_inputs=spec.pad_variable_length_inputs,
        signature=signature,
        signatures=signatures,
        towers=tuple(model.tower for model in models if isinstance(model, Placed) and model.tower is not None),
        load_s=loaded - begun,
        warmup_s=time.monotonic() - loaded,
    )
    return replicas, report
