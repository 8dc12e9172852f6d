"""Modules beside the configuration are imported from their sources, whatever bytecode Python has cached of them."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT = """
import sys
from multitower.worker.source_import import import_from_sources
sys.path.append(sys.argv[1])
if sys.argv[2] == "sources":
    import_from_sources([sys.argv[1]])
import constants, package.inner
print(constants.NUMBER, package.inner.NUMBER)
"""


def imported(folder: Path, how: str) -> str:
    command = [sys.executable, "-c", IMPORT, str(folder), how]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.mark.parametrize(("how", "expected"), [("sources", "2 2"), ("bytecode", "1 1")])
def test_a_module_of_the_same_size_and_time_is_not_taken_for_its_bytecode(
    tmp_path: Path, how: str, expected: str
) -> None:
    (tmp_path / "package").mkdir()
    for name in ("constants.py", "package/inner.py"):
        path = tmp_path / name
        path.write_text("NUMBER = 1")
        py_compile.compile(str(path))
        times = path.stat().st_mtime_ns
        path.write_text("NUMBER = 2")
        os.utime(path, ns=(times, times))
    assert imported(tmp_path, how) == expected


def test_a_folder_whose_link_leads_elsewhere_by_now_is_imported_as_it_is_now(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "linked_module.py").write_text(f"NUMBER = {number}")
    (tmp_path / "link").symlink_to("1")
    script = """
import os, sys
from multitower.import_path import put_last
from multitower.worker.source_import import import_from_sources
put_last([sys.argv[1]])
import_from_sources([sys.argv[1]])
try:
    import absent_module
except ImportError:
    pass  # every folder has been searched
os.symlink("2", sys.argv[1] + ".new")
os.rename(sys.argv[1] + ".new", sys.argv[1])
import linked_module
print(linked_module.NUMBER)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "link")]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip() == "2"


def test_no_bytecode_is_written_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "constants.py").write_text("NUMBER = 1")
    (tmp_path / "package" / "inner.py").write_text("NUMBER = 1")
    assert imported(tmp_path, "sources") == "1 1"
    assert not list(tmp_path.rglob("__pycache__"))
