"""Modules beside a configuration that have the names of libraries break nothing, and clashes are told."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from running import Running
from worker_child import WorkerChild, assignment

from multitower.spec import ModelSpec
from multitower.worker_wire import KeySpec

SHADOWS = ("six", "json", "socket", "numpy", "zmq", "tensorflow", "h5py", "select", "tempfile", "psutil")
HANDLER = """
import {imports}

class Model:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        return {{"y": inputs["x"] + 1}}
"""
CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 1
models:
  - {name: m, handler: "mine:Model"}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with modules and packages that break whatever imports them."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('shadowed by ' + __file__)")
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "__init__.py").write_text("raise RuntimeError('shadowed by ' + __file__)")
    (tmp_path / "mine.py").write_text(HANDLER.format(imports="json, numpy"))
    return tmp_path


def test_a_daemon_serves_beside_modules_with_names_of_libraries(folder: Path) -> None:
    with Running(folder, CONFIG) as daemon, daemon.wait_ready().client() as client:
        assert client.infer("m", {"x": np.float32([1])})["y"].tolist() == [2]
        line = daemon.wait_line(
            f"{folder}/json.py is not imported, since the name 'json' belongs to an "
            f"installed module, {json.__file__}: rename yours"
        )
        assert (line["level"], line["slot"], line["model"], line["version"]) == ("warning", 0, "m", "1")
        daemon.wait(lambda: [spare["state"] for spare in client.status()["daemon"]["spares"]] == ["idle"])
        assert daemon.end() == 0


def test_workers_ignore_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `multitower serve` in the folder of its configuration."""
    program = "import sys; from multitower.cli import main; sys.argv[0] = 'multitower'; main()"
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # the daemon's, as an installed script has it
    (folder / "config.yaml").touch()
    inside = (
        sys.executable,
        "-c",
        f"import os, sys; os.chdir({str(folder)!r}); os.environ.pop('PYTHONSAFEPATH'); "
        "os.execv(sys.argv[1], sys.argv[1:])",
    )
    with Running(folder, CONFIG, program=("-P", "-c", program), inside=inside) as daemon:
        daemon.wait_ready()
        assert Path(f"/proc/{daemon.slot()['pid']}/cwd").resolve() == folder
        assert daemon.end() == 0


def test_a_handler_with_the_name_of_a_library_fails_with_both_paths(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text(HANDLER.format(imports="json"))
    model = ModelSpec(name="m", handler="random:Model", module_folder=str(tmp_path))
    with WorkerChild(assignment(model), import_path=[tmp_path]) as child:
        (report,) = child.reports("failed")[-1].models
        assert report.cause == (
            f"the handler's module cannot be imported: {tmp_path}/random.py is not imported, since the name 'random' "
            f"belongs to an installed module, {random.__file__}: rename yours"
        )


def test_a_handlers_programs_keep_pythons_usual_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    (tmp_path / "told.py").write_text(
        """
import os
import numpy as np

class Model:
    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        return {"y": np.array(["PYTHONSAFEPATH" in os.environ])}
"""
    )
    with Running(tmp_path, CONFIG.replace("mine", "told")) as daemon, daemon.wait_ready().client() as client:
        assert client.infer("m", {"x": np.float32([1])})["y"].tolist() == [False]
        assert daemon.end() == 0


def test_doctor_finds_a_clash(folder: Path) -> None:
    (folder / "random.py").write_text(HANDLER.format(imports="os"))
    (folder / "x.yaml").write_text(
        "devices: {cpu: 1}\nspares: 0\nmodels: [{name: m, handler: 'random:Model'}, {name: n, handler: 'mine:Model'}]\n"
    )
    command = [sys.executable, "-P", "-m", "multitower", "doctor", "--json", "x.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    findings = {finding["text"]: finding["level"] for finding in json.loads(done.stdout)["findings"]}
    own = f"m cannot be loaded: the handler's module cannot be imported: {folder}/random.py is not imported"
    assert [level for text, level in findings.items() if text.startswith(own)] == ["problem"]
    other = f"n: its worker logged: {folder}/json.py is not imported, since the name 'json' belongs to an installed"
    assert [level for text, level in findings.items() if text.startswith(other)] == ["note"]


def test_answers_of_a_worker_beside_such_modules_are_right(folder: Path) -> None:
    model = ModelSpec(name="m", handler="mine:Model", module_folder=str(folder))
    with WorkerChild(assignment(model), import_path=[folder]) as child:
        child.reports("ready")
        (answer,) = child.ask(KeySpec("m", (("x", "FP32", (1,)),), None, False), {"x": np.float32([1])})
        assert isinstance(answer, dict)
        assert answer["y"].tolist() == [2]
