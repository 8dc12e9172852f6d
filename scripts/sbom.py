"""Writes what a daemon consists of as a software bill of materials (SBOM) in CycloneDX's format: `make sbom`.

Two files: `python.cdx.json` has the packages that an installation of multitower with the extras `server` and
`tensorflow` needs, as they are installed in an environment; `gateway.cdx.json` the crates of the gateway, by
Cargo.lock, with the checksums that cargo verifies. What only tests and tools need is in neither. Run it with the
Python of an environment with scripts/sbom-tools.txt: `python scripts/sbom.py FOLDER --environment PYTHON`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = ("server", "tensorflow")
PLATFORM = "x86_64-unknown-linux-gnu"
WHERE = "import json, sysconfig; print(json.dumps(sorted({sysconfig.get_path(n) for n in ('purelib', 'platlib')})))"


def component(
    name: str, version: str, package: str, licence: str | None, kind: ComponentType, checksum: str | None = None
) -> Component:
    """A component.

    Args:
        name: its name.
        version: its version.
        package: the kind of package, in the sense of package URLs.
        licence: an expression of SPDX, or what the package has instead.
        kind: the kind of component.
        checksum: SHA-256 of its archive, in hexadecimal digits.
    """
    url = PackageURL(package, name=name, version=version)
    return Component(
        type=kind,
        name=name,
        version=version,
        bom_ref=url.to_string(),
        purl=url,
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=checksum)] if checksum else [],
    )


def write(path: Path, root: str, components: Mapping[str, Component], needs: Mapping[str, set[str]]) -> None:
    """Writes a file.

    Args:
        path: the file.
        root: the key of what consists of the others.
        components: by any key.
        needs: for each key those that it needs directly.
    """
    bom = Bom(components=[each for key, each in components.items() if key != root])
    bom.metadata.component = components[root]
    for key, needed in needs.items():
        bom.register_dependency(components[key], [components[other] for other in sorted(needed)])
    path.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")
    print(f"{path}: {len(components) - 1} components")


# Python.


def installed(python: str) -> dict[str, Distribution]:
    """The distributions in the environment of an interpreter, by their canonical names."""
    output = subprocess.run([python, "-c", WHERE], capture_output=True, check=True, text=True).stdout
    return {canonicalize_name(each.metadata["Name"]): each for each in distributions(path=json.loads(output))}


def required(distribution: Distribution, extras: set[str]) -> Iterator[tuple[str, set[str]]]:
    """The names that a distribution with these extras requires here, each with the extras of it."""
    for line in distribution.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield canonicalize_name(requirement.name), set(requirement.extras)


def write_python(python: str, folder: Path) -> None:
    """Writes the packages that an installation needs."""
    present = installed(python)
    root = "multitower"
    if root not in present:
        sys.exit(f"multitower is not installed in the environment of {python}")
    extras: dict[str, set[str]] = {root: set(EXTRAS)}
    needs: dict[str, set[str]] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        found = [(other, wanted) for other, wanted in required(present[name], extras[name]) if other in present]
        needs[name] = {other for other, _ in found} - {name}
        for other, wanted in found:
            if other not in extras or not wanted <= extras[other]:
                extras[other] = extras.get(other, set()) | wanted
                waiting.append(other)
    components = {}
    for name in needs:
        metadata = present[name].metadata
        licence = metadata.get("License-Expression") or metadata.get("License")
        short = licence.strip().splitlines()[0][:100] if licence and licence.strip() else None
        kind = ComponentType.APPLICATION if name == root else ComponentType.LIBRARY
        components[name] = component(name, present[name].version, "pypi", short, kind)
    write(folder / "python.cdx.json", root, components, needs)


# Rust.


def write_gateway(folder: Path) -> None:
    """Writes the crates of the gateway, without those that only its tests need."""
    manifest = ROOT / "gateway" / "Cargo.toml"
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", PLATFORM]
    output = subprocess.run([*command, "--manifest-path", manifest], capture_output=True, check=True, text=True).stdout
    found: dict[str, Any] = json.loads(output)
    crates = {each["id"]: each for each in found["packages"]}
    nodes = {each["id"]: each for each in found["resolve"]["nodes"]}
    lock = tomllib.loads((ROOT / "gateway" / "Cargo.lock").read_text())
    checksums = {(each["name"], each["version"]): each.get("checksum") for each in lock["package"]}
    root = found["resolve"]["root"]
    needs: dict[str, set[str]] = {}
    waiting = [root]
    while waiting:
        id = waiting.pop()
        if id not in needs:
            wanted = [each for each in nodes[id]["deps"] if any(kind["kind"] != "dev" for kind in each["dep_kinds"])]
            needs[id] = {each["pkg"] for each in wanted}
            waiting += needs[id]
    components = {}
    for id in needs:
        name, version = crates[id]["name"], crates[id]["version"]
        kind = ComponentType.APPLICATION if id == root else ComponentType.LIBRARY
        # Before 2018 crates separated alternatives by a slash.
        licence = (crates[id]["license"] or "").replace("/", " OR ") or None
        components[id] = component(name, version, "cargo", licence, kind, checksums.get((name, version)))
    write(folder / "gateway.cdx.json", root, components, needs)


def main() -> None:
    """Writes both files into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--environment", default=sys.executable, metavar="PYTHON", help="an interpreter that has multitower"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    write_python(options.environment, options.folder)
    if shutil.which("cargo") is None:
        print("there is no cargo: gateway.cdx.json is not written")
    else:
        write_gateway(options.folder)


if __name__ == "__main__":
    main()
