"""The NVIDIA driver and CUDA's libraries, examined without using a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from multitower.supervisor.machine.devices import Discovery
from multitower.supervisor.machine.discovery import discover
from multitower.tools.doctor.findings import INSTALL_CUDA, Finding, Level, join_names

SECTION: Final = "driver"
DRIVER_LIBRARY: Final = "libcuda.so.1"
LOAD_S: Final = 30.0

# Run in a separate process: a library runs code when it is loaded, which can crash.
_LOAD: Final = """
import ctypes, json, sys
answers = {}
for name in sys.argv[1:]:
    try:
        ctypes.CDLL(name)
        answers[name] = None
    except OSError as error:
        answers[name] = str(error)
print(json.dumps(answers))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    """What is known about the driver.

    Attributes:
        discovery: the GPUs, or why there is none.
        version: the driver's version; None if NVML does not answer.
        cuda: the newest CUDA that the driver supports, such as (12, 4); None if NVML does not answer.
        not_loadable: why a library cannot be loaded, for each that cannot.
    """

    discovery: Discovery
    version: str | None = None
    cuda: tuple[int, int] | None = None
    not_loadable: Mapping[str, str] = field(default_factory=dict)


def inspect_driver() -> Driver:
    """Asks NVML, and tries to load the driver's library."""
    not_loadable = try_libraries([DRIVER_LIBRARY])
    try:
        import pynvml
    except ModuleNotFoundError:
        no_gpus = Discovery((), "nvidia-ml-py is not installed, so GPUs cannot be found")
        return Driver(discovery=no_gpus, not_loadable=not_loadable)
    version, cuda = _ask_nvml(pynvml)
    return Driver(discovery=discover(), version=version, cuda=cuda, not_loadable=not_loadable)


def _ask_nvml(nvml: Any) -> tuple[str | None, tuple[int, int] | None]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None, None  # `discover` reports why
    try:
        version = _or_none(nvml, nvml.nvmlSystemGetDriverVersion)
        number = _or_none(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    finally:
        nvml.nvmlShutdown()
    text = version.decode(errors="replace") if isinstance(version, bytes) else version
    return text, (number // 1000, number % 1000 // 10) if number is not None else None


def _or_none(nvml: Any, function: Any) -> Any:
    try:
        return function()
    except nvml.NVMLError:
        return None


def try_libraries(names: Sequence[str]) -> dict[str, str]:
    """Loads libraries in another process, and returns why, for each that cannot be loaded."""
    command = [sys.executable, "-c", _LOAD, *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_S, check=True)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(names, f"it could not be loaded within {LOAD_S:.0f} s")
    except subprocess.CalledProcessError as error:
        return dict.fromkeys(names, f"the process that loaded it ended with code {error.returncode}")
    return {name: why for name, why in json.loads(done.stdout).items() if why is not None}


def cuda_libraries(build: Mapping[str, Any]) -> list[str]:
    """The most important libraries that this build of TensorFlow loads, with their versions."""
    cuda, cudnn = build.get("cuda_version"), build.get("cudnn_version")
    names = []
    if cuda:
        major = str(cuda).partition(".")[0]
        names += [f"libcudart.so.{major}", f"libcublas.so.{major}"]
    if cudnn:
        names.append(f"libcudnn.so.{str(cudnn).partition('.')[0]}")
    return names


def missing_libraries(names: Sequence[str]) -> dict[str, str]:
    """Libraries that are neither in NVIDIA's wheels of this environment nor found by the linker, and why."""
    elsewhere = [name for name in names if not any(_in_wheels(name))]
    return try_libraries(elsewhere) if elsewhere else {}


def _in_wheels(name: str) -> Iterator[Path]:
    for folder in filter(None, sys.path):
        yield from Path(folder, "nvidia").glob(f"*/lib/{name}")


def findings(
    driver: Driver, build: Mapping[str, Any] | None, missing: Mapping[str, str], *, gpus_wanted: bool
) -> Iterator[Finding]:
    """Findings about the driver and CUDA.

    Args:
        driver: the result of `inspect_driver`.
        build: how TensorFlow was built, as `worker.formats.inspection` reports it; None if unknown.
        missing: the result of `missing_libraries`.
        gpus_wanted: whether the configuration has workers on GPUs.
    """
    if driver.version is not None:
        cuda = f", for CUDA up to {driver.cuda[0]}.{driver.cuda[1]}" if driver.cuda is not None else ""
        yield Finding(SECTION, Level.OK, f"NVIDIA driver {driver.version}{cuda}")
    if not gpus_wanted:
        if driver.version is None:
            yield Finding(SECTION, Level.OK, "there is no NVIDIA driver; the configured devices are CPUs and need none")
        return
    why = driver.not_loadable.get(DRIVER_LIBRARY)
    if why is not None:
        advice = "install the NVIDIA driver; start a container with its GPUs (docker run --gpus all)"
        yield Finding(SECTION, Level.PROBLEM, f"{DRIVER_LIBRARY} cannot be loaded: {why}", advice)
    if build is None:
        return
    if not build["cuda"]:
        advice = f"pip uninstall tensorflow-cpu, then {INSTALL_CUDA}"
        text = f"TensorFlow {build['version']} is built without CUDA, so its workers would find no GPU"
        yield Finding(SECTION, Level.PROBLEM, text, advice)
        return
    wanted = str(build["cuda_version"] or "0")
    if driver.cuda is not None and driver.cuda[0] < int(wanted.partition(".")[0]):
        text = (
            f"TensorFlow is built for CUDA {wanted}, and the driver supports it up to {driver.cuda[0]}.{driver.cuda[1]}"
        )
        yield Finding(SECTION, Level.PROBLEM, text, "install a newer driver")
    if missing:
        advice = f"{INSTALL_CUDA}, or add the folder of CUDA's libraries to LD_LIBRARY_PATH"
        text = f"TensorFlow {build['version']} needs libraries that are not found: {join_names(missing)}"
        yield Finding(SECTION, Level.PROBLEM, text, advice)
    else:
        found = join_names(cuda_libraries(build))
        yield Finding(SECTION, Level.OK, f"TensorFlow {build['version']} is built for CUDA {wanted}; found: {found}")
