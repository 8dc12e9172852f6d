"""One version has one content: workers that read other files than the others do not serve beside them."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any, cast

import pytest
from version_folders import version
from watched_daemon import Daemon

from multitower.errors import MultitowerError
from multitower.model_files import SMALL_FILE
from multitower.spec import FILES_CHANGED, ModelSpec
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.operations.content_hashing import ContentBaseline, ContentHasher, HashedContent
from multitower.supervisor.workers.slot_state_machine import State

OLD, NEW = b"old", b"new"
LARGE_OLD, LARGE_NEW = b"o" * (SMALL_FILE + 1), b"n" * (SMALL_FILE + 1)


def daemon_of(folder: Path, content: bytes = OLD, **arguments: Any) -> Daemon:
    """Returns a daemon that serves a model without versions; `point` changes its files."""
    point(folder, content)
    daemon = Daemon(folder, **arguments)
    daemon.settle()
    return daemon


def point(folder: Path, content: bytes) -> None:
    """Lets the link to the model lead to files with this content, as Kubernetes does; equal links, equal files."""
    name = f"content-{hash(content)}"
    if not (folder / name).exists():
        version(folder, name, content)
    (folder / "next").symlink_to(name)
    (folder / "next").rename(folder / "model")


def touch(folder: Path) -> None:
    os.utime(folder / "model" / "variables" / "variables.data")


def generations(daemon: Daemon) -> set[int]:
    """Returns the generations that workers serve."""
    workers = [slot.route.worker for slot in daemon.manager.slots if slot.route is not None]
    return {worker.versions["m", "1"].generation for worker in workers if ("m", "1") in worker.versions}


def hash_contents(daemon: Daemon) -> None:
    """The daemon hashes what it serves."""
    context = daemon.operations.context
    background = cast(BackgroundJobs, context.background)
    ContentBaseline(daemon.operations.settings, daemon.manager, background, ContentHasher()).tick(daemon.scene.now)


@pytest.mark.parametrize("fits", [True, False])
def test_a_restarted_worker_waits_while_others_serve_the_former_files(tmp_path: Path, fits: bool) -> None:
    daemon = daemon_of(tmp_path, slots=2, fits=fits)
    before = generations(daemon)
    point(tmp_path, NEW)
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    assert daemon.contents() == [None, OLD]
    assert daemon.rows() == {"1": ("ready", f"slot 0: {FILES_CHANGED}")}
    daemon.scan()
    assert daemon.contents() == [NEW, NEW], "rolled out"
    assert daemon.rows() == {"1": ("ready", None)}
    assert len(generations(daemon) | before) == 2


def test_new_files_are_rolled_out_although_no_worker_has_died(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, slots=2)
    point(tmp_path, NEW)
    daemon.scan()
    assert daemon.contents() == [NEW, NEW]
    launched = len(daemon.scene.launched)
    daemon.scan()
    assert len(daemon.scene.launched) == launched


@pytest.mark.parametrize("slots", [1, 2])
def test_the_new_files_are_a_new_generation_once_no_worker_has_the_former(tmp_path: Path, slots: int) -> None:
    daemon = daemon_of(tmp_path, slots=slots)
    before = generations(daemon)
    point(tmp_path, NEW)
    for slot in range(slots):
        daemon.scene.die(daemon.scene.process(slot))
    daemon.settle()
    assert daemon.contents() == [NEW] * slots
    assert len(generations(daemon)) == 1
    assert generations(daemon) != before
    launched = len(daemon.scene.launched)
    daemon.scan()
    daemon.scan()
    assert len(daemon.scene.launched) == launched, "nothing is left to change"
    assert daemon.rows() == {"1": ("ready", None)}


def test_a_slot_that_waits_comes_back_when_the_last_worker_with_the_former_files_dies(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, slots=2)
    point(tmp_path, NEW)
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    assert daemon.scene.state(0) is State.FAILED
    daemon.scene.die(daemon.scene.process(1))
    daemon.settle()
    assert daemon.contents() == [NEW, NEW]


def test_two_workers_that_load_while_the_files_change_end_with_the_same_content(tmp_path: Path) -> None:
    point(tmp_path, OLD)
    daemon = Daemon(tmp_path, slots=2)
    contents = iter([NEW, NEW])

    def change() -> None:
        content = next(contents, None)
        if content is not None and daemon.scene.process(0).state == "ready":
            point(tmp_path, content)

    daemon.while_loading = change
    daemon.settle()
    daemon.scan()
    daemon.scan()
    assert len(set(daemon.contents())) == 1


@pytest.mark.parametrize("content", [OLD, LARGE_OLD], ids=["small", "large"])
def test_files_that_are_only_touched_change_nothing(tmp_path: Path, content: bytes) -> None:
    daemon = daemon_of(tmp_path, content, slots=2)
    hash_contents(daemon)
    before, launched = generations(daemon), len(daemon.scene.launched)
    touch(tmp_path)
    daemon.scan()
    daemon.scan()
    assert len(daemon.scene.launched) == launched
    answers: list[Any] = []
    touch(tmp_path)
    daemon.orders.reload(answers.append)
    daemon.settle()
    assert answers == [{"renewed": [], "added": [], "removed": []}]
    touch(tmp_path)
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    assert daemon.contents() == [content, content], "the restarted worker has compared them"
    assert generations(daemon) == before


@pytest.mark.parametrize(("limit_s", "renewed"), [(60.0, []), (0.0, [0, 1])])
@pytest.mark.parametrize("order", ["reload", "load"])
def test_files_that_an_order_has_no_time_to_compare_count_as_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, order: str, limit_s: float, renewed: list[int]
) -> None:
    caplog.set_level("INFO")
    daemon = daemon_of(tmp_path, LARGE_OLD, slots=2)
    hash_contents(daemon)
    touch(tmp_path)
    answers: list[Any] = []
    if order == "reload":
        daemon.orders.reload(answers.append, limit_s)
    else:
        daemon.models.load("m", answers.append, limit_s)
    daemon.settle()
    (answer,) = answers
    assert answer["renewed" if order == "reload" else "slots"] == renewed
    assert any("no time to compare" in text for text in caplog.messages) == bool(renewed)
    assert daemon.contents() == [LARGE_OLD, LARGE_OLD]


def test_large_files_that_nobody_has_hashed_count_as_changed(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, LARGE_OLD, slots=2)
    touch(tmp_path)
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    assert daemon.contents() == [None, LARGE_OLD]
    daemon.scan()
    assert daemon.contents() == [LARGE_OLD, LARGE_OLD]
    assert len(generations(daemon)) == 1


def test_large_files_with_equal_sizes_and_times_are_compared(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, LARGE_OLD, slots=2)
    hash_contents(daemon)
    weights = tmp_path / "model" / "variables" / "variables.data"
    times = weights.stat().st_mtime_ns
    weights.write_bytes(LARGE_NEW)
    os.utime(weights, ns=(times, times))
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    assert daemon.contents() == [None, LARGE_OLD]
    daemon.scan()
    daemon.scan()
    assert daemon.contents() == [LARGE_NEW, LARGE_NEW]


@pytest.mark.parametrize("fits", [True, False])
def test_the_former_workers_serve_on_if_the_new_files_cannot_be_loaded(tmp_path: Path, fits: bool) -> None:
    daemon = daemon_of(tmp_path, slots=3, fits=fits)
    daemon.bad_contents = {NEW}
    point(tmp_path, NEW)
    for _ in range(3):
        daemon.scan()
    assert daemon.contents() == [OLD if fits else None, OLD, OLD]
    assert daemon.rows() == {"1": ("ready", "no weights" if fits else f"slot 0: {FILES_CHANGED}; no weights")}
    daemon.scene.die(daemon.scene.process(1))
    daemon.settle()
    daemon.scan()
    assert set(daemon.contents()) == {OLD, None}
    daemon.bad_contents.clear()
    point(tmp_path, b"repaired")
    daemon.scan()
    assert daemon.contents() == [b"repaired"] * 3


@pytest.mark.parametrize("how", ["scan", "reload"])
def test_a_slot_that_waits_comes_back_when_the_files_are_as_before(tmp_path: Path, how: str) -> None:
    daemon = daemon_of(tmp_path, slots=2)
    point(tmp_path, NEW)
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    point(tmp_path, OLD)
    kept = daemon.scene.process(1)
    if how == "scan":
        daemon.scan()
    else:
        daemon.orders.reload(lambda _: None)
        daemon.settle()
    assert daemon.contents() == [OLD, OLD]
    assert daemon.scene.process(1) is kept


def test_a_reload_gives_new_files_to_all_slots_without_the_watch(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, slots=2)
    point(tmp_path, NEW)
    daemon.scene.die(daemon.scene.process(1))
    daemon.settle()
    assert daemon.contents() == [OLD, None]
    answers: list[Any] = []
    daemon.orders.reload(answers.append)
    daemon.settle()
    assert answers[0]["renewed"] == [0, 1]
    assert daemon.contents() == [NEW, NEW]


def test_an_operator_restart_takes_new_files_only_where_no_other_slot_has_the_former(tmp_path: Path) -> None:
    for slots in (1, 2):
        folder = tmp_path / str(slots)
        folder.mkdir()
        daemon = daemon_of(folder, slots=slots)
        point(folder, NEW)
        answers: list[Any] = []
        daemon.orders.restart(0, answers.append)
        daemon.settle()
        if slots == 1:
            assert daemon.contents() == [NEW]
        else:
            assert daemon.contents() == [OLD, OLD]
            assert isinstance(answers[0], MultitowerError)
            assert FILES_CHANGED in answers[0].message


def test_a_worker_whose_files_change_while_it_loads_is_started_again(tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path)
    contents = [b"half", NEW]
    daemon.while_loading = lambda: point(tmp_path, contents.pop(0)) if contents else None
    point(tmp_path, b"a quarter")
    daemon.scene.die(daemon.scene.process())
    for _ in range(3):
        daemon.settle()
        daemon.scene.tick(5.0)  # the back-off
    assert daemon.contents() == [NEW]
    assert len(daemon.scene.launched) == 4


def test_versions_in_folders_are_checked_like_single_models(tmp_path: Path) -> None:
    for number in ("1", "2"):
        version(tmp_path / "model", number, OLD)
    daemon = Daemon(tmp_path, slots=2, more=", versions: all")
    daemon.settle()
    (tmp_path / "model" / "1" / "variables" / "variables.data").write_bytes(NEW)
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    assert daemon.served() == [["2"], ["1", "2"]], "the other version is served meanwhile"
    daemon.scan()
    assert daemon.served() == [["1", "2"]] * 2
    assert daemon.contents() == [NEW, NEW]


@pytest.mark.parametrize("seed", range(40))
def test_random_histories_never_leave_two_contents_of_one_version(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    slots = rng.choice([1, 2, 3])
    daemon = daemon_of(tmp_path, slots=slots, fits=rng.random() < 0.5)
    contents = [OLD, NEW, LARGE_OLD, LARGE_NEW]

    def die() -> None:
        slot = daemon.manager.slots[rng.randrange(slots)]
        if slot.process is not None:
            daemon.scene.die(slot.process)

    def change_while_loading() -> None:
        left = [rng.choice(contents)]
        daemon.while_loading = lambda: point(tmp_path, left.pop()) if left else None

    steps: list[Callable[[], object]] = [
        die,
        die,
        lambda: point(tmp_path, rng.choice(contents)),
        lambda: touch(tmp_path),
        daemon.scan,
        lambda: daemon.orders.reload(lambda _: None),
        lambda: daemon.orders.restart(rng.randrange(slots), lambda _: None),
        lambda: daemon.bad_contents.add(rng.choice(contents)),
        daemon.bad_contents.clear,
        change_while_loading,
        lambda: hash_contents(daemon),
    ]
    for _ in range(25):
        rng.choice(steps)()
        if rng.random() < 0.7:
            daemon.settle()
            assert len({content for content in daemon.contents() if content is not None}) <= 1
    # Good files that nobody changes any more are served by all slots in the end.
    daemon.while_loading = lambda: None
    daemon.bad_contents.clear()
    point(tmp_path, b"good")
    for _ in range(4):
        daemon.settle()
        daemon.scan()
    assert daemon.contents() == [b"good"] * slots


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are hashed."""
    names: list[str] = []
    hash_content = ContentHasher.hash_content

    def record(self: ContentHasher, spec: ModelSpec, until: float = inf) -> HashedContent | None:
        names.append(spec.name)
        return hash_content(self, spec, until)

    monkeypatch.setattr(ContentHasher, "hash_content", record)
    return names


def reload_path(daemon: Daemon, folder: Path, path: str) -> None:
    """Changes the model's path in the configuration, and reloads it."""
    config, answers = folder / "config.yaml", list[Any]()
    config.write_text(re.sub("path: [a-z]+", f"path: {path}", config.read_text()))
    daemon.orders.reload(answers.append)
    daemon.settle()
    assert answers == [{"renewed": [0, 1], "added": [], "removed": []}]


@pytest.mark.parametrize("content", [OLD, LARGE_OLD], ids=["small", "large"])
def test_a_path_that_is_changed_and_changed_back_leaves_no_difference_to_scans(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture, hashed: list[str]
) -> None:
    daemon = daemon_of(tmp_path, content, slots=2)
    hash_contents(daemon)
    touch(tmp_path)
    daemon.scan()
    (tmp_path / "other").symlink_to("model")
    reload_path(daemon, tmp_path, "other")
    reload_path(daemon, tmp_path, "model")
    caplog.set_level("INFO")
    hashed.clear()
    daemon.scan()
    daemon.scan()
    assert (hashed, caplog.messages) == ([], []), "nothing has changed"
    point(tmp_path, NEW)
    daemon.scene.die(daemon.scene.process(0))
    daemon.settle()
    assert daemon.contents() == [None, content]
    point(tmp_path, content)
    daemon.scan()
    assert daemon.contents() == [content, content]


@pytest.mark.parametrize("content", [OLD, LARGE_OLD], ids=["small", "large"])
def test_touched_files_that_a_restarted_worker_finds_again_are_not_reloaded(tmp_path: Path, content: bytes) -> None:
    daemon = daemon_of(tmp_path, content)
    hash_contents(daemon)
    touch(tmp_path)
    daemon.scan()
    point(tmp_path, NEW)
    daemon.scan()
    assert daemon.contents() == [NEW]
    point(tmp_path, content)
    daemon.scene.die(daemon.scene.process())
    daemon.settle()
    assert daemon.contents() == [content]
    launched = len(daemon.scene.launched)
    daemon.scan()
    daemon.scan()
    assert len(daemon.scene.launched) == launched
