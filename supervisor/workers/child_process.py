"""One worker process as the operating system has it: spawned, watched through a pidfd, reached over its own socket."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from multitower.load_step import STEP_BYTES, LoadStep
from multitower.spec import ProcessSpec
from multitower.worker_wire import BEGUN, BEGUN_BYTES, last_heartbeat

from ..routing.worker_connection import WorkerConnection
from .bootstrap import IGNORED_SIGNALS, STACKS_SIGNAL, run_worker
from .descendants import Descendants
from .exit_cause import ExitCause
from .hang_detector import ProcessStat
from .output import OutputReader, Source
from .shortage import SpawnError, calling
from .spawned_process import SpawnedProcess


class ChildProcess:
    """A spawned worker process. Construct it in the main thread: a parent-death signal fires when that thread ends.

    Args:
        spec: what the process is given; its endpoint must be a new one.
        output: reads what the process writes to stdout and stderr.
        descendants: kills what the process has started when it has ended.
        fields: the fields of the log lines of its output; gets its pid, and the caller may change it later.
        on_close: is called when everything is released, also where this raises.

    Attributes:
        pid: its process id.
        pidfd: readable once the process has ended.
        connection: the router's end of the socket to it.
        heartbeats_closed: the process has closed its end of the pipe of heartbeats.
        begun: once it has been reaped, the id of the batch that each tower began last, 0 for none.

    Raises:
        SpawnError: a call failed, as when the system is out of descriptors, processes or memory. Nothing is left of
            the process.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        output: OutputReader,
        descendants: Descendants,
        fields: dict[str, object],
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._on_close = on_close
        self._path = Path(spec.endpoint.removeprefix("ipc://"))
        self._output = output
        self._descendants = descendants
        self.fields = fields
        self.heartbeats_closed = False
        self.begun: tuple[int, ...] = ()
        # Whatever fails, nothing is left open: `undo` releases what the parent keeps, `inherited` in any case what the
        # process has inherited by then.
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as inherited:
            if on_close is not None:
                undo.callback(on_close)
            with calling("socket"):
                self.connection = WorkerConnection(str(self._path))
            undo.callback(self.connection.close)
            control_group = descendants.make_control_group()
            undo.callback(descendants.kill_control_group, control_group)
            spec = replace(spec, control_group=control_group)
            death_out, self._death_in = _make_pipe()
            inherited.callback(death_out.close)
            undo.callback(self._death_in.close)
            self._heartbeats, heartbeat_in = _make_pipe()
            undo.callback(self._heartbeats.close)
            inherited.callback(heartbeat_in.close)
            with calling("fcntl"):
                os.set_blocking(self._heartbeats.fileno(), False)
            output_out, output_in = _make_pipe()
            inherited.callback(output_out.close)
            inherited.callback(output_in.close)
            # A `Connection`, as `multiprocessing` passes those on to the process.
            with calling("memfd_create"):
                self._begun = Connection(os.memfd_create(f"{spec.name}-begun"))
            undo.callback(self._begun.close)
            with calling("ftruncate"):
                os.truncate(self._begun.fileno(), BEGUN_BYTES + STEP_BYTES)
            self._process = self._start(spec, (death_out, output_in, heartbeat_in, self._begun))
            undo.callback(self._undo_start)
            assert self._process.pid is not None  # it has been started
            self.pid: int = self._process.pid
            with calling("pidfd_open"):
                self.pidfd = os.pidfd_open(self.pid)
            undo.callback(os.close, self.pidfd)
            fields["pid"] = self.pid
            with calling("dup"):
                self._source = output.add(os.dup(output_out.fileno()), fields)
            descendants.add_worker(self.pid, control_group)
            undo.pop_all()

    def _start(self, spec: ProcessSpec, pipes: tuple[Connection, ...]) -> SpawnedProcess:
        arguments: tuple[Any, ...] = (spec.to_json().decode(), *pipes)
        child = SpawnedProcess(target=run_worker, args=arguments, name=spec.name, daemon=False)
        # Otherwise spawning starts it, which unblocks signals.
        resource_tracker.ensure_running()
        # Until the worker ignores them itself; the parent gets afterwards what arrives meanwhile.
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        try:
            with _naming_spawn():
                child.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
        return child

    def _undo_start(self) -> None:
        self._process.kill()
        self._process.join()
        self._close_process()

    @property
    def heartbeat_descriptor(self) -> int:
        """Readable when heartbeats have arrived, or when the process has closed its end."""
        return self._heartbeats.fileno()

    def read_heartbeat(self) -> tuple[int, ...] | None:
        """Reads all heartbeats that have arrived, and connects to the process, which has bound its socket by then.

        Returns:
            The last one: the number of model calls that each tower has begun. None when none has arrived.
        """
        try:
            data = os.read(self.heartbeat_descriptor, 1 << 16)
        except BlockingIOError:
            return None
        self.heartbeats_closed = not data
        if data and not self.connection.connected:
            self.connection.connect()
        return last_heartbeat(data)

    def read_stat(self) -> ProcessStat | None:
        """Reads the state of the process from the system; None when it has ended, or the system does not tell."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return None
        # The process's own title, before the last parenthesis, may hold any bytes; then come state, ..., utime and
        # stime (proc(5)).
        fields = stat[stat.rindex(b")") + 2 :].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return ProcessStat(fields[0].decode(), cpu_s, self.is_dumping())

    def is_dumping(self) -> bool:
        """Whether the process is ending: the kernel dumps its core, which may take minutes, or frees its memory."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_bytes()
        except OSError:
            return False
        # Once its memory is being freed, the lines about it are gone.
        return b"\nCoreDumping:\t1\n" in status or b"\nVmSize:" not in status

    def read_step(self) -> LoadStep | None:
        """Reads what the process is about to do, or was when it ended, while it loads; None if it does not load."""
        return LoadStep.read(self._begun.fileno())

    def dump_stacks(self) -> None:
        """Makes the process write its Python stacks to its output."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, STACKS_SIGNAL)

    def kill(self) -> None:
        """Ends the process and its process group at once (SIGKILL); no-op if they have ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self._kill_group()

    def reap(self) -> ExitCause:
        """Collects the exit code of the process, which has ended or was killed, and sets `begun`.

        Kills what the process has started, but does not wait for its end.
        """
        dumped = self._has_dumped()
        self._kill_group()
        self._process.join()
        self._descendants.remove_worker(self.pid)
        page = os.pread(self._begun.fileno(), BEGUN_BYTES, 0)
        # The process may have truncated it.
        whole = len(page) - len(page) % struct.calcsize(BEGUN)
        self.begun = tuple(begun for (begun,) in struct.iter_unpack(BEGUN, page[:whole]))
        return ExitCause(self._process.exitcode, dumped)

    def _has_dumped(self) -> bool:
        """Whether the process has ended with a core dump; it is not reaped yet."""
        try:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return False  # the system discards exit codes
        return info is not None and info.si_code == os.CLD_DUMPED

    def _kill_group(self) -> None:
        try:
            # Until it is reaped, no other process can get its number.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            os.killpg(self.pid, signal.SIGKILL)
        except (ChildProcessError, ProcessLookupError, PermissionError):
            return  # it has been reaped, has not made its group yet, or the whole group belongs to another user

    def close(self, death: str | None = None) -> None:
        """Releases everything. The process must have been reaped.

        Args:
            death: how it ended, if it was to run on; see `OutputReader.end`.
        """
        with contextlib.ExitStack() as stack:  # an error in one step does not prevent the others
            if self._on_close is not None:
                stack.callback(self._on_close)
            stack.callback(self._remove_socket)
            stack.callback(self._close_process)
            stack.callback(self._begun.close)
            stack.callback(self._heartbeats.close)
            stack.callback(self._death_in.close)
            stack.callback(os.close, self.pidfd)
            stack.callback(self.connection.close)
            stack.callback(self._output.end, self._source, death)

    @property
    def output(self) -> Source:
        """What the process has written; `Source.latest` stays readable after `close`."""
        return self._source

    def _close_process(self) -> None:
        with contextlib.suppress(ValueError):  # its exit code was lost, and `multiprocessing` takes it for running
            self._process.close()

    def _remove_socket(self) -> None:
        # A folder that cannot be written any more keeps it; the next daemon there removes it.
        with contextlib.suppress(OSError):
            self._path.unlink()


def _make_pipe() -> tuple[Connection, Connection]:
    with calling("pipe"):
        return multiprocessing.Pipe(duplex=False)


@contextlib.contextmanager
def _naming_spawn() -> Iterator[None]:
    """Names the call in an error of `multiprocessing`, which makes pipes before it forks."""
    try:
        yield
    except OSError as error:
        call = "pipe" if error.errno in (errno.EMFILE, errno.ENFILE) else "fork"
        raise SpawnError(call, error.errno, error.strerror or str(error)) from error
