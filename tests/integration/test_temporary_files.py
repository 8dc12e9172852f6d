"""Temporary files of workers go with them, and those of a killed daemon with the next start."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from running import Running

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 1
models:
  - {name: m, handler: "leaves_files:LeavesFiles"}
"""

HANDLER = """
import os
import tempfile

import numpy as np

AT_IMPORT = tempfile.mkstemp(prefix="left-")[1]


class LeavesFiles:
    def load(self, devices, parameters):
        tempfile.mkdtemp(prefix="left-")

    def infer(self, inputs):
        return {"folder": np.array(os.path.dirname(tempfile.mkstemp(prefix="left-")[1]).encode())}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "leaves_files.py").write_text(HANDLER)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return temporary


def left(folder: Path) -> set[Path]:
    """The folders of workers that hold files."""
    return {path.parent for path in folder.glob("**/left-*")}


def test_temporary_files_go_with_their_worker_and_with_a_killed_daemon(folder: Path, tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        for incarnation in (1, 2):  # the second is a spare
            used = Path(client.infer("m", {"x": np.ones(1)})["folder"].item().decode())
            assert left(folder) == {used}
            daemon.wait(lambda: [spare["state"] for spare in daemon.status()["daemon"]["spares"]] == ["idle"])
            os.kill(daemon.slot()["pid"], signal.SIGKILL)
            daemon.wait_line("worker ready", slot=0, incarnation=incarnation + 1)
            daemon.wait(lambda gone=used: not gone.exists())
        daemon.remember()
        daemon.signal(signal.SIGKILL)
        daemon.wait_end()
    assert len(left(folder)) == 1
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready():
        daemon.wait(lambda: len(left(folder)) == 1)
        assert daemon.end() == 0
    assert list(folder.iterdir()) == []
