"""What a daemon consists of: the packages of an installation, and the crates of the gateway.

`sbom.py` writes it. This part needs packaging alone, so tests can run it without the other packages of
scripts/sbom-tools.txt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


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
    """The expression, or the first line of what a distribution has as its licence, which may be all of its text."""
    metadata = distribution.metadata
    licence = metadata.get("License-Expression") or metadata.get("License")
    return licence.strip().splitlines()[0][:100] if licence and licence.strip() else None


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
