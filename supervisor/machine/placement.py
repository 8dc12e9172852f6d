"""What each slot's worker gets: devices, environment variables, threads, cores, device memory, and models.

`place_workers` applies a configuration to this machine. `divide_machine` and `assign_models` are its rules, and pure.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from multitower.cuda_visible_devices import cuda_environment, no_gpu_environment
from multitower.spec import Assignment, ModelSpec

from ..config.config import Config
from ..config.value_syntax import MemoryLimit
from .cores import divide_cores, sort_by_physical_core
from .devices import CPU_PREFIX, Device, DeviceError, Discovery, Group, ListedDevices, format_bytes, resolve
from .discovery import discover
from .process_limits import ProcessLimits

# With fewer cores a worker is not bound: on a single core it would stop whenever another process, such as the router,
# runs there.
_MIN_CORES_TO_BIND: Final = 2

# TensorFlow's default is the number of cores. These threads compute in addition to those of the intra-op pool, and
# graphs for inference seldom have more than two branches that can run at the same time.
_MAX_INTER_OP: Final = 2

_OPENMP_THREADS: Final = "OMP_NUM_THREADS"
_BLAS_THREADS: Final = (_OPENMP_THREADS, "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Threads of the libraries that numpy, PyTorch and others compute with. Their default is the number of cores."""

Threads: TypeAlias = Literal["auto"] | int
Cores: TypeAlias = Literal["auto", "split", "shared"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What the workers of one slot get. See `spec.Assignment`, which has the same names.

    Attributes:
        slot: the slot's number, from 0.
        devices: names of its devices.
        environment: variables to set before a device is used.
        intra_op_threads: TensorFlow's threads within one operation.
        inter_op_threads: how many operations TensorFlow runs at a time.
        cores: CPU numbers to bind the worker to; empty for no binding.
        memory_limit_bytes: TensorFlow's limit on each of its devices; None for growth on demand.
        max_message_size: bytes that a request may have.
        spin_s: seconds for which the worker looks for messages before it sleeps. Not compared: it depends on how many
            workers there are.
        models: names of the models that are configured for its devices. Not compared, since a change of them alone
            needs no replacement of a worker that loads the same models as before.
    """

    slot: int
    devices: tuple[str, ...]
    environment: Mapping[str, str]
    intra_op_threads: int
    inter_op_threads: int
    cores: tuple[int, ...]
    memory_limit_bytes: int | None
    max_message_size: int | None = None
    spin_s: float = field(default=0.0, compare=False)
    models: tuple[str, ...] = field(default=(), compare=False)

    def select_models(self, models: Iterable[ModelSpec]) -> tuple[ModelSpec, ...]:
        """The models of `models` that are configured for its devices."""
        return tuple(spec for spec in models if spec.name in self.models)

    def make_assignment(self, slot: int, incarnation: int, models: Sequence[ModelSpec]) -> Assignment:
        """The message that tells a worker process its slot, its part of the machine and its models."""
        return Assignment(
            slot=slot,
            incarnation=incarnation,
            devices=self.devices,
            environment=self.environment,
            intra_op_threads=self.intra_op_threads,
            inter_op_threads=self.inter_op_threads,
            cores=self.cores,
            memory_limit_bytes=self.memory_limit_bytes,
            max_message_size=self.max_message_size,
            spin_s=self.spin_s,
            models=tuple(models),
        )

    def conflicts_with(self, other: Placement) -> bool:
        """Whether both share a GPU in different groups, as when a reload changes groups: a GPU cannot hold both."""
        shared = set(self.devices).intersection(other.devices)
        return self.devices != other.devices and any(not name.startswith(CPU_PREFIX) for name in shared)

    @property
    def device(self) -> str:
        """The devices as in `status`: `cpu:0`, or UUIDs joined by commas."""
        return ",".join(self.devices)


def place_workers(
    config: Config,
    discovery: Discovery | None = None,
    *,
    limits: ProcessLimits | None = None,
    taken: Collection[int] = (),
) -> tuple[Placement, ...]:
    """The placements of a configuration on this machine, one for each slot.

    Args:
        config: the configuration.
        discovery: the machine's GPUs; None to ask NVML for them.
        limits: what this process may use; None to read it.
        taken: CPU numbers that another daemon has bound its workers to.

    Raises:
        DeviceError: a device is missing, cannot hold its workers, or has no model; or a model names another device.
    """
    groups = resolve(config.devices, discovery if discovery is not None else discover())
    return place_workers_on(config, groups, limits=limits, taken=taken)


def place_workers_on(
    config: Config, groups: Sequence[Group], *, limits: ProcessLimits | None = None, taken: Collection[int] = ()
) -> tuple[Placement, ...]:
    """The placements of a configuration whose `devices` are resolved, one for each slot.

    Args:
        config: the configuration.
        groups: the devices of each worker.
        limits: what this process may use; None to read it.
        taken: CPU numbers that another daemon has bound its workers to.

    Raises:
        DeviceError: a device cannot hold its workers, or has no model; or a model names another device.
    """
    limits = limits or ProcessLimits()
    quota = limits.cpu_quota()
    placements = divide_machine(
        groups,
        workers_per_device=config.workers_per_device,
        memory=config.memory,
        intra_op=config.threads.intra_op,
        inter_op=config.threads.inter_op,
        cores=config.cores,
        available=sort_by_physical_core(limits.cores()),
        taken=taken,
        quota=quota.cores if quota is not None else None,
        inherited=os.environ,
    )
    selections = {model.name: model.devices for model in config.models}
    devices = [device for group in groups for device in group]
    models = assign_models(selections, [placement.devices for placement in placements], devices)
    spin_s = config.spin if has_idle_cores(config, len(placements), limits) else 0.0
    return tuple(
        replace(placement, models=names, max_message_size=config.max_message_size, spin_s=spin_s)
        for placement, names in zip(placements, models, strict=True)
    )


def has_idle_cores(config: Config, workers: int, limits: ProcessLimits) -> bool:
    """Whether a thread that spins takes no core from one that works.

    Those are the router's, one of each worker, the gateway's, and that of a client on this machine.

    Args:
        config: the configuration.
        workers: how many there are.
        limits: what this process may use.
    """
    quota = limits.cpu_quota()
    cores = float(len(limits.cores()))
    if quota is not None:
        cores = min(cores, quota.cores)
    return cores >= 2 + workers + (config.gateway.threads if config.gateway is not None else 0)


def divide_machine(
    groups: Sequence[Group],
    *,
    workers_per_device: int,
    memory: MemoryLimit,
    intra_op: Threads,
    inter_op: Threads,
    cores: Cores,
    available: Sequence[int],
    taken: Collection[int] = (),
    quota: float | None = None,
    inherited: Collection[str] = (),
) -> tuple[Placement, ...]:
    """The placements of workers, without models, in the order of the slots.

    The workers of a group have consecutive slots: with two workers per group, slots 0 and 1 have the first group.

    Args:
        groups: the devices of each worker, at least one group, each of one kind.
        workers_per_device: how many processes share each group, at least 1.
        memory: the limit of each worker.
        intra_op: threads per worker. `auto`: the cores that the worker is bound to, else an equal share of `available`,
            and not more than its share of `quota`; divided by the number of its devices, and at least 1.
        inter_op: threads per worker. `auto`: as for `intra_op`, but at most 2.
        cores: `split` binds each worker to cores near its devices, see `divide_cores`; `shared` binds none; `auto` is
            `split` if each worker then gets at least two cores, else `shared`.
        available: the CPU numbers to divide, at least one, with threads of the same core next to each other.
        taken: those of them that another daemon has bound its workers to. Where fewer cores than workers are left,
            none is bound.
        quota: the number of cores whose time all workers together may use; None without a limit.
        inherited: names of environment variables that the workers inherit, and that must be left as they are.

    Raises:
        DeviceError: devices have less memory than their workers need; the message names all of them.
    """
    limits = _memory_limits(groups, memory, workers_per_device)
    slots = [group for group in groups for _ in range(workers_per_device)]
    free = [core for core in available if core not in taken]
    crowded = len(free) < len(available) and len(free) < len(slots)
    shares = divide_cores(free or available, [[device.cores for device in group] for group in slots])
    bind = not crowded and (cores == "split" or (cores == "auto" and min(map(len, shares)) >= _MIN_CORES_TO_BIND))
    equal = len(available) // len(slots)
    most = len(available) if quota is None else int(quota / len(slots))
    # Towers compute at the same time, and small operations take longer on several threads than on one.
    threads = [
        max(1, min(len(share) if bind else equal, most) // len(group))
        for share, group in zip(shares, slots, strict=True)
    ]
    intra_ops = [each if intra_op == "auto" else intra_op for each in threads]
    return tuple(
        Placement(
            slot=slot,
            devices=tuple(device.name for device in group),
            environment={**_device_environment(group), **_thread_environment(intra_ops[slot], inherited)},
            intra_op_threads=intra_ops[slot],
            inter_op_threads=min(threads[slot], _MAX_INTER_OP) if inter_op == "auto" else inter_op,
            cores=shares[slot] if bind else (),
            memory_limit_bytes=limits[slot // workers_per_device],
        )
        for slot, group in enumerate(slots)
    )


def assign_models(
    selections: Mapping[str, Literal["all"] | ListedDevices],
    slots: Sequence[Collection[str]],
    devices: Sequence[Device],
) -> tuple[tuple[str, ...], ...]:
    """The names of the models that each slot loads, in the order of the models.

    Args:
        selections: the `devices` of each model, by its name.
        slots: the names of each slot's devices.
        devices: the daemon's devices.

    Raises:
        DeviceError: a model names a device that is not the daemon's, or only some devices of a worker; or a slot has no
            model. The message names all problems, and the daemon's devices.
    """
    problems: list[str] = []
    device_names: dict[str, frozenset[str]] = {}
    for number, (model, selection) in enumerate(selections.items()):
        try:
            device_names[model] = _select_devices(selection, slots, devices)
        except DeviceError as error:
            problems += [f"models[{number}].{problem}" for problem in error.problems]
    assigned = tuple(tuple(model for model, names in device_names.items() if names.issuperset(slot)) for slot in slots)
    if not problems:
        idle = dict.fromkeys(",".join(slot) for slot, models in zip(slots, assigned, strict=True) if not models)
        problems = [
            f"devices: {device} has no model: name it in the devices of one, or leave it out of the daemon's."
            for device in idle
        ]
    if problems:
        raise DeviceError(problems, f"The daemon's devices: {', '.join(map(_name_of, devices))}.")
    return assigned


def _select_devices(
    selection: Literal["all"] | ListedDevices, slots: Sequence[Collection[str]], devices: Sequence[Device]
) -> frozenset[str]:
    """The names of the devices that a model's `devices` selects. A slot loads the model if it has all of the slot's."""
    names = {device.name for device in devices}
    if selection == "all":
        return frozenset(names)
    groups = resolve(selection, Discovery(tuple(device for device in devices if device.kind != "cpu")))
    chosen = {device.name for group in groups for device in group}
    problems = [f"devices: {name!r} is not one of the daemon's devices." for name in sorted(chosen - names)]
    for slot in slots:
        missing = set(slot) - chosen
        if missing and not chosen.isdisjoint(slot):
            missing_names = ", ".join(sorted(missing))
            problems.append(f"devices: lacks {missing_names}, whose worker has one of those that it names.")
    if problems:
        raise DeviceError(list(dict.fromkeys(problems)))
    return frozenset(chosen)


def _name_of(device: Device) -> str:
    return device.name if device.index is None else f"{device.index} ({device.name})"


def cores_to_claim(placements: Sequence[Placement], limits: ProcessLimits) -> frozenset[int]:
    """The cores that belong to these workers, and that no other daemon should bind its workers to.

    A single worker that may run everywhere claims nothing.
    """
    bound = frozenset(core for placement in placements for core in placement.cores)
    return bound if len(placements) > 1 or bound != limits.cores() else frozenset()


def spare_environment(placements: Sequence[Placement]) -> dict[str, str]:
    """The variables of a spare, whose libraries read them before it has a slot: of the slot with the fewest threads."""
    fewest = min(placements, key=lambda placement: placement.intra_op_threads)
    return {name: value for name, value in fewest.environment.items() if name in _BLAS_THREADS}


def _thread_environment(threads: int, inherited: Collection[str]) -> dict[str, str]:
    # The other libraries follow OMP_NUM_THREADS where their own variable is not set.
    if _OPENMP_THREADS in inherited:
        return {}
    return {name: str(threads) for name in _BLAS_THREADS if name not in inherited}


def _device_environment(group: Group) -> dict[str, str]:
    return no_gpu_environment() if group[0].kind == "cpu" else cuda_environment([device.name for device in group])


def _memory_limits(groups: Sequence[Group], memory: MemoryLimit, workers: int) -> list[int | None]:
    """The limit of the workers of each group, in bytes."""
    if memory.size is None and memory.fraction is None:
        return [None] * len(groups)
    limits: list[int | None] = []
    problems: list[str] = []
    for group in groups:
        results = [_memory_limit(device, memory, workers) for device in group]
        problems += [problem for _, problem in results if problem is not None]
        # The devices of a group hold the same models: the smallest one limits all.
        limits.append(min((limit for limit, _ in results if limit is not None), default=None))
    if problems:
        raise DeviceError(problems)
    return limits


def _memory_limit(device: Device, memory: MemoryLimit, workers: int) -> tuple[int | None, str | None]:
    """The limit of one worker in bytes, and the problem with it; None for each that there is not."""
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
