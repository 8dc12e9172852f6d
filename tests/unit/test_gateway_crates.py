"""The crates of the gateway have allowed licences and come from crates.io, as gateway/deny.toml demands.

cargo-deny checks the same, and known faults as well (`make gateway-deny`). It is no package of Debian, and building it
takes minutes, so CI has these tests instead.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from sbom_parts import crate_parts

GATEWAY = Path(__file__).parents[2] / "gateway"
DENY = tomllib.loads((GATEWAY / "deny.toml").read_text())
LOCK = tomllib.loads((GATEWAY / "Cargo.lock").read_text())
MANIFEST = tomllib.loads((GATEWAY / "Cargo.toml").read_text())
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"
ALLOWED = set(DENY["licenses"]["allow"])

_TOKEN = re.compile(r"\(|\)|/|[^\s()/]+")


def allowed(licence: str) -> bool:
    """Whether a choice that an SPDX expression offers needs allowed licences only; `/` is an old form of `OR`."""
    tokens = ["OR" if token == "/" else token for token in _TOKEN.findall(licence)]

    def either() -> bool:
        found = both()
        while tokens[:1] == ["OR"]:
            tokens.pop(0)
            found = both() or found
        return found

    def both() -> bool:
        found = one()
        while tokens[:1] == ["AND"]:
            tokens.pop(0)
            found = one() and found
        return found

    def one() -> bool:
        name = tokens.pop(0)
        if name == "(":
            found = either()
            assert tokens.pop(0) == ")"
            return found
        if tokens[:1] == ["WITH"]:
            name = f"{name} WITH {tokens[1]}"
            del tokens[:2]
        return name in ALLOWED

    found = either()
    assert not tokens, f"{licence!r} is not an SPDX expression"
    return found


def cargo_missing() -> str | None:
    """Why cargo cannot read the manifest, or None."""
    if shutil.which("cargo") is None:
        return "there is no cargo"
    done = subprocess.run(["cargo", "--version"], capture_output=True, text=True, timeout=60, check=False)
    version = re.match(r"cargo 1\.(\d+)", done.stdout)
    wanted = int(MANIFEST["package"]["rust-version"].split(".")[1])
    return None if version and int(version[1]) >= wanted else f"there is no cargo 1.{wanted} or newer"


@pytest.mark.parametrize("target", DENY["graph"]["targets"])
@pytest.mark.skipif(bool(cargo_missing()), reason=str(cargo_missing()))
def test_each_crate_of_the_gateway_has_an_allowed_licence(target: str) -> None:
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    done = subprocess.run(command, cwd=GATEWAY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    root, crates, _ = crate_parts(json.loads(done.stdout), LOCK)
    assert len(crates) > 20
    refused = {crate.name: crate.licence for crate in crates.values() if not allowed(crate.licence or "none")}
    assert refused == {}
    assert [id for id, crate in crates.items() if crate.checksum is None] == [root]


def test_each_crate_comes_from_the_public_registry_with_a_checksum() -> None:
    others = [crate for crate in LOCK["package"] if crate["name"] != MANIFEST["package"]["name"]]
    assert [crate["name"] for crate in others if crate.get("source") != CRATES_IO or not crate.get("checksum")] == []


def test_no_dependency_takes_any_version() -> None:
    dependencies = {**MANIFEST["dependencies"], **MANIFEST["dev-dependencies"]}
    versions = {name: each if isinstance(each, str) else each.get("version") for name, each in dependencies.items()}
    assert {name for name, version in versions.items() if not version or "*" in version} == set()


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", True),
        ("MIT/Apache-2.0", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", True),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0-only", False),
        ("none", False),
    ],
)
def test_licence_expressions_are_read_as_spdx_has_them(licence: str, expected: bool) -> None:
    assert allowed(licence) is expected
