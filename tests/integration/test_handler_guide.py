"""Runs the examples of docs/handlers.md: its handler in a daemon, its tests, and its command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from running import STEP_S, Running

from multitower import InvalidRequest

PAGE = (Path(__file__).parents[2] / "docs" / "handlers.md").read_text()
PROGRAMS = {found[1]: found[0] for found in re.findall(r'```python\n("""(\w+\.py).*?)```', PAGE, re.DOTALL)}
(MODELS,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
((ASKED, COMMAND),) = re.findall(r"`echo '([^']*)' \| (multitower [^`]*)`", PAGE)


WHERE = "  - {name: where, handler: threads:Where}\n"
THREADS = """
import threading


class Where:
    def load(self, devices, parameters):
        self.main = [threading.current_thread() is threading.main_thread()]

    def infer(self, inputs):
        self.main.append(threading.current_thread() is threading.main_thread())
        return {"main": self.main}

    def close(self):
        print("closed in the main thread:", threading.current_thread() is threading.main_thread())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guide")
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text)
    (folder / "threads.py").write_text(THREADS)
    return folder


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Running]:
    with Running(folder, 'listen: ["{endpoint}"]\ndevices: {cpu: 1}\nspares: 0\n' + MODELS + WHERE) as running:
        yield running.wait_ready()
        assert running.end() == 0
        running.wait_line("closed in the main thread: True")


def test_the_tests_of_the_guide_pass(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_sentiment.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_only_the_bad_request_of_a_batch_gets_the_error(daemon: Running) -> None:
    with daemon.client() as client:
        model, _ = client.status()["models"]
        assert (model["max_batch_size"], model["unbatched_because"]) == (64, None)
        texts = ["a fine day", "", "an awful one"] * 20
        futures = [client.submit("sentiment", {"text": np.array([text])}) for text in texts]
        for text, future in zip(texts, futures, strict=True):
            if text:
                assert future.result(STEP_S)["verdict"].tolist() == [b"good" if "fine" in text else b"bad"]
            else:
                with pytest.raises(InvalidRequest, match="no sentiment") as raised:
                    future.result(STEP_S)
                assert raised.value.details == {"field": "text"}


def test_a_request_that_does_not_fit_the_declaration_is_refused(daemon: Running) -> None:
    with daemon.client() as client, pytest.raises(InvalidRequest, match="text") as raised:
        client.infer("sentiment", {"text": np.zeros(1)})
    assert raised.value.reason == "datatype_mismatch"


def test_a_handler_is_called_in_the_main_thread(daemon: Running) -> None:
    with daemon.client() as client:
        assert client.infer("where", {"x": np.zeros(1)})["main"].tolist() == [True, True]


def test_the_command_of_the_guide_works(daemon: Running) -> None:
    command = [sys.executable, "-m", *COMMAND.split(), "--endpoint", daemon.endpoint]
    done = subprocess.run(command, input=ASKED, capture_output=True, text=True, timeout=STEP_S, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == ["good"]
