"""What each slot's worker gets of the machine: its device, its variables, its threads, its cores, its memory.

The daemon calls `of_config`, and writes each `Placement` into the slot's `Assignment`. `place` is the rule itself,
and pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol, TypeAlias

from multitower.spec import Assignment, ModelSpec

from ..config.config import Config
from .cores import available, divide
from .devices import CPU_PREFIX, Device, DeviceError, Discovery, Group, format_bytes, resolve
from .discovery import discover
from .model_placement import allot

# CUDA reads this one as "no GPU"; an empty value would do the same, but cannot be told from a mistake.
NO_GPU: Final = "-1"

# Below this a worker is better off where the scheduler puts it: bound to one core, it stands still whenever
# something else of the machine (the router among it) has to run there.
_MIN_CORES_TO_BIND: Final = 2

# TensorFlow's own default is as many as there are cores. Each of these threads takes part in the computation
# besides those of the intra-op pool, and graphs for inference seldom have more than two branches to run at once.
_MAX_INTER_OP: Final = 2


class Memory(Protocol):
    """The configuration's `memory`; neither attribute is set for `growth`."""

    @property
    def size(self) -> int | None:
        """Bytes for each worker."""

    @property
    def fraction(self) -> float | None:
        """A share of each device, over 0 up to 1, for all its workers together."""


Threads: TypeAlias = Literal["auto"] | int
Cores: TypeAlias = Literal["auto", "split", "shared"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """One slot's part of the machine; the names are those of `spec.Assignment`.

    Attributes:
        slot: the slot's number, from 0.
        devices: names of its devices.
        environment: variables to set before any device is touched.
        intra_op_threads: TensorFlow's threads within one operation.
        inter_op_threads: TensorFlow's operations at one time.
        cores: CPU numbers to bind the worker to, or empty for no binding.
        memory_limit_bytes: a hard limit of the memory of each of its devices for TensorFlow, or None for growth on
            demand.
        models: names of the models that are configured for its devices. Not compared: a worker that loads the same as
            before needs no successor because of them.
    """

    slot: int
    devices: tuple[str, ...]
    environment: Mapping[str, str]
    intra_op_threads: int
    inter_op_threads: int
    cores: tuple[int, ...]
    memory_limit_bytes: int | None
    models: tuple[str, ...] = field(default=(), compare=False)

    def specs(self, models: Iterable[ModelSpec]) -> tuple[ModelSpec, ...]:
        """Those of the models that are configured for its devices."""
        return tuple(spec for spec in models if spec.name in self.models)

    def assignment(self, slot: int, incarnation: int, models: Sequence[ModelSpec]) -> Assignment:
        """What a worker here is told."""
        return Assignment(
            slot=slot,
            incarnation=incarnation,
            devices=self.devices,
            environment=self.environment,
            intra_op_threads=self.intra_op_threads,
            inter_op_threads=self.inter_op_threads,
            cores=self.cores,
            memory_limit_bytes=self.memory_limit_bytes,
            models=tuple(models),
        )

    def crowds(self, other: Placement) -> bool:
        """Some of these GPUs are in another group there, as while a reload groups them anew: they do not hold both."""
        shared = set(self.devices).intersection(other.devices)
        return self.devices != other.devices and any(not name.startswith(CPU_PREFIX) for name in shared)

    @property
    def device(self) -> str:
        """What `status` shows: `cpu:0`, or UUIDs joined by commas."""
        return ",".join(self.devices)


def make_placements(
    groups: Sequence[Group],
    *,
    workers_per_device: int,
    memory: Memory,
    intra_op: Threads,
    inter_op: Threads,
    cores: Cores,
    available_cores: Sequence[int],
) -> tuple[Placement, ...]:
    """One placement for each slot, in the order of the slots.

    The workers of a group of devices have neighbouring slots: with one worker a group, slot i is the i-th group; with
    two, slots 0 and 1 are the first group, 2 and 3 the second.

    Args:
        groups: the devices that a worker has together, at least one group, each of one kind.
        workers_per_device: how many processes share each group, at least 1.
        memory: bytes of each device for each worker; or a share of each device, divided among its workers; or neither.
        intra_op: threads a worker, or `auto`: as many as it is bound to cores, else an equal share of
            `available_cores`, divided by the devices that it has; at least 1.
        inter_op: threads a worker, or `auto`: as `intra_op`'s `auto`, but 2 at the most.
        cores: `split` binds each worker to cores near its devices, as `cores.divide` has it; `shared` binds none;
            `auto` is `split` where that gives each worker at least two cores of its own, else `shared`.
        available_cores: the CPU numbers there are to share, at least one, neighbours side by side.

    Raises:
        DeviceError: a device cannot give its workers the memory that is asked for; names each such device.
    """
    limits = _memory_limits(groups, memory, workers_per_device)
    slots = [group for group in groups for _ in range(workers_per_device)]
    shares = divide(available_cores, [[device.cores for device in group] for group in slots])
    bind = cores == "split" or (cores == "auto" and min(map(len, shares)) >= _MIN_CORES_TO_BIND)
    equal = max(1, len(available_cores) // len(slots))
    # Towers compute at the same time, and small operations are slower on several threads than on one.
    threads = [
        max(1, (len(share) if bind else equal) // len(group)) for share, group in zip(shares, slots, strict=True)
    ]
    return tuple(
        Placement(
            slot=slot,
            devices=tuple(device.name for device in group),
            environment=_environment(group),
            intra_op_threads=threads[slot] if intra_op == "auto" else intra_op,
            inter_op_threads=min(threads[slot], _MAX_INTER_OP) if inter_op == "auto" else inter_op,
            cores=shares[slot] if bind else (),
            memory_limit_bytes=limits[slot // workers_per_device],
        )
        for slot, group in enumerate(slots)
    )


def of_config(config: Config, discovery: Discovery | None = None) -> tuple[Placement, ...]:
    """The slots that a configuration has on this machine.

    Args:
        config: checked.
        discovery: what the machine has, where that is known already.

    Raises:
        DeviceError: a device is not to be had, cannot hold its workers, or has no model; or a model is for another.
    """
    return of_groups(config, resolve(config.devices, discovery if discovery is not None else discover()))


def of_groups(config: Config, groups: Sequence[Group]) -> tuple[Placement, ...]:
    """As `of_config`, where `config.devices` has been resolved already.

    Raises:
        DeviceError: a device cannot hold its workers, a model is for a device that is not among these, or a device has
            no model.
    """
    placements = make_placements(
        groups,
        workers_per_device=config.workers_per_device,
        memory=config.memory,
        intra_op=config.threads.intra_op,
        inter_op=config.threads.inter_op,
        cores=config.cores,
        available_cores=available(),
    )
    devices = [device for group in groups for device in group]
    allotted = allot(config.models, [placement.devices for placement in placements], devices)
    return tuple(replace(each, models=models) for each, models in zip(placements, allotted, strict=True))


def _environment(group: Group) -> dict[str, str]:
    # PCI_BUS_ID even where a UUID says it all: CUDA otherwise numbers by speed, NVML by PCI address, and whoever
    # reads a worker's log beside nvidia-smi would be misled.
    common = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if group[0].kind == "cpu":
        return {**common, "CUDA_VISIBLE_DEVICES": NO_GPU}
    # The process counts its GPUs in this order (https://docs.nvidia.com/cuda/cuda-c-programming-guide/#env-vars).
    visible = ",".join(device.name for device in group)
    # Kernels are launched by threads of the GPU's own: otherwise they queue behind operations on the host.
    return {**common, "CUDA_VISIBLE_DEVICES": visible, "TF_GPU_THREAD_MODE": "gpu_private"}


def _memory_limits(groups: Sequence[Group], memory: Memory, workers: int) -> list[int | None]:
    """The limit of each worker of each group, in the groups' order."""
    if memory.size is None and memory.fraction is None:
        return [None] * len(groups)
    limits: list[int | None] = []
    problems: list[str] = []
    for group in groups:
        each = [_memory_limit(device, memory, workers) for device in group]
        problems += [problem for _, problem in each if problem is not None]
        # Each device of a group holds the same models: what the smallest can give is what there is to use.
        limits.append(min((limit for limit, _ in each if limit is not None), default=None))
    if problems:
        raise DeviceError(problems)
    return limits


def _memory_limit(device: Device, memory: Memory, workers: int) -> tuple[int | None, str | None]:
    """One worker's limit, and what is wrong with it."""
    if device.kind == "cpu":
        return None, f"memory limits the memory of GPUs only; for {device.name} write memory: growth."
    total, limit = device.memory_bytes, memory.size
    if memory.fraction is not None:
        if total is None:
            share = f"{memory.fraction * 100:g}%"
            return None, f"memory: {share} of {device.name}, whose size is unknown; write memory: growth."
        limit = int(total * memory.fraction / workers)
    if total is not None and limit is not None and limit * workers > total:
        asked = f"{workers} workers of {format_bytes(limit)}" if workers > 1 else format_bytes(limit)
        return None, f"memory: {asked} is more than the {format_bytes(total)} of {device.name} ({device.product})."
    return limit, None
