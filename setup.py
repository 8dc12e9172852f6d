"""Compiles the modules that multitower/compiled.py lists; pyproject.toml holds the rest of the build.

These modules are plain, typed Python. mypyc translates them to C, which saves a third to a half of the daemon's and the
workers' CPU time (docs/performance.md). `pip install .` and wheels compile them if mypy, a C compiler and Python's
headers are installed. Otherwise the package is installed uncompiled and behaves the same. An editable installation is
not compiled, so that edits take effect.

`MULTITOWER_COMPILE=0` compiles nothing. `MULTITOWER_COMPILE=1` compiles an editable installation too, and fails if
anything cannot be compiled.
"""

from __future__ import annotations

import os
import runpy
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

GROUP = "multitower._compiled"
"""The shared library that holds the code of all compiled modules."""

# Not all packages that these modules import are installed where a wheel is built; `make lint` checks types with all.
SETTINGS = "[mypy]\nfollow_imports = silent\nignore_missing_imports = true\n"

PROBE = "#include <Python.h>\nint main(void) { return 0; }\n"


REQUIRED = os.environ.get("MULTITOWER_COMPILE") == "1"


class CannotCompileError(Exception):
    """The modules cannot be compiled here; the message says why."""


def warn_not_compiled(reason: Exception) -> None:
    """Tells the user that the installation goes on without compiling."""
    sys.stderr.write(f"multitower is installed uncompiled, which makes it slower: {reason}\n")


def is_wanted(arguments: list[str]) -> bool:
    """Whether this command compiles: commands that make a wheel do, unless MULTITOWER_COMPILE says otherwise."""
    if os.environ.get("MULTITOWER_COMPILE") == "0":
        return False
    return bool({"bdist_wheel", "build_ext"}.intersection(arguments)) or ("editable_wheel" in arguments and REQUIRED)


def check_compiler() -> None:
    """Checks that there is a C compiler that finds Python's headers.

    Raises:
        CannotCompileError: it does not.
    """
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    if shutil.which(compiler[0]) is None:
        raise CannotCompileError(f"there is no C compiler ({compiler[0]})")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(PROBE)
        include = f"-I{sysconfig.get_path('include')}"
        command = [*compiler, include, "-c", str(source), "-o", f"{folder}/probe.o"]
        tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode:
        raise CannotCompileError(f"a C compiler, but not Python's headers:\n{tried.stderr}")


def extensions() -> list[Any]:
    """Translates the modules to C.

    Raises:
        CannotCompileError: mypy is not installed, or refuses the modules.
    """
    check_compiler()
    try:
        from mypyc.build import mypycify
    except ImportError as error:
        raise CannotCompileError(f"mypy is not installed ({error})") from None
    shutil.rmtree(STAGE, ignore_errors=True)
    # One tree, laid out as the modules are imported: some archives do not keep the links that do so in a checkout.
    for source, target in FOLDERS.items():
        ignore = shutil.ignore_patterns("__pycache__", "*.so", "supervisor", "worker")
        shutil.copytree(ROOT / source, STAGE / target, ignore=ignore)
    settings = STAGE / "mypy.ini"
    settings.write_text(SETTINGS)
    names = runpy.run_path(str(STAGE / "multitower" / "compiled.py"))["modules"](STAGE / "multitower")
    paths = [name.replace(".", "/") + ".py" for name in names]
    before = Path.cwd()
    os.chdir(STAGE)  # so that tracebacks name the files as they are imported
    try:
        made = mypycify(
            ["--config-file", str(settings), *paths],
            # Level 1 takes half the time of level 2 and runs nearly as fast: most work is in the interpreter's own C.
            opt_level="1",
            debug_level="0",
            group_name=GROUP,
            target_dir=str(STAGE / "c"),
        )
    except SystemExit:
        raise CannotCompileError("mypyc refuses the modules; see above") from None
    finally:
        os.chdir(before)
    for extension in made:
        # setuptools wants paths within the project.
        extension.sources = [os.path.relpath(source, ROOT) for source in extension.sources]
        # A compiler that is newer than mypyc may know more warnings.
        flags = [flag for flag in extension.extra_compile_args if flag != "-Werror"]
        # For this warning, which Python's -Wall asks for, gcc looks up the lines of each `if` in 38 MB of C, from the
        # first one on: that takes longer than everything else.
        extension.extra_compile_args = [*flags, "-Wno-misleading-indentation"]
    # Written in C by hand: a whole message of libzmq in one call.
    return [*made, Extension("multitower._frames", ["multitower/_frames.c"], libraries=["dl"])]


class BuildAllOrNothing(build_ext):
    """Builds all extensions or, if one fails, none: each compiled module needs the library that holds all of them."""

    def run(self) -> None:
        """Called by setuptools."""
        try:
            super().run()
        except (BaseError, CCompilerError, OSError) as error:  # CCompilerError is no BaseError
            if REQUIRED:
                raise
            for path in self.get_outputs():
                Path(path).unlink(missing_ok=True)
            self.extensions.clear()
            warn_not_compiled(error)


def compiled() -> list[Any]:
    """The extensions to build: none if that is not wanted or not possible."""
    if not is_wanted(sys.argv):
        return []
    try:
        return extensions()
    except CannotCompileError as reason:
        if REQUIRED:
            raise SystemExit(f"MULTITOWER_COMPILE=1, but {reason}") from None
        warn_not_compiled(reason)
        return []


if "bdist_wheel" in sys.argv:
    # setuptools would pack what an earlier build left behind, compiled perhaps from another list of modules.
    for left in (ROOT / "build").glob("lib*"):
        shutil.rmtree(left)

setup(ext_modules=compiled(), cmdclass={"build_ext": BuildAllOrNothing})
