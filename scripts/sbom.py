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
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name
from sbom_parts import Part, Parts, crate_parts, installed_parts

ROOT = Path(__file__).parents[1]
EXTRAS = {"server", "tensorflow"}
PLATFORM = "x86_64-unknown-linux-gnu"
WHERE = "import json, sysconfig; print(json.dumps(sorted({sysconfig.get_path(n) for n in ('purelib', 'platlib')})))"


def package_url(part: Part, package: str) -> str:
    """The package URL (purl) of a part; its characters are those that need no escapes, or escaped."""
    return f"pkg:{package}/{quote(part.name, safe='')}@{quote(part.version, safe='')}"


def licences(licence: str) -> list[dict[str, Any]]:
    """A licence as CycloneDX has it: an id of SPDX, an expression, or the name that a package gives."""
    try:
        expression = canonicalize_license_expression(licence)
    except InvalidLicenseExpression:
        return [{"license": {"name": licence}}]
    if " " in expression or expression.startswith("LicenseRef-"):
        return [{"expression": expression}]
    return [{"license": {"id": expression}}]


def component(part: Part, package: str, kind: str) -> dict[str, Any]:
    """A component, as CycloneDX has it.

    Args:
        part: what it is.
        package: the kind of package, in the sense of package URLs.
        kind: `application` or `library`.
    """
    url = package_url(part, package)
    made: dict[str, Any] = {"type": kind, "bom-ref": url, "name": part.name, "version": part.version, "purl": url}
    if part.licence:
        made["licenses"] = licences(part.licence)
    if part.checksum:
        made["hashes"] = [{"alg": "SHA-256", "content": part.checksum}]
    return made


def bill(found: Parts, package: str) -> dict[str, Any]:
    """The bill of materials of what `found` lists, in version 1.6 of CycloneDX.

    Args:
        found: what it lists.
        package: the kind of all packages, in the sense of package URLs.
    """
    urls = {key: package_url(part, package) for key, part in found.parts.items()}
    others = sorted((key for key in found.parts if key != found.root), key=urls.__getitem__)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": component(found.parts[found.root], package, "application"),
        },
        "components": [component(found.parts[key], package, "library") for key in others],
        "dependencies": [
            {"ref": urls[key], "dependsOn": sorted({urls[other] for other in found.needs[key]})}
            for key in [found.root, *others]
        ],
    }


def write(path: Path, found: Parts, package: str) -> None:
    """Writes a file; see `bill`."""
    path.write_text(json.dumps(bill(found, package), indent=2) + "\n")
    print(f"{path}: {len(found.parts) - 1} components")


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
