"""When versions are served: histories of what scans of a folder have found."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from version_folders import version

from multitower.spec import ModelSpec
from multitower.supervisor.config.version_folders import Policy, list_versions
from multitower.supervisor.operations.model_scan import FolderScan, Target, scan_model
from multitower.supervisor.operations.version_settling import VersionSettling, versions_to_scan

ALL = Policy("all")
SETTLE_S = 5.0
Scan = dict[str, str]


# Each step: the time, what a scan finds, and what is to be served from then on (None: as before).
HISTORIES: dict[str, tuple[Policy, Scan, list[tuple[float, Scan, Scan | None]]]] = {
    "a new version is served once its files have settled": (
        Policy(),
        {"1": "a"},
        [
            (0, {"1": "a", "2": "b"}, None),
            (3, {"1": "a", "2": "bb"}, None),
            (7, {"1": "a", "2": "bb"}, None),
            (8, {"1": "a", "2": "bb"}, {"2": "bb"}),
        ],
    ),
    "a version that keeps growing is never served": (
        Policy(),
        {"1": "a"},
        [(now, {"1": "a", "2": "b" * now}, None) for now in range(1, 30)],
    ),
    "a version that settles while a newer one is copied is served": (
        Policy(),
        {"1": "a"},
        [
            (0, {"1": "a", "2": "b", "3": "c"}, None),
            (5, {"1": "a", "2": "b", "3": "cc"}, {"2": "b"}),
            (10, {"2": "b", "3": "cc"}, {"3": "cc"}),
        ],
    ),
    "a version that is removed and comes back must settle again": (
        Policy(),
        {"1": "a"},
        [
            (0, {"1": "a", "2": "b"}, None),
            (4, {"1": "a"}, None),
            (6, {"1": "a", "2": "b"}, None),
            (11, {"1": "a", "2": "b"}, {"2": "b"}),
        ],
    ),
    "where the served version is removed the one before is served": (
        Policy(),
        {"2": "b"},
        [(0, {"1": "a", "2": "b"}, None), (5, {"1": "a"}, {"1": "a"})],
    ),
    "where no version is left the loaded one stays": (Policy(), {"2": "b"}, [(0, {}, None), (60, {}, None)]),
    "a served version whose files change is served again once settled": (
        Policy(),
        {"1": "a"},
        [(0, {"1": "a"}, None), (1, {"1": "x"}, None), (5, {"1": "xx"}, None), (10, {"1": "xx"}, {"1": "xx"})],
    ),
    "nothing changes while a version that stays is being written": (
        ALL,
        {"1": "a"},
        [
            (0, {"1": "a", "2": "b"}, None),
            (4, {"1": "x", "2": "b"}, None),
            (6, {"1": "x", "2": "b"}, None),
            (9, {"1": "x", "2": "b"}, {"1": "x", "2": "b"}),
        ],
    ),
    "all versions are served": (
        ALL,
        {"1": "a"},
        [(0, {"1": "a", "3": "c"}, None), (5, {"1": "a", "3": "c"}, {"1": "a", "3": "c"})],
    ),
    "the two latest versions are served": (
        Policy("latest", 2),
        {"1": "a", "2": "b"},
        [
            (0, {"1": "a", "2": "b", "3": "c"}, None),
            (5, {"1": "a", "2": "b", "3": "c"}, {"2": "b", "3": "c"}),
        ],
    ),
    "a version that is not listed is ignored": (
        Policy("specific", listed=(1, 3)),
        {"1": "a"},
        [
            (0, {"1": "a", "2": "b"}, None),
            (9, {"1": "a", "2": "b"}, None),
            (10, {"1": "a", "3": "c"}, None),
            (15, {"1": "a", "3": "c"}, {"1": "a", "3": "c"}),
            (16, {"3": "c"}, {"3": "c"}),
        ],
    ),
}


@pytest.mark.parametrize("history", HISTORIES)
def test_versions_are_served_once_settled(history: str) -> None:
    policy, served, steps = HISTORIES[history]
    settling = VersionSettling()
    for now, found, expected in steps:
        settling.record_scan(found, now)
        change = settling.wanted_change(policy, served, SETTLE_S, now)
        assert change == expected, f"at {now}"
        served = change or served


def settled(found: Scan) -> VersionSettling:
    settling = VersionSettling()
    settling.record_scan(found, 0.0)
    return settling


def test_a_version_that_cannot_be_loaded_is_skipped_until_its_files_change() -> None:
    settling = settled({"1": "a", "2": "b"})
    served = {"1": "a"}
    change = settling.wanted_change(Policy(), served, SETTLE_S, 9.0)
    assert change == {"2": "b"}
    settling.record_failed_change(change, {"2": "no weights"}, served)
    settling.record_scan({"1": "a", "2": "b"}, 10.0)
    assert settling.wanted_change(Policy(), served, SETTLE_S, 99.0) is None
    assert settling.refused["2"].cause == "no weights"
    settling.record_scan({"1": "a", "2": "bb"}, 100.0)
    assert settling.refused == {}
    assert settling.wanted_change(Policy(), served, SETTLE_S, 104.0) is None
    assert settling.wanted_change(Policy(), served, SETTLE_S, 105.0) == {"2": "bb"}


def test_good_versions_are_served_and_a_reload_retries_the_refused_one() -> None:
    settling = settled({"1": "a", "2": "b", "3": "c"})
    served = {"1": "a"}
    change = settling.wanted_change(ALL, served, SETTLE_S, 9.0)
    assert change == {"1": "a", "2": "b", "3": "c"}
    settling.record_failed_change(change, {"3": "no weights"}, served)
    assert settling.wanted_change(ALL, served, SETTLE_S, 9.0) == {"1": "a", "2": "b"}
    settling.retry_refused()
    assert settling.wanted_change(ALL, served, SETTLE_S, 9.0) == {"1": "a", "2": "b", "3": "c"}


def test_all_new_versions_are_refused_where_the_bad_one_is_unknown() -> None:
    settling = settled({"1": "a", "2": "b", "3": "c"})
    served = {"1": "a"}
    settling.record_failed_change({"1": "a", "2": "b", "3": "c"}, {"": "the worker died"}, served)
    assert sorted(settling.refused) == ["2", "3"]
    assert settling.wanted_change(ALL, served, SETTLE_S, 9.0) is None


def test_a_failed_change_to_served_versions_is_not_retried_endlessly() -> None:
    settling = settled({"1": "a"})
    served = {"1": "a", "2": "b"}  # which has been removed
    change = settling.wanted_change(ALL, served, SETTLE_S, 0.0)
    assert change == {"1": "a"}
    settling.record_failed_change(change, {"1": "no memory"}, served)
    assert settling.wanted_change(ALL, served, SETTLE_S, 9.0) is None
    settling.record_scan({"1": "a", "3": "c"}, 10.0)
    assert settling.wanted_change(ALL, served, SETTLE_S, 15.0) == {"1": "a", "3": "c"}


def test_a_load_failure_counts_only_for_the_files_that_were_loaded() -> None:
    settling = settled({"1": "a", "2": "bb"})
    settling.refuse("2", "b", "no weights")
    assert settling.refused == {}, "its files have changed since"
    settling.refuse("2", "bb", "no weights")
    assert settling.wanted_change(Policy(), {}, SETTLE_S, 9.0) == {"1": "a"}


@pytest.mark.parametrize(
    ("policy", "served", "refused", "expected"),
    [
        (Policy(), ["3"], [], {"3", "4", "5"}),
        (Policy(), ["5"], [], {"4", "5"}),
        (Policy(), ["5"], ["4"], {"3", "4", "5"}),
        (Policy(), ["7"], [], {"4", "5"}),
        (Policy(), ["7"], ["5"], {"3", "4", "5"}),
        (Policy("specific", listed=(1, 2)), ["2"], [], {"1", "2", "3", "4", "5"}),
        (Policy("latest", 2), ["5"], [], {"3", "4", "5"}),
    ],
)
def test_files_of_old_versions_are_not_scanned(
    policy: Policy, served: list[str], refused: list[str], expected: set[str]
) -> None:
    assert versions_to_scan(["1", "2", "3", "4", "5"], policy, served, refused) == expected


def test_a_version_that_is_being_copied_settles_once_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    version(folder, "1")
    target = Target("m", ModelSpec(name="m", path=str(folder)), Policy(), frozenset(["1"]), frozenset())

    def scan() -> Mapping[str, str]:
        found = scan_model(target)
        assert isinstance(found, FolderScan)
        assert found.unreadable == {}
        return found.prints

    settling = settled(scan())
    served = scan()
    copied = folder / "2"
    copied.mkdir()
    # The files of a small SavedModel; its weights are copied last.
    for now, name in ((1.0, "saved_model.pb"), (4.0, "variables.index"), (8.0, "variables.data")):
        assert settling.wanted_change(Policy(), served, SETTLE_S, now) is None, f"before {name}"
        path = copied / name if name.endswith(".pb") else copied / "variables" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        settling.record_scan(scan(), now)
    assert settling.wanted_change(Policy(), served, SETTLE_S, 12.9) is None
    settling.record_scan(scan(), 13.0)
    change = settling.wanted_change(Policy(), served, SETTLE_S, 13.0)
    assert change is not None
    assert list(change) == ["2"]
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        scan_model(target)
    empty = ModelSpec(name="m", path=str(copied.parent.parent))
    assert scan_model(Target("m", empty, Policy(), frozenset(), frozenset())) == FolderScan({}, {})


def test_a_version_that_failed_for_a_passing_reason_is_tried_again_with_a_back_off() -> None:
    settling = settled({"1": "a", "2": "b"})
    served = {"1": "a"}
    change = settling.wanted_change(Policy(), served, SETTLE_S, 10.0)
    assert change == {"2": "b"}
    tried: list[float] = []
    now = 10.0
    while now < 100.0:
        if settling.wanted_change(Policy(), served, SETTLE_S, now) == change:
            tried.append(now)
            settling.record_failed_change(change, {"2": "permission denied"}, served, {"2"}, now)
        now += 1.0
        settling.record_scan({"1": "a", "2": "b"}, now)
    assert tried == [10.0, 12.0, 16.0, 24.0, 40.0, 72.0]


def test_a_version_that_cannot_be_read_costs_no_other_one() -> None:
    with as_another_user(), tempfile.TemporaryDirectory(prefix="mt-") as name:
        folder = Path(name, "model")
        for number in ("1", "2", "3"):
            version(folder, number)
        (folder / "2").chmod(0o000)
        try:
            found = list_versions(folder)
            assert found is not None
            assert found.found == ("1", "3")
            assert found.unreadable == {"2": "it cannot be read: Permission denied"}
            spec = ModelSpec(name="m", path=str(folder))
            scan = scan_model(Target("m", spec, ALL, frozenset(["1", "2"]), frozenset()))
            assert isinstance(scan, FolderScan)
            assert set(scan.prints) == {"1", "3"}
            assert list(scan.unreadable) == ["2"]
        finally:
            (folder / "2").chmod(0o700)


@contextlib.contextmanager
def as_another_user() -> Iterator[None]:
    """Runs the block as a user who is not root, so that permissions apply. This user owns what the block creates."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(("fingerprint", "left"), [("b", set()), ("a", {"2"})])
def test_a_refusal_ends_when_a_later_try_with_the_same_files_succeeds(fingerprint: str, left: set[str]) -> None:
    settling = VersionSettling()
    settling.record_scan({"2": "b"}, 0.0)
    settling.refuse("2", "b", "it has ended a worker")
    settling.accept("2", fingerprint)
    assert settling.refused.keys() == left
