"""Which versions there are, and which of them are served."""

from __future__ import annotations

from pathlib import Path

import pytest
from version_folders import version

from multitower.supervisor.config.version_folders import Policy, chosen_versions, versions_of


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
