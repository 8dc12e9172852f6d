"""A file system that does not answer costs the models on it, and no other one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hung_mount import hung_mount
from running import STEP_S, Running

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
watch: {interval: 100ms, settle: 300ms}
models:
"""

SOURCE = """
import numpy as np

class Answer:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        return {"y": np.array([NUMBER])}
"""


def write(file: Path, number: int) -> None:
    """Replaces a handler's module, as a deployment does."""
    new = file.with_suffix(".new")
    new.write_text(SOURCE.replace("NUMBER", str(number)))
    new.rename(file)


def test_the_start_waits_for_models_whose_file_system_does_not_answer(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    write(tmp_path / "good.py", 1)
    # Each gets 5 s, all at the same time: one after the other, twice, they would take 3 min.
    names = [f"lost_{number}" for number in range(18)]
    lost = "".join(f"  - {{name: {name}, path: {mount}/{name}}}\n" for name in names)
    models = f"  - {{name: good, handler: 'good:Answer'}}\n{lost}"
    with hung_mount(mount), Running(tmp_path, CONFIG + models) as daemon, daemon.client() as client:
        for name in names:
            line = daemon.wait_line("waiting for model", name=name)
            assert line["cause"] == f"{mount}/{name} cannot be read: its file system gave no answer within 5 s"
        assert client.infer("good", {"x": np.zeros(1)}, timeout=STEP_S)["y"].tolist() == [1]
        assert daemon.end() == 0


def test_a_folder_that_hangs_does_not_hide_a_change_of_another_model(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    write(tmp_path / "good.py", 1)
    write(mount / "lost.py", 1)
    (tmp_path / "lost.py").symlink_to(mount / "lost.py")
    models = "".join(f"  - {{name: {name}, handler: '{name}:Answer'}}\n" for name in ("lost", "good"))
    with Running(tmp_path, CONFIG + models) as daemon, daemon.wait_ready().client() as client:
        with hung_mount(mount):
            write(tmp_path / "good.py", 2)
            daemon.wait_line("loading changed files", model="good")
            assert client.infer("lost", {"x": np.zeros(1)}, timeout=STEP_S)["y"].tolist() == [1]
        daemon.wait(lambda: client.infer("good", {"x": np.zeros(1)})["y"].tolist() == [2])
        assert daemon.end() == 0
