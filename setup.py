"""What pyproject.toml cannot say: which modules are compiled, and what happens where they cannot be.

The modules that every request passes through are plain, typed Python, and mypyc makes C of them, which takes a third to
a half off the daemon's and the workers' CPU time (docs/performance.md). `pip install .` and wheels compile them where
there are mypy, a C compiler and Python's headers; elsewhere the package is installed as it is, with the same
behaviour. An editable installation is not compiled: what one edits is what runs.

`MULTITOWER_COMPILE=0` compiles nothing. `MULTITOWER_COMPILE=1` compiles an editable installation too, and makes an
error of whatever is in the way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

ROOT = Path(__file__).resolve().parent
STAGE = ROOT / "build" / "staged"
FOLDERS = {"multitower": "multitower", "supervisor": "multitower/supervisor", "worker": "multitower/worker"}

MODULES = (
    "multitower.frames",
    "multitower.worker_wire",
    "multitower.supervisor.routing.admission",
    "multitower.supervisor.routing.request_checks",
    "multitower.supervisor.scheduling.scheduler",
    "multitower.supervisor.scheduling.queue",
    "multitower.supervisor.scheduling.worker_choice",
    "multitower.supervisor.scheduling.crashing_models",
    "multitower.supervisor.scheduling.deadlines",
    "multitower.supervisor.scheduling.dispatcher",
    "multitower.supervisor.scheduling.estimate",
    "multitower.supervisor.routing.front_socket",
    "multitower.supervisor.scheduling.open_requests",
    "multitower.supervisor.routing.statistics",
    "multitower.supervisor.scheduling.pool",
    "multitower.supervisor.scheduling.quarantine",
    "multitower.supervisor.loop.reactor",
    "multitower.supervisor.scheduling.recovery",
    "multitower.supervisor.scheduling.refusals",
    "multitower.supervisor.scheduling.request",
    "multitower.supervisor.routing.router",
    "multitower.supervisor.routing.worker_connection",
    "multitower.supervisor.scheduling.worker",
    "multitower.supervisor.scheduling.split_requests",
    "multitower.worker.batch",
    "multitower.worker.buffers",
    "multitower.worker.executor",
    "multitower.worker.formats.handler",
    "multitower.worker.inbox",
    "multitower.worker.prepared",
    "multitower.worker.service",
)

GROUP = "multitower._compiled"
"""Of the library that holds the code of all of them."""

# Of the imports of these modules, not all are installed where a wheel is built; `make lint` checks types with all.
SETTINGS = "[mypy]\nfollow_imports = silent\nignore_missing_imports = true\n"

PROBE = "#include <Python.h>\nint main(void) { return 0; }\n"


MUST = os.environ.get("MULTITOWER_COMPILE") == "1"


class ImpossibleError(Exception):
    """The modules cannot be compiled here; the message says why."""


def say_not_compiled(reason: Exception) -> None:
    """The installation goes on without."""
    sys.stderr.write(f"multitower is not compiled, which makes it slower and nothing else: {reason}\n")


def wanted(arguments: list[str]) -> bool:
    """Whether this command is to compile: those that make a wheel, as far as the environment does not say otherwise."""
    if os.environ.get("MULTITOWER_COMPILE") == "0":
        return False
    return bool({"bdist_wheel", "build_ext"}.intersection(arguments)) or ("editable_wheel" in arguments and MUST)


def probe() -> None:
    """Looks for a C compiler that finds Python's headers.

    Raises:
        ImpossibleError: there is none.
    """
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    if shutil.which(compiler[0]) is None:
        raise ImpossibleError(f"there is no C compiler ({compiler[0]})")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(PROBE)
        include = f"-I{sysconfig.get_path('include')}"
        command = [*compiler, include, "-c", str(source), "-o", f"{folder}/probe.o"]
        tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode:
        raise ImpossibleError(f"a C compiler, but not Python's headers:\n{tried.stderr}")


def extensions() -> list[Any]:
    """Makes C of the modules.

    Raises:
        ImpossibleError: mypy is not installed, or does not take them.
    """
    probe()
    try:
        from mypyc.build import mypycify
    except ImportError as error:
        raise ImpossibleError(f"mypy is not installed ({error})") from None
    shutil.rmtree(STAGE, ignore_errors=True)
    # In one tree, as they are imported; some archives do not keep the links that make one in a checkout.
    for source, target in FOLDERS.items():
        ignore = shutil.ignore_patterns("__pycache__", "*.so", "supervisor", "worker")
        shutil.copytree(ROOT / source, STAGE / target, ignore=ignore)
    settings = STAGE / "mypy.ini"
    settings.write_text(SETTINGS)
    paths = [module.replace(".", "/") + ".py" for module in MODULES]
    before = Path.cwd()
    os.chdir(STAGE)  # so that tracebacks name the files as they are imported
    try:
        made = mypycify(
            ["--config-file", str(settings), *paths],
            # Half of the compiler's time for level 2, and nearly as fast: most work is in the interpreter's own C.
            opt_level="1",
            debug_level="0",
            group_name=GROUP,
            target_dir=str(STAGE / "c"),
        )
    except SystemExit:
        raise ImpossibleError("mypyc does not take the modules; see above") from None
    finally:
        os.chdir(before)
    for extension in made:
        # setuptools wants paths within the project.
        extension.sources = [os.path.relpath(source, ROOT) for source in extension.sources]
        # A compiler that is newer than mypyc may warn of more.
        extension.extra_compile_args = [flag for flag in extension.extra_compile_args if flag != "-Werror"]
    # By hand, what no Python can say: a whole message of libzmq's in one call.
    return [*made, Extension("multitower._frames", ["multitower/_frames.c"], libraries=["dl"])]


class BuildAllOrNothing(build_ext):
    """Builds the extensions; where one fails, none is installed: each module would look for the library of all."""

    def run(self) -> None:
        """As setuptools calls it."""
        try:
            super().run()
        except (BaseError, CCompilerError, OSError) as error:  # a compiler's are no BaseErrors
            if MUST:
                raise
            for path in self.get_outputs():
                Path(path).unlink(missing_ok=True)
            self.extensions.clear()
            say_not_compiled(error)


def compiled() -> list[Any]:
    """The extensions to build: none where that is not wanted or not possible."""
    if not wanted(sys.argv):
        return []
    try:
        return extensions()
    except ImpossibleError as reason:
        if MUST:
            raise SystemExit(f"MULTITOWER_COMPILE=1, but {reason}") from None
        say_not_compiled(reason)
        return []


if "bdist_wheel" in sys.argv:
    # setuptools would put in what an earlier build has left, be it compiled from another list of modules.
    for left in (ROOT / "build").glob("lib*"):
        shutil.rmtree(left)

setup(ext_modules=compiled(), cmdclass={"build_ext": BuildAllOrNothing})
