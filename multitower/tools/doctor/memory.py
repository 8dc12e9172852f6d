"""Whether the models fit: device memory by an estimate from their files, host memory by what loading them took. Pure.

The estimate for a worker on a GPU: the bytes of its models' files, `MARGIN` times, and `CONTEXT_BYTES` for the CUDA
context, cuBLAS and cuDNN. What a batch needs beside its weights is not known beforehand and not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from multitower.spec import ModelSpec
from multitower.supervisor.config.version_folders import SAVED_MODEL_FILES
from multitower.supervisor.machine.devices import CPU_PREFIX, Device, format_bytes
from multitower.supervisor.machine.placement import Placement
from multitower.tools.doctor.findings import Finding, Level, several

SECTION: Final = "memory"
MARGIN: Final = 1.2
"""A process that loads needs more for a moment than one that serves."""

CONTEXT_BYTES: Final = 600 << 20
IDLE_BYTES: Final = 600 << 20
"""Of a process that has imported TensorFlow and loaded nothing, where none was measured."""


def file_bytes(spec: ModelSpec) -> int | None:
    """The bytes of what a model's weights and graph are read from; None for a handler, whose needs nobody knows."""
    if spec.path is None:
        return None
    path = Path(spec.path, spec.version) if spec.version is not None else Path(spec.path)
    if path.is_file():
        return path.stat().st_size
    files = [path / name for name in SAVED_MODEL_FILES]
    files += (path / "variables").glob("*.data-*")
    return sum(file.stat().st_size for file in files if file.is_file())


def estimate(sizes: Sequence[int | None]) -> int:
    """Device memory of one worker with models of these sizes; an estimate, see above."""
    return CONTEXT_BYTES + int(MARGIN * sum(size for size in sizes if size is not None))


def device_findings(
    devices: Sequence[Device], placements: Sequence[Placement], sizes: Mapping[str, int | None]
) -> Iterator[Finding]:
    """Whether each GPU holds its workers.

    Args:
        devices: the configured ones.
        placements: the slots on them, with the models of each.
        sizes: the `file_bytes` of each model, all its versions together, by its name.
    """
    for device in devices:
        workers = [placement for placement in placements if device.name in placement.devices]
        if device.kind == "cpu" or not workers:
            continue
        need = estimate([size for name, size in sizes.items() if name in workers[0].models])
        yield _of_device(device, len(workers), workers[0].memory_limit_bytes, need)
    unknown = [name for name, size in sizes.items() if size is None]
    if unknown and any(device.kind != "cpu" for device in devices):
        text = f"what handlers need on a device is not known: {', '.join(unknown)}"
        yield Finding(SECTION, Level.NOTE, text, "compare with `multitower status` once it serves")


def _of_device(device: Device, workers: int, limit: int | None, need: int) -> Finding:
    each = (
        f"{several(workers, 'worker')} of about {format_bytes(need)}" if workers > 1 else f"about {format_bytes(need)}"
    )
    if device.memory_bytes is None or device.memory_used_bytes is None:
        text = f"{device.name}: an estimate of {each}; its memory is the host's"
        return Finding(SECTION, Level.NOTE, text)
    free = device.memory_bytes - device.memory_used_bytes
    told = f"{device.name}: an estimate of {each}, without what batches need; {format_bytes(free)} are free"
    if need * workers > device.memory_bytes:
        advice = "fewer models or workers_per_device, or a larger device"
        return Finding(SECTION, Level.PROBLEM, f"{told}, {format_bytes(device.memory_bytes)} in all", advice)
    if need * workers > free:
        advice = "see who uses the device (nvidia-smi); a daemon that serves already counts too"
        return Finding(SECTION, Level.WARNING, told, advice)
    if limit is not None and limit + CONTEXT_BYTES < need:
        advice = "raise memory, or use growth"
        return Finding(SECTION, Level.WARNING, f"{told}; memory limits each worker to {format_bytes(limit)}", advice)
    return Finding(SECTION, Level.OK, told)


def held(placement: Placement, specs: Sequence[ModelSpec]) -> list[str]:
    """The names of the models that a worker holds in the host's memory, once for each replica there.

    Towers on CPU devices have their weights there, each its own.
    """
    on_cpus = all(device.startswith(CPU_PREFIX) for device in placement.devices)
    towers = {spec.name for spec in specs if spec.path is not None and spec.placement == "towers"}
    replicas = len(placement.devices) if on_cpus else 1
    return [name for name in placement.models for _ in range(replicas if name in towers else 1)]


def host_finding(
    workers: Sequence[Sequence[str]],
    spares: int,
    sizes: Mapping[str, int | None],
    measured: Mapping[str, tuple[int, int]],
    available: int,
) -> Finding:
    """Whether the host holds all processes.

    Args:
        workers: what each has, as `held` tells.
        spares: how many.
        sizes: the `file_bytes` of each model, all its versions together, by its name.
        measured: for models that were loaded, resident bytes of a process before and after.
        available: bytes that the host, or this container, has left.
    """
    idle = max((before for before, _ in measured.values()), default=IDLE_BYTES)
    guessed = [name for name in sizes if name not in measured]
    models = {name: max(0, after - before) for name, (before, after) in measured.items()}
    models |= {name: int(MARGIN * (sizes[name] or 0)) for name in guessed}
    needs = [idle + sum(models[name] for name in names) for names in workers]
    total = sum(needs) + spares * idle
    each = format_bytes(needs[0]) if len(set(needs)) == 1 else f"up to {format_bytes(max(needs))}"
    how = "as measured here on the CPU" if not guessed else "estimated, since not every model was loaded"
    text = (
        f"host: {several(len(workers), 'worker')} of {each} and {several(spares, 'spare')} of "
        f"{format_bytes(idle)} take "
        f"{format_bytes(total)} ({how}); {format_bytes(available)} are available"
    )
    if total > available:
        advice = "fewer workers, spares or models; a daemon that serves already counts too"
        return Finding(SECTION, Level.WARNING if guessed else Level.PROBLEM, text, advice)
    return Finding(SECTION, Level.OK, text)
