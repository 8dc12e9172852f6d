"""Collects what `multitower selftest` needs on a machine without a network: `make selftest-bundle` runs it.

The folder gets a script, the wheels of all dependencies for one version of Python on x86-64 Linux, and multitower
itself: as a source distribution with what compiles it, and as a wheel of plain Python for machines without a compiler.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "selftest_run.sh"
MOST_BYTES = 60 * 10**6
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
"""Tags that every Linux with glibc 2.28 or later accepts: pip takes only those named here."""


def main() -> None:
    """Makes the folder anew.

    Raises:
        SystemExit: the folder is too large, or one of the programs fails.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder to make; what it holds is removed")
    parser.add_argument(
        "--python-version", default="3.12", help="of the machine that the bundle is for (default: 3.12)"
    )
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    build(wheels)
    download(wheels, arguments.python_version)
    script = folder / "run.sh"
    script.write_text(SCRIPT.read_text().replace("@PYTHON_VERSION@", arguments.python_version))
    script.chmod(0o755)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 10**6:.1f} MB for Python {arguments.python_version}")
    if size > MOST_BYTES:
        raise SystemExit(f"that is more than {MOST_BYTES / 10**6:.0f} MB, which the bundle must stay under")


def build(wheels: Path) -> None:
    """Builds multitower's source distribution and its wheel of plain Python."""
    environment = {**os.environ, "MULTITOWER_COMPILE": "0"}
    command = [sys.executable, "-m", "build", "--outdir", str(wheels)]
    # The wheel is built from the source distribution, which shows that this one is complete.
    subprocess.run([*command, str(ROOT)], env=environment, check=True, stdout=subprocess.DEVNULL)


def download(wheels: Path, python_version: str) -> None:
    """Downloads the wheels that the command line, and compiling multitower, need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["server"],
        *project["build-system"]["requires"],
    ]
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(wheels)]
    target = ["--python-version", python_version, "--only-binary", ":all:", *platforms]
    subprocess.run([*command, *target, *needed], check=True)


if __name__ == "__main__":
    main()
