"""The checks of the daemon as a whole: how fast it is without work, and that it leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from multitower.client.threads import Client
from multitower.errors import MultitowerError
from multitower.supervisor.machine.gpu_sampler import GpuSampler
from multitower.tools.daemon import OwnDaemon
from multitower.tools.load_generator import LoadGenerator, Outcome
from multitower.tools.selftest.memory_readings import mebibytes, memory_left, reading
from multitower.tools.selftest.results import CheckFailed, CheckSkipped, Report
from multitower.tools.selftest.session import IDLE_MODEL, REQUEST_S, Session
from multitower.tools.selftest.targets import Target

RATE_S: Final = 2.0
OUTSTANDING: Final = 64
LEFT_S: Final = 10.0
"""Seconds that processes and memory may take to be gone."""

_REGION_BYTES: Final = 4 << 20
_REGION_REQUESTS: Final = 100
_REGION_S: Final = 30.0
"""Seconds that processes may hold the memory of a client that has ended: a worker keeps a mapping for 10 s."""

_REGION_NAME: Final = "memfd:multitower"


def measure_rate(client: Client, report: Report) -> str:
    """Keeps requests without work outstanding, and counts the answers."""
    errors: list[str] = []
    answered = 0

    def record(outcome: Outcome) -> None:
        nonlocal answered
        if outcome.error is None:
            answered += 1
        elif len(errors) < 1:
            errors.append(str(outcome.error))

    row = np.zeros((1, 8), np.float64)

    def submit(_: int) -> Future[Any]:
        return client.submit(IDLE_MODEL, {"x": row}, timeout=REQUEST_S)

    load = LoadGenerator(submit, record)
    started = time.monotonic()
    with load:
        load.keep_outstanding(OUTSTANDING)
        report.stop.wait(RATE_S)
        load.stop(REQUEST_S)
    seconds = time.monotonic() - started
    if errors:
        raise CheckFailed(f"of {load.sent:,} requests, {load.sent - answered:,} were not answered: {errors[0]}")
    report.requests_per_s = round(answered / seconds, 1)
    return f"{report.requests_per_s:,.0f} requests/s of 64 bytes, {OUTSTANDING} outstanding, one client"


class Leftovers:
    """What may be left of the daemon: its processes, its files, regions of shared memory, and device memory.

    Make it before the daemon starts, and close it at the end. NVML stays initialised meanwhile: to initialise it takes
    seconds on a machine with many GPUs, and the memory in use may differ while no process has initialised it. All
    methods must be called in one thread.

    Args:
        targets: the workers.
        folder: the folder for temporary files of the daemon.
        allowed: bytes by which memory of a device may grow through other programs.
    """

    def __init__(self, targets: Sequence[Target], folder: Path, allowed: int) -> None:
        self._folder = folder
        self._allowed = allowed
        self._targets = [target for target in targets if not target.on_cpu]
        self._earlier = frozenset(psutil.Process().children(recursive=True))
        self._processes: set[psutil.Process] = set()
        self._region_holders = 0
        self._region_problem: str | None = None
        self._sampler = GpuSampler()
        usages = self._sampler.read(self._uuids())
        self._before = {target.number: reading(usages, target.names, 0) for target in self._targets}

    def close(self) -> None:
        """Shuts NVML down."""
        self._sampler.close()

    def use_region(self, endpoint: str) -> None:
        """Sends requests in shared memory from a client of its own, which ends; `check_regions` reports an error.

        A worker maps a region that it uses again: requests are sent until one does. Call it when no worker will be
        killed any more, which would end the mapping.
        """
        try:
            with Client(endpoint) as client:
                client.live()  # a client uses shared memory once the daemon has told that it can
                array = client.empty((1, _REGION_BYTES), np.uint8)
                array[...] = 1
                for _ in range(_REGION_REQUESTS):
                    client.infer(IDLE_MODEL, {"x": array}, timeout=REQUEST_S)
                    self._region_holders = len(self._holders())
                    if self._region_holders > 1:
                        return  # the daemon and a worker
        except MultitowerError as error:
            self._region_problem = str(error)

    def note_processes(self) -> None:
        """Notes the processes below this one: the daemon, its workers, and what they started.

        Children that this process had before have nothing to do with the daemon.
        """
        self._processes.update(set(psutil.Process().children(recursive=True)) - self._earlier)

    def check_regions(self, session: Session) -> str:
        """No process holds the memory of a client that has ended, while the daemon runs on."""
        if self._region_problem is not None:
            raise CheckFailed(f"the request in shared memory failed: {self._region_problem}")
        if not self._region_holders:
            raise CheckSkipped(
                "neither the daemon nor a worker held the shared memory of a client, which sent the tensor as a message"
            )
        if not session.wait(lambda: not self._holders(), _REGION_S):
            raise CheckFailed(f"processes {self._holders()} hold the memory of a client that has ended")
        whose = "the daemon and a worker" if self._region_holders > 1 else "the daemon, but no worker,"
        return f"the shared memory of a client that has ended is free; {whose} held it before"

    def _holders(self) -> list[int]:
        self.note_processes()
        return sorted(process.pid for process in self._processes if _holds_region(process.pid))

    def check_processes(self, daemons: Sequence[OwnDaemon]) -> str:
        """The daemons ended with exit code 0, and none of their processes runs any more."""
        codes = [daemon.exit_code for daemon in daemons if daemon.exit_code]
        if codes:
            raise CheckFailed(f"a daemon ended with exit code {codes[0]}")
        _, alive = psutil.wait_procs(self._processes, LEFT_S)
        left = [f"{process.pid} ({name})" for process in alive if (name := _name_if_running(process)) is not None]
        if left:
            raise CheckFailed(f"processes are left: {', '.join(left)}")
        if not self._processes:
            raise CheckSkipped("the daemon did not start, and no process of it was seen")
        return f"all {len(self._processes)} processes that were seen have ended"

    def check_files(self, daemons: Sequence[OwnDaemon]) -> str:
        """No file of the daemons is left."""
        left = [
            *(file for daemon in daemons for file in daemon.left_files),
            *(str(path) for path in self._folder.rglob("*") if not path.is_dir()),
        ]
        if left:
            raise CheckFailed(f"files are left: {', '.join(left)}")
        return "no socket, lock or temporary file is left"

    def check_device_memory(self) -> str:
        """Each device has as much free memory as before the daemon started."""
        deadline = time.monotonic() + LEFT_S
        while problems := list(self._memory_problems()):
            if time.monotonic() > deadline:
                raise CheckFailed(f"{'; '.join(problems)}; if other programs use these devices, it may be theirs")
            time.sleep(0.1)
        unknown = [target.label for target in self._targets if self._before[target.number].used is None]
        if unknown:
            raise CheckSkipped(f"NVML does not tell how much memory of {', '.join(unknown)} is in use")
        return f"as much is free as before, give or take {mebibytes(self._allowed)}"

    def _memory_problems(self) -> list[str]:
        """What is wrong with the memory of each device, from one reading of all of them."""
        pids = {process.pid for process in self._processes}
        usages = self._sampler.read(self._uuids())
        found = []
        for target in self._targets:
            for pid in pids:
                held = reading(usages, target.names, pid).own
                if held is not None:
                    found.append(f"{target.label}: process {pid} still holds {mebibytes(held)}")
            before, now = self._before[target.number], reading(usages, target.names, 0)
            # Where NVML lists no process, `unlisted` is all memory in use.
            problem = memory_left(before, now, listed=True, allowed=self._allowed)
            if problem is not None:
                found.append(f"{target.label}: {problem}")
        return found

    def _uuids(self) -> list[str]:
        return [name for target in self._targets for name in target.names]


def _name_if_running(process: psutil.Process) -> str | None:
    """The name of a process; None if it has ended."""
    try:
        return process.name() if process.is_running() and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _holds_region(pid: int) -> bool:
    """Whether a process maps the memory of a client or has a descriptor of it."""
    try:
        if _REGION_NAME in Path(f"/proc/{pid}/maps").read_text():
            return True
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False  # it has ended
    return any(_REGION_NAME in _target(path) for path in descriptors)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # the descriptor has been closed meanwhile
