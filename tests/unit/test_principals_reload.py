"""Principals are put in force in the order in which they were read, and before a reload whose turn has not come."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from multitower.supervisor.config.config import Config
from multitower.supervisor.config.principals import Principal, Principals, Role
from multitower.supervisor.config.source import ConfigError
from multitower.supervisor.operations import principals_reload
from multitower.supervisor.operations.principals_reload import PrincipalsReload


def principals(name: str) -> Principals:
    return Principals([Principal(name, frozenset(Role))])


class Read(Config):
    """A configuration of which only the principals matter."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "__pydantic_private__", {"_principals": principals(name)})


class Scene:
    """Jobs end when the test says so."""

    def __init__(self, *, secured: bool = True) -> None:
        self.in_force: list[str] = []
        self.jobs: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []
        access = SimpleNamespace(apply=lambda each: self.in_force.extend(each.by_name))
        settings = SimpleNamespace(current=SimpleNamespace(config=Read("first")))
        background = SimpleNamespace(run=lambda job, then: self.jobs.append((job, then)))
        self.reload = PrincipalsReload(
            cast(Any, access if secured else None), cast(Any, settings), cast(Any, background), lambda _: Read("unused")
        )

    def end(self, outcome: Config | Exception) -> None:
        """Ends the first job."""
        _, then = self.jobs.pop(0)
        then(outcome)


@pytest.fixture(autouse=True)
def changeable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    keys: list[str] = []
    monkeypatch.setattr(principals_reload, "unchangeable_keys", lambda old, new: keys)
    return keys


def test_what_was_read_is_in_force_at_once() -> None:
    scene = Scene()
    scene.reload.start()
    scene.end(Read("new"))
    assert scene.in_force == ["new"]


def test_what_was_read_earlier_does_not_replace_what_was_read_later() -> None:
    scene = Scene()
    scene.reload.start()
    number = scene.reload.began_to_read()
    scene.reload.apply(principals("later"), number)
    scene.end(Read("earlier"))
    assert scene.in_force == ["later"]


def test_a_file_that_changes_while_it_is_read_is_read_again() -> None:
    scene = Scene()
    for _ in range(3):
        scene.reload.start()
    assert len(scene.jobs) == 1
    scene.end(Read("one"))
    assert len(scene.jobs) == 1
    scene.end(Read("other"))
    assert not scene.jobs
    assert scene.in_force == ["one", "other"]


def test_what_is_wrong_changes_nothing(changeable: list[str]) -> None:
    scene = Scene()
    scene.reload.start()
    scene.end(ConfigError([]))
    changeable.append("listen")
    scene.reload.start()
    scene.end(Read("new"))
    assert scene.in_force == []


def test_without_locks_nothing_is_read() -> None:
    scene = Scene(secured=False)
    scene.reload.start()
    scene.reload.apply(principals("new"), scene.reload.began_to_read())
    assert (scene.jobs, scene.in_force) == ([], [])


def test_a_reload_says_who_was_added_removed_and_changed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "multitower.daemon")
    scene = Scene()
    one, two = (Principals([Principal(name, roles) for name, roles in each]) for each in (
        [("first", frozenset({Role.INFER})), ("second", frozenset(Role))],
        [("second", frozenset(Role)), ("third", frozenset(Role))],
    ))  # fmt: skip
    scene.reload.apply(one, scene.reload.began_to_read())
    assert scene.reload.take_changes() == {"number": 2, "added": ["second"], "removed": [], "changed": ["first"]}
    # What was put in force before the reload, whose turn had not come, is told with the reload's own.
    scene.reload.apply(two, scene.reload.began_to_read())
    scene.reload.apply(Principals(), scene.reload.began_to_read())
    scene.reload.apply(two, scene.reload.began_to_read())
    assert scene.reload.take_changes() == {"number": 2, "added": ["third"], "removed": ["first"], "changed": []}
    assert scene.reload.take_changes() == {"number": 2, "added": [], "removed": [], "changed": []}
    fields = [record.__dict__["fields"] for record in caplog.records]
    assert fields[1] == {"number": 2, "added": "third", "removed": "first"}
    assert len(fields) == 4
