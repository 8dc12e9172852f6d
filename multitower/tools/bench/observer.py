"""Looks at the daemon and at the system while a step runs: its counters, its queue, the CPU of its processes.

The daemon is asked a few times a second, over a connection of its own. Its processes are measured where they run on
this machine; of a remote daemon the status says what its workers use, and nothing is known of its own process.
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
_LEAST_LOOKS: Final = 8
_IDLE: Final = ("idle", "iowait")
_COUNTED_ELSEWHERE: Final = ("guest", "guest_nice")  # within user and nice already
_NS: Final = 1_000_000_000


class Watch:
    """Watches one model of a daemon.

    Args:
        client: a connection to it.
        model: its name.
        version: "" for the one that is served.
    """

    def __init__(self, client: Client, model: str, version: str = "") -> None:
        self._client = client
        self._model = model
        self._version = version

    def during(self, window: Window) -> list[Snapshot]:
        """Looks from the beginning to the end of a step, and returns at its end.

        Returns:
            What was seen; less, or nothing, where the daemon did not answer.
        """
        seconds = (window.end_ns - window.begin_ns) / _NS
        interval_ns = int(min(INTERVAL_S, seconds / _LEAST_LOOKS) * _NS)
        snapshots = []
        at_ns = window.begin_ns
        while True:
            time.sleep(max(at_ns - time.monotonic_ns(), 0) / _NS)
            with contextlib.suppress(MultitowerError):  # the clients count what comes of it
                snapshots.append(self._look())
            if at_ns == window.end_ns:
                return snapshots
            # Not a sum of intervals: where an answer took long, looks are left out rather than made up for.
            at_ns = min(max(at_ns + interval_ns, time.monotonic_ns()), window.end_ns)

    def _look(self) -> Snapshot:
        # Of several versions the last is the one that requests get which name none.
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
                continue  # it has ended, or is not ours to look at: nothing is known of it
        return Snapshot(at, statistics, status, used, threads, machine_cpu())


def local_processes(status: dict[str, Any]) -> list[psutil.Process]:
    """The daemon's process and its workers'; none where the daemon runs on another machine or in another container."""
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
                return []  # the numbers belong to others here
        except psutil.Error:
            continue  # it has ended since the status was told
        if worker is not None:
            found.append(worker)
    # Without a single worker it could be any process of that number.
    return found if len(found) > 1 else []


def _seconds(times: Any) -> float:
    return float(times.user + times.system)


def machine_cpu() -> tuple[float, float]:
    """Seconds of CPU since its start that this machine's cores have worked, and could have worked."""
    times = psutil.cpu_times()._asdict()
    there = sum(seconds for name, seconds in times.items() if name not in _COUNTED_ELSEWHERE)
    return there - sum(times.get(name, 0.0) for name in _IDLE), there
