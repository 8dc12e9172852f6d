"""Starts worker processes, for slots and as spares alike."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence

from multitower.spec import Assignment, ProcessSpec

from ..loop.containment import LOG_INTERVAL_S
from ..loop.log import event
from ..loop.runtime_dir import RuntimeDir
from .child_process import ChildProcess
from .descendants import Descendants
from .hang_detector import HangDetector
from .output import OutputReader
from .process_watcher import ProcessWatcher
from .settings import WorkerSettings
from .shortage import StartFailure, failure_of
from .slot import WorkerProcess
from .temporary_files import TemporaryFolders

log = logging.getLogger("multitower.manager")


class Launcher:
    """Starts processes, each with an endpoint of its own, and reads their output. Construct it in the main thread.

    Args:
        runtime: the folder of the processes' sockets.
        watcher: gets each process that was started.
        import_path: folders that handlers are imported from.

    Attributes:
        output: reads what the processes write to stdout and stderr.
        descendants: kills what they have started when they have ended.
    """

    def __init__(
        self,
        runtime: RuntimeDir,
        watcher: ProcessWatcher,
        *,
        import_path: Sequence[str],
    ) -> None:
        self._runtime = runtime
        self._watcher = watcher
        self._import_path = tuple(import_path)
        self._imports_tensorflow = False
        self._heartbeat_s = 1.0
        self._spare_environment: Mapping[str, str] = {}
        self._serial = 0
        self._failure: StartFailure | None = None  # of the last start; None if it succeeded
        self._log_failure_at = 0.0
        # Where it was inherited as ignored, the system discards the exit codes of child processes.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with contextlib.ExitStack() as undo:
            self.output = OutputReader()
            undo.callback(self.output.close)
            self._temporary = TemporaryFolders()
            undo.callback(self._temporary.close)
            self.descendants = Descendants()
            undo.pop_all()

    def apply_settings(self, settings: WorkerSettings) -> None:
        """Applies settings to processes that are started from now on."""
        self._heartbeat_s = settings.heartbeat_s
        self._spare_environment = settings.spare_environment
        self._imports_tensorflow = any(model.expects_tensorflow for model in settings.models)

    def launch(
        self, name: str, assignment: Assignment | None, fields: dict[str, object]
    ) -> WorkerProcess | StartFailure:
        """Starts a process.

        Args:
            name: what `ps` shows.
            assignment: the work of a slot; None for a spare, which imports TensorFlow if a model will need it.
            fields: the fields of its lines in the log; gets its pid.

        Returns:
            The process, or why it could not be started; that is logged, the same cause once a minute.
        """
        self.restore_folder()
        self._serial += 1
        imports_tensorflow = self._imports_tensorflow
        if assignment is not None:
            imports_tensorflow = any(model.expects_tensorflow for model in assignment.models)
        temporary = self._temporary.make(self._serial)
        spec = ProcessSpec(
            endpoint=f"ipc://{self._runtime.worker_socket(self._serial)}",
            parent_pid=os.getpid(),
            name=name,
            import_tensorflow=imports_tensorflow,
            heartbeat_s=self._heartbeat_s,
            import_path=self._import_path,
            log_level=logging.getLevelName(log.getEffectiveLevel()),
            assignment=assignment,
            environment=self._spare_environment if assignment is None else {},
            temporary_folder=str(temporary) if temporary is not None else None,
        )
        remove = functools.partial(self._temporary.remove, temporary) if temporary is not None else None
        try:
            child = ChildProcess(spec, self.output, self.descendants, fields, remove)
            now = time.monotonic()
            process = WorkerProcess(child, HangDetector(now, self._heartbeat_s), started_at=now)
            try:
                self._watcher.add_process(process)
            except BaseException:
                child.kill()
                child.reap()
                child.close()
                raise
        except (OSError, MemoryError) as error:
            # Out of descriptors, processes or memory: that may pass, and must not end the daemon.
            return self._fail(failure_of(error), fields)
        if self._failure is not None:
            event(log, logging.INFO, "processes can be started again", **fields)
            self._failure = None
        return process

    def _fail(self, failure: StartFailure, fields: dict[str, object]) -> StartFailure:
        now = time.monotonic()
        if failure != self._failure or now >= self._log_failure_at:
            self._failure, self._log_failure_at = failure, now + LOG_INTERVAL_S
            next_step = "it is tried again until it succeeds" if failure.temporary else None
            message = "no process could be started"
            cause = failure.cause.removeprefix(f"{message}: ")
            event(log, logging.ERROR, message, **fields, cause=cause, check=failure.check, next=next_step)
        return failure

    def restore_folder(self) -> None:
        """Makes the folder of the processes' sockets again if it was removed; call it before a process gets its work.

        An error is logged: the process may have its socket already, or else ends and is started again.
        """
        try:
            self._runtime.restore()
        except OSError as error:
            event(log, logging.ERROR, "runtime folder cannot be made again", path=self._runtime.path, cause=error)

    def tick(self) -> None:
        """Ends and reaps what processes have started that have ended; see `Descendants.tick`."""
        self.descendants.tick()

    def keep_temporary_folders(self) -> None:
        """Makes folders for temporary files of processes again that were removed; see `TemporaryFolders.keep`."""
        self._temporary.keep()

    def close(self) -> None:
        """Ends what processes have left, and stops reading their output. Call it when there are none left."""
        try:
            self.descendants.close()
        finally:
            self._temporary.close()
            self.output.close()
