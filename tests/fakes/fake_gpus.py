"""Builds the stand-ins for NVIDIA's libraries and tells a subprocess to use them.

Tests take the session fixture `fake_gpus` (tests/conftest.py). NVIDIA's libraries are found through
`LD_LIBRARY_PATH`, which the dynamic linker reads at the start of a process: only subprocesses see the stand-ins.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARIES = {"nvml.c": "libnvidia-ml.so.1", "cuda.c": "libcuda.so.1"}

# As in nvml.c: in PCI order, 40 GiB each, of which i GiB are used on GPU i.
UUIDS = (
    "GPU-8f3a1c02-5b7e-4d11-9a60-0c1d2e3f4a5b",
    "GPU-8f3a9d47-1c2b-4e5f-8a90-b1c2d3e4f506",
    "GPU-2e6b7710-93af-4c08-b5d4-71e8f0a9c3b2",
    "GPU-c40d55e9-0f6a-47b3-8e21-d9a8b7c6e5f4",
)
# The slices of the GPU that `split` names, 10 GiB each; the second stands at index 2, and 2 GiB of it are used.
SLICES = ("MIG-5e0c8f7a-2d31-5c64-9b0e-6f1a2b3c4d5e", "MIG-91b7d3e4-8a05-5f19-a7c2-0e9d8c7b6a51")


def build_fakes(folder: Path) -> Path:
    """Compiles both libraries into `folder` and returns it.

    Raises:
        RuntimeError: there is no C compiler, or it refuses the sources.
    """
    compiler = _compiler()
    for source, library in LIBRARIES.items():
        command = [*compiler, "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-O1"]
        done = subprocess.run(
            [*command, "-o", str(folder / library), str(SOURCES / source)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{source}: {done.stderr}")
    return folder


def _compiler() -> list[str]:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is not None:
        return [found]
    # `make` installs this one where the machine has none.
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise RuntimeError("the stand-ins for NVIDIA's libraries need a C compiler: install gcc, or set CC")


@dataclass(frozen=True)
class FakeGpus:
    """The folder with the stand-ins."""

    folder: Path

    def environment(
        self, log_file: Path | None = None, memory: Path | None = None, **nvml: str | int
    ) -> dict[str, str]:
        """Variables that make a subprocess find the stand-ins; merge them into its environment.

        Args:
            log_file: where cuInit of any process below leaves its line; see `read_log`.
            memory: a folder for what processes allocate on the GPUs; without it, CUDA finds none.
            nvml: settings of nvml.c by their names in small letters: `count=2`, `failure=9`, `lost=1`, ...; with
                `file=path`, `set_gpus(path, ...)` changes them while the subprocess runs.
        """
        inherited = os.environ.get("LD_LIBRARY_PATH")
        variables = {"LD_LIBRARY_PATH": os.pathsep.join([str(self.folder), *([inherited] if inherited else [])])}
        if log_file is not None:
            variables["FAKE_CUDA_LOG"] = str(log_file)
        if memory is not None:
            variables["FAKE_GPU_MEMORY"] = str(memory)
        return variables | {f"FAKE_NVML_{name.upper()}": str(value) for name, value in nvml.items()}


def set_gpus(path: Path, **nvml: str | int) -> None:
    """Changes, all at once, what the subprocesses with `file=path` see: settings as for `environment`, or none."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{name.upper()}={value}\n" for name, value in nvml.items()))
    new.replace(path)


@dataclass(frozen=True)
class CuInit:
    """One initialisation of CUDA: the process, and the variables as CUDA would have read them (None: not set)."""

    pid: int
    visible_devices: str | None
    device_order: str | None
    mps_folder: str | None = None


def read_log(log_file: Path) -> list[CuInit]:
    """What processes with `FAKE_CUDA_LOG=log_file` did, in order of time; nothing when no CUDA was initialised."""
    if not log_file.exists():
        return []
    entries = []
    for line in log_file.read_text().splitlines():
        pid, *variables = line.split("\t")
        values = dict(variable.split("=", 1) for variable in variables)
        names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_PIPE_DIRECTORY")
        entries.append(CuInit(int(pid), *(values.get(name) for name in names)))
    return entries
