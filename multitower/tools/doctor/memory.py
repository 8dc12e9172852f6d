"""Whether the models fit: device memory estimated from their files, host memory from what loading them took.

A worker on a GPU is estimated at `MARGIN` times the bytes of its models' files, and `CONTEXT_BYTES` for the CUDA
context, cuBLAS and cuDNN. The memory that batches need is not known in advance and not included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from multitower.spec import ModelSpec
from multitower.supervisor.config.version_folders import SAVED_MODEL_FILES
from multitower.supervisor.machine.devices import CPU_PREFIX, Device, format_bytes
from multitower.supervisor.machine.placement import Placement
from multitower.supervisor.machine.process_limits import MemoryHeadroom
from multitower.supervisor.workers.capacity import MARGIN as SECOND_WORKER_MARGIN
from multitower.tools.doctor.findings import Finding, Level, with_number

SECTION: Final = "memory"
MARGIN: Final = 1.2
"""A process that loads needs more memory for a moment than one that serves."""

CONTEXT_BYTES: Final = 600 << 20
IDLE_BYTES: Final = 600 << 20
"""Memory of a process that has imported TensorFlow and loaded nothing, where none was measured."""


def file_bytes(spec: ModelSpec) -> int | None:
    """The bytes of the files with a model's weights and graph; None for a handler, whose needs are unknown."""
    if spec.path is None:
        return None
    path = Path(spec.path, spec.version) if spec.version is not None else Path(spec.path)
    if path.is_file():
        return path.stat().st_size
    files = [path / name for name in SAVED_MODEL_FILES]
    files += (path / "variables").glob("*.data-*")
    return sum(file.stat().st_size for file in files if file.is_file())


def estimate_device_memory(sizes: Sequence[int | None]) -> int:
    """Estimates the device memory of one worker, bytes, from the file sizes of its models."""
    return CONTEXT_BYTES + int(MARGIN * sum(size for size in sizes if size is not None))


def device_findings(
    devices: Sequence[Device], placements: Sequence[Placement], sizes: Mapping[str, int | None]
) -> Iterator[Finding]:
    """Whether each GPU holds its workers.

    Args:
        devices: the configured devices.
        placements: their slots, with the models of each.
        sizes: the `file_bytes` of each model by name, all its versions together.
    """
    for device in devices:
        workers = [placement for placement in placements if device.name in placement.devices]
        if device.kind == "cpu" or not workers:
            continue
        need = estimate_device_memory([size for name, size in sizes.items() if name in workers[0].models])
        yield _device_finding(device, len(workers), workers[0].memory_limit_bytes, need)
    unknown = [name for name, size in sizes.items() if size is None]
    if unknown and any(device.kind != "cpu" for device in devices):
        text = f"the device memory that handlers need is unknown: {', '.join(unknown)}"
        yield Finding(SECTION, Level.NOTE, text, "see `multitower status` when the daemon serves")


def _device_finding(device: Device, workers: int, limit: int | None, need: int) -> Finding:
    each = (
        f"{with_number(workers, 'worker')} of about {format_bytes(need)}"
        if workers > 1
        else f"about {format_bytes(need)}"
    )
    if device.memory_bytes is None or device.memory_used_bytes is None:
        text = f"{device.name}: an estimate of {each}; the device uses the host's memory"
        return Finding(SECTION, Level.NOTE, text)
    free = device.memory_bytes - device.memory_used_bytes
    text = f"{device.name}: an estimate of {each}, without the memory for batches; {format_bytes(free)} are free"
    if need * workers > device.memory_bytes:
        advice = "configure fewer models or workers_per_device, or use a larger device"
        return Finding(SECTION, Level.PROBLEM, f"{text}, {format_bytes(device.memory_bytes)} in all", advice)
    if need * workers > free:
        advice = "see which processes use the device (nvidia-smi); a running daemon is among them"
        return Finding(SECTION, Level.WARNING, text, advice)
    if limit is not None and limit + CONTEXT_BYTES < need:
        advice = "raise memory, or use growth"
        return Finding(SECTION, Level.WARNING, f"{text}; memory limits each worker to {format_bytes(limit)}", advice)
    return Finding(SECTION, Level.OK, text)


def models_in_host_memory(placement: Placement, specs: Sequence[ModelSpec]) -> list[str]:
    """The names of the models that a worker has in the host's memory, once for each replica.

    Each tower on a CPU device has its own weights there.
    """
    on_cpus = all(device.startswith(CPU_PREFIX) for device in placement.devices)
    towers = {spec.name for spec in specs if spec.path is not None and spec.placement == "towers"}
    replicas = len(placement.devices) if on_cpus else 1
    return [name for name in placement.models for _ in range(replicas if name in towers else 1)]


def host_findings(
    workers: Sequence[Sequence[str]],
    spares: int,
    sizes: Mapping[str, int | None],
    measured: Mapping[str, tuple[int, int]],
    memory: Sequence[MemoryHeadroom],
) -> Iterator[Finding]:
    """Whether the host's memory is enough for all processes, and for a worker that is replaced.

    Args:
        workers: the models of each worker, as `models_in_host_memory` returns them.
        spares: the number of spares.
        sizes: the `file_bytes` of each model by name, all its versions together.
        measured: for each model that was loaded, resident bytes of a process before and after.
        memory: what the machine and each control group have left.
    """
    idle = max((before for before, _ in measured.values()), default=IDLE_BYTES)
    estimated = [name for name in sizes if name not in measured]
    models = {name: max(0, after - before) for name, (before, after) in measured.items()}
    models |= {name: int(MARGIN * (sizes[name] or 0)) for name in estimated}
    needs = [idle + sum(models.get(name, 0) for name in names) for names in workers]  # some files may be missing
    total = sum(needs) + spares * idle
    each = format_bytes(needs[0]) if len(set(needs)) == 1 else f"up to {format_bytes(max(needs))}"
    how = "measured here on the CPU" if not estimated else "estimated, since not every model was loaded"
    narrowest = min(memory, key=lambda headroom: headroom.available_bytes)
    available = f"{narrowest.source} leaves {format_bytes(narrowest.available_bytes)}"
    those = f"{with_number(len(workers), 'worker')} of {each}"
    if spares:
        those += f" and {with_number(spares, 'spare')} of {format_bytes(idle)}"
    verb = "takes" if len(workers) + spares == 1 else "take"
    text = f"host: {those} {verb} {format_bytes(total)} ({how}); {available}"
    if total > narrowest.available_bytes:
        advice = "configure fewer workers, spares or models; a running daemon uses memory as well"
        yield Finding(SECTION, Level.WARNING if estimated else Level.PROBLEM, text, advice)
        return
    yield Finding(SECTION, Level.OK, text)
    second = int(SECOND_WORKER_MARGIN * max(needs))
    if total + second > narrowest.available_bytes:
        text = (
            f"host: while a worker is replaced, a second one would take {format_bytes(second)} more, and {available}: "
            "the old one ends first, and its requests wait or go to others meanwhile"
        )
        yield Finding(SECTION, Level.NOTE, text, "give the daemon more memory, or configure fewer spares or workers")


def warm_up_finding(
    workers: Sequence[Sequence[str]],
    measured: Mapping[str, tuple[int, int]],
    peaks: Mapping[str, tuple[int, int]],
    memory: Sequence[MemoryHeadroom],
) -> Finding | None:
    """Whether the memory suffices while all workers load at the same time; None if it does.

    Args:
        workers: as in `host_findings`.
        measured: as in `host_findings`.
        peaks: for each model that was loaded, the most bytes of its process, and the rows of its largest batch.
        memory: what the machine and each control group have left.
    """
    idle = max((before for before, _ in measured.values()), default=IDLE_BYTES)
    total = 0
    for names in workers:
        known = [name for name in names if name in measured]
        loaded = idle + sum(max(0, measured[name][1] - measured[name][0]) for name in known)
        total += loaded + max((max(0, peaks[name][0] - measured[name][1]) for name in known), default=0)
    narrowest = min(memory, key=lambda headroom: headroom.available_bytes)
    if not measured or total <= narrowest.available_bytes:
        return None
    largest = max(measured, key=lambda name: peaks[name][0] - measured[name][1])
    text = (
        f"host: {with_number(len(workers), 'worker')} that warm up at the same time take up to {format_bytes(total)}, "
        f"and {narrowest.source} leaves {format_bytes(narrowest.available_bytes)}"
    )
    advice = f"lower batching.max_batch_size of {largest} ({peaks[largest][1]}), or configure fewer workers"
    return Finding(SECTION, Level.WARNING, text, advice)


def killed_together_finding(group: str) -> Finding:
    """If memory runs out, the kernel ends all processes of a control group, and not only one."""
    text = f"if memory runs out, the kernel ends every process of the control group {group} (memory.oom.group)"
    advice = "OOMPolicy=continue in the systemd unit; singleProcessOOMKill: true in the configuration of the kubelet"
    return Finding(SECTION, Level.WARNING, text, advice)
