"""What `make sbom` lists: the packages and crates that a daemon consists of, and none of tests and tools.

The fields that are looked for are those that http://cyclonedx.org/schema/bom-1.6.schema.json requires.
"""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.licenses import canonicalize_license_expression
from packaging.utils import canonicalize_name
from sbom import write, write_python
from sbom_parts import CLASSIFIERS, Part, Parts, crate_parts, installed_parts


class Made(Distribution):
    """An installed distribution with some lines of metadata."""

    def __init__(self, *lines: str) -> None:
        self._text = "\n".join(("Metadata-Version: 2.4", *lines, "", ""))

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: str | os.PathLike[str]) -> Any:
        raise NotImplementedError


def made(name: str, *requires: str, licence: str = "License-Expression: MIT") -> tuple[str, Distribution]:
    lines = [f"Name: {name}", "Version: 1.0", licence, *(f"Requires-Dist: {line}" for line in requires)]
    return canonicalize_name(name), Made(*lines)


def test_the_packages_of_this_environment_are_found_without_the_tools_of_tests() -> None:
    present = {canonicalize_name(each.metadata["Name"]): each for each in distributions()}
    root, parts, needs = installed_parts(present, "multitower", {"server", "tensorflow"})
    assert {"numpy", "pyzmq", "click", "pydantic"} <= needs[root]
    assert "pydantic-core" in parts, "what they need in turn"
    assert "pytest" in present
    assert parts.keys() & {"pytest", "ruff", "mypy"} == set()
    assert parts["numpy"].version == present["numpy"].version
    assert parts.keys() == needs.keys() == {root}.union(*needs.values())


def test_a_package_is_needed_by_its_extras_and_markers_if_it_is_installed() -> None:
    present = dict(
        [
            made("Root", "one", "Two.Part[fast]>=1", "root[all]; extra == 'all'", "tests; extra == 'dev'"),
            made("one", "two-part[small]; python_version >= '3'", "root", "windows; sys_platform == 'win32'", "absent"),
            made("two_part", "quick; extra == 'fast'", "tiny; extra == 'small'", "large; extra == 'large'"),
            *map(made, ("quick", "tiny", "large", "tests", "windows", "other")),
        ]
    )
    assert installed_parts(present, "root", {"all"}).needs == {
        "root": {"one", "two-part"},
        "one": {"two-part", "root"},
        "two-part": {"quick", "tiny"},
        "quick": set(),
        "tiny": set(),
    }


@pytest.mark.parametrize(
    ("line", "licence"),
    [
        ("License-Expression: MIT OR Apache-2.0", "MIT OR Apache-2.0"),
        ("License: BSD 3-Clause\n        Copyright of somebody", "BSD 3-Clause"),
        ("License: " + "x" * 200, "x" * 100),
        ("License:  ", None),
        ("Summary: without a licence", None),
        ("Classifier: License :: OSI Approved :: MIT License", "MIT"),
        ("License: BSD\nClassifier: License :: OSI Approved :: MIT License", "BSD"),
        ("Classifier: License :: OSI Approved :: BSD License", None),
        (
            "Classifier: License :: OSI Approved :: MIT License\n"
            "Classifier: License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)",
            None,
        ),
    ],
)
def test_a_licence_is_an_expression_or_one_line_or_what_one_classifier_means(line: str, licence: str | None) -> None:
    assert installed_parts(dict([made("m", licence=line)]), "m", set()).parts == {"m": Part("m", "1.0", licence)}


def crate(name: str, **needs: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A crate and its node in the graph: each crate that it needs, with the kind of the need."""
    deps = [{"pkg": f"#{other}", "dep_kinds": [{"kind": kind}]} for other, kind in needs.items()]
    licence = None if name == "gateway" else "MIT/Apache-2.0"
    return {"id": f"#{name}", "name": name, "version": "2.0", "license": licence}, {"id": f"#{name}", "deps": deps}


def test_the_crates_of_a_program_are_found_without_those_of_its_tests() -> None:
    made = [
        crate("gateway", hyper=None, cc="build", tempfile="dev"),
        crate("hyper", bytes=None),
        crate("bytes", hyper="dev"),
        crate("cc"),
        crate("tempfile", bytes=None, rand=None),
        crate("rand"),
    ]
    graph = {"root": "#gateway", "nodes": [node for _, node in made]}
    lock = {"package": [{"name": "gateway", "version": "2.0"}, {"name": "hyper", "version": "2.0", "checksum": "ab"}]}
    found = crate_parts({"packages": [each for each, _ in made], "resolve": graph}, lock)
    assert found.root == "#gateway"
    assert found.needs == {"#gateway": {"#hyper", "#cc"}, "#hyper": {"#bytes"}, "#bytes": set(), "#cc": set()}
    assert found.parts["#gateway"] == Part("gateway", "2.0", None)
    assert found.parts["#hyper"] == Part("hyper", "2.0", "MIT OR Apache-2.0", "ab")


def test_the_identifiers_of_classifiers_are_those_of_spdx() -> None:
    assert {canonicalize_license_expression(each) for each in CLASSIFIERS.values()} == set(CLASSIFIERS.values())


CHECKSUM = "0123456789abcdef" * 4
PARTS = Parts(
    "root",
    {
        "b": Part("b", "2.0+local.1", "BSD", CHECKSUM),
        "root": Part("app", "1.0", "Apache-2.0"),
        "a": Part("a", "0.1", "MIT OR Apache-2.0"),
        "c": Part("c", "3", None),
    },
    {"root": {"a", "b"}, "a": {"c"}, "b": {"c"}, "c": set()},
)


def test_a_bill_of_materials_has_each_part_with_what_is_known_of_it(tmp_path: Path) -> None:
    write(tmp_path / "x.cdx.json", PARTS, "pypi")
    written = json.loads((tmp_path / "x.cdx.json").read_text())
    assert written["metadata"]["component"] == {
        "type": "application",
        "bom-ref": "pkg:pypi/app@1.0",
        "name": "app",
        "version": "1.0",
        "purl": "pkg:pypi/app@1.0",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    purls = ["pkg:pypi/a@0.1", "pkg:pypi/b@2.0%2Blocal.1", "pkg:pypi/c@3"]
    assert [each["purl"] for each in written["components"]] == purls
    assert [each.get("licenses") for each in written["components"]] == [
        [{"expression": "MIT OR Apache-2.0"}],
        [{"license": {"name": "BSD"}}],
        None,
    ]
    hashes = [each.get("hashes") for each in written["components"]]
    assert hashes == [None, [{"alg": "SHA-256", "content": CHECKSUM}], None]
    assert {each["ref"]: each.get("dependsOn", []) for each in written["dependencies"]} == {
        "pkg:pypi/app@1.0": purls[:2],
        purls[0]: purls[2:],
        purls[1]: purls[2:],
        purls[2]: [],
    }


def test_the_bill_of_this_environment_has_every_field_that_cyclonedx_requires(tmp_path: Path) -> None:
    write_python(sys.executable, tmp_path)
    written = json.loads((tmp_path / "python.cdx.json").read_text())
    assert (written["bomFormat"], written["specVersion"], written["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", written["serialNumber"])
    assert datetime.fromisoformat(written["metadata"]["timestamp"]).tzinfo is not None
    components = [written["metadata"]["component"], *written["components"]]
    refs = [each["bom-ref"] for each in components]
    assert len(set(refs)) == len(refs) > 10
    for each in components:
        assert each["type"] in ("application", "library")
        assert each["name"]
        assert re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[A-Za-z0-9.%!_-]+", each["purl"])
        for licence in each.get("licenses", ()):
            assert [*licence.get("license", licence)] in (["id"], ["name"], ["expression"])
    assert sorted(each["ref"] for each in written["dependencies"]) == sorted(refs)
    assert {other for each in written["dependencies"] for other in each.get("dependsOn", ())} <= set(refs)
