"""Runs the steps of docs/getting-started.md: its programs, its configuration and its command, with a real daemon."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from running import START_S, Running

PAGE = (Path(__file__).parents[2] / "docs" / "getting-started.md").read_text()
PROGRAMS = {found[1]: found[0] for found in re.findall(r'```python\n("""(\w+\.py).*?)```', PAGE, re.DOTALL)}
(CONFIG,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
((INPUTS, COMMAND, OUTPUTS),) = re.findall(r"\$ echo '(.*?)' \| (multitower infer.*)\n(.*)\n", PAGE)


def run(folder: Path, *command: str, given: str = "", **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        input=given,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_steps_of_the_tutorial_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("make_model.py", run_name="__main__")  # here, where TensorFlow is imported already
    # Each further process would import TensorFlow once more.
    few = ("--set", "spares=0", "--set", "devices={cpu: 1}")
    with Running(tmp_path, 'listen: ["{endpoint}"]\n' + CONFIG, arguments=few) as daemon:
        daemon.wait_ready()
        environment = {"MULTITOWER_ENDPOINT": daemon.endpoint}
        assert run(tmp_path, "-m", *COMMAND.split(), given=INPUTS, **environment) == OUTPUTS + "\n"
        assert run(tmp_path, "ask.py", **environment) == "[[2.0, 2.0, 2.0]]\n100 answers\n"
        assert daemon.end() == 0
