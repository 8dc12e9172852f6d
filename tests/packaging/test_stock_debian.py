"""README.md's commands work to the letter on a Debian 12 as it is installed.

The whole takes minutes and gigabytes: it runs where MULTITOWER_TEST_DEBIAN is 1, for root, with debootstrap.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import try_readme

WHOLE_S = 2400


SECTIONS = try_readme.sections((try_readme.ROOT / "README.md").read_text())


def test_the_commands_of_the_readme_are_found() -> None:
    demo, own, clients = SECTIONS
    assert [step.text for step in demo] == ["sudo apt-get install make python3-venv", "make demo", "make serve"]
    commands = [step.text for step in own if step.kind == "run"]
    assert "python3 -m venv .venv && . .venv/bin/activate" in commands
    assert commands.index("multitower serve multitower.yaml") < commands.index("multitower status")
    assert [step.name for step in own if step.kind != "run"] == ["multitower.yaml", "program.py"]
    assert own[-1].kind == "program"
    assert [step.text.split()[0] for step in clients] == ["sudo", "pip", "multitower", "curl", "curl"]


def test_every_pip_command_of_the_readme_is_in_a_virtual_environment() -> None:
    """Debian's own Python refuses them: externally-managed-environment."""
    commands = [step.text for section in SECTIONS for step in section]
    first = next(number for number, command in enumerate(commands) if command.startswith("pip "))
    assert any("activate" in command for command in commands[:first])


@pytest.mark.skipif(os.environ.get("MULTITOWER_TEST_DEBIAN") != "1", reason="MULTITOWER_TEST_DEBIAN is not 1: minutes")
@pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap needs root")
@pytest.mark.skipif(shutil.which("debootstrap") is None, reason="debootstrap is not installed")
@pytest.mark.timeout(WHOLE_S + 60)
def test_the_commands_of_the_readme_work_on_a_new_debian(tmp_path: Path) -> None:
    folder = os.environ.get("MULTITOWER_DEBIAN_FOLDER") or str(tmp_path / "debian")
    program = [sys.executable, try_readme.__file__, folder]
    done = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=WHOLE_S)
    assert done.returncode == 0, done.stdout[-10000:]
    assert done.stdout.endswith("every command of README.md worked\n")
