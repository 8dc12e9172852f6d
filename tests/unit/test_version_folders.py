"""Which versions there are, which of them are served, and whether one was written again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from version_folders import version

from multitower.supervisor.config.version_folders import Policy, chosen_versions, fingerprint, versions_of


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (Policy(), ("10",)),
        (Policy("latest", 2), ("9", "10")),
        (Policy("latest", 7), ("1", "9", "10")),
        (Policy("all"), ("1", "9", "10")),
        (Policy("specific", listed=(10, 1)), ("1", "10")),
        (Policy("specific", listed=(9, 4)), ("9",)),
        (Policy("specific", listed=(4,)), ()),
    ],
)
def test_a_policy_chooses_versions_by_number(policy: Policy, chosen: tuple[str, ...]) -> None:
    assert policy.choose(["9", "10", "1"]) == chosen
    assert policy.choose([]) == ()


def test_versions_are_folders_of_digits_that_hold_a_saved_model(tmp_path: Path) -> None:
    for number in ("2", "010", "10x", "-1"):
        version(tmp_path, number)
    (tmp_path / "11").mkdir()
    (tmp_path / "12").touch()
    assert versions_of(tmp_path) == ("2", "010")
    assert versions_of(tmp_path / "2") is None, "one SavedModel"
    assert versions_of(tmp_path / "12") is None, "a file"
    with pytest.raises(FileNotFoundError):
        versions_of(tmp_path / "absent")


def test_the_versions_that_a_daemon_loads_at_startup(tmp_path: Path) -> None:
    for number in ("1", "2", "03"):
        version(tmp_path, number)
    assert chosen_versions(tmp_path, Policy("latest", 2)) == ("2", "03")
    assert chosen_versions(tmp_path, Policy("specific", listed=(3, 4))) == ("03",)
    assert chosen_versions(tmp_path, Policy("specific", listed=(4, 5))) == ("4", "5"), "loading reports what is missing"
    assert chosen_versions(tmp_path / "1", Policy()) == (None,)


def test_a_fingerprint_depends_on_all_files_and_on_nothing_else(tmp_path: Path) -> None:
    path = version(tmp_path, "1")
    weights = path / "variables" / "variables.data"
    seen = [fingerprint(tmp_path, "1")]
    assert fingerprint(path, None) == fingerprint(tmp_path, "1"), "whatever its location"

    def changed() -> bool:
        seen.append(fingerprint(tmp_path, "1"))
        return seen[-1] not in seen[:-1]

    weights.write_bytes(b"more")
    assert changed()
    os.utime(weights, ns=(5, 5))
    assert changed()
    (path / "assets").mkdir()
    (path / "assets" / "words").touch()
    assert changed()
    (path / "assets" / "words").rename(path / "assets" / "names")
    assert changed()
    assert not changed()
    shutil.copytree(path, tmp_path / "elsewhere", copy_function=shutil.copy2)
    (tmp_path / "2").symlink_to(tmp_path / "elsewhere")
    assert fingerprint(tmp_path, "2") == fingerprint(tmp_path, "1"), "links are followed"
    (path / "saved_model.pb").unlink()
    assert fingerprint(tmp_path, "1") == ""
