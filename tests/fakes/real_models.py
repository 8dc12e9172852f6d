"""Real TensorFlow models from wheels on PyPI, which are downloaded once and unpacked, but not installed.

guesslang 2.2.1 (MIT): text [N] -> 54 classes. basic-pitch 0.4.0 (Apache-2.0): audio [N, 43844, 1] -> 3 outputs, with a
checkpoint that can only be loaded in part.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

WHEELS = {
    "guesslang": ("guesslang==2.2.1", "guesslang/data/model/"),
    "basic-pitch": ("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp/"),
}
CACHE = Path(__file__).parents[2] / ".cache" / "wheels"
DOWNLOAD_S = 180


def unpack(folder: Path) -> dict[str, Path]:
    """Unpacks the SavedModels into `folder` and returns their paths by name.

    Raises:
        RuntimeError: a wheel cannot be downloaded.
    """
    return {name: _unpack(folder / name, *wheel) for name, wheel in WHEELS.items()}


def _unpack(target: Path, requirement: str, prefix: str) -> Path:
    with zipfile.ZipFile(_wheel(requirement)) as archive:
        for member in archive.namelist():
            if member.startswith(prefix) and not member.endswith("/"):
                path = target / member.removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(member))
    return target


def _wheel(requirement: str) -> Path:
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    found = list(CACHE.glob(pattern))
    if not found:
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False)
        found = list(CACHE.glob(pattern))
        if not found:
            raise RuntimeError(f"{requirement} cannot be downloaded, and tests need its model: {done.stderr}")
    return found[0]
