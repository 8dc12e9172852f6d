"""Whether TensorFlow's modules would be compiled anew in each worker."""

from __future__ import annotations

import py_compile
import sys
from pathlib import Path

import pytest

from multitower.tools.doctor import packages


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of a TensorFlow that is the only one to be found; its bytecode is not stored."""
    module = tmp_path / "tensorflow" / "python" / "framework" / "ops.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    (tmp_path / "tensorflow" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    return module


def test_modules_that_the_first_worker_will_compile_are_no_finding(module: Path) -> None:
    assert packages.bytecode_finding() is None


def test_an_environment_in_which_no_worker_stores_bytecode_is_a_warning(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    finding = packages.bytecode_finding()
    assert finding is not None
    assert finding.level is packages.Level.WARNING
    assert "PYTHONDONTWRITEBYTECODE is set" in finding.text
    assert finding.advice is not None
    assert f"-m compileall -q {module.parents[3]}" in finding.advice


def test_a_folder_in_which_no_worker_may_store_bytecode_is_a_warning(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != module.parent)  # root may write everywhere
    finding = packages.bytecode_finding()
    assert finding is not None
    assert f"{module.parents[2]} is not writable for this user" in finding.text


def test_stored_bytecode_is_no_finding(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    py_compile.compile(str(module))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert packages.bytecode_finding() is None
