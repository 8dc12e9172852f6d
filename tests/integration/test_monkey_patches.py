"""Where gevent or eventlet have patched threads, the client refuses in words; imported alone, they change nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from running import STEP_S

USE = """
import multitower
try:
    multitower.Client("ipc:///nonexistent/socket").close()
except RuntimeError as error:
    print(error)
"""


def use_after(statement: str) -> str:
    """What a process prints that makes a client behind this statement."""
    command = [sys.executable, "-W", "ignore", "-c", f"{statement}\n{USE}"]
    return subprocess.check_output(command, text=True, timeout=STEP_S)


@pytest.mark.parametrize(
    ("statement", "patched"),
    [
        ("from gevent import monkey; monkey.patch_all()", "gevent has patched threading and select"),
        ("from gevent import monkey; monkey.patch_thread()", "gevent has patched threading"),
        ("import eventlet; eventlet.monkey_patch()", "eventlet has patched thread and select"),
        ("import eventlet; eventlet.monkey_patch(select=False)", "eventlet has patched thread"),
    ],
)
def test_a_process_with_green_threads_is_told_so(statement: str, patched: str) -> None:
    assert patched in use_after(statement)


@pytest.mark.parametrize("statement", ["import gevent.monkey", "import eventlet.patcher"])
def test_a_library_that_patches_nothing_is_no_obstacle(statement: str) -> None:
    assert use_after(statement) == ""
