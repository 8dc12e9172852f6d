"""Commands on a machine where nothing can be written, such as a container with a read-only root and no tmpfs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import STEP_S

from multitower.exit_codes import Exit

CONFIG = """
listen: ["tcp://127.0.0.1:*"]
devices: {cpu: 1}
models:
  - {name: m, handler: "starting_handlers:Starter"}
"""

READ_ONLY = """
for folder in /tmp /var/tmp "$PWD"; do
    mount --rbind "$folder" "$folder" && mount -o remount,bind,ro "$folder" || exit 99
done
cd "$PWD" && exec "$@"
"""

SENTENCE = "no folder for temporary files can be written (/tmp, /var/tmp, /usr/tmp, the current folder "


@pytest.fixture(autouse=True)
def _namespaces(tmp_path: Path) -> None:
    done = run(tmp_path, "sh", "-c", "! touch /tmp/x /var/tmp/x x 2>/dev/null")
    if done.returncode:
        pytest.skip(f"no namespace with read-only folders can be made: {done.stderr.strip()}")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder, where it can write neither there nor in the system's folders."""
    inside = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh")
    environment = {name: value for name, value in os.environ.items() if name not in ("TMPDIR", "XDG_RUNTIME_DIR")}
    return subprocess.run(
        [*inside, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * STEP_S,
        check=False,
    )


def multitower(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "config.yaml").write_text(CONFIG)
    done = run(folder, sys.executable, "-m", "multitower", *words)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    "words",
    [["serve", "config.yaml"], ["demo"], ["bench", "--scaling", "config.yaml", "--workers", "1"]],
    ids=" ".join,
)
def test_commands_that_need_a_folder_say_so_in_one_sentence(tmp_path: Path, words: list[str]) -> None:
    done = multitower(tmp_path, *words)
    assert done.returncode == Exit.TEMPORARY
    line = done.stderr.splitlines()[-1]  # `bench` may warn of a busy machine before
    assert line.startswith(f"multitower: {SENTENCE}")
    assert "set TMPDIR" in line


def test_doctor_reports_it_and_examines_the_rest(tmp_path: Path) -> None:
    done = multitower(tmp_path, "doctor", "config.yaml", "--json")
    assert done.returncode == Exit.UNAVAILABLE
    findings = json.loads(done.stdout)["findings"]
    problems = [finding for finding in findings if finding["level"] == "problem"]
    assert [finding["section"] for finding in problems] == ["limits", "endpoints"]
    assert all(SENTENCE in finding["text"] for finding in problems)
    assert any("were not loaded" in finding["text"] for finding in findings)
    assert findings[-1]["section"] == "memory"
