"""Starts worker processes: all that slots' workers and spares have in common."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence

import zmq

from multitower.spec import Assignment, ProcessSpec

from ..loop.log import event
from ..loop.runtime_dir import RuntimeDir
from .child_process import ChildProcess
from .hang_detector import HangDetector
from .output import OutputReader
from .slot import WorkerProcess

log = logging.getLogger("multitower.fleet")


class Launcher:
    """Spawns processes, each with an endpoint of its own.

    Args:
        context: the router's ZeroMQ context.
        runtime: where the processes' sockets are made.
        import_path: folders for handlers.
        watch: is told of each new process, before anything can happen to it.

    Attributes:
        import_tensorflow: whether some model will need it: then spares import it.
        heartbeat_s: seconds from one heartbeat of a process to the next.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        runtime: RuntimeDir,
        *,
        import_path: Sequence[str],
        watch: Callable[[WorkerProcess], None],
    ) -> None:
        self._context = context
        self._runtime = runtime
        self.import_tensorflow = False
        self.heartbeat_s = 1.0
        self._import_path = tuple(import_path)
        self._watch = watch
        self._spawn = multiprocessing.get_context("spawn")
        self._output = OutputReader()
        self._serial = 0

    def launch(self, name: str, assignment: Assignment | None, fields: dict[str, object]) -> WorkerProcess | None:
        """Starts a process.

        Args:
            name: what `ps` shows.
            assignment: a slot's work, or None for a spare.
            fields: what stands on its lines in the log; gets its pid.

        Returns:
            The process, or None when the system has no room for one; that is logged.
        """
        self._serial += 1
        import_tensorflow = self.import_tensorflow
        if assignment is not None:
            import_tensorflow = any(model.path is not None for model in assignment.models)
        spec = ProcessSpec(
            endpoint=f"ipc://{self._runtime.worker_socket(self._serial)}",
            parent_pid=os.getpid(),
            name=name,
            import_tensorflow=import_tensorflow,
            heartbeat_s=self.heartbeat_s,
            import_path=self._import_path,
            log_level=logging.getLevelName(log.getEffectiveLevel()),
            assignment=assignment,
        )
        try:
            child = ChildProcess(self._context, self._spawn, spec, self._output, fields)
        except (OSError, zmq.ZMQError) as error:
            # Out of descriptors, processes or memory: that may pass, and must not end the daemon.
            event(log, logging.ERROR, "no process could be started", **fields, cause=error)
            return None
        process = WorkerProcess(child, HangDetector(time.monotonic(), self.heartbeat_s))
        self._watch(process)
        return process

    def close(self) -> None:
        """Stops reading the output of processes; call it when there are none."""
        self._output.close()
