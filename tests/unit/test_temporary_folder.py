"""A machine or container without a folder for temporary files is told what to do, in one sentence."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from multitower.supervisor.loop.runtime_dir import RuntimeDir
from multitower.temporary_folder import NoTemporaryFolderError, temporary_folder
from multitower.tools.doctor import endpoints, temporary_files
from multitower.tools.doctor.findings import Level


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tmp_path.is_dir()  # made before none can be

    def fail() -> str:
        raise FileNotFoundError("No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp', '/']")

    monkeypatch.setattr(tempfile, "gettempdir", fail)


def uses(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(folder))


@pytest.mark.usefixtures("_no_folder")
def test_the_error_lists_what_was_tried_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(NoTemporaryFolderError) as raised:
        temporary_folder()
    text = str(raised.value)
    assert text.startswith("no folder for temporary files can be written (TMPDIR=/nowhere, /tmp, /var/tmp")
    assert f"the current folder {Path.cwd()}" in text
    assert text.endswith("set TMPDIR to a folder that this user can write; in a container, mount a tmpfs at /tmp")
    assert "\n" not in text
    assert "Errno" not in text


@pytest.mark.usefixtures("_no_folder")
def test_the_current_folder_may_have_been_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NoTemporaryFolderError, match="the current folder, which was removed"):
        temporary_folder()


@pytest.mark.usefixtures("_no_folder")
def test_a_daemon_without_a_runtime_folder_cannot_start() -> None:
    with pytest.raises(NoTemporaryFolderError):
        RuntimeDir(None)


@pytest.mark.usefixtures("_no_folder")
def test_doctor_reports_a_problem_where_the_daemon_needs_a_folder() -> None:
    found = temporary_files.finding(needed=True)
    assert found.level is Level.PROBLEM
    assert "cannot start" in found.text
    assert "TMPDIR" in (found.advice or "")
    (sockets,) = endpoints.findings([], None)
    assert sockets.level is Level.PROBLEM
    assert "no folder for temporary files" in sockets.text


@pytest.mark.usefixtures("_no_folder")
def test_doctor_warns_where_only_handlers_may_need_a_folder(tmp_path: Path) -> None:
    found = temporary_files.finding(needed=False)
    assert found.level is Level.WARNING
    assert "handlers" in found.text
    (sockets,) = endpoints.findings([], tmp_path)
    assert sockets.level is Level.OK


def test_doctor_names_the_folder_of_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    uses(monkeypatch, tmp_path)
    found = temporary_files.finding(needed=True)
    assert (found.level, found.text) == (Level.OK, f"temporary files go to {tmp_path}")


def test_doctor_warns_of_a_tmpdir_that_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    uses(monkeypatch, tmp_path)
    found = temporary_files.finding(needed=True)
    assert found.level is Level.WARNING
    assert found.text == f"TMPDIR=/nowhere cannot be written: temporary files go to {tmp_path} instead"


def test_doctor_warns_where_the_current_folder_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    uses(monkeypatch, tmp_path)
    found = temporary_files.finding(needed=True)
    assert found.level is Level.WARNING
    assert "neither /tmp nor /var/tmp can be written" in found.text
