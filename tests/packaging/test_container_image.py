"""The container's image is built without an engine, and its daemon serves in namespaces.

It takes minutes and gigabytes: it runs where MULTITOWER_TEST_CONTAINER is 1, for root, with debootstrap and buildah.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "scripts" / "try_container.py"
WHOLE_S = 2400


@pytest.mark.skipif(os.environ.get("MULTITOWER_TEST_CONTAINER") != "1", reason="MULTITOWER_TEST_CONTAINER is not 1")
@pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap needs root")
@pytest.mark.skipif(
    not (shutil.which("debootstrap") and shutil.which("buildah")), reason="needs debootstrap and buildah"
)
@pytest.mark.timeout(WHOLE_S + 60)
def test_the_image_is_built_and_its_daemon_serves(tmp_path: Path) -> None:
    folder = os.environ.get("MULTITOWER_CONTAINER_FOLDER") or str(tmp_path)
    command = [sys.executable, PROGRAM, folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=WHOLE_S)
    assert done.returncode == 0, done.stdout[-10000:]
    assert "ok     SIGTERM" in done.stdout
