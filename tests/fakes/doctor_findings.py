"""What tests of the doctor ask about findings, and the devices, slots and models that these are about."""

from __future__ import annotations

from typing import Any

from multitower.spec import ModelSpec
from multitower.supervisor.machine.devices import Device
from multitower.supervisor.machine.placement import Placement
from multitower.tools.doctor.findings import Finding, Level

GIB = 1 << 30
MIB = 1 << 20
BUILD = {"version": "2.21.0", "gpu": True, "cuda": True, "cuda_version": "12.5.1", "cudnn_version": "9"}
CPU_BUILD = {"version": "2.21.0", "gpu": False, "cuda": False, "cuda_version": None, "cudnn_version": None}
SPEC = ModelSpec(name="m", path="/m", version="7", max_batch_size=8, allowed_batch_sizes=(4, 8))


def levels(findings: Any) -> list[tuple[str, str]]:
    return [(finding.level.value, finding.text) for finding in findings]


def worst(findings: Any) -> Finding:
    found = list(findings)
    return max(found, key=lambda finding: list(Level).index(finding.level))


def gpu(used: int = 0, total: int | None = 40 * GIB, name: str = "GPU-a") -> Device:
    return Device(
        name=name,
        kind="gpu",
        index=0,
        product="",
        memory_bytes=total,
        memory_used_bytes=used if total is not None else None,
        pci_bus_id=None,
    )


def slot(number: int = 0, device: str = "GPU-a", limit: int | None = None, **more: Any) -> Placement:
    settings: dict[str, Any] = {"intra_op_threads": 2, "inter_op_threads": 1, "cores": (), "models": ("m", "h")} | more
    return Placement(slot=number, devices=(device,), environment={}, memory_limit_bytes=limit, **settings)
