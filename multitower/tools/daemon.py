"""Daemons that the tools start for themselves: on a private endpoint, ready when entered, ended in any case."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from multitower.addresses import MAX_PATH_BYTES
from multitower.client.threads import Client
from multitower.errors import MultitowerError
from multitower.temporary_folder import temporary_folder
from multitower.tools import die_with_parent
from multitower.tools.errors import ToolError

READY_S: Final = 600.0
"""Seconds until every slot must be ready: models may take minutes to load."""

END_S: Final = 45.0
"""Seconds that a daemon gets to drain before it is killed."""

_POLL_S: Final = 0.05
_LOG_LINES: Final = 20


def serve_command(config: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The command that serves a configuration file, with overrides in the form `KEY=VALUE`."""
    settings = [argument for override in overrides for argument in ("--set", override)]
    return [sys.executable, "-m", "multitower", "serve", str(config), *settings]


def _bound_to_this_process(command: Sequence[str]) -> list[str]:
    """The command that runs a program which gets SIGTERM when this process ends, even by SIGKILL."""
    return [sys.executable, "-I", "-S", str(Path(die_with_parent.__file__)), str(os.getpid()), *command]


def end_process(process: subprocess.Popen[bytes]) -> int:
    """Drains a daemon with SIGTERM, kills it after `END_S`, and returns its exit code.

    An exception meanwhile, such as that of a signal handler, kills the daemon at once and is raised again.
    """
    try:
        if process.poll() is None:
            process.terminate()
        return process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise


def serve_in_foreground(config: Path) -> int:
    """Serves a configuration until the daemon exits, and returns its exit code.

    Ctrl-C reaches the daemon as well, which then drains. Any other exception ends the daemon first, and so does the end
    of this process, as when the terminal is closed.
    """
    process = subprocess.Popen(_bound_to_this_process(serve_command(config)))
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
    finally:
        end_process(process)


class OwnDaemon:
    """A daemon on a private ipc endpoint. A context manager: entered when every slot is ready, ended when left.

    Args:
        config: the configuration file.
        overrides: `KEY=VALUE`, as `serve --set` takes them. `listen` and `runtime_dir` are set here.
        log: the file that the daemon's output is written to; None for a temporary one.
        append: whether what the file has stays.
        ready_s: seconds until every slot must be ready.
        environment: the daemon's environment; None for that of this process.

    Attributes:
        endpoint: the address that the daemon listens on.
        exit_code: the exit code once the daemon has ended, None before.
        left_files: paths of the files and sockets that the daemon left in its folder, once it has ended.

    Raises:
        NoTemporaryFolderError: no folder for temporary files can be written.
    """

    def __init__(
        self,
        config: Path,
        overrides: Sequence[str] = (),
        *,
        log: Path | None = None,
        append: bool = False,
        ready_s: float = READY_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # A short path: those of ipc endpoints are limited to 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="mt-", dir=temporary_folder())
        folder = Path(self._folder.name)
        self.endpoint = f"ipc://{folder}/front.sock"
        self.exit_code: int | None = None
        self.left_files: tuple[str, ...] = ()
        private = (f"listen=[{self.endpoint}]", f"runtime_dir={folder}/run")
        self._command = serve_command(config, [*overrides, *private])
        self._log = log or folder / "daemon.log"
        self._mode: Literal["ab", "wb"] = "ab" if append else "wb"
        self._ready_s = ready_s
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Starts the daemon and waits until it is ready.

        Raises:
            ToolError: a slot failed, the daemon ended, the time was over, or the path of the socket is too long.
        """
        try:
            self._check_path()
            with self._log.open(self._mode) as output:
                # In a process group of its own: the tool handles Ctrl-C and then drains the daemon once.
                self._process = subprocess.Popen(
                    _bound_to_this_process(self._command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment,
                    process_group=0,
                )
            self._wait_until_ready(self._process)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _check_path(self) -> None:
        path = self.endpoint.removeprefix("ipc://")
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ToolError(
                f"the path of the daemon's socket, {path}, has more than {MAX_PATH_BYTES} bytes; "
                "set TMPDIR to a folder with a shorter path"
            )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._ready_s
        with Client(self.endpoint, timeout=5.0, connect_timeout=1.0, retries=0) as client:
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    status = client.status()
                except MultitowerError:
                    continue  # it does not listen yet, or has ended
                slots, daemon = status["slots"], status["daemon"]
                if daemon["ready"] and daemon["slots_ready"] == daemon["slots_total"]:
                    return
                failed = [f"slot {slot['slot']}: {slot['last_error']}" for slot in slots if slot["state"] == "failed"]
                if failed:
                    raise ToolError(f"the daemon cannot serve: {'; '.join(failed)}")
                time.sleep(_POLL_S)
        log = "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        raise ToolError(f"the daemon did not become ready; the end of its log:\n{log}")

    def _end(self) -> None:
        try:
            if self._process is not None:
                self.exit_code = end_process(self._process)
                left = (path for path in Path(self._folder.name).rglob("*") if path != self._log and not path.is_dir())
                self.left_files = tuple(sorted(map(str, left)))
        finally:
            self._folder.cleanup()
