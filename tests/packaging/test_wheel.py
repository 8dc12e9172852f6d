"""What pip installs: one top-level name, every module, and a client that needs numpy and pyzmq only."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import wheels

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, BUILD_REQUIREMENTS = PYPROJECT["project"], PYPROJECT["build-system"]["requires"]
NOT_ISOLATED = ("--no-isolation", "--skip-dependency-check")

COMPILES = shutil.which("cc") is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


INHERITED = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
"""Each environment here is to find its own installation, not the one that other tests run on."""


def run(
    *command: str | Path, cwd: Path, timeout: float = 500, environment: Mapping[str, str] = MappingProxyType({})
) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=INHERITED | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows, as they are now, but without the two links, which some archives do not keep."""
    folder = tmp_path_factory.mktemp("checkout")
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):
        source = ROOT / name
        if source.is_symlink() or not source.is_file():
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    assert not (folder / "multitower" / "supervisor").exists()
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `make wheel` has built, else one of our own, compiled if there are a compiler and the headers."""
    if built := os.environ.get("BUILT_WHEELS"):
        (found,) = Path(built).glob("*.whl")
        return found
    folder = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "build", "--wheel", "--outdir", folder, checkout)
    run(*command, cwd=checkout, environment={"MULTITOWER_COMPILE": "1"} if COMPILES else {})
    (found,) = folder.glob("*.whl")
    return found


def files(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if ".dist-info/" not in name]


def test_the_wheel_has_every_module_under_one_name(wheel: Path, checkout: Path) -> None:
    assert {name.split("/")[0] for name in files(wheel)} == {"multitower"}
    names = [name for name in files(wheel) if not name.endswith(".so")]
    wanted = {
        f"{installed}/{path.relative_to(checkout / source)}"
        for source, installed in (
            ("multitower", "multitower"),
            ("supervisor", "multitower/supervisor"),
            ("worker", "multitower/worker"),
        )
        for path in (checkout / source).rglob("*.py")
    }
    assert wanted | {"multitower/py.typed"} == set(names)


def pip(python: Path, *arguments: str | Path) -> str:
    """Runs this environment's pip on another one, which needs none."""
    options = ("--disable-pip-version-check", "--python", python)
    return run(sys.executable, "-m", "pip", *options, *arguments, cwd=python.parent)


def environment_with(folder: Path, *requirements: str | Path) -> Path:
    """Makes an environment; returns its interpreter. Modules are compiled as they are imported."""
    venv.create(folder)
    python = folder / "bin" / "python"
    pip(python, "install", "--no-compile", *requirements)
    return python


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the base package alone."""
    return environment_with(tmp_path_factory.mktemp("base"), wheel)


def test_the_base_package_is_numpy_and_pyzmq_and_a_working_client(base: Path, tmp_path: Path) -> None:
    listed = pip(base, "list", "--format=freeze")
    assert {line.split("==")[0].lower() for line in listed.split()} == {"multitower", "numpy", "pyzmq"}
    program = """
import sys
from multitower import AsyncClient, Client, Unavailable
assert not {"tensorflow", "psutil", "pydantic", "click", "ruamel"} & set(sys.modules)
try:
    Client("ipc:///nowhere/at/all.sock", connect_timeout=0.2).infer("digits", {"x": [1.0]})
except Unavailable as error:
    print(error.reason)
"""
    assert run(base, "-W", "error", "-c", program, cwd=tmp_path).strip() == "not_listening"


def test_the_command_says_what_to_install(base: Path, tmp_path: Path) -> None:
    command = [base.parent / "multitower", "serve", "x.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=INHERITED)
    assert done.returncode == 69
    assert "pip install click prometheus-client" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_client_runs_with_the_oldest_versions_it_names(wheel: Path, tmp_path: Path) -> None:
    """numpy and pyzmq at the lower bounds of pyproject.toml, and the client's own tests against a fake daemon."""
    oldest = [requirement.replace(">=", "==") + ".*" for requirement in PROJECT["dependencies"]]
    tools = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis"]
    python = environment_with(tmp_path / "oldest", wheel, *oldest, *tools)
    tests = [*sorted((ROOT / "tests" / "integration").glob("test_client_*.py")), *CLIENT_UNIT_TESTS]
    assert len(tests) > len(CLIENT_UNIT_TESTS)
    # From another folder, so that the installed package is tested; the warnings of old versions are not ours.
    options = ["-q", "-p", "no:cacheprovider", "-W", "default", "--numprocesses", "3", "--dist", "loadfile"]
    out = run(python, "-P", "-m", "pytest", *options, *tests, cwd=ROOT)
    assert " passed" in out


CLIENT_UNIT_TESTS = [ROOT / "tests" / "unit" / name for name in ("test_tensors.py", "test_wire.py")]


@pytest.mark.skipif(not COMPILES, reason="no C compiler, or no headers of Python's (Debian: python3-dev)")
def test_the_version_says_compiled_only_if_every_part_is(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)

    def version() -> str:
        out = run(
            sys.executable, "-P", "-m", "multitower", "--version", cwd=ROOT, environment={"PYTHONPATH": str(tmp_path)}
        )
        return out.partition("(")[2].rstrip(")\n")

    assert version() == "compiled"
    for name in ("multitower/_frames", "multitower/supervisor/scheduling/pool", "multitower/worker/batch_inputs"):
        (extension,) = tmp_path.glob(f"{name}.*.so")
        aside = extension.rename(tmp_path / "aside")
        assert version() == "interpreted", f"without {name}"
        aside.rename(extension)
    assert version() == "compiled"


@pytest.fixture(scope="module")
def setuptools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which `build` needs no environment of its own, as `make wheel` makes one."""
    folder = tmp_path_factory.mktemp("setuptools")
    (wanted,) = (each for each in BUILD_REQUIREMENTS if each.startswith("setuptools"))
    pip(Path(sys.executable), "install", "--no-compile", "--target", folder, wanted)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def sdist(checkout: Path, setuptools: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    command = (sys.executable, "-m", "build", *NOT_ISOLATED, "--sdist", "--outdir", folder, checkout)
    run(*command, cwd=checkout, environment=setuptools)
    (archive,) = folder.glob("*.tar.gz")
    run("tar", "-xzf", archive, cwd=folder)
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


def test_the_sdist_has_all_that_a_compiled_wheel_is_built_from(sdist: Path, checkout: Path) -> None:
    """So that it builds like the checkout does, with a compiler."""
    wanted = {
        str(path.relative_to(checkout))
        for folder in ("multitower", "supervisor", "worker")
        for pattern in ("*.py", "*.c", "py.typed")
        for path in (checkout / folder).rglob(pattern)
    }
    wanted |= {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"}
    found = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    assert wanted - found == set()
    assert {name for name in found if name.startswith(("multitower/supervisor", "multitower/worker"))} <= wanted


def test_without_a_compiler_the_sdist_builds_what_python_interprets(
    sdist: Path, setuptools: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "no-programs").mkdir()
    command = (sys.executable, "-m", "build", *NOT_ISOLATED, "--wheel", "--outdir", tmp_path / "wheel", sdist)
    run(*command, cwd=sdist, environment={**setuptools, "PATH": str(tmp_path / "no-programs")})
    (built,) = (tmp_path / "wheel").glob("*.whl")
    assert built.name.endswith("-none-any.whl")
    assert not [name for name in files(built) if name.endswith(".so")]


BUILD_ONE_THAT_FAILS = """
import runpy, sys, setuptools
arguments = {}
setuptools.setup = arguments.update
runpy.run_path(sys.argv[1])
extensions = [setuptools.Extension(name, [name + ".c"]) for name in ("good", "bad")]
command = arguments["cmdclass"]["build_ext"](setuptools.Distribution({"ext_modules": extensions}))
command.ensure_finalized()
command.run()
"""


@pytest.mark.skipif(not COMPILES, reason="there is no C compiler, or not Python's headers")
@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="there is no setuptools")
def test_what_a_compiler_refuses_leaves_what_python_interprets(tmp_path: Path) -> None:
    (tmp_path / "good.c").write_text("int good;\n")
    (tmp_path / "bad.c").write_text("#error no\n")
    run(sys.executable, "-c", BUILD_ONE_THAT_FAILS, ROOT / "setup.py", cwd=tmp_path)
    assert not list(tmp_path.rglob("*.so"))


def test_wheels_are_built_for_every_version_that_the_project_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PROJECT["requires-python"] == f">={wheels.VERSIONS[0]}"
    assert len(wheels.VERSIONS) > 1
    monkeypatch.setenv("PYTHONS", f"/nowhere/python:{sys.executable}")
    assert wheels.interpreters()[f"3.{sys.version_info.minor}"] == Path(sys.executable)


@pytest.mark.parametrize("name", ["supervisor", "worker"])
def test_the_links_lead_to_the_folders_at_the_top(name: str) -> None:
    link = ROOT / "multitower" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name
