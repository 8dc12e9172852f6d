"""Installed packages and their versions, compared with those that this release requires."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Final

from multitower.tools.doctor.findings import INSTALL_CUDA, INSTALL_TENSORFLOW, Finding, Level, join_names

SECTION: Final = "versions"
TENSORFLOW: Final = ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu")
"""Distributions that contain the package `tensorflow`."""

SAFE_KERAS: Final = "3.14"

_EXTRAS: Final = ("server", "tensorflow")
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)>=([0-9][0-9A-Za-z.]*)\s*(?:;\s*extra == ['\"]([a-z]+)['\"])?")


def required_versions() -> dict[str, str]:
    """The lowest version of each package that the daemon needs, by this installation's metadata; empty without it."""
    try:
        lines = metadata.requires("multitower") or []
        python = metadata.metadata("multitower")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return {}
    required = {"Python": str(python).removeprefix(">=")}
    for line in lines:
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is not None and (match[3] is None or match[3] in _EXTRAS):
            required[match[1]] = match[2]
    return required


def installed_versions(names: Sequence[str]) -> dict[str, str | None]:
    """The versions of Python, multitower and these packages; None for a package that is not installed."""
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for name in ("multitower", *names):
        candidates = TENSORFLOW if name == "tensorflow" else (name,)
        found[name] = next(filter(None, map(_version, candidates)), None)
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def findings(
    versions: Mapping[str, str | None], required: Mapping[str, str], *, tensorflow_needed: bool
) -> Iterator[Finding]:
    """Findings about the versions.

    Args:
        versions: the result of `installed_versions`.
        required: the result of `required_versions`.
        tensorflow_needed: whether a model has a path.
    """
    good = [
        f"{name} {version}"
        for name, version in versions.items()
        if version and not _is_old(version, required.get(name))
    ]
    yield Finding(SECTION, Level.OK, ", ".join(good))
    if not required:
        text = "multitower is not installed as a package, so the versions that it requires are unknown"
        yield Finding(SECTION, Level.NOTE, text, "`pip install .` in the folder of its sources")
    for name, version in versions.items():
        lowest = required.get(name)
        if version is None and name == "tensorflow":
            yield _no_tensorflow(tensorflow_needed)
        elif version is None and name in required:
            yield Finding(SECTION, Level.PROBLEM, f"{name} is not installed", f"pip install {name}")
        elif version is not None and lowest is not None and _is_old(version, lowest):
            advice = f"this release needs {name} {lowest} or newer"
            if name != "Python":
                advice += f": pip install --upgrade {name}"
            yield Finding(SECTION, Level.PROBLEM, f"{name} {version} is too old", advice)


def compiled_finding(interpreted: Sequence[str]) -> Finding:
    """A finding about the modules that every request passes; `interpreted` are those that are not compiled."""
    if not interpreted:
        return Finding(SECTION, Level.OK, "multitower's data path is compiled")
    text = f"multitower's data path uses more CPU time, because it is not compiled: {join_names(interpreted, 3)}"
    advice = "`pip install .` in the folder of its sources compiles it where a C compiler and Python's headers are"
    return Finding(SECTION, Level.NOTE, text, advice)


def keras_finding(*, needed: bool) -> Finding | None:
    """A finding if Keras is one of the versions that run code hidden in a model's archive although told not to.

    Args:
        needed: whether a model is loaded by it.

    Returns:
        None if it is newer, or not installed.
    """
    version = _version("keras")
    if version is None or not _is_old(version, SAFE_KERAS):
        return None
    text = f"Keras {version} runs code from archives of models that are made to do so (CVE-2026-1462)"
    advice = f"pip install --upgrade 'keras>={SAFE_KERAS}'; with any version, serve only models that you trust"
    return Finding(SECTION, Level.WARNING if needed else Level.NOTE, text, advice)


def bytecode_finding() -> Finding | None:
    """A finding if each worker would compile TensorFlow's modules anew, because their bytecode is not stored.

    pip stores it; `pip install --no-compile` and `uv pip install` do not. Then Python stores it at the first import,
    if it may. Measured: an import of TensorFlow 2.21 takes 12 s of CPU time without stored bytecode, 4 s with it.

    Returns:
        None if the bytecode is stored, or will be by the first worker, or if TensorFlow is not installed.
    """
    spec = util.find_spec("tensorflow")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    module = folder / "python" / "framework" / "ops.py"
    if not module.exists() or Path(util.cache_from_source(str(module))).exists():
        return None
    if sys.dont_write_bytecode:
        cause = "PYTHONDONTWRITEBYTECODE is set"
    elif not os.access(module.parent, os.W_OK):
        cause = f"{folder} is not writable for this user"
    else:
        return None
    text = f"each worker compiles TensorFlow's modules at its start, which takes some 8 s of CPU time: {cause}"
    advice = f"compile them once, as a user who may write there: {sys.executable} -m compileall -q {folder.parent}"
    return Finding(SECTION, Level.WARNING, text, advice)


def _no_tensorflow(needed: bool) -> Finding:
    if not needed:
        return Finding(SECTION, Level.OK, "TensorFlow is not installed; these models are handlers and may not need it")
    advice = f"{INSTALL_TENSORFLOW}; for GPUs, {INSTALL_CUDA}"
    return Finding(SECTION, Level.PROBLEM, "TensorFlow is not installed, and models need it", advice)


def _is_old(version: str, lowest: str | None) -> bool:
    return lowest is not None and _release(version) < _release(lowest)


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a release: `2.21.0rc1` is (2, 21, 0)."""
    numbers: list[int] = []
    for part in version.split("."):
        match = re.match(r"[0-9]+", part)
        if match is None:
            break
        numbers.append(int(match[0]))
        if match[0] != part:
            break
    return tuple(numbers)
