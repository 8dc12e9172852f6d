"""One gateway process as the operating system has it: started with its sockets, watched through a pidfd, and reaped."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..loop.log import GATEWAY_LOGGER
from ..workers.descendants import Descendants
from ..workers.exit_cause import ExitCause
from ..workers.output import Messages, OutputReader
from .records import RecordReader, decode_log_line

log = logging.getLogger(GATEWAY_LOGGER)

CHUNK: Final = 64 << 10

MESSAGES: Final = Messages(
    left_out="the gateway writes too much: lines left out",
    last_output="last output of a gateway that died, which this log left out",
)

_ADVICE: Final = {
    signal.SIGKILL: "perhaps the out-of-memory killer (see `journalctl -k` or `dmesg`), or somebody's kill -9",
    signal.SIGTERM: "somebody ended the gateway alone; end the daemon's own process instead",
}


class GatewayProcess:
    """A gateway process. Start it in the main thread.

    It ends when its stdin does, so also when the daemon is killed.

    Args:
        program: the path of the program.
        settings: what it reads from stdin: a JSON object.
        descriptors: the listening sockets that it inherits, under the same numbers.
        output: reads what the process writes to stderr.
        descendants: learns that no worker has started this process.

    Attributes:
        pid: its process id.
        pidfd: readable once the process has ended.
        records: readable when the process has written records.
        settings: as given.

    Raises:
        OSError: it cannot be started. Nothing is left of it.
    """

    def __init__(
        self,
        program: Path,
        settings: Mapping[str, Any],
        descriptors: list[int],
        output: OutputReader,
        descendants: Descendants,
    ) -> None:
        self.settings = settings
        self._output = output
        self._descendants = descendants
        self._reader = RecordReader()
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as inherited:
            self.records, records_in = os.pipe()
            undo.callback(os.close, self.records)
            inherited.callback(os.close, records_in)
            os.set_blocking(self.records, False)
            log_out, log_in = os.pipe()
            close_log = undo.enter_context(contextlib.ExitStack())
            close_log.callback(os.close, log_out)
            inherited.callback(os.close, log_in)
            settings_out, self._settings_in = os.pipe()
            inherited.callback(os.close, settings_out)
            undo.callback(os.close, self._settings_in)
            os.set_blocking(self._settings_in, False)
            # It inherits the mask, so that SIGUSR1 to all processes of the daemon does not end it.
            former = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1,))
            try:
                self._process = subprocess.Popen(
                    [program],
                    stdin=settings_out,
                    stdout=records_in,
                    stderr=log_in,
                    pass_fds=descriptors,
                    cwd="/",  # it must not keep a file system busy
                    # No signal of a terminal reaches it. In a session of its own it would get less CPU time: see
                    # docs/architecture.md.
                    process_group=0,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, former)
            undo.callback(self._undo_start)
            self.pid: int = self._process.pid
            self.pidfd = os.pidfd_open(self.pid)
            undo.callback(os.close, self.pidfd)
            self._send(json.dumps(settings).encode() + b"\n")
            close_log.pop_all()  # from here on, the descriptor belongs to the reader of the output
            fields: dict[str, object] = {"gateway": True, "pid": self.pid}
            self._source = output.add(log_out, fields, logger=log, messages=MESSAGES, decode=decode_log_line)
            descendants.add_helper(self.pid)
            undo.pop_all()

    def _send(self, line: bytes) -> None:
        if os.write(self._settings_in, line) != len(line):
            raise OSError(f"the settings have {len(line)} bytes, more than a pipe holds")

    def _undo_start(self) -> None:
        self._process.kill()
        self._process.wait()

    def read_records(self) -> list[Mapping[str, Any]]:
        """Returns the records that have arrived.

        Raises:
            RecordError: what it wrote is no record.
            EOFError: it has closed its stdout.
        """
        try:
            data = os.read(self.records, CHUNK)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        return self._reader.feed(data)

    def terminate(self) -> None:
        """Asks the process to answer what it has accepted, and to end (SIGTERM); no-op if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process at once (SIGKILL); no-op if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self, *, expected: bool) -> ExitCause:
        """Reaps the process, which has ended or was killed, and releases everything.

        Args:
            expected: whether it was to end; otherwise the last of its output that the log left out is logged.

        Returns:
            How it ended.
        """
        cause = ExitCause(self._process.wait())
        with contextlib.ExitStack() as stack:  # an error in one step does not prevent the others
            stack.callback(self._output.end, self._source, None if expected else str(cause))
            stack.callback(os.close, self.pidfd)
            stack.callback(os.close, self.records)
            stack.callback(os.close, self._settings_in)
            stack.callback(self._descendants.remove_helper, self.pid)
        return cause


def advice_after(cause: ExitCause) -> str:
    """What to check after a death."""
    if cause.code is not None and cause.code < 0 and -cause.code in _ADVICE:
        return _ADVICE[signal.Signals(-cause.code)]
    return "its last output is in this log"
