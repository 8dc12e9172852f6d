"""Reads counters of the daemon and of this machine while a step runs: queue, batches, CPU time of processes.

The daemon is asked several times a second over a separate connection. The CPU time of its processes is read where they
run on this machine. Of a remote daemon, only the status tells what its workers use.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

import psutil

from multitower.client.threads import Client
from multitower.errors import MultitowerError
from multitower.tools.bench.client_pool import Window
from multitower.tools.bench.evidence import Snapshot

INTERVAL_S: Final = 0.5
_MIN_SNAPSHOTS: Final = 8
_IDLE: Final = ("idle", "iowait")
_COUNTED_ELSEWHERE: Final = ("guest", "guest_nice")  # within user and nice already
_NS: Final = 1_000_000_000


class Observer:
    """Takes snapshots of a daemon that serves a model.

    Args:
        client: a connection to the daemon.
        model: the model's name.
        version: the model's version; "" for the default one.
    """

    def __init__(self, client: Client, model: str, version: str = "") -> None:
        self._client = client
        self._model = model
        self._version = version

    def observe(self, window: Window) -> list[Snapshot]:
        """Takes snapshots from the beginning to the end of a step, and returns at its end.

        Returns:
            The snapshots in order. Snapshots that the daemon did not answer are left out.
        """
        seconds = (window.end_ns - window.begin_ns) / _NS
        interval_ns = int(min(INTERVAL_S, seconds / _MIN_SNAPSHOTS) * _NS)
        snapshots = []
        at_ns = window.begin_ns
        while True:
            time.sleep(max(at_ns - time.monotonic_ns(), 0) / _NS)
            with contextlib.suppress(MultitowerError):  # the client processes count such errors
                snapshots.append(self._take_snapshot())
            if at_ns == window.end_ns:
                return snapshots
            # After a slow answer, the snapshots missed meanwhile are skipped.
            at_ns = min(max(at_ns + interval_ns, time.monotonic_ns()), window.end_ns)

    def _take_snapshot(self) -> Snapshot:
        # The last of several versions is the default one.
        statistics = self._client.statistics(self._model, self._version)["model_stats"][-1]
        at = time.monotonic()
        status = self._client.status()
        processes = local_processes(status)
        pid = status["daemon"]["pid"]
        used, threads = {}, {}
        for process in processes:
            try:
                used[process.pid] = _seconds(process.cpu_times())
                if process.pid == pid:
                    threads = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
            except psutil.Error:
                continue  # it has ended, or belongs to another user: unknown
        return Snapshot(at, statistics, status, used, threads, machine_cpu())


def local_processes(status: dict[str, Any]) -> list[psutil.Process]:
    """The daemon's process and its workers; empty if the daemon runs on another machine or in another container."""
    pid = status["daemon"]["pid"]
    found = []
    try:
        found.append(psutil.Process(pid))
    except psutil.Error:
        return []
    for slot in status["slots"]:
        try:
            worker = psutil.Process(slot["pid"]) if slot["pid"] is not None else None
            if worker is not None and worker.ppid() != pid:
                return []  # this pid is of another process on this machine
        except psutil.Error:
            continue  # it has ended since the status was read
        if worker is not None:
            found.append(worker)
    # Without a worker, the daemon's pid could be of any process here.
    return found if len(found) > 1 else []


def _seconds(times: Any) -> float:
    return float(times.user + times.system)


def machine_cpu() -> tuple[float, float]:
    """CPU seconds of this machine's cores since its start: in use, and in all."""
    times = psutil.cpu_times()._asdict()
    whole = sum(seconds for name, seconds in times.items() if name not in _COUNTED_ELSEWHERE)
    return whole - sum(times.get(name, 0.0) for name in _IDLE), whole
