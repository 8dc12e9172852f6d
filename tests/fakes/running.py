"""A real daemon in a process, for tests: configured, observed through its log and status, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from multitower import Client

Found = TypeVar("Found")

HANDLERS = ("handlers.py", "commanded_handlers.py", "starting_handlers.py")
"""Files of this folder with handlers that tests serve."""

START_S = 240.0
"""Seconds within which a daemon starts, and a worker is replaced. Where the cores are slow, and other tests use them,
each import of TensorFlow takes a minute."""

STEP_S = 60.0
"""Seconds within which anything else happens."""


def copy_handlers(folder: Path) -> None:
    """Puts the handlers that tests serve into the folder of a configuration."""
    for name in HANDLERS:
        (folder / name).write_text(Path(__file__).with_name(name).read_text())


class Running:
    """Runs `multitower serve`. A context manager that ends it and every process that it started.

    Args:
        folder: the folder for the configuration and the test handlers.
        config: the YAML text; `{endpoint}` in it is replaced by `endpoint`.
        environment: variables added to this process's environment.
        arguments: further command line arguments.
        program: Python's arguments that run multitower.
        inside: a command that replaces itself by the daemon, under the same pid.
        runtime_dir: the folder of the workers' sockets; None for a temporary one.
    """

    def __init__(
        self,
        folder: Path,
        config: str,
        *,
        environment: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "multitower"),
        inside: tuple[str, ...] = (),
        runtime_dir: Path | None = None,
    ) -> None:
        # A short path: those of ipc endpoints are limited to 107 bytes, and pytest's are long.
        self._sockets = tempfile.TemporaryDirectory(prefix="mt-")
        self.endpoint = f"ipc://{self._sockets.name}/front.sock"
        self.runtime_dir = runtime_dir or Path(self._sockets.name, "run")
        copy_handlers(folder)
        self.config = folder / "config.yaml"
        self.config.write_text(config.replace("{endpoint}", self.endpoint))
        self.lines: list[dict[str, Any]] = []
        self.stderr = ""
        self._arrived: queue.Queue[None] = queue.Queue()
        self._children: dict[int, psutil.Process] = {}
        self.process = subprocess.Popen(
            [
                *(*inside, sys.executable, *program, "serve", str(self.config), "--log-format", "json"),
                *("--log-level", "debug", "--set", f"runtime_dir={self.runtime_dir}", *arguments),
            ],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                self.stderr += line
                continue
            self.lines.append(entry)
            self._arrived.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remember()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STEP_S)
        self._reader.join(STEP_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        alive = outliving(self._children.values(), STEP_S)
        for process in alive:
            process.kill()
        self._sockets.cleanup()
        assert not alive, f"outlived the daemon: {alive}"

    # The log.

    def text(self) -> str:
        """The log so far, for the message of a failing test."""
        return "\n".join(json.dumps(line) for line in self.lines) + self.stderr

    def wait_line(self, message: str, timeout: float = START_S, /, after: int = 0, **fields: Any) -> dict[str, Any]:
        """Waits for a line of the log, from number `after` on, whose message begins so and that has these fields."""
        until = time.monotonic() + timeout
        seen = after
        while True:
            while seen < len(self.lines):
                line = self.lines[seen]
                if line["message"].startswith(message) and fields.items() <= line.items():
                    return line
                seen += 1
            left = until - time.monotonic()
            if left <= 0 or (self.process.poll() is not None and not self._reader.is_alive()):
                raise AssertionError(f"no line {message!r} {fields} within {timeout} s:\n{self.text()}")
            try:
                self._arrived.get(timeout=min(left, 0.2))
            except queue.Empty:
                continue

    def wait_ready(self, timeout: float = START_S) -> Self:
        """Waits until every slot is ready."""
        with self.client() as client:
            self.wait(lambda: _all_ready(client), timeout)
        return self

    def wait(self, condition: Callable[[], bool], timeout: float = START_S) -> None:
        """Waits until a condition holds.

        It is checked every 10 ms, and less often after a second: the cores are for what the test waits for.
        """
        began = time.monotonic()
        while not condition():
            waited_s = time.monotonic() - began
            if waited_s > timeout or self.process.poll() is not None:
                raise AssertionError(f"not within {timeout} s:\n{self.text()}")
            time.sleep(min(max(waited_s / 100, 0.01), 0.1))

    # Requests and signals.

    def client(self, **arguments: Any) -> Client:
        """A client connected to the daemon."""
        return Client(self.endpoint, **{"connect_timeout": START_S, "timeout": START_S, **arguments})

    def status(self) -> dict[str, Any]:
        """The daemon's status."""
        with self.client() as client:
            return client.status()

    def slot(self, number: int = 0) -> dict[str, Any]:
        """One slot of the status."""
        slot: dict[str, Any] = self.status()["slots"][number]
        return slot

    def remember(self) -> list[psutil.Process]:
        """The daemon's running child processes. They must have ended when the daemon has."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._children.update((child.pid, child) for child in children)
        return children

    def children(self, name: str) -> list[psutil.Process]:
        """The child processes of this name. A child that ends meanwhile is left out."""
        return [child for child, found in look_at_each(self.remember(), psutil.Process.name).items() if found == name]

    def signal(self, number: signal.Signals) -> None:
        """Sends the daemon a signal."""
        self.process.send_signal(number)

    def end(self, timeout: float = STEP_S) -> int:
        """Sends SIGTERM and returns the exit code."""
        self.remember()
        self.signal(signal.SIGTERM)
        return self.wait_end(timeout)

    def wait_end(self, timeout: float = STEP_S) -> int:
        """Waits until the daemon has ended, and returns its exit code."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.text()}") from None
        self._reader.join(STEP_S)
        return code


def multitower(*arguments: str, daemon: Running) -> subprocess.CompletedProcess[str]:
    """Runs a command of the command line on the daemon."""
    command = [sys.executable, "-m", "multitower", *arguments, "--endpoint", daemon.endpoint]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)


def look_at_each(
    processes: Iterable[psutil.Process], look: Callable[[psutil.Process], Found]
) -> dict[psutil.Process, Found]:
    """Returns what each process is found to have. A process that has ended, or ends meanwhile, is left out.

    Args:
        processes: any; between the call that listed them and this one, some may have ended.
        look: such as `psutil.Process.cmdline`.
    """
    found: dict[psutil.Process, Found] = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            found[process] = look(process)
    return found


def outliving(processes: Iterable[psutil.Process], timeout: float) -> list[psutil.Process]:
    """The processes that still run after `timeout` seconds.

    A process that has ended but is not reaped does not run: in some containers, orphans are reaped a second later.
    """
    until = time.monotonic() + timeout
    return [process for process in processes if not _ends(process, until - time.monotonic())]


def _ends(process: psutil.Process, timeout: float) -> bool:
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        ended, _, _ = select.select([pidfd], [], [], max(timeout, 0.0))
        return bool(ended) or not process.is_running()
    finally:
        os.close(pidfd)


def _all_ready(client: Client) -> bool:
    from multitower import MultitowerError

    try:
        state = client.server_ready()
    except MultitowerError:
        return False
    return bool(state["slots_ready"] == state["slots_total"])
