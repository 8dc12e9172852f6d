"""Hashing the contents of models: at a limited rate, not twice, and in the background."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any, cast

import pytest
from fake_operations import DelayedJobs
from fake_workers import Scene
from version_folders import version

from multitower import model_files
from multitower.model_files import SMALL_FILE, content_digest, fingerprint
from multitower.spec import ModelSpec
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.operations import content_hashing
from multitower.supervisor.operations.content_hashing import ContentBaseline, ContentHasher, HashedContent
from multitower.supervisor.settings import ActiveSettings, Settings
from multitower.supervisor.workers.known_contents import KnownContents


def model(folder: Path, name: str = "m", size: int = SMALL_FILE + 1) -> ModelSpec:
    spec = ModelSpec(name=name, path=str(version(folder, name, b"w" * size)))
    return dataclasses.replace(spec, fingerprint=fingerprint(spec))


def weights(spec: ModelSpec) -> Path:
    assert spec.path is not None
    return Path(spec.path, "variables", "variables.data")


def test_files_are_hashed_once_until_they_are_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def hash_whole_file(file: model_files.ModelFile, pause: Any) -> str:
        hashed.append(file.name)
        return model_files.hash_whole_file(file, pause)

    monkeypatch.setattr(content_hashing, "hash_whole_file", hash_whole_file)
    hasher, spec = ContentHasher(), model(tmp_path)
    expected = HashedContent(spec.fingerprint, content_digest(spec))
    assert [hasher.hash_content(spec) for _ in range(2)] == [expected, expected]
    assert sorted(hashed) == ["saved_model.pb", "variables/variables.data"]
    os.utime(weights(spec))
    hasher.hash_content(spec)
    assert hashed[2:] == ["variables/variables.data"]


def test_hashing_keeps_to_its_rate(tmp_path: Path) -> None:
    spec = model(tmp_path, size=2 << 20)
    began = time.monotonic()
    ContentHasher(bytes_per_second=10 << 20).hash_content(spec)
    assert time.monotonic() - began >= 0.2


def test_hashing_that_takes_too_long_gives_up_without_a_wait(tmp_path: Path) -> None:
    spec, hasher = model(tmp_path), ContentHasher(bytes_per_second=1)
    with pytest.raises(TimeoutError):
        hasher.hash_content(spec, time.monotonic() + 60.0)
    fast = ContentHasher()
    found = fast.hash_content(spec)
    assert found is not None
    assert fast.hash_content(spec, 0.0) == found, "what was hashed before takes no time"


def test_files_that_change_while_they_are_hashed_have_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = model(tmp_path)

    def change(file: model_files.ModelFile, pause: Any) -> str:
        weights(spec).write_bytes(b"v" * SMALL_FILE)
        return ""

    monkeypatch.setattr(content_hashing, "hash_whole_file", change)
    assert ContentHasher().hash_content(spec) is None


def test_fingerprints_of_equal_contents_stand_for_the_first_one() -> None:
    known = KnownContents()
    known.record_digest("a", "digest")
    known.record_equal("a", "b")
    known.record_equal("b", "c")
    assert {known.first(each) for each in "abc"} == {"a"}
    assert {known.latest(each) for each in "abc"} == {"c"}
    assert {known.digest(each) for each in "abc"} == {"digest"}
    assert (known.first("d"), known.latest("d"), known.digest("d")) == ("d", "d", "")
    copy = known.snapshot()
    known.record_equal("a", "a")
    assert (known.latest("b"), copy.latest("b")) == ("a", "c")


class Baseline:
    """A baseline of a daemon that serves these models."""

    def __init__(self, *specs: ModelSpec) -> None:
        self.scene = Scene()
        self.jobs = DelayedJobs()
        worker_settings = dataclasses.replace(self.scene.manager.settings, models=specs)
        settings = cast(ActiveSettings, _Current(cast(Settings, _WithModels(worker_settings))))
        background = cast(BackgroundJobs, self.jobs)
        self.baseline = ContentBaseline(settings, self.scene.manager, background, ContentHasher())

    def tick(self) -> int:
        """Looks for models to hash; returns the number of jobs so far."""
        self.baseline.tick(self.scene.now)
        return len(self.jobs.ended)

    def digest(self, spec: ModelSpec) -> str:
        return self.scene.manager.known_contents.digest(spec.fingerprint)


@dataclasses.dataclass
class _WithModels:
    worker_settings: Any


@dataclasses.dataclass
class _Current:
    current: Settings


def test_served_models_are_hashed_one_after_the_other_once_workers_have_loaded(tmp_path: Path) -> None:
    specs = model(tmp_path, "a"), model(tmp_path, "b"), model(tmp_path, "small", 1)
    daemon = Baseline(*specs)
    assert daemon.tick() == 0, "a worker loads"
    daemon.scene.serve(daemon.scene.process())
    assert [daemon.tick(), daemon.tick()] == [1, 1]
    daemon.jobs.ended[0]()
    assert daemon.tick() == 2
    daemon.jobs.ended[1]()
    assert daemon.tick() == 2, "the fingerprint of the small one has its contents"
    assert [daemon.digest(spec) for spec in specs] == [content_digest(specs[0]), content_digest(specs[1]), ""]


def test_a_model_that_was_replaced_before_it_could_be_hashed_has_no_digest(tmp_path: Path) -> None:
    spec = model(tmp_path)
    daemon = Baseline(spec)
    daemon.scene.serve(daemon.scene.process())
    weights(spec).write_bytes(b"v" * (SMALL_FILE + 1))
    assert daemon.tick() == 1
    daemon.jobs.ended[0]()
    assert daemon.digest(spec) == ""
    assert daemon.tick() == 1, "it is not tried again at once"
