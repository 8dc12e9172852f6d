"""`multitower doctor` as a process: with handlers, with fake GPUs, and without TensorFlow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_gpus import SLICES, UUIDS, FakeGpus, read_log
from waiting import wait_until

from multitower import wire
from multitower.exit_codes import Exit

ROOT = Path(__file__).parents[2]

HANDLERS = """
import logging
import os
import threading


class Good:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]

    def load(self, devices, parameters):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
        logging.getLogger("mine").warning("for %s", ",".join(devices))

    def infer(self, inputs):
        return inputs


class Broken(Good):
    def load(self, devices, parameters):
        raise ValueError("no weights")


class Dying(Good):
    def load(self, devices, parameters):
        print("these are its last words")
        os.abort()


class Wide(Good):
    def load(self, devices, parameters):
        tensor = {"datatype": "FP32", "shape": [-1]}
        self.inputs = [{"name": f"feature_{number:05}", **tensor} for number in range(parameters["inputs"])]


class Hanging(Good):
    def load(self, devices, parameters):
        if "HANGING" in os.environ:
            path = os.environ["HANGING"]
            with open(path + ".new", "w") as file:
                file.write(str(os.getpid()))
            os.rename(path + ".new", path)
        threading.Event().wait()
"""

CONFIG = """
listen: ["ipc:///tmp/mt-no-such-folder/front.sock"]
devices: {cpu: 1}
models:
  - {name: good, handler: "doctored:Good", batching: {max_batch_size: 4}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "doctored.py").write_text(HANDLERS)
    (tmp_path / "x.yaml").write_text(CONFIG.replace("/tmp/mt-no-such-folder", str(tmp_path)[:60]))
    return tmp_path


def doctor(
    folder: Path, *arguments: str, python: tuple[str, ...] = (sys.executable,), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*python, "-m", "multitower", "doctor", "x.yaml", "--set", "listen=[tcp://127.0.0.1:*]", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
    )


def findings(done: subprocess.CompletedProcess[str], section: str) -> list[tuple[str, str]]:
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return [(found["level"], found["text"]) for found in answer["findings"] if found["section"] == section]


def test_a_good_configuration_has_no_problems(folder: Path) -> None:
    done = doctor(folder)
    assert done.returncode == Exit.OK, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    sections = [line for line in lines if line and not line.startswith(" ")]
    assert sections[:-1] == [*("versions", "devices", "threads", "limits", "endpoints", "driver", "models", "memory")]
    assert sections[-1].startswith("0 problems, ")
    assert "  ok        good is batched: up to 4 rows" in lines
    assert "  note      good: its worker logged: for cpu:0" in lines
    assert "  ok        good: x FP32 [-1, 2] → anything" in lines


def test_each_model_that_does_not_load_is_a_problem(folder: Path) -> None:
    names = ("Broken", "Dying", "Hanging", "Good")
    models = ", ".join(f"{{name: {name}, handler: 'doctored:{name}'}}" for name in names)
    done = doctor(folder, "--json", "--timeout", "10", "--set", f"models=[{models}]")
    assert done.returncode == Exit.UNAVAILABLE, done.stderr
    found = findings(done, "models")
    (broken,) = [text for level, text in found if level == "problem" and text.startswith("Broken cannot")]
    assert broken.startswith("Broken cannot be loaded: ValueError: no weights (doctored.py:")
    (dead,) = [text for level, text in found if text.startswith("Dying cannot")]
    assert "its process killed by SIGABRT (6)" in dead
    assert ("note", "Dying: its worker logged: these are its last words") in found
    assert ("problem", "Hanging cannot be loaded: it was not ready within 10 s (--timeout)") in found
    assert ("note", "Good is unbatched, as configured") in found
    assert json.loads(done.stdout)["counts"]["problem"] == 3


def test_a_model_with_more_inputs_than_a_request_can_have_is_a_problem(folder: Path) -> None:
    names = {"widest": wire.MAX_INPUTS, "too_wide": wire.MAX_INPUTS + 1}
    handler = "handler: 'doctored:Wide'"
    models = ", ".join(f"{{name: {name}, {handler}, parameters: {{inputs: {count}}}}}" for name, count in names.items())
    done = doctor(folder, "--json", "--set", f"models=[{models}]")
    assert done.returncode == Exit.UNAVAILABLE, done.stderr
    (problem,) = [text for level, text in findings(done, "models") if level == "problem"]
    assert problem.startswith("too_wide cannot be loaded: ")
    assert f"it has {wire.MAX_INPUTS + 1} inputs; a request can have {wire.MAX_INPUTS}" in problem
    assert json.loads(done.stdout)["counts"]["problem"] == 1


def test_no_models_runs_no_code_of_models(folder: Path, short_folder: Path) -> None:
    arguments = ("--no-models", "--json", "--set", "models=[{name: d, handler: 'doctored:Dying'}]")
    done = doctor(folder, *arguments, TMPDIR=str(short_folder))
    assert done.returncode == Exit.OK, done.stderr
    assert findings(done, "models") == [("note", "not loaded, because of --no-models: d")]
    assert list(short_folder.iterdir()) == [], "no file is left"


def test_a_temporary_folder_with_too_long_a_path_is_a_problem(folder: Path) -> None:
    long = folder / ("x" * 100)
    long.mkdir()
    done = doctor(folder, "--json", TMPDIR=str(long), XDG_RUNTIME_DIR="")
    assert done.returncode == Exit.UNAVAILABLE, done.stderr
    (text,) = [text for level, text in findings(done, "models") if level == "problem"]
    assert text.startswith("good cannot be loaded: no process could be started: ")
    assert any("the limit is 107" in text for _, text in findings(done, "endpoints"))


def test_ctrl_c_ends_the_process_that_loads_a_model(folder: Path, short_folder: Path) -> None:
    arguments = ["--set", "listen=[tcp://127.0.0.1:*]", "--set", "models=[{name: h, handler: 'doctored:Hanging'}]"]
    with subprocess.Popen(
        [sys.executable, "-m", "multitower", "doctor", "x.yaml", *arguments],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(short_folder), "HANGING": str(folder / "pid")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        wait_until((folder / "pid").exists)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip() == b""
    assert not psutil.pid_exists(int((folder / "pid").read_text()))
    assert list(short_folder.iterdir()) == [], "no file is left"


def test_a_wrong_configuration_is_reported_as_by_check(folder: Path) -> None:
    done = doctor(folder, "--set", "spare=1")
    assert (done.returncode, done.stdout) == (Exit.CONFIG, "")
    assert "did you mean 'spares'?" in done.stderr


def test_gpus_and_slices_are_found_without_using_them(folder: Path, fake_gpus: FakeGpus) -> None:
    log = folder / "cuda.log"
    environment = fake_gpus.environment(log, split=3) | {"CUDA_VISIBLE_DEVICES": "3"}
    done = doctor(folder, "--json", "--set", "devices=[[1, 2], MIG-91b7]", "--set", "memory=50%", **environment)
    assert done.returncode == Exit.OK, done.stdout + done.stderr
    slots = [text for level, text in findings(done, "devices") if level == "ok"]
    assert [text.split(", ")[0] for text in slots] == [f"slot 0: {UUIDS[1]},{UUIDS[2]}", f"slot 1: {SLICES[1]}"]
    assert [text.partition("memory ")[2].split(",")[0] for text in slots] == ["20.0 GiB", "5.0 GiB"]
    assert ("note", "CUDA_VISIBLE_DEVICES=3 is set here, but does not limit the workers") in findings(done, "devices")
    assert next(text for _, text in findings(done, "driver")).startswith("NVIDIA driver ")
    found = [text for level, text in findings(done, "memory") if level == "ok"]
    for device, free, text in zip((UUIDS[1], UUIDS[2], SLICES[1]), (39, 38, 8), found, strict=False):
        assert text.startswith(f"{device}: an estimate of about 600 MiB")
        assert f"{free}.0 GiB are free" in text
    assert read_log(log) == []


def test_a_missing_gpu_is_a_problem_and_the_rest_is_examined(folder: Path, fake_gpus: FakeGpus) -> None:
    done = doctor(folder, "--json", "--set", "devices=[0, 7]", **fake_gpus.environment(lost=2))
    assert done.returncode == Exit.UNAVAILABLE, done.stderr
    found = findings(done, "devices")
    assert ("problem", "devices: 7 is not the index of a GPU here.") in found
    assert [level for level, text in found if "GPU 2 cannot be used" in text] == ["warning"]
    assert ("ok", "good is batched: up to 4 rows") in findings(done, "models")


@pytest.fixture(scope="module")
def without_tensorflow(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], dict[str, str]]:
    """How to run Python with all installed packages except TensorFlow and Keras."""
    packages = tmp_path_factory.mktemp("packages")
    folders = [Path(folder) for folder in sys.path if folder.endswith("site-packages")]
    for entry in (entry for folder in reversed(folders) for entry in folder.iterdir()):
        if not entry.name.startswith(("tensorflow", "keras", "tf_")) and entry.suffix != ".pth":
            (packages / entry.name).unlink(missing_ok=True)
            (packages / entry.name).symlink_to(entry)
    # -S: without the packages of the environment.
    return (sys.executable, "-S"), {"PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)])}


def test_a_missing_tensorflow_is_a_problem_for_models_with_a_path(
    folder: Path, without_tensorflow: tuple[tuple[str, ...], dict[str, str]]
) -> None:
    python, environment = without_tensorflow
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").touch()
    done = doctor(folder, "--json", python=python, **environment)
    assert done.returncode == Exit.OK, done.stdout + done.stderr
    assert ("ok", "good is batched: up to 4 rows") in findings(done, "models")
    models = "models=[{name: saved, path: saved}, {name: good, handler: 'doctored:Good'}]"
    done = doctor(folder, "--json", "--set", models, python=python, **environment)
    assert done.returncode == Exit.UNAVAILABLE, done.stderr
    assert ("problem", "TensorFlow is not installed, and models need it") in findings(done, "versions")
    assert ("note", "not loaded, because TensorFlow is not installed: saved") in findings(done, "models")
    assert any(text.startswith("good: python, loaded in") for _, text in findings(done, "models"))
