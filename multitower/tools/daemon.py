"""Daemons of our own, for `--scaling`: a configuration served in private by so many workers, ended in any case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from multitower.client.threads import Client
from multitower.errors import MultitowerError
from multitower.supervisor.config.config import Config, CpuDevices
from multitower.supervisor.machine import devices
from multitower.supervisor.machine.discovery import discover
from multitower.tools import die_with_parent
from multitower.tools.bench.client_pool import BenchError
from multitower.tools.bench.scaling import worker_counts

READY_S: Final = 600.0
"""How long models may take to load."""

END_S: Final = 45.0
_ASK_S: Final = 0.05
_LOG_LINES: Final = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How a configuration is cut down to fewer workers.

    Attributes:
        devices: what its `devices` lists for each worker: names, and groups of them in brackets; None for `{cpu: N}`.
        each: its `workers_per_device`.
        workers: the numbers of workers to measure.
    """

    devices: tuple[str, ...] | None
    each: int
    workers: tuple[int, ...]

    def override(self, workers: int) -> str:
        """The `--set` that gives it so many workers: on its first devices, or on so many CPU devices."""
        count = workers // self.each
        chosen = f"{{cpu: {count}}}" if self.devices is None else f"[{', '.join(self.devices[:count])}]"
        return f"devices={chosen}"


def plan(config: Config, wanted: Sequence[int] | None) -> Plan:
    """The numbers of workers to measure.

    Args:
        config: whose devices are used.
        wanted: numbers of workers; None for 1, 2, 4, … up to all of the configuration's.

    Raises:
        BenchError: the configuration cannot be served with such a number of workers.
        DeviceError: its devices are not to be had on this machine.
    """
    found = devices.resolve(config.devices, discover())
    names = None if isinstance(config.devices, CpuDevices) else tuple(_listed(group) for group in found)
    each = config.workers_per_device
    if wanted is None:
        wanted = [count * each for count in worker_counts(len(found))]
    for workers in wanted:
        if workers % each:
            raise BenchError(f"{workers} workers cannot be made of devices with {each} each (workers_per_device)")
        if names is not None and workers > len(names) * each:
            raise BenchError(f"there are devices for {len(names) * each} workers, not for {workers}")
    return Plan(names, each, tuple(sorted(set(wanted))))


def _listed(group: devices.Group) -> str:
    names = ", ".join(device.name for device in group)
    return f"[{names}]" if len(group) > 1 else names


class OwnDaemon:
    """A daemon on an ipc endpoint of its own; a context manager that has it ready, and ends it however it is left.

    Args:
        config: its configuration file.
        overrides: arguments of `--set`, on top of those that keep it private.

    Attributes:
        endpoint: where it listens.
    """

    def __init__(self, config: Path, overrides: Sequence[str]) -> None:
        # Short, since ipc paths are limited to 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="mt-bench-")
        folder = Path(self._folder.name)
        self.endpoint = f"ipc://{folder}/front.sock"
        private = (f"listen=[{self.endpoint}]", f"runtime_dir={folder}/run", "spares=0")
        settings = [part for each in (*overrides, *private) for part in ("--set", each)]
        self._command = [sys.executable, "-m", "multitower", "serve", str(config), *settings]
        self._log = folder / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            binding = [sys.executable, "-I", "-S", str(Path(die_with_parent.__file__)), str(os.getpid())]
            with self._log.open("wb") as output:
                # A group of its own: Ctrl-C is ours to pass on, once, as an order to drain.
                self._process = subprocess.Popen(
                    [*binding, *self._command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
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

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + READY_S
        with Client(self.endpoint, timeout=5.0, connect_timeout=1.0, retries=0) as client:
            while time.monotonic() < until and process.poll() is None:
                try:
                    status = client.status()
                except MultitowerError:
                    continue  # it does not listen yet, or has ended
                slots, daemon = status["slots"], status["daemon"]
                if daemon["ready"] and daemon["slots_ready"] == daemon["slots_total"]:
                    return
                failed = [f"slot {slot['slot']}: {slot['last_error']}" for slot in slots if slot["state"] == "failed"]
                if failed:
                    raise BenchError(f"the daemon cannot serve: {'; '.join(failed)}")
                time.sleep(_ASK_S)
        log = "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        raise BenchError(f"the daemon did not become ready; the end of its log:\n{log}")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()
