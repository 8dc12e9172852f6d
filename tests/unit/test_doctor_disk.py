"""What the doctor says where a disk is full or has no inodes left: permissions are right there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from multitower.supervisor.config.loading import load
from multitower.tools.doctor import endpoints, request_log, temporary_files
from multitower.tools.doctor.findings import Finding, Level

FREE = {"f_files": 64, "f_ffree": 9, "f_favail": 9, "f_blocks": 256, "f_bfree": 9, "f_bavail": 9}


def on_disk(monkeypatch: pytest.MonkeyPatch, **changed: int) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**(FREE | changed)))


def sockets(folder: Path) -> list[Finding]:
    (folder / "run").mkdir(exist_ok=True)
    ipc = f"ipc://{folder}/front.sock"
    return [finding for name in ("run", "new") for finding in endpoints.findings([ipc], folder / name)]


def test_sockets_need_inodes(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk(monkeypatch, f_ffree=0, f_favail=0)
    found = sockets(short_folder)
    assert len(found) == 4
    for finding in found:
        assert finding.level is Level.PROBLEM
        assert "its disk has no free inodes" in finding.text
        assert "df -i" in str(finding.advice)


@pytest.mark.parametrize(
    "disk", [{}, {"f_bfree": 0, "f_bavail": 0}, {"f_files": 0, "f_ffree": 0, "f_favail": 0}], ids=["", "full", "btrfs"]
)
def test_sockets_need_no_more_than_inodes(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, disk: dict[str, int]
) -> None:
    on_disk(monkeypatch, **disk)
    assert {finding.level for finding in sockets(short_folder)} == {Level.OK}


@pytest.mark.parametrize(
    ("disk", "cause"),
    [
        ({"f_bfree": 0, "f_bavail": 0}, "its disk is full"),
        ({"f_ffree": 0, "f_favail": 0}, "its disk has no free inodes"),
        ({}, None),
    ],
)
def test_files_need_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: dict[str, int], cause: str | None
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "c.yaml").write_text(
        f"request_log: {{path: {tmp_path}/requests.log}}\nmodels: [{{name: m, path: m}}]\n"
    )
    config = load(tmp_path / "c.yaml", environment={}, strict=False)
    on_disk(monkeypatch, **disk)
    (log,) = request_log.findings(config)
    assert log.level is (Level.WARNING if cause else Level.OK)
    assert (cause or "can be written") in log.text
    (tmp_path / "requests.log").touch()
    (log,) = request_log.findings(config)
    assert log.level is (Level.WARNING if cause and "full" in cause else Level.OK), (
        "a file that is there needs no inode"
    )

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "m"))  # what Python has chosen instead
    chosen = temporary_files.finding(needed=True)
    assert chosen.level is Level.WARNING
    assert (f"cannot be written ({cause}): " if cause else "cannot be written: ") in chosen.text
