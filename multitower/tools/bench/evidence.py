"""How busy clients, router, workers and machine were during a step, by counters read before and after it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counters at one moment.

    Attributes:
        at: monotonic seconds.
        statistics: the model's entry of `MT1:statistics`.
        status: the daemon's whole `MT1:status`.
        cpu: CPU seconds of each local process of the daemon so far, by pid; empty for a remote daemon.
        threads: CPU seconds of each thread of the daemon's own process so far, by thread id.
        machine: CPU seconds of all cores of this machine so far: in use, and in all.
    """

    at: float
    statistics: Mapping[str, Any]
    status: Mapping[str, Any]
    cpu: Mapping[int, float]
    threads: Mapping[int, float]
    machine: tuple[float, float]

    def model(self, name: str) -> Mapping[str, Any]:
        """The status entry of a model, in the version that the statistics belong to."""
        entries = [model for model in self.status["models"] if model["name"] == name]
        version = self.statistics.get("version")
        return next((entry for entry in entries if entry.get("version") == version), entries[0] if entries else {})


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker during a step.

    Attributes:
        slot: the slot's number.
        device: the slot's devices, as in the status.
        cpu: CPU seconds per second; None if unknown.
        rows: rows that the worker answered.
        utilization: of its GPU, 0 to 1, as NVML reports it; None for a CPU device.
        replaced: whether the slot got another process during the step.
    """

    slot: int
    device: str
    cpu: float | None
    rows: int
    utilization: float | None
    replaced: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """How busy each part was. Shares are of the time measured, 1.0 being all of it; None is unknown.

    Attributes:
        clients: CPU seconds per second of each client process.
        router: CPU seconds per second of the daemon's own process.
        router_thread: CPU seconds per second of that process's busiest thread, which one core limits.
        workers: the workers, in the order of their slots.
        compute: share of the time in which a worker computed; the mean over the workers that serve the model.
        handling: share of the time in which it assembled batches and split their outputs; likewise the mean.
        queued: requests waiting for a worker, on average.
        queued_most: requests waiting for a worker, at most.
        queue_s: seconds that a request waited for a worker, on average.
        batch_rows: rows of a batch, on average.
        requests: requests that the daemon answered, to any client.
        machine: share of this machine's cores in use, by any program.
        cores: the machine's cores.
        problems: why something is unknown, for the user.
    """

    clients: tuple[float, ...] = ()
    router: float | None = None
    router_thread: float | None = None
    workers: tuple[Worker, ...] = ()
    compute: float | None = None
    handling: float | None = None
    queued: float | None = None
    queued_most: int | None = None
    queue_s: float | None = None
    batch_rows: float | None = None
    requests: int | None = None
    machine: float | None = None
    cores: int = 1
    problems: tuple[str, ...] = ()

    @property
    def own(self) -> float | None:
        """Share of this machine's cores that clients, daemon and workers used; None where one of them is not local."""
        workers = [worker.cpu for worker in self.workers]
        if self.router is None or any(cpu is None for cpu in workers):
            return None
        return math.fsum([*self.clients, self.router, *(cpu for cpu in workers if cpu is not None)]) / self.cores

    @property
    def others(self) -> float | None:
        """Share of this machine's cores that other programs used."""
        return max(self.machine - self.own, 0.0) if self.machine is not None and self.own is not None else None


def gather_evidence(model: str, snapshots: Sequence[Snapshot], clients: Sequence[float], cores: int) -> Evidence:
    """Computes the evidence of one step.

    Args:
        model: the model's name.
        snapshots: in order; the first at the beginning of the step, the last at its end.
        clients: CPU seconds per second of each client process.
        cores: this machine's cores.
    """
    if len(snapshots) < 2:
        return Evidence(
            clients=tuple(clients), cores=cores, problems=("the daemon did not answer while it was observed",)
        )
    first, last = snapshots[0], snapshots[-1]
    seconds = last.at - first.at
    compute, handling, requests, batches, rows, queue_s = _differences(first.statistics, last.statistics)
    serving = _mean([snapshot.model(model).get("slots_ready", 0) for snapshot in snapshots])
    queued = [snapshot.model(model).get("queue", 0) for snapshot in snapshots]
    daemon = first.status["daemon"]["pid"]
    busy, whole = (after - before for before, after in zip(first.machine, last.machine, strict=True))
    return Evidence(
        clients=tuple(clients),
        router=_cpu(daemon, first, last),
        router_thread=max(
            ((used - first.threads.get(thread, 0.0)) / seconds for thread, used in last.threads.items()), default=None
        ),
        workers=tuple(_worker(slot, snapshots) for slot in last.status["slots"]),
        compute=compute / seconds / serving if serving else None,
        handling=handling / seconds / serving if serving else None,
        queued=_mean(queued),
        queued_most=max(queued),
        queue_s=queue_s / requests if requests else None,
        batch_rows=rows / batches if batches else None,
        requests=requests,
        machine=busy / whole if whole > 0 else None,
        cores=cores,
    )


def _differences(first: Mapping[str, Any], last: Mapping[str, Any]) -> tuple[float, float, int, int, int, float]:
    """Seconds of computing and of handling, requests, batches, rows, and seconds of waiting of all requests."""

    def difference(name: str, what: str) -> int:
        return int(last["inference_stats"][name][what] - first["inference_stats"][name][what])

    return (
        difference("compute_infer", "ns") / 1e9,
        (difference("compute_input", "ns") + difference("compute_output", "ns")) / 1e9,
        difference("success", "count"),
        last["execution_count"] - first["execution_count"],
        last["inference_count"] - first["inference_count"],
        difference("queue", "ns") / 1e9,
    )


def _worker(slot: Mapping[str, Any], snapshots: Sequence[Snapshot]) -> Worker:
    first, last = snapshots[0], snapshots[-1]
    seen = [each for snapshot in snapshots for each in snapshot.status["slots"] if each["slot"] == slot["slot"]]
    cpu = _cpu(slot["pid"], first, last)
    if cpu is None:
        reported = [each["cpu_percent"] / 100 for each in seen if each.get("cpu_percent") is not None]
        cpu = _mean(reported) if reported else None
    used = [each["utilization_percent"] / 100 for each in seen if each.get("utilization_percent") is not None]
    return Worker(
        slot=slot["slot"],
        device=slot["device"],
        cpu=cpu,
        rows=slot["completed"] - seen[0]["completed"],
        utilization=_mean(used) if used else None,
        replaced=any(each["incarnation"] != slot["incarnation"] for each in seen),
    )


def _cpu(pid: int | None, first: Snapshot, last: Snapshot) -> float | None:
    if pid is None or pid not in first.cpu or pid not in last.cpu:
        return None
    return (last.cpu[pid] - first.cpu[pid]) / (last.at - first.at)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
