"""The NVIDIA driver and CUDA's libraries, as far as they show without touching a GPU."""

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
from multitower.tools.doctor.findings import Finding, Level, listed

SECTION: Final = "driver"
DRIVER_LIBRARY: Final = "libcuda.so.1"
LOAD_S: Final = 30.0

# In a process of its own: a library runs code when it is loaded, and not all of them can bear that.
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
    """What the driver says.

    Attributes:
        discovery: the GPUs, and why there is none.
        version: the driver's; None where NVML does not answer.
        cuda: the newest CUDA that it knows, such as (12, 4); None as above.
        not_loadable: why each library that was tried cannot be loaded; only those that cannot.
    """

    discovery: Discovery
    version: str | None = None
    cuda: tuple[int, int] | None = None
    not_loadable: Mapping[str, str] = field(default_factory=dict)


def look() -> Driver:
    """Asks NVML, and tries the driver's library."""
    not_loadable = try_libraries([DRIVER_LIBRARY])
    try:
        import pynvml
    except ModuleNotFoundError:
        nothing = Discovery((), "nvidia-ml-py is not installed, so no GPU can be seen")
        return Driver(discovery=nothing, not_loadable=not_loadable)
    version, cuda = _ask(pynvml)
    return Driver(discovery=discover(), version=version, cuda=cuda, not_loadable=not_loadable)


def _ask(nvml: Any) -> tuple[str | None, tuple[int, int] | None]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None, None  # `discover` says why
    try:
        version = _or_none(nvml, nvml.nvmlSystemGetDriverVersion)
        number = _or_none(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    finally:
        nvml.nvmlShutdown()
    text = version.decode(errors="replace") if isinstance(version, bytes) else version
    return text, (number // 1000, number % 1000 // 10) if number is not None else None


def _or_none(nvml: Any, question: Any) -> Any:
    try:
        return question()
    except nvml.NVMLError:
        return None


def try_libraries(names: Sequence[str]) -> dict[str, str]:
    """Loads libraries in another process; why those cannot be loaded that cannot."""
    command = [sys.executable, "-c", _LOAD, *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_S, check=True)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(names, f"it could not be loaded within {LOAD_S:.0f} s")
    except subprocess.CalledProcessError as error:
        return dict.fromkeys(names, f"the process that loaded it ended with code {error.returncode}")
    return {name: why for name, why in json.loads(done.stdout).items() if why is not None}


def cuda_libraries(build: Mapping[str, Any]) -> list[str]:
    """The libraries that this build of TensorFlow will look for, by their versions; some of them."""
    cuda, cudnn = build.get("cuda_version"), build.get("cudnn_version")
    names = []
    if cuda:
        major = str(cuda).partition(".")[0]
        names += [f"libcudart.so.{major}", f"libcublas.so.{major}"]
    if cudnn:
        names.append(f"libcudnn.so.{str(cudnn).partition('.')[0]}")
    return names


def missing_libraries(names: Sequence[str]) -> dict[str, str]:
    """Those that neither NVIDIA's wheels in this environment hold nor the linker finds, and why."""
    elsewhere = [name for name in names if not any(_in_wheels(name))]
    return try_libraries(elsewhere) if elsewhere else {}


def _in_wheels(name: str) -> Iterator[Path]:
    for folder in filter(None, sys.path):
        yield from Path(folder, "nvidia").glob(f"*/lib/{name}")


def findings(
    driver: Driver, build: Mapping[str, Any] | None, missing: Mapping[str, str], *, gpus_wanted: bool
) -> Iterator[Finding]:
    """What there is to say of the driver and of CUDA.

    Args:
        driver: what `look` gave.
        build: how TensorFlow was built, as `worker.kernels` tells; None where that is not known.
        missing: what `missing_libraries` gave.
        gpus_wanted: the configuration has workers on GPUs.
    """
    if driver.version is not None:
        cuda = f", for CUDA up to {driver.cuda[0]}.{driver.cuda[1]}" if driver.cuda is not None else ""
        yield Finding(SECTION, Level.OK, f"NVIDIA driver {driver.version}{cuda}")
    if not gpus_wanted:
        if driver.version is None:
            yield Finding(SECTION, Level.OK, "no NVIDIA driver answers; the configured devices are CPUs and need none")
        return
    why = driver.not_loadable.get(DRIVER_LIBRARY)
    if why is not None:
        advice = "install the NVIDIA driver; a container must be started with its GPUs (docker run --gpus all)"
        yield Finding(SECTION, Level.PROBLEM, f"{DRIVER_LIBRARY} cannot be loaded: {why}", advice)
    if build is None:
        return
    if not build["cuda"]:
        advice = "pip install 'multitower[gpu]', and remove tensorflow-cpu"
        text = f"TensorFlow {build['version']} is built without CUDA: its workers would find no GPU"
        yield Finding(SECTION, Level.PROBLEM, text, advice)
        return
    wanted = str(build["cuda_version"] or "0")
    if driver.cuda is not None and driver.cuda[0] < int(wanted.partition(".")[0]):
        text = (
            f"TensorFlow is built for CUDA {wanted}, and the driver knows CUDA up to {driver.cuda[0]}.{driver.cuda[1]}"
        )
        yield Finding(SECTION, Level.PROBLEM, text, "install a newer driver")
    if missing:
        advice = "pip install 'multitower[gpu]', or put the folder of CUDA's libraries into LD_LIBRARY_PATH"
        text = f"TensorFlow {build['version']} needs libraries that are not found: {listed(missing)}"
        yield Finding(SECTION, Level.PROBLEM, text, advice)
    else:
        found = listed(cuda_libraries(build))
        yield Finding(SECTION, Level.OK, f"TensorFlow {build['version']} is built for CUDA {wanted}; found: {found}")
