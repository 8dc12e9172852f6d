"""One worker process as the parent holds it: spawned, watched through a pidfd, talked to over its own socket."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import struct
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import zmq

from multitower.spec import ProcessSpec
from multitower.worker_wire import BEGUN, BEGUN_BYTES, last_heartbeat

from ..routing.worker_connection import WorkerConnection
from .bootstrap import IGNORED_SIGNALS, STACKS_SIGNAL, run_worker
from .exit_cause import ExitCause
from .hang_detector import ProcessStat
from .output import OutputReader

log = logging.getLogger("multitower.process")


class ChildProcess:
    """A spawned worker. Construct it in the main thread: a parent-death signal fires when that thread ends.

    Args:
        context: the router's ZeroMQ context.
        spawn: `multiprocessing.get_context("spawn")`.
        spec: what the process is told; its endpoint must be a fresh one.
        output: reads what it writes.
        fields: what stands on the lines of its output in the log; kept up to date by the caller.

    Attributes:
        pid: its process id.
        pidfd: readable once it has ended.
        connection: the router's end of the socket to it.
        begun: the ids of the batches that its towers began last, 0 for none, once it has been reaped.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        spawn: SpawnContext,
        spec: ProcessSpec,
        output: OutputReader,
        fields: dict[str, object],
    ) -> None:
        self._path = Path(spec.endpoint.removeprefix("ipc://"))
        self.fields = fields
        self.begun: tuple[int, ...] = ()
        # The system may run out of descriptors or processes at any step: then nothing of it stays.
        with contextlib.ExitStack() as undo:
            self.connection = WorkerConnection(context)
            undo.callback(self.connection.close)
            death_out, self._death_in = multiprocessing.Pipe(duplex=False)
            undo.callback(self._death_in.close)
            with death_out:
                self._heartbeat, heartbeat_in = multiprocessing.Pipe(duplex=False)
                undo.callback(self._heartbeat.close)
                os.set_blocking(self._heartbeat.fileno(), False)
                output_out, output_in = multiprocessing.Pipe(duplex=False)
                with heartbeat_in, output_out, output_in:
                    # A connection only as far as `multiprocessing` hands those on to the process.
                    self._begun = Connection(os.memfd_create(f"{spec.name}-begun"))
                    undo.callback(self._begun.close)
                    os.truncate(self._begun.fileno(), BEGUN_BYTES)
                    self._process = self._start(spawn, spec, (death_out, output_in, heartbeat_in, self._begun))
                    undo.callback(self._undo_start)
                    assert self._process.pid is not None  # it has been started
                    self.pid: int = self._process.pid
                    self.pidfd = os.pidfd_open(self.pid)
                    undo.callback(os.close, self.pidfd)
                    fields["pid"] = self.pid
                    output.add(os.dup(output_out.fileno()), fields)
            self.connection.connect(spec.endpoint)
            undo.pop_all()

    def _start(self, spawn: SpawnContext, spec: ProcessSpec, pipes: tuple[Connection, ...]) -> SpawnProcess:
        arguments: tuple[Any, ...] = (spec.to_json().decode(), *pipes)
        child = spawn.Process(target=run_worker, args=arguments, name=spec.name, daemon=False)
        # Spawning would start it, and it unblocks signals.
        resource_tracker.ensure_running()
        # Until the worker ignores them itself; what arrives meanwhile reaches the parent afterwards.
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        try:
            child.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
        return child

    def _undo_start(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()

    @property
    def heartbeat_descriptor(self) -> int:
        """Readable when heartbeats have come."""
        return self._heartbeat.fileno()

    def heartbeat(self) -> tuple[int, ...] | None:
        """The latest heartbeat's calls, tower by tower; None when none has come. All that have come are taken."""
        try:
            return last_heartbeat(os.read(self.heartbeat_descriptor, 1 << 16))
        except BlockingIOError:
            return None

    def look(self) -> ProcessStat | None:
        """What the system says of the process now; None when it has ended."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name before the last parenthesis may hold anything; then come state, ..., utime and stime (proc(5)).
        fields = text[text.rindex(")") + 2 :].split()
        return ProcessStat(fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))

    def show_stacks(self) -> None:
        """Makes the process write its Python stacks to its output."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, STACKS_SIGNAL)

    def kill(self) -> None:
        """Ends the process at once (SIGKILL); safe when it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has ended; its pidfd says so

    def reap(self) -> ExitCause:
        """The cause of death of a process whose pidfd is readable."""
        self._process.join()
        assert self._process.exitcode is not None  # it has been joined
        page = os.pread(self._begun.fileno(), BEGUN_BYTES, 0)
        self.begun = tuple(begun for (begun,) in struct.iter_unpack(BEGUN, page))
        return ExitCause(self._process.exitcode)

    def close(self) -> None:
        """Gives everything back. The process must have been reaped."""
        self.connection.close()
        os.close(self.pidfd)
        self._death_in.close()
        self._heartbeat.close()
        self._begun.close()
        self._process.close()
        # A folder that cannot be written any more keeps it; the next daemon there removes it.
        with contextlib.suppress(OSError):
            self._path.unlink()
