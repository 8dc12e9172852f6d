"""What `ps` shows of the daemon's processes, and that their names and environments stay what the daemon needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from running import Running, look_at_each

from multitower.supervisor.workers.bootstrap import ORIGIN, ORIGIN_PID

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 1
models:
  - {name: m, handler: "starting_handlers:Starter"}
"""

setproctitle = pytest.importorskip("setproctitle", reason="titles need the package setproctitle")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("daemon"), CONFIG) as daemon:
        daemon.wait_ready()
        daemon.wait(lambda: spares(daemon) == ["idle"])
        yield daemon


def spares(daemon: Running) -> list[str]:
    return [spare["state"] for spare in daemon.status()["daemon"]["spares"]]


def titles(daemon: Running) -> dict[str, psutil.Process]:
    """The daemon's children, by what `ps` shows."""
    found = look_at_each(daemon.remember(), psutil.Process.cmdline)
    return {" ".join(command).rstrip(): child for child, command in found.items()}


def environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def test_each_process_of_the_daemon_has_a_title(daemon: Running) -> None:
    daemon.wait(
        lambda: (
            {"multitower: worker 0 cpu:0", "multitower: worker 1 cpu:1", "multitower: spare", "multitower: guardian"}
            <= titles(daemon).keys()
        )
    )
    (own,) = psutil.Process(daemon.process.pid).cmdline()[:1]
    assert own.rstrip() == f"multitower: supervisor {daemon.config}"


def test_names_stay_what_they_were(daemon: Running) -> None:
    children = titles(daemon)
    names = look_at_each(children.values(), psutil.Process.name)
    found = {title: names.get(child) for title, child in children.items()}
    assert found["multitower: worker 0 cpu:0"] == "mt-worker-0"
    assert found["multitower: spare"] == "mt-spare"
    assert found["multitower: guardian"] == "mt-guardian"


def test_the_environment_of_a_worker_still_names_its_origin(daemon: Running) -> None:
    for slot in daemon.status()["slots"]:
        origin = environment(slot["pid"])[ORIGIN]
        assert origin.startswith(f"{daemon.process.pid}.")
        assert origin.endswith(ORIGIN_PID.format(slot["pid"]))
    assert environment(daemon.process.pid)["PATH"] == os.environ["PATH"]


def test_a_spare_that_becomes_a_worker_gets_its_title(daemon: Running) -> None:
    daemon.wait(lambda: spares(daemon) == ["idle"])
    (spare,) = daemon.status()["daemon"]["spares"]
    os.kill(daemon.slot(1)["pid"], signal.SIGKILL)
    daemon.wait(lambda: daemon.slot(1)["pid"] == spare["pid"])
    daemon.wait(lambda: psutil.Process(spare["pid"]).cmdline()[:1] == ["multitower: worker 1 cpu:1"])
    assert psutil.Process(spare["pid"]).name() == "mt-spare"


def test_a_title_overwrites_the_command_line_and_nothing_behind_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from multitower.process_title import set_title\n"
        "before = open('/proc/self/environ', 'rb').read()\n"
        "set_title('worker 7 ' + 'GPU-' * 1000)\n"
        "assert open('/proc/self/environ', 'rb').read() == before\n"
        "assert 'SPT_NOENV' not in os.environ\n"
        "shown = open('/proc/self/cmdline', 'rb').read()\n"
        "assert shown.startswith(b'multitower: worker 7 GPU-'), shown\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_without_the_package_processes_keep_their_command_lines(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "sys.modules['setproctitle'] = None\n"
        "from multitower.process_title import extension_path, set_title\n"
        "set_title('worker 7')\n"
        "assert b'program.py' in open('/proc/self/cmdline', 'rb').read()\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
