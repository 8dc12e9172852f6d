"""Python's garbage collector does not stop the loop for requests that wait."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import gc
import sys

sys.path.insert(0, sys.argv[1])
from scheduler_scene import Scene

from multitower.supervisor.loop.garbage_collector import tune_garbage_collector

if sys.argv[2] == "tuned":
    tune_garbage_collector()
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
scene = Scene(1, 1)
scene.submit(5000)
for _ in range(20):
    scene.dispatch()
    scene.answer(0)
    scene.answer(1)
print(len(collections))
"""


@pytest.mark.parametrize("how", ["tuned", "default"])
def test_a_full_queue_starts_no_collection(how: str) -> None:
    fakes = next(path for path in sys.path if path.endswith("fakes"))
    ran = subprocess.run([sys.executable, "-c", SCRIPT, fakes, how], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert (int(ran.stdout) == 0) == (how == "tuned")
