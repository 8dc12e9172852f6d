"""The tools that CI installs beside the product are pinned, with the hashes of their files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
FILES = ("ci-build-tools.txt", "ci-tools.txt")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OF_THE_PRODUCT = {"tf-keras"}
"""What a test of the product uses as users do: the version that pip finds."""


def pins(name: str) -> dict[str, str]:
    """The versions that a file pins; each requirement must have a hash."""
    lines = [line for line in (SCRIPTS / name).read_text().splitlines() if line and not line.startswith("#")]
    found = {}
    for entry in re.split(r"\n(?=\S)", "\n".join(lines)):
        first, *hashes = (line.strip().removesuffix("\\").strip() for line in entry.splitlines())
        requirement = Requirement(first)
        (pin,) = requirement.specifier
        assert pin.operator == "==", first
        assert hashes, f"{first} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), first
        found[canonicalize_name(requirement.name)] = pin.version
    return found


@pytest.mark.parametrize("name", FILES)
def test_each_requirement_is_pinned_and_has_hashes(name: str) -> None:
    assert pins(name)


def test_every_tool_of_the_extras_is_pinned_in_a_version_that_they_allow() -> None:
    pinned = pins("ci-build-tools.txt") | pins("ci-tools.txt")
    tools = [
        Requirement(line) for extra in ("dev", "docs") for line in EXTRAS[extra] if not line.startswith("multitower[")
    ]
    wanted = {canonicalize_name(tool.name): tool.specifier for tool in tools}
    assert {name for name in wanted if name not in pinned} == OF_THE_PRODUCT
    assert {name for name in wanted if name in pinned and pinned[name] not in wanted[name]} == set()


def test_what_two_files_pin_has_one_version() -> None:
    build, tools = pins("ci-build-tools.txt"), pins("ci-tools.txt")
    assert {name: tools.get(name, version) for name, version in build.items()} == build


def test_ci_installs_them_by_their_hashes_before_anything_else() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    (pinned,) = re.findall(r"^pinned='(.*)'$", script, re.MULTILINE)
    (by_uv,) = re.findall(r"^if \$by_uv (.* --requirement scripts/ci-tools\.txt); then$", script, re.MULTILINE)
    for options in (pinned, by_uv):
        assert {"--require-hashes", "--no-deps"} <= set(options.split())
    order = [
        script.index(f"\n{line}\n")
        for line in (
            "$pinned --requirement scripts/ci-build-tools.txt",
            "make .venv/.build",
            f"if $by_uv {by_uv}; then",
            "    $pinned --requirement scripts/ci-tools.txt",
            "make .venv/.all",
        )
    ]
    assert order == sorted(order)
    assert re.findall(r"-m pip .*\b(?:install|config)\b", script) == [
        "-m pip --quiet --disable-pip-version-check install",
        "-m pip config",
    ]
