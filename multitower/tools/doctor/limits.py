"""Findings about threads, NUMA nodes and limits. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from multitower.supervisor.machine.devices import Device, format_bytes
from multitower.supervisor.machine.placement import Placement
from multitower.tools.doctor.findings import Finding, Level, several
from multitower.tools.doctor.machine import Machine

THREADS: Final = "threads"
LIMITS: Final = "limits"

DESCRIPTORS: Final = 64
"""Of a daemon without workers and clients; about 25 were counted."""

DESCRIPTORS_A_WORKER: Final = 16
"""11 were counted; a worker that is replaced has them twice for a while."""

CLIENTS: Final = 256
"""Each has a descriptor of its own; fewer than that are few."""

SMALL_SHM: Final = 256 << 20


def threads(placements: Sequence[Placement], machine: Machine, devices: Mapping[str, Device]) -> Iterator[Finding]:
    """Whether the workers' threads suit the cores.

    Args:
        placements: the slots.
        machine: this one.
        devices: those of the slots, by name.
    """
    wanted = sum(placement.intra_op_threads for placement in placements)
    cores = len(machine.cores)
    each = sorted({placement.intra_op_threads for placement in placements})
    text = (
        f"{several(len(placements), 'worker')} with {' or '.join(map(str, each))} intra-op "
        f"thread{'' if each == [1] else 's'} on {several(cores, 'core')}"
        f"{', each bound to its own' if any(placement.cores for placement in placements) else ''}"
    )
    if wanted > cores:
        fewer = ", or a smaller threads.intra_op" if each[-1] > 1 else ""
        advice = f"they take turns, and batches take longer: fewer workers{fewer}"
        yield Finding(THREADS, Level.WARNING, text, advice)
    else:
        yield Finding(THREADS, Level.OK, text)
    if machine.quota is not None and machine.quota < wanted:
        advice = "set threads.intra_op, and fewer workers, by the limit: `auto` counts the cores that it sees"
        text = f"this container may use {machine.quota:g} cores' time, and the workers have {wanted} threads"
        yield Finding(THREADS, Level.WARNING, text, advice)
    if len(machine.nodes) > 1:
        yield from _nodes(placements, machine, devices)


def _nodes(placements: Sequence[Placement], machine: Machine, devices: Mapping[str, Device]) -> Iterator[Finding]:
    told = f"{len(machine.nodes)} NUMA nodes"
    unknown = [device.name for device in devices.values() if device.kind != "cpu" and device.cores is None]
    astray = []
    for placement in placements:
        mine = [devices[name] for name in placement.devices if name in devices]
        near = {core for device in mine for core in device.cores or ()}
        if near and placement.cores and not near & set(placement.cores):
            nodes = ", ".join(sorted({str(device.numa_node) for device in mine if device.numa_node is not None}))
            astray.append(f"slot {placement.slot} (its device is at node {nodes or 'unknown'})")
    if astray:
        advice = "let the daemon use the cores there too (taskset, a container's cpuset, systemd's CPUAffinity)"
        yield Finding(THREADS, Level.WARNING, f"{told}; bound to cores of another node: {', '.join(astray)}", advice)
    elif any(len(placement.cores) == 0 for placement in placements):
        advice = "cores: split binds each worker to the node of its devices"
        yield Finding(THREADS, Level.NOTE, f"{told}; workers without cores of their own run at any of them", advice)
    elif unknown:
        text = f"{told}; the driver does not tell which cores are near {', '.join(unknown)}, and any are taken"
        yield Finding(THREADS, Level.NOTE, text, "compare with `nvidia-smi topo -m`")
    else:
        yield Finding(THREADS, Level.OK, told)


def limits(machine: Machine, processes: int, regions: int = 0) -> Iterator[Finding]:
    """Whether the system's limits leave room.

    Args:
        machine: this one.
        processes: workers and spares.
        regions: pieces of clients' shared memory that the daemon may have open at one time.
    """
    soft, hard = machine.descriptors
    needed = DESCRIPTORS + DESCRIPTORS_A_WORKER * processes + regions
    text = f"{soft} file descriptors; the daemon needs about {needed}, and one for each client"
    advice = f"ulimit -n 65536, or LimitNOFILE=65536 in the systemd unit{'' if hard >= 65536 else ' (root may)'}"
    if soft < needed:
        yield Finding(LIMITS, Level.PROBLEM, text, advice)
    elif soft < needed + CLIENTS:
        yield Finding(LIMITS, Level.WARNING, text, advice)
    else:
        yield Finding(LIMITS, Level.OK, text)
    if machine.memfd is not None:
        text = f"no memory can be shared between processes (memfd_create: {machine.memfd})"
        advice = "workers need it, and clients share large tensors by it: see what forbids it, as a seccomp profile"
        yield Finding(LIMITS, Level.PROBLEM, text, advice)
    else:
        yield Finding(LIMITS, Level.OK, "memory can be shared between processes (memfd_create)")
    if machine.shm_bytes is None:
        text = "there is no /dev/shm; multitower needs none, but handlers' libraries may"
        yield Finding(LIMITS, Level.NOTE, text, "mount a tmpfs there")
    elif machine.shm_bytes < SMALL_SHM:
        text = f"/dev/shm has {format_bytes(machine.shm_bytes)}; multitower needs none, but handlers' libraries may"
        yield Finding(LIMITS, Level.NOTE, text, "docker run --shm-size=1g")
    else:
        yield Finding(LIMITS, Level.OK, f"/dev/shm has {format_bytes(machine.shm_bytes)}")
