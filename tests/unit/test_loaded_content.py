"""Which files a worker has loaded: compared with its specification before it loads them, and once more afterwards."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from version_folders import version

from multitower.model_files import SMALL_FILE, content_digest, fingerprint
from multitower.spec import FILES_CHANGED, Assignment, ModelReport, ModelSpec
from multitower.worker.heartbeat import CallCounter, LoadSteps
from multitower.worker.loaded_content import CHANGED_MEANWHILE, FilesChangedError, LoadedContent
from multitower.worker.loading import load_models

LARGE = SMALL_FILE + 1


def spec_of(path: Path, *, digest: bool, must_match: bool = False) -> ModelSpec:
    spec = ModelSpec(name="m", path=str(path), must_match=must_match)
    return dataclasses.replace(
        spec, fingerprint=fingerprint(spec), content_digest=content_digest(spec) if digest else ""
    )


def weights(path: Path) -> Path:
    return path / "variables" / "variables.data"


@pytest.mark.parametrize(
    ("change", "digest", "same"),
    [
        (lambda path: None, False, True),
        (lambda path: os.utime(weights(path)), True, True),
        (lambda path: os.utime(weights(path)), False, False),
        (lambda path: weights(path).write_bytes(b"v" * LARGE), True, False),
        (lambda path: weights(path).write_bytes(b"w" * (LARGE + 1)), True, False),
    ],
    ids=["untouched", "touched", "touched, never hashed", "rewritten", "grown"],
)
@pytest.mark.parametrize("must_match", [True, False])
def test_large_files_are_compared_by_their_contents(
    tmp_path: Path, change: object, digest: bool, same: bool, must_match: bool
) -> None:
    path = version(tmp_path, "m", b"w" * LARGE)
    spec = spec_of(path, digest=digest, must_match=must_match)
    assert callable(change)
    change(path)
    if must_match and not same:
        with pytest.raises(FilesChangedError, match="its files have changed") as caught:
            LoadedContent(spec)
        assert caught.value.fingerprint == fingerprint(spec)
        return
    content = LoadedContent(spec)
    assert content.same_content is same
    assert content.finish() == fingerprint(spec)


@pytest.mark.parametrize("digest", [True, False])
def test_files_that_change_during_the_load_are_noticed_and_touched_ones_compared(tmp_path: Path, digest: bool) -> None:
    path = version(tmp_path, "m", b"w" * LARGE)
    content = LoadedContent(spec_of(path, digest=digest))
    os.utime(weights(path))
    assert content.has_changed() is not digest, "without a digest nobody can tell"
    weights(path).write_bytes(b"v" * LARGE)
    with pytest.raises(FilesChangedError, match=CHANGED_MEANWHILE):
        content.finish()


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str, must_match: bool = False) -> list[ModelReport]:
    """Loads handlers as a worker does, in a fresh interpreter's eyes."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    for name in ("changing", "shared"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    specs = [
        ModelSpec(name=name, handler=f"changing:{name}", module_folder=str(folder), must_match=must_match)
        for name in names
    ]
    assignment = Assignment(
        slot=0,
        incarnation=1,
        devices=("cpu:0",),
        environment={},
        intra_op_threads=1,
        inter_op_threads=1,
        models=tuple(specs),
    )
    return list(load_models(assignment, [CallCounter()], LoadSteps()).reports)


HANDLERS = """
from pathlib import Path
from shared import NUMBER
closed = Path(__file__).with_name("closed")

class Still:
    def load(self, devices, parameters): pass
    def infer(self, inputs): return inputs

class Changing(Still):
    def load(self, devices, parameters):
        Path(__file__).with_name("shared.py").write_text("NUMBER = 2222")
    def close(self):
        closed.touch()

class Broken(Changing):
    def load(self, devices, parameters):
        super().load(devices, parameters)
        raise ValueError("half written")
"""


def test_a_handler_whose_module_changes_while_it_loads_is_closed_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "changing.py").write_text(HANDLERS)
    (tmp_path / "shared.py").write_text("NUMBER = 1")
    (still, changing, late) = load(tmp_path, monkeypatch, "Still", "Changing", "Still")
    assert (still.state, still.files_changed) == ("ready", False)
    assert still.fingerprint
    assert (changing.state, changing.cause, changing.files_changed) == ("failed", CHANGED_MEANWHILE, True)
    assert (tmp_path / "closed").exists()
    # Its module was imported with the first handler, before the change.
    assert (late.state, late.files_changed) == ("failed", True)


def test_an_error_while_files_change_is_reported_with_both_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "changing.py").write_text(HANDLERS)
    (tmp_path / "shared.py").write_text("NUMBER = 1")
    (broken,) = load(tmp_path, monkeypatch, "Broken")
    assert broken.files_changed
    assert "half written" in str(broken.cause)


def test_a_handler_that_must_match_is_not_loaded_from_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "changing.py").write_text(HANDLERS)
    (tmp_path / "shared.py").write_text("NUMBER = 1")
    (report,) = load(tmp_path, monkeypatch, "Changing", must_match=True)
    assert (report.cause, report.files_changed) == (FILES_CHANGED, True)
    assert report.fingerprint
    assert (tmp_path / "shared.py").read_text() == "NUMBER = 1", "it was not loaded"
