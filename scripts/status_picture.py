"""Draws docs/images/status.svg: what `multitower status` prints about a daemon under load.

    python scripts/status_picture.py

It starts a daemon with two CPU workers in a temporary folder, puts load on it, kills one worker, and runs the command
in a terminal of its own. It needs the extra `server`, and shows what is installed; the picture in the repository is
of a compiled installation.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "status.svg"
COLUMNS = 118
PROGRAM = (sys.executable, "-m", "multitower")
LOAD_S = 16
WITHIN_S = 60

CONFIGURATION = """\
listen: ["ipc://{folder}/front.sock"]
devices: {{cpu: 2}}
spares: 1
models:
  - name: digits
    handler: models:Digits
    batching: {{max_batch_size: 32}}
  - name: thumbnails
    handler: models:Thumbnails
"""

HANDLERS = '''\
"""Two handlers that take as long as small models on a GPU."""

import time

import numpy as np


class Digits:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}]
    outputs = [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]

    def load(self, devices, parameters):
        self.weights = np.ones((64, 10), np.float32)

    def infer(self, inputs):
        time.sleep(0.004)
        return {"probabilities": inputs["x"] @ self.weights}


class Thumbnails:
    inputs = [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, 3]}]
    outputs = [{"name": "thumbnail", "datatype": "UINT8", "shape": [-1, -1, 3]}]

    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        time.sleep(0.002)
        return {"thumbnail": inputs["image"][::8, ::8]}
'''


def main() -> None:
    """Runs everything, and writes the picture."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "multitower.yaml").write_text(CONFIGURATION.format(folder=folder))
        (Path(folder) / "models.py").write_text(HANDLERS)
        environment = {**os.environ, "MULTITOWER_ENDPOINT": f"ipc://{folder}/front.sock"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes = [subprocess.Popen([*PROGRAM, "serve", "multitower.yaml"], cwd=folder, **quiet)]
        try:
            wait_ready(environment, restarts=0)
            for load in (("digits", "--rate", "400"), ("thumbnails", "--rate", "30", "--shape", "image:480,640,3")):
                command = [*PROGRAM, "bench", *load, "--seconds", str(LOAD_S)]
                processes.append(subprocess.Popen(command, env=environment, **quiet))
            time.sleep(LOAD_S / 4)
            os.kill(state(environment)["slots"][1]["pid"], signal.SIGSEGV)
            wait_ready(environment, restarts=1)
            time.sleep(LOAD_S / 4)  # rows per second are over the last ten seconds
            text = in_terminal([*PROGRAM, "status"], environment)
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(WITHIN_S)
    draw(text.replace(folder, "/run/multitower"))


def state(environment: dict[str, str]) -> dict:
    """What `multitower status --json` prints; empty while no daemon answers."""
    command = [*PROGRAM, "status", "--json", "--timeout", "5"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=WITHIN_S, check=False)
    return json.loads(done.stdout) if done.stdout else {}


def wait_ready(environment: dict[str, str], restarts: int) -> None:
    """Waits until every slot is ready, after so many restarts in all."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        slots = state(environment).get("slots", [])
        ready = bool(slots) and all(slot["state"] == "ready" for slot in slots)
        if ready and sum(slot["restarts"] for slot in slots) >= restarts:
            return
        time.sleep(0.2)
    raise TimeoutError("the daemon did not become ready")


def in_terminal(command: list[str], environment: dict[str, str]) -> str:
    """What a command prints to a terminal, colours included."""
    ours, theirs = pty.openpty()
    environment = {**environment, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=theirs)
    os.close(theirs)
    chunks = []
    try:
        while chunk := os.read(ours, 65536):
            chunks.append(chunk)
    except OSError:  # a terminal's way to say that the other end is closed
        pass
    os.close(ours)
    process.wait(WITHIN_S)
    return b"".join(chunks).decode().replace("\r\n", "\n")


def draw(text: str) -> None:
    """Writes the picture. It uses a font of the viewer's machine, where rich would load one from elsewhere."""
    template = re.sub(r"\s*@font-face \{\{.*?\}\}\n", "\n", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    template = template.replace("Fira Code, monospace", "'DejaVu Sans Mono', Menlo, Consolas, monospace")
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.from_ansi("$ multitower status\n" + text.rstrip()), soft_wrap=True)
    PICTURE.parent.mkdir(exist_ok=True)
    console.save_svg(str(PICTURE), title="multitower status", code_format=template)


if __name__ == "__main__":
    main()
