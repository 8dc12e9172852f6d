"""Which versions are installed, and whether they are those that this release asks for."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Final

from multitower.tools.doctor.findings import Finding, Level

SECTION: Final = "versions"
TENSORFLOW: Final = ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu")
"""Distributions that bring the package `tensorflow`."""

_EXTRAS: Final = ("server", "tensorflow")
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)>=([0-9][0-9A-Za-z.]*)\s*(?:;\s*extra == ['\"]([a-z]+)['\"])?")


def requirements() -> dict[str, str]:
    """The least version of each package that the daemon needs, as this installation says; empty where it does not."""
    try:
        lines = metadata.requires("multitower") or []
        python = metadata.metadata("multitower")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return {}
    found = {"Python": str(python).removeprefix(">=")}
    for line in lines:
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is not None and (match[3] is None or match[3] in _EXTRAS):
            found[match[1]] = match[2]
    return found


def installed(names: Sequence[str]) -> dict[str, str | None]:
    """The versions of these packages, None where one is not installed; with Python's own and multitower's."""
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
    versions: Mapping[str, str | None], needed: Mapping[str, str], *, tensorflow_needed: bool
) -> Iterator[Finding]:
    """What there is to say of the versions.

    Args:
        versions: what `installed` gave.
        needed: what `requirements` gave.
        tensorflow_needed: some model has a path.
    """
    good = [
        f"{name} {version}" for name, version in versions.items() if version and not _old(version, needed.get(name))
    ]
    yield Finding(SECTION, Level.OK, ", ".join(good))
    if not needed:
        advice = "pip install 'multitower[tensorflow]' (or '.[tensorflow]' in a checkout)"
        yield Finding(SECTION, Level.NOTE, "multitower is not installed, so the least versions are not known", advice)
    for name, version in versions.items():
        least = needed.get(name)
        if version is None and name == "tensorflow":
            yield _no_tensorflow(tensorflow_needed)
        elif version is None and name in needed:
            yield Finding(SECTION, Level.PROBLEM, f"{name} is not installed", "pip install 'multitower[server]'")
        elif version is not None and least is not None and _old(version, least):
            advice = f"this release needs {name} {least} or newer"
            yield Finding(SECTION, Level.PROBLEM, f"{name} {version} is too old", advice)


def build(is_compiled: bool) -> Finding:
    """How the data path runs."""
    if is_compiled:
        return Finding(SECTION, Level.OK, "multitower's data path is compiled")
    advice = "`pip install .` compiles it where there are a C compiler and Python's headers, unless it is --editable"
    return Finding(SECTION, Level.NOTE, "multitower's data path is not compiled, and takes more of the CPU", advice)


def _no_tensorflow(needed: bool) -> Finding:
    if not needed:
        return Finding(SECTION, Level.OK, "TensorFlow is not installed; these models are handlers and may not need it")
    advice = "pip install 'multitower[tensorflow]', or 'multitower[gpu]', which brings CUDA's libraries along"
    return Finding(SECTION, Level.PROBLEM, "TensorFlow is not installed, and models need it", advice)


def _old(version: str, least: str | None) -> bool:
    return least is not None and _numbers(version) < _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    """The release's numbers: `2.21.0rc1` is (2, 21, 0)."""
    numbers: list[int] = []
    for part in version.split("."):
        match = re.match(r"[0-9]+", part)
        if match is None:
            break
        numbers.append(int(match[0]))
        if match[0] != part:
            break
    return tuple(numbers)
