"""When versions are taken: histories of what looks at a folder have shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from version_folders import version

from multitower.supervisor.config.version_folders import Policy
from multitower.supervisor.operations.version_settling import VersionSettling, worth_looking_at
from multitower.supervisor.operations.version_watch import Target, look

ALL = Policy("all")
SETTLE_S = 5.0
Seen = dict[str, str]


# Each step: the time, what is seen, and what is to be served from then on (None: as before).
HISTORIES: dict[str, tuple[Policy, Seen, list[tuple[float, Seen, Seen | None]]]] = {
    "a new one is taken when its files have stayed as they are": (
        Policy(),
        {"1": "a"},
        [
            (0, {"1": "a", "2": "b"}, None),
            (3, {"1": "a", "2": "bb"}, None),
            (7, {"1": "a", "2": "bb"}, None),
            (8, {"1": "a", "2": "bb"}, {"2": "bb"}),
        ],
    ),
    "one that grows for ever is never taken": (
        Policy(),
        {"1": "a"},
        [(now, {"1": "a", "2": "b" * now}, None) for now in range(1, 30)],
    ),
    "one that settles while a newer one is copied is taken": (
        Policy(),
        {"1": "a"},
        [
            (0, {"1": "a", "2": "b", "3": "c"}, None),
            (5, {"1": "a", "2": "b", "3": "cc"}, {"2": "b"}),
            (10, {"2": "b", "3": "cc"}, {"3": "cc"}),
        ],
    ),
    "one that comes back must settle again": (
        Policy(),
        {"1": "a"},
        [
            (0, {"1": "a", "2": "b"}, None),
            (4, {"1": "a"}, None),
            (6, {"1": "a", "2": "b"}, None),
            (11, {"1": "a", "2": "b"}, {"2": "b"}),
        ],
    ),
    "one that is removed makes room for the one before": (
        Policy(),
        {"2": "b"},
        [(0, {"1": "a", "2": "b"}, None), (5, {"1": "a"}, {"1": "a"})],
    ),
    "where none is left, what is loaded goes on": (Policy(), {"2": "b"}, [(0, {}, None), (60, {}, None)]),
    "one that is served is written again": (
        Policy(),
        {"1": "a"},
        [(0, {"1": "a"}, None), (1, {"1": "x"}, None), (5, {"1": "xx"}, None), (10, {"1": "xx"}, {"1": "xx"})],
    ),
    "nothing is loaded while one that is to stay is being written again": (
        ALL,
        {"1": "a"},
        [
            (0, {"1": "a", "2": "b"}, None),
            (4, {"1": "x", "2": "b"}, None),
            (6, {"1": "x", "2": "b"}, None),
            (9, {"1": "x", "2": "b"}, {"1": "x", "2": "b"}),
        ],
    ),
    "all": (ALL, {"1": "a"}, [(0, {"1": "a", "3": "c"}, None), (5, {"1": "a", "3": "c"}, {"1": "a", "3": "c"})]),
    "two of them": (
        Policy("latest", 2),
        {"1": "a", "2": "b"},
        [
            (0, {"1": "a", "2": "b", "3": "c"}, None),
            (5, {"1": "a", "2": "b", "3": "c"}, {"2": "b", "3": "c"}),
        ],
    ),
    "one that is not listed is nobody's business": (
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
def test_histories(history: str) -> None:
    policy, served, steps = HISTORIES[history]
    settling = VersionSettling()
    for now, seen, expected in steps:
        settling.see(seen, now)
        change = settling.change(policy, served, SETTLE_S, now)
        assert change == expected, f"at {now}"
        served = change or served


def settled(seen: Seen) -> VersionSettling:
    settling = VersionSettling()
    settling.see(seen, 0.0)
    return settling


def test_one_that_cannot_be_loaded_is_passed_over_until_its_files_change() -> None:
    settling = settled({"1": "a", "2": "b"})
    served = {"1": "a"}
    change = settling.change(Policy(), served, SETTLE_S, 9.0)
    assert change == {"2": "b"}
    settling.failed(change, {"2": "no weights"}, served)
    settling.see({"1": "a", "2": "b"}, 10.0)
    assert settling.change(Policy(), served, SETTLE_S, 99.0) is None
    assert settling.refused["2"].cause == "no weights"
    settling.see({"1": "a", "2": "bb"}, 100.0)
    assert settling.refused == {}
    assert settling.change(Policy(), served, SETTLE_S, 104.0) is None
    assert settling.change(Policy(), served, SETTLE_S, 105.0) == {"2": "bb"}


def test_the_good_ones_beside_it_are_taken_and_an_operator_may_have_it_tried_again() -> None:
    settling = settled({"1": "a", "2": "b", "3": "c"})
    served = {"1": "a"}
    change = settling.change(ALL, served, SETTLE_S, 9.0)
    assert change == {"1": "a", "2": "b", "3": "c"}
    settling.failed(change, {"3": "no weights"}, served)
    assert settling.change(ALL, served, SETTLE_S, 9.0) == {"1": "a", "2": "b"}
    settling.try_again()
    assert settling.change(ALL, served, SETTLE_S, 9.0) == {"1": "a", "2": "b", "3": "c"}


def test_where_nobody_knows_which_it_was_all_new_ones_are_passed_over() -> None:
    settling = settled({"1": "a", "2": "b", "3": "c"})
    served = {"1": "a"}
    settling.failed({"1": "a", "2": "b", "3": "c"}, {"": "the worker died"}, served)
    assert sorted(settling.refused) == ["2", "3"]
    assert settling.change(ALL, served, SETTLE_S, 9.0) is None


def test_a_change_that_failed_for_what_is_served_is_not_tried_for_ever() -> None:
    settling = settled({"1": "a"})
    served = {"1": "a", "2": "b"}  # which has been removed
    change = settling.change(ALL, served, SETTLE_S, 0.0)
    assert change == {"1": "a"}
    settling.failed(change, {"1": "no memory"}, served)
    assert settling.change(ALL, served, SETTLE_S, 9.0) is None
    settling.see({"1": "a", "3": "c"}, 10.0)
    assert settling.change(ALL, served, SETTLE_S, 15.0) == {"1": "a", "3": "c"}


def test_one_that_no_worker_could_load_since_the_start_counts_only_with_the_files_of_then() -> None:
    settling = settled({"1": "a", "2": "bb"})
    settling.refuse("2", "b", "no weights")
    assert settling.refused == {}, "they have changed since"
    settling.refuse("2", "bb", "no weights")
    assert settling.change(Policy(), {}, SETTLE_S, 9.0) == {"1": "a"}


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
def test_old_versions_are_not_read_at_every_look(
    policy: Policy, served: list[str], refused: list[str], expected: set[str]
) -> None:
    assert worth_looking_at(["1", "2", "3", "4", "5"], policy, served, refused) == expected


def test_looks_at_real_folders_while_a_version_is_copied(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    version(folder, "1")
    target = Target("m", str(folder), Policy(), frozenset(["1"]), frozenset())

    def seen() -> Seen:
        found = look([target])["m"]
        assert isinstance(found, dict)
        return found

    settling = settled(seen())
    served = seen()
    copied = folder / "2"
    copied.mkdir()
    # The least that there is of a copy: its weights come last.
    for now, name in ((1.0, "saved_model.pb"), (4.0, "variables.index"), (8.0, "variables.data")):
        assert settling.change(Policy(), served, SETTLE_S, now) is None, f"before {name}"
        (copied / name).write_bytes(b"x")
        settling.see(seen(), now)
    assert settling.change(Policy(), served, SETTLE_S, 12.9) is None
    settling.see(seen(), 13.0)
    change = settling.change(Policy(), served, SETTLE_S, 13.0)
    assert change is not None
    assert list(change) == ["2"]
    shutil.rmtree(folder)
    assert isinstance(look([target])["m"], FileNotFoundError)
    assert look([Target("m", str(copied.parent.parent), Policy(), frozenset(), frozenset())]) == {"m": {}}
