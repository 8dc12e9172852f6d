"""The whole examination, from a checked configuration to all findings."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

from multitower.compiled import not_compiled
from multitower.spec import ModelSpec
from multitower.supervisor.config.config import Config, ModelConfig
from multitower.supervisor.config.devices import on_cpus
from multitower.supervisor.config.version_folders import chosen_versions
from multitower.supervisor.machine import placement
from multitower.supervisor.machine.core_claims import read_claims
from multitower.supervisor.machine.cores import format_core_list
from multitower.supervisor.machine.devices import Device, DeviceError, MissingDevicesError, format_bytes, resolve
from multitower.supervisor.machine.placement import Placement
from multitower.supervisor.model_presence import why_absent
from multitower.supervisor.routing.binding import IPC
from multitower.tools.doctor import (
    endpoints,
    gateway,
    gpu_driver,
    limits,
    machine,
    memory,
    models,
    operations,
    packages,
    request_log,
    security,
    temporary_files,
    tracing,
)
from multitower.tools.doctor.consequences import Situation
from multitower.tools.doctor.findings import Finding, Level
from multitower.tools.doctor.gpu_driver import Driver

DEVICES: Final = "devices"
WAITING_ADVICE: Final = (
    "correct it, or let `multitower serve` wait for it: it serves everything else meanwhile, unless --strict is given"
)
_BASE_PACKAGES: Final = ("numpy", "pyzmq", "tensorflow")


def examine(config: Config, *, load_models: bool, timeout_s: float) -> Iterator[Finding]:
    """Examines a configuration on this machine, and yields findings section by section.

    Must be called in the main thread.

    Args:
        config: the checked configuration.
        load_models: load each model once; otherwise models are judged by their files.
        timeout_s: seconds for each model.
    """
    absent = {model.name: why_absent(model, config.folder) for model in config.models}
    there = [model for model in config.models if absent[model.name] is None]
    specs = [spec for model in there for spec in _served_versions(model, str(config.folder))]
    with_tensorflow = [spec for spec in specs if spec.format.uses_tensorflow]
    required = packages.required_versions()
    installed = packages.installed_versions([name for name in required if name != "Python"] or _BASE_PACKAGES)
    yield from packages.findings(installed, required, tensorflow_needed=bool(with_tensorflow))
    yield packages.compiled_finding(not_compiled())
    keras = packages.keras_finding(needed=any(spec.format.platform == "keras" for spec in specs))
    if keras is not None:
        yield keras
    bytecode = packages.bytecode_finding() if with_tensorflow else None
    if bytecode is not None:
        yield bytecode

    driver = gpu_driver.inspect_driver()
    gpus_wanted = not on_cpus(config.devices)
    devices, placements, device_findings = _place_slots(config, driver)
    yield from device_findings

    this = machine.inspect_machine()
    if placements:
        yield from limits.thread_findings(placements, this, {device.name: device for device in devices})
        yield from limits.claim_findings(placements, read_claims())
    shares_memory = config.gateway is not None or any(endpoint.startswith(IPC) for endpoint in config.listen)
    processes = max(1, len(placements)) + config.spares
    maximum = None if config.max_connections == "auto" else config.max_connections
    yield from limits.limit_findings(this, processes, maximum, shares_memory=shares_memory)
    if config.gateway is not None and (finding := limits.gateway_finding(this, config.gateway)) is not None:
        yield finding
    temporary_folder_needed = bool(with_tensorflow) or config.runtime_dir is None
    yield temporary_files.finding(needed=temporary_folder_needed)
    yield from endpoints.findings(config.listen, config.runtime_dir)
    yield from gateway.findings(config)
    yield from security.findings(config)
    yield from tracing.findings(config)
    yield from request_log.findings(config)

    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    has_temporary_folder = temporary_files.folder_or_none() is not None
    inspects = bool(with_tensorflow) and has_tensorflow and has_temporary_folder
    report, failure = _inspect_operations(with_tensorflow, timeout_s) if inspects else (None, None)
    build = report["build"] if report is not None else None
    libraries = gpu_driver.cuda_libraries(build) if build is not None and gpus_wanted else []
    missing = gpu_driver.missing_libraries(libraries)
    yield from gpu_driver.findings(driver, build, missing, gpus_wanted=gpus_wanted)

    for name, cause in absent.items():
        if cause is not None:
            yield Finding(models.SECTION, Level.PROBLEM, f"{name}: {cause}", WAITING_ADVICE)
    can_load = load_models and has_temporary_folder
    loadable = [spec for spec in specs if has_tensorflow or not spec.format.uses_tensorflow] if can_load else []
    measured: dict[str, tuple[int, int]] = {}
    peaks: dict[str, tuple[int, int]] = {}
    failed: set[str] = set()
    load_s = {model.name: model.load_timeout or config.load_timeout for model in config.models}
    for loaded in models.load_models(
        loadable,
        import_path=str(config.folder),
        intra_op=placements[0].intra_op_threads if placements else len(this.cores),
        inter_op=placements[0].inter_op_threads if placements else 1,
        max_message_size=config.max_message_size,
        timeout_s=timeout_s,
        load_s=load_s,
    ):
        name = loaded.spec.name
        situation = Situation.of(name, config, placements, load_s[name], specs)
        yield from models.findings(loaded, situation, gpus_wanted=gpus_wanted)
        if loaded.report is not None and loaded.report.state == "ready":
            # The versions of a model are loaded one by one, but a worker holds all of them.
            growth = loaded.after_bytes - loaded.before_bytes
            before, after = measured.get(name, (loaded.before_bytes, loaded.before_bytes))
            measured[name] = before, after + growth
            peak, _ = peaks.get(name, (0, 0))
            peaks[name] = max(peak, loaded.peak_bytes + after - before), loaded.spec.max_batch_size
        else:
            failed.add(name)
    not_loaded = list(dict.fromkeys(spec.name for spec in specs if spec not in loadable))
    if load_models and not can_load:
        yield Finding(models.SECTION, Level.NOTE, temporary_files.NOT_LOADED)
    elif not_loaded:
        yield _not_loaded_finding(not_loaded, wanted=load_models)

    if report is not None:
        yield from operations.findings(report, gpus_wanted=gpus_wanted, not_loaded=failed)
    elif failure is not None:
        yield Finding(operations.SECTION, Level.WARNING, failure, "check that `python -c 'import tensorflow'` works")

    sizes: dict[str, int | None] = {}
    for spec in specs:
        size, others = memory.file_bytes(spec), sizes.get(spec.name, 0)
        sizes[spec.name] = None if size is None or others is None else size + others
    yield from memory.device_findings(devices, placements, sizes)
    workers = [memory.models_in_host_memory(placement, specs) for placement in placements] or [list(sizes)]
    yield from memory.host_findings(workers, config.spares, sizes, measured, this.memory)
    warm_up = memory.warm_up_finding(workers, measured, peaks, this.memory)
    if warm_up is not None:
        yield warm_up
    if this.killed_together is not None:
        yield memory.killed_together_finding(this.killed_together)


def _served_versions(model: ModelConfig, folder: str) -> list[ModelSpec]:
    """The model in each of the versions that a daemon would serve if it started now."""
    spec = model.to_spec()
    if spec.path is None:
        return [dataclasses.replace(spec, module_folder=folder)]
    return [dataclasses.replace(spec, version=version) for version in chosen_versions(spec.path, model.versions)]


def _place_slots(config: Config, driver: Driver) -> tuple[Sequence[Device], Sequence[Placement], list[Finding]]:
    """The devices and slots of the configuration, both empty if it has none on this machine, and findings on them."""
    findings: list[Finding] = []
    devices: Sequence[Device] = ()
    placements: Sequence[Placement] = ()
    discovery = driver.discovery
    try:
        devices = [device for group in resolve(config.devices, discovery) for device in group]
        placements = placement.place_workers(config, discovery)
    except DeviceError as error:
        advice = "`multitower devices` lists this machine's devices; `devices: {cpu: 1}` serves on the CPU"
        if isinstance(error, MissingDevicesError):
            advice += "; `multitower serve` waits for them unless --strict is given"
        findings += [Finding(DEVICES, Level.PROBLEM, problem, advice) for problem in error.problems]
    else:
        findings += [Finding(DEVICES, Level.OK, _describe(slot, len(config.models))) for slot in placements]
    if discovery.gpus and discovery.problem is not None:
        findings.append(Finding(DEVICES, Level.WARNING, discovery.problem, "`multitower devices` lists the others"))
    inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if inherited is not None:
        text = f"CUDA_VISIBLE_DEVICES={inherited} is set here, but does not limit the workers"
        findings.append(Finding(DEVICES, Level.NOTE, text, "name the GPUs in `devices`"))
    return devices, placements, findings


def _describe(slot: Placement, models: int) -> str:
    limit = f", memory {format_bytes(slot.memory_limit_bytes)}" if slot.memory_limit_bytes is not None else ""
    cores = f", cores {format_core_list(slot.cores)}" if slot.cores else ""
    threads = f"{slot.intra_op_threads} intra-op and {slot.inter_op_threads} inter-op threads"
    some_models = f", models {', '.join(slot.models)}" if len(slot.models) < models else ""
    return f"slot {slot.slot}: {slot.device}, {threads}{limit}{cores}{some_models}"


def _inspect_operations(specs: Sequence[ModelSpec], timeout_s: float) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return operations.inspect_operations(specs, timeout_s * len(specs)), None
    except operations.InspectionError as error:
        return None, str(error)


def _not_loaded_finding(names: Sequence[str], *, wanted: bool) -> Finding:
    if wanted:
        text = f"not loaded, because TensorFlow is not installed: {', '.join(names)}"
        return Finding(models.SECTION, Level.NOTE, text, "install it, and run doctor again")
    return Finding(models.SECTION, Level.NOTE, f"not loaded, because of --no-models: {', '.join(names)}")
