"""A worker imports TensorFlow without garbage collections, which would find nothing among thousands of new modules."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from multitower.worker.formats.loader import preload

TENSORFLOW = """
import gc

collects_garbage = gc.isenabled()
"""


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str) -> None:
    """Lets the name `tensorflow` stand for a module of this source."""
    (folder / "tensorflow.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # what the test imports does not stay
    del sys.modules["tensorflow"]


def test_no_garbage_is_collected_while_tensorflow_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, TENSORFLOW)
    preload()
    assert not sys.modules["tensorflow"].collects_garbage
    assert gc.isenabled()


def test_garbage_is_collected_again_after_an_import_that_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "raise ImportError('broken')")
    with pytest.raises(ImportError, match="broken"):
        preload()
    assert gc.isenabled()
