"""What a daemon consists of: the packages of an installation, and the crates of the gateway. `sbom.py` writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution
from typing import Any, Final, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CLASSIFIERS: Final = {
    "License :: CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "License :: OSI Approved :: Boost Software License 1.0 (BSL-1.0)": "BSL-1.0",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: MIT No Attribution License (MIT-0)": "MIT-0",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
    "License :: OSI Approved :: The Unlicense (Unlicense)": "Unlicense",
    "License :: OSI Approved :: Zero-Clause BSD (0BSD)": "0BSD",
    "License :: OSI Approved :: zlib/libpng License": "Zlib",
}
"""The identifiers of SPDX for classifiers that mean one licence. `BSD License`, for example, may mean several."""


class Part(NamedTuple):
    """A package, or a crate.

    Attributes:
        name: its name.
        version: its version.
        licence: an expression of SPDX, or what the package has instead; None if it does not say.
        checksum: SHA-256 of its archive, in hexadecimal digits; None if it is not known.
    """

    name: str
    version: str
    licence: str | None
    checksum: str | None = None


class Parts(NamedTuple):
    """What something consists of.

    Attributes:
        root: the key of what consists of the others.
        parts: by any key.
        needs: for each key those that it needs directly.
    """

    root: str
    parts: dict[str, Part]
    needs: dict[str, set[str]]


def required(distribution: Distribution, extras: set[str]) -> Iterator[tuple[str, set[str]]]:
    """The names that a distribution with these extras requires here, each with the extras of it."""
    for line in distribution.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield canonicalize_name(requirement.name), set(requirement.extras)


def installed_parts(present: Mapping[str, Distribution], root: str, extras: set[str]) -> Parts:
    """The packages that a distribution with these extras needs, as far as they are installed.

    Args:
        present: what is installed, by its canonical name.
        root: the canonical name of the distribution.
        extras: its extras.
    """
    wanted_extras: dict[str, set[str]] = {root: extras}
    needs: dict[str, set[str]] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        found = [(other, wanted) for other, wanted in required(present[name], wanted_extras[name]) if other in present]
        needs[name] = {other for other, _ in found} - {name}
        for other, wanted in found:
            if other not in wanted_extras or not wanted <= wanted_extras[other]:
                wanted_extras[other] = wanted_extras.get(other, set()) | wanted
                waiting.append(other)
    return Parts(root, {name: Part(name, present[name].version, _licence(present[name])) for name in needs}, needs)


def _licence(distribution: Distribution) -> str | None:
    """What a distribution says about its licence.

    The expression, or the first line of its licence, which may be all of its text; where it has neither, the licence
    that its only classifier of a licence means.
    """
    metadata = distribution.metadata
    licence = (metadata.get("License-Expression") or metadata.get("License") or "").strip()
    if licence:
        return licence.splitlines()[0][:100]
    classifiers = [each for each in metadata.get_all("Classifier") or () if each.startswith("License :: ")]
    return CLASSIFIERS.get(classifiers[0]) if len(classifiers) == 1 else None


def crate_parts(metadata: Mapping[str, Any], lock: Mapping[str, Any]) -> Parts:
    """The crates of a program, without those that only its tests need.

    Args:
        metadata: what `cargo metadata` prints.
        lock: Cargo.lock, which has the checksums that cargo verifies.
    """
    crates = {each["id"]: each for each in metadata["packages"]}
    nodes = {each["id"]: each for each in metadata["resolve"]["nodes"]}
    checksums = {(each["name"], each["version"]): each.get("checksum") for each in lock["package"]}
    root = metadata["resolve"]["root"]
    needs: dict[str, set[str]] = {}
    waiting = [root]
    while waiting:
        id = waiting.pop()
        if id not in needs:
            wanted = [each for each in nodes[id]["deps"] if any(kind["kind"] != "dev" for kind in each["dep_kinds"])]
            needs[id] = {each["pkg"] for each in wanted}
            waiting += needs[id]
    parts = {}
    for id in needs:
        name, version = crates[id]["name"], crates[id]["version"]
        # Before 2018 crates separated alternatives by a slash.
        licence = (crates[id]["license"] or "").replace("/", " OR ") or None
        parts[id] = Part(name, version, licence, checksums.get((name, version)))
    return Parts(root, parts, needs)
