"""Findings about the workers' threads, NUMA nodes and the system's limits. Pure."""

from __future__ import annotations

import resource
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from multitower.supervisor.config.gateway import GatewayConfig
from multitower.supervisor.machine import descriptors
from multitower.supervisor.machine.cores import format_core_list
from multitower.supervisor.machine.devices import Device, format_bytes
from multitower.supervisor.machine.placement import Placement
from multitower.supervisor.machine.process_limits import CpuQuota
from multitower.tools.doctor.findings import Finding, Level, with_number
from multitower.tools.doctor.machine import Machine

THREADS: Final = "threads"
LIMITS: Final = "limits"

SMALL_SHM: Final = 256 << 20

RAISE_DESCRIPTORS: Final = "raise the hard limit: LimitNOFILE=65536 in the systemd unit, or ulimit -Hn 65536 as root"


def thread_findings(
    placements: Sequence[Placement], machine: Machine, devices: Mapping[str, Device]
) -> Iterator[Finding]:
    """Whether the workers' threads suit the cores.

    Args:
        placements: the slots.
        machine: this machine.
        devices: the slots' devices by name.
    """
    threads = sum(placement.intra_op_threads for placement in placements)
    cores = len(machine.cores)
    each = sorted({placement.intra_op_threads for placement in placements})
    text = (
        f"{with_number(len(placements), 'worker')} with {' or '.join(map(str, each))} intra-op "
        f"thread{'' if each == [1] else 's'} on {with_number(cores, 'core')}"
        f"{', each bound to its own' if any(placement.cores for placement in placements) else ''}"
    )
    if threads > cores:
        fewer = ", or a smaller threads.intra_op" if each[-1] > 1 else ""
        advice = f"threads share cores, and batches take longer: configure fewer workers{fewer}"
        yield Finding(THREADS, Level.WARNING, text, advice)
    else:
        yield Finding(THREADS, Level.OK, text)
    if machine.quota is not None:
        yield _quota_finding(machine.quota, threads)
    if len(machine.nodes) > 1:
        yield _numa_finding(placements, machine, devices)


def _quota_finding(quota: CpuQuota, threads: int) -> Finding:
    cores = "1 core" if quota.cores == 1 else f"{quota.cores:g} cores"
    text = f"{quota.source} allows the time of {cores}, and the workers have {with_number(threads, 'thread')}"
    if threads > quota.cores:
        advice = "the system stops the workers for a part of the time: raise the limit, or configure fewer workers"
        fewer = ", or a smaller threads.intra_op" if threads > 1 else ""
        return Finding(THREADS, Level.WARNING, text, f"{advice}{fewer}")
    return Finding(THREADS, Level.OK, text)


def claim_findings(placements: Sequence[Placement], claims: Mapping[str, Collection[int]]) -> Iterator[Finding]:
    """Whether running daemons have bound their workers to the cores of these workers.

    Args:
        placements: the slots.
        claims: the cores of each running daemon, see `core_claims.read_claims`.
    """
    wanted = {core for placement in placements for core in placement.cores}
    for claimant, cores in claims.items():
        shared = wanted.intersection(cores)
        if shared:
            pid = claimant.partition(":")[0]
            text = f"a running daemon (pid {pid}) has bound its workers to the cores {format_core_list(shared)}"
            advice = "while it runs, another daemon does not use them: give each daemon its own cores, as with taskset"
            yield Finding(THREADS, Level.NOTE, text, advice)


def _numa_finding(placements: Sequence[Placement], machine: Machine, devices: Mapping[str, Device]) -> Finding:
    nodes = f"{len(machine.nodes)} NUMA nodes"
    unknown = [device.name for device in devices.values() if device.kind != "cpu" and device.cores is None]
    far = []
    for placement in placements:
        own = [devices[name] for name in placement.devices if name in devices]
        near = {core for device in own for core in device.cores or ()}
        if near and placement.cores and not near & set(placement.cores):
            own_nodes = ", ".join(sorted({str(device.numa_node) for device in own if device.numa_node is not None}))
            far.append(f"slot {placement.slot} (its device is at node {own_nodes or 'unknown'})")
    if far:
        advice = "allow the daemon that node's cores too (taskset, a container's cpuset, systemd's CPUAffinity)"
        return Finding(THREADS, Level.WARNING, f"{nodes}; bound to cores of another node: {', '.join(far)}", advice)
    if any(len(placement.cores) == 0 for placement in placements):
        advice = "cores: split binds each worker to the node of its devices"
        return Finding(THREADS, Level.NOTE, f"{nodes}; workers that are not bound to cores run on any of them", advice)
    if unknown:
        text = f"{nodes}; the driver does not report which cores are near {', '.join(unknown)}, so any cores are used"
        return Finding(THREADS, Level.NOTE, text, "compare with `nvidia-smi topo -m`")
    return Finding(THREADS, Level.OK, nodes)


def _descriptor_finding(
    machine: Machine, processes: int, max_connections: int | None, *, shares_memory: bool
) -> Finding:
    soft, hard = machine.descriptors
    limit = descriptors.wanted_limit(soft, hard, processes, max_connections)
    plan = descriptors.plan_descriptors(limit, processes, max_connections, shares_memory=shares_memory)
    raised = f", to which the daemon raises the limit of {soft}" if limit > soft else ""
    text = (
        f"{limit} file descriptors{raised}; the daemon needs about {plan.needed + plan.regions}, and "
        f"{with_number(plan.connections, 'connection')} of clients may be open"
    )
    advice = RAISE_DESCRIPTORS
    if limit < plan.needed:
        return Finding(LIMITS, Level.PROBLEM, text, advice)
    if max_connections is not None and plan.connections < max_connections:
        return Finding(LIMITS, Level.PROBLEM, f"{text}, not max_connections: {max_connections}", advice)
    if not plan.survives_bursts:
        return Finding(LIMITS, Level.WARNING, f"{text}; many that arrive at one time could exhaust the rest", advice)
    return Finding(LIMITS, Level.OK, text)


def gateway_finding(machine: Machine, gateway: GatewayConfig) -> Finding | None:
    """Whether the gateway may have the descriptors for its connections; None without a limit.

    Args:
        machine: this machine.
        gateway: as configured.
    """
    _, hard = machine.descriptors
    if hard == resource.RLIM_INFINITY:
        return None
    needed, allowed = descriptors.plan_gateway_descriptors(hard, gateway.threads)
    text = (
        f"{with_number(hard, 'file descriptor')} for the gateway; it needs about {needed}, and "
        f"{with_number(min(allowed, gateway.max_connections), 'connection')} of its clients may be open"
    )
    if allowed >= gateway.max_connections:
        return Finding(LIMITS, Level.OK, text)
    # Nobody has asked for the default.
    level = Level.PROBLEM if "max_connections" in gateway.model_fields_set else Level.WARNING
    text = f"{text}, not gateway.max_connections: {gateway.max_connections}"
    return Finding(LIMITS, level, text, RAISE_DESCRIPTORS)


def limit_findings(
    machine: Machine, processes: int, max_connections: int | None, *, shares_memory: bool
) -> Iterator[Finding]:
    """Whether the system's limits are high enough.

    Args:
        machine: this machine.
        processes: workers and spares.
        max_connections: as configured; None for as many as there are descriptors for.
        shares_memory: whether clients may use shared memory, each region of which takes a descriptor.
    """
    yield _descriptor_finding(machine, processes, max_connections, shares_memory=shares_memory)
    if machine.pidfd_error is not None:
        text = f"processes cannot be watched ({machine.pidfd_error}): the daemon will not start"
        advice = "Linux 5.3 or newer has pidfd_open; see whether a seccomp profile or a sandbox forbids it"
        yield Finding(LIMITS, Level.PROBLEM, text, advice)
    if machine.memfd_error is not None:
        text = f"processes cannot share memory (memfd_create: {machine.memfd_error})"
        advice = "workers need it, and clients send large tensors by it: see what forbids it, such as a seccomp profile"
        yield Finding(LIMITS, Level.PROBLEM, text, advice)
    else:
        yield Finding(LIMITS, Level.OK, "processes can share memory (memfd_create)")
    if machine.shm_bytes is None:
        text = "there is no /dev/shm; multitower does not need it, but libraries of handlers may"
        yield Finding(LIMITS, Level.NOTE, text, "mount a tmpfs there")
    elif machine.shm_bytes < SMALL_SHM:
        size = format_bytes(machine.shm_bytes)
        text = f"/dev/shm has {size}; multitower does not need it, but libraries of handlers may"
        yield Finding(LIMITS, Level.NOTE, text, "docker run --shm-size=1g")
    else:
        yield Finding(LIMITS, Level.OK, f"/dev/shm has {format_bytes(machine.shm_bytes)}")
