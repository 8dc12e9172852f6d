"""Folders of the user's own come last on the import path, and hidden modules are found."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from multitower import import_path
from multitower.import_path import find_clashes, put_last, restore_environment, without_working_directory


def test_folders_become_the_last_ones_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    monkeypatch.setattr(sys, "path", [b, "/x", f"{a}/", "/y"])
    put_last([a, b])
    assert sys.path == ["/x", "/y", a, b]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/x"])
    put_last([str(tmp_path)])
    assert sys.path == ["/x", str(tmp_path)], "Python's name for the working directory"


def clashes(folder: Path, **files: str) -> dict[str, tuple[str, str]]:
    for name, text in files.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(exist_ok=True)
        Path(f"{file}.py").write_text(text)
    return {clash.module: (clash.own, clash.installed) for clash in find_clashes(str(folder), "mine:Model")}


def test_modules_that_installed_ones_hide_are_found(tmp_path: Path) -> None:
    found = clashes(tmp_path, mine="import random, time, helper\nimport numpy as np\n", helper="", random="", time="")
    assert found == {
        "random": (f"{tmp_path}/random.py", random.__file__),
        "time": (f"{tmp_path}/time.py", "Python itself"),
    }


def test_packages_are_found_as_well(tmp_path: Path) -> None:
    assert clashes(tmp_path, mine="import numpy", numpy____init__="") == {"numpy": (f"{tmp_path}/numpy", np.__file__)}


def test_the_handlers_own_module_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "random.py").touch()
    (clash,) = find_clashes(str(tmp_path), "random:Model")
    assert str(clash) == (
        f"{tmp_path}/random.py is not imported, since the name 'random' belongs to an installed module, "
        f"{random.__file__}: rename yours"
    )


def test_modules_that_the_handler_does_not_import_do_not_matter(tmp_path: Path) -> None:
    assert clashes(tmp_path, mine="", random="", numpy="") == {}


def test_an_installed_folder_without_init_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "installed" / "helper").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert clashes(tmp_path, mine="import helper", helper="") == {}


def test_the_folder_itself_is_no_other_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert clashes(tmp_path, mine="import helper", helper="") == {}


def test_a_new_process_does_not_look_into_its_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    (tmp_path / "pickle.py").write_text("raise SystemExit('shadowed')")
    command = [sys.executable, "-c", "import pickle"]
    with without_working_directory():
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
        inherited = dict(os.environ)
    assert done.returncode == 0, done.stderr
    assert "PYTHONSAFEPATH" not in os.environ
    monkeypatch.setenv("PYTHONSAFEPATH", inherited["PYTHONSAFEPATH"])
    restore_environment()
    assert "PYTHONSAFEPATH" not in os.environ


def test_a_users_own_setting_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    with without_working_directory():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    restore_environment()
    assert os.environ["PYTHONSAFEPATH"] == "1"


def test_programs_of_this_package_run_in_any_folder(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('shadowed')")
    done = subprocess.run(
        [*import_path.module_command("multitower"), "--version"],
        cwd=tmp_path,
        env=import_path.module_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
