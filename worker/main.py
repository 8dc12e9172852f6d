"""The worker process, from its socket to its exit. `supervisor/workers/bootstrap.py` calls `run` by name.

It reports each step to the supervisor: `importing`, `idle` (as a spare), `loading`, then `ready` or `failed`.
TensorFlow is imported only where a model needs it, and no device is touched before the assignment: until then the
process is a spare, which any slot may take over.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterator
from typing import Final

from multitower import worker_wire
from multitower.import_path import put_last
from multitower.process_title import set_title
from multitower.spec import NO_SOCKET, UNREADABLE_MESSAGE, Assignment, ModelReport, ProcessSpec, WorkerReport

from . import records
from .bound_socket import BoundSocket
from .formats.loader import preload
from .heartbeat import BegunBatches, CallCounter, Heartbeat, LoadSteps
from .loading import LoadedModels, load_models
from .model_errors import finish_exception_logs, log_traceback, one_line
from .service import UnreadableMessageError, log_unreadable, serve
from .source_import import import_from_sources
from .tower_service import serve_towers


def run(spec: ProcessSpec, heartbeat: int, begun: int) -> int:
    """Runs a worker until the supervisor sends STOP.

    Args:
        spec: the supervisor's orders.
        heartbeat: the descriptor of the pipe for heartbeats.
        begun: the descriptor of the file in memory for the ids of the batches begun last, and for the step of loading.

    Returns:
        The exit code: 0 after STOP; `NO_SOCKET` where the socket cannot be made, before anything is reported;
        `UNREADABLE_MESSAGE` where a message of the supervisor cannot be read.
    """
    begun_batches = BegunBatches(begun)
    records.set_up(spec.log_level)
    _quieten_tensorflow(spec.log_level)
    put_last(spec.import_path)
    import_from_sources(spec.import_path)
    try:
        socket = BoundSocket(spec.endpoint.removeprefix("ipc://"))
    except OSError as error:
        records.log_event(logging.ERROR, "the worker's socket cannot be made", cause=error)
        return NO_SOCKET
    with contextlib.closing(socket):
        # The supervisor connects when it has got the first heartbeat.
        liveness = Heartbeat(heartbeat, spec.heartbeat_s)
        socket.wait_for_peer()
        try:
            _Worker(socket, liveness, begun_batches, LoadSteps(begun)).run(spec)
        except UnreadableMessageError as error:
            log_unreadable(error)
            return UNREADABLE_MESSAGE
    return 0


def _quieten_tensorflow(level: str) -> None:
    """Sets the level of TensorFlow's C++ logging, for handlers that import it as well.

    Level 1 leaves TensorFlow's warnings and errors. It does not reach what TensorFlow logs while it is being imported:
    two pairs of "I0000 …" lines behind "WARNING: All log messages before absl::InitializeLog() …", and on CPU workers
    "E0000 … failed call to cuInit" at the first look for GPUs. `supervisor/workers/output_entries.py` filters those.
    Nothing changes where the user has set a level, or asks for verbose lines, which are information.

    Args:
        level: the daemon's, as `logging` names it.
    """
    is_wanted = level == "DEBUG" or any(name in os.environ for name in _VERBOSE)
    if not is_wanted:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


INSTALL_TENSORFLOW: Final = "pip install tensorflow; for GPUs, pip install 'tensorflow[and-cuda]'"

_VERBOSE: Final = ("TF_CPP_MAX_VLOG_LEVEL", "TF_CPP_VMODULE")


class _Worker:
    """The steps of a worker that has a socket."""

    def __init__(
        self,
        socket: BoundSocket,
        heartbeat: Heartbeat,
        begun_batches: BegunBatches,
        steps: LoadSteps,
    ) -> None:
        self._socket = socket
        self._heartbeat = heartbeat
        self._begun_batches = begun_batches
        self._steps = steps

    def run(self, spec: ProcessSpec) -> None:
        """Imports, waits for an assignment where it is a spare, loads, and serves until STOP.

        Raises:
            UnreadableMessageError: a message of the supervisor cannot be read.
        """
        self._report("importing")
        if spec.import_tensorflow:
            try:
                preload()
            except BaseException as error:  # noqa: BLE001  a broken installation raises anything
                if isinstance(error, ModuleNotFoundError) and error.name == "tensorflow":
                    cause = f"TensorFlow is not installed for {sys.executable}: {INSTALL_TENSORFLOW}"
                else:
                    log_traceback("TensorFlow cannot be imported", error)
                    cause = f"TensorFlow cannot be imported: {one_line(error)}"
                self._report("failed", cause=cause)
                self._wait_for_stop()
                return
        # Imported modules stay for as long as the process, so the garbage collector need not visit them again.
        gc.freeze()
        assignment = spec.assignment or self._wait_for_assignment()
        if assignment is None:
            return
        if spec.assignment is None:
            set_title(assignment.title)
        os.environ.update(assignment.environment)
        self._report("loading")
        _bind_to_cores(assignment.cores)
        counters = [CallCounter() for _ in assignment.devices]
        self._heartbeat.counters = counters
        with _killed_first():
            models = load_models(assignment, counters, self._steps)
        self._steps.end()
        if not models.replicas:
            causes = "; ".join(f"{report.name}: {report.cause}" for report in models.reports)
            self._report("failed", cause=causes, models=models.reports)
            self._wait_for_stop()
            return
        # Nor the models. With TensorFlow a full collection takes 200 ms otherwise, and some batch would wait for it.
        gc.collect()
        gc.freeze()
        self._socket.set_spin(assignment.spin_s)
        self._report("ready", models=models.reports)
        self._serve(models)
        records.current.model = None
        models.close()
        finish_exception_logs()

    def _serve(self, models: LoadedModels) -> None:
        towers = models.towers()
        mark_begun = [self._begun_batches.writer(tower) for tower in range(len(towers))]
        if len(towers) == 1:
            serve(self._socket, towers[0], mark_begun[0])
        else:
            serve_towers(self._socket, towers, mark_begun)

    def _report(self, state: str, *, cause: str | None = None, models: tuple[ModelReport, ...] = ()) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        report = WorkerReport(state=state, pid=os.getpid(), cause=cause, visible_devices=visible, models=models)
        self._socket.send([worker_wire.REPORT, report.to_json()])

    def _wait_for_assignment(self) -> Assignment | None:
        """Waits as a spare; None after STOP."""
        self._report("idle")
        while True:
            message = self._socket.receive(wait=True)
            if message is None:
                continue  # a peer that was none has gone
            if message[0] == worker_wire.STOP:
                return None
            if message[0] == worker_wire.ASSIGN:
                try:
                    return Assignment.from_json(bytes(message[1]))
                except (IndexError, KeyError, TypeError, ValueError) as error:
                    raise UnreadableMessageError(f"the assignment: {one_line(error)}") from error

    def _wait_for_stop(self) -> None:
        while True:
            message = self._socket.receive(wait=True)
            if message is None:
                continue  # a peer that was none has gone
            if message[0] == worker_wire.STOP:
                return


@contextlib.contextmanager
def _killed_first() -> Iterator[None]:
    """Where memory runs out meanwhile, the kernel ends this process, and not one that serves. Best effort.

    A process may always go back to the value that it has inherited (proc_pid_oom_score_adj(5)).
    """
    inherited = _set_oom_score("1000")
    try:
        yield
    finally:
        if inherited is not None:
            _set_oom_score(inherited)


def _set_oom_score(score: str) -> str | None:
    """Sets how much the out-of-memory killer prefers this process; returns the former value, None where it cannot."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            former = file.read()
            file.seek(0)
            file.write(score)
    except OSError as error:
        records.log_event(logging.DEBUG, "oom_score_adj cannot be set", value=score.strip(), cause=error)
        return None
    return former


def _bind_to_cores(cores: tuple[int, ...]) -> None:
    """Binds all threads of the process; later threads inherit it. Best effort: containers may forbid it."""
    if not cores:
        return
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue  # it has ended meanwhile
        except OSError as error:
            cpus = ",".join(map(str, cores))
            records.log_event(logging.WARNING, "not bound to its cores", cores=cpus, cause=error)
            return
