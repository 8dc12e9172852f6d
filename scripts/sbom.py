"""Writes what a daemon consists of as a software bill of materials (SBOM) in CycloneDX's format: `make sbom`.

Two files: `python.cdx.json` has the packages that an installation of multitower with the extras `server` and
`tensorflow` needs, as they are installed in an environment; `gateway.cdx.json` the crates of the gateway, by
Cargo.lock, with the checksums that cargo verifies. What only tests and tools need is in neither.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.utils import canonicalize_name
from sbom_parts import Part, Parts, crate_parts, installed_parts

ROOT = Path(__file__).parents[1]
EXTRAS = {"server", "tensorflow"}
PLATFORM = "x86_64-unknown-linux-gnu"
WHERE = "import json, sysconfig; print(json.dumps(sorted({sysconfig.get_path(n) for n in ('purelib', 'platlib')})))"


def component(part: Part, package: str, kind: ComponentType) -> Component:
    """A component.

    Args:
        part: what it is.
        package: the kind of package, in the sense of package URLs.
        kind: the kind of component.
    """
    url = PackageURL(package, name=part.name, version=part.version)
    return Component(
        type=kind,
        name=part.name,
        version=part.version,
        bom_ref=url.to_string(),
        purl=url,
        licenses=[LicenseFactory().make_from_string(part.licence)] if part.licence else [],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=part.checksum)] if part.checksum else [],
    )


def write(path: Path, found: Parts, package: str) -> None:
    """Writes a file.

    Args:
        path: the file.
        found: what it lists.
        package: the kind of all packages, in the sense of package URLs.
    """
    components = {
        key: component(part, package, ComponentType.APPLICATION if key == found.root else ComponentType.LIBRARY)
        for key, part in found.parts.items()
    }
    bom = Bom(components=[each for key, each in components.items() if key != found.root])
    bom.metadata.component = components[found.root]
    for key, needed in found.needs.items():
        bom.register_dependency(components[key], [components[other] for other in sorted(needed)])
    path.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")
    print(f"{path}: {len(components) - 1} components")


def installed(python: str) -> dict[str, Distribution]:
    """The distributions in the environment of an interpreter, by their canonical names."""
    output = subprocess.run([python, "-c", WHERE], capture_output=True, check=True, text=True).stdout
    return {canonicalize_name(each.metadata["Name"]): each for each in distributions(path=json.loads(output))}


def write_python(python: str, folder: Path) -> None:
    """Writes the packages that an installation needs."""
    present, root = installed(python), "multitower"
    if root not in present:
        sys.exit(f"multitower is not installed in the environment of {python}")
    write(folder / "python.cdx.json", installed_parts(present, root, EXTRAS), "pypi")


def write_gateway(folder: Path) -> None:
    """Writes the crates of the gateway, without those that only its tests need."""
    manifest = ROOT / "gateway" / "Cargo.toml"
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", PLATFORM]
    output = subprocess.run([*command, "--manifest-path", manifest], capture_output=True, check=True, text=True).stdout
    lock = tomllib.loads((ROOT / "gateway" / "Cargo.lock").read_text())
    write(folder / "gateway.cdx.json", crate_parts(json.loads(output), lock), "cargo")


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
