"""Takes the pictures of the live page in docs/images: idle, loaded, a worker dead, the daemon away, a narrow window.

    python scripts/screenshots.py

It starts a daemon with four CPU workers and a gateway in a temporary folder, and opens the page in Debian's chromium.
It needs the gateway (`make gateway`), the extra `dev`, Pillow, and the packages `chromium` and `fonts-inter`.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from multitower import Client, MultitowerError

PICTURES = Path(__file__).parents[1] / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
WITHIN_S = 240
LOAD_S = 40
MAX_BYTES = 150_000

CONFIGURATION = """\
listen: ["ipc://{folder}/front.sock"]
runtime_dir: {folder}/run
devices: {{cpu: 4}}
spares: 0
gateway: {{http: "127.0.0.1:*", grpc: "127.0.0.1:*"}}
models:
  - {{name: ranking, handler: "models:Ranking", batching: {{max_batch_size: 32}}}}
  - {{name: embeddings, handler: "models:Embeddings", batching: {{max_batch_size: 16}}}}
  - {{name: thumbnails, handler: "models:Thumbnails"}}
"""

HANDLERS = '''\
"""Handlers that take as long as small models on a GPU."""

import logging
import time

import numpy as np


class Ranking:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}]
    outputs = [{"name": "scores", "datatype": "FP32", "shape": [-1, 1]}]
    base_s, row_s = 0.004, 0.0002

    def load(self, devices, parameters):
        logging.info("loading weights, 64 inputs")
        time.sleep(2)
        logging.info("ready to rank")

    def infer(self, inputs):
        time.sleep(self.base_s + self.row_s * len(inputs["x"]))
        return {"scores": inputs["x"][:, :1]}


class Embeddings(Ranking):
    base_s, row_s = 0.009, 0.0004


class Thumbnails:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}]

    def load(self, devices, parameters):
        pass

    def infer(self, inputs):
        time.sleep(0.002)
        return {"thumbnail": inputs["x"]}
'''


def main() -> None:
    """Runs everything, and writes the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "multitower.yaml").write_text(CONFIGURATION.format(folder=folder))
        (Path(folder) / "models.py").write_text(HANDLERS)
        command = [sys.executable, "-m", "multitower", "serve", "multitower.yaml"]
        daemon = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        endpoint = f"ipc://{folder}/front.sock"
        try:
            address = wait_for(lambda: ready_address(endpoint))
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                take_pictures(browser.new_page(viewport={"width": 1280, "height": 800}), address, endpoint, daemon.pid)
                browser.close()
        finally:
            daemon.send_signal(signal.SIGCONT)
            daemon.terminate()
            daemon.wait(WITHIN_S)


def take_pictures(page: Page, address: str, endpoint: str, daemon: int) -> None:
    """Brings about each state, and takes a picture of it."""
    page.set_default_timeout(WITHIN_S * 1000)
    page.goto(f"http://{address}/")
    page.get_by_text("Healthy").wait_for()
    time.sleep(3)
    take(page, "idle")
    with Load(endpoint):
        time.sleep(LOAD_S)
        page.click("#models .open >> nth=0")
        time.sleep(1.5)
        take(page, "loaded")
        page.click("#models .open >> nth=0")
        page.set_viewport_size({"width": 400, "height": 800})
        time.sleep(1.5)
        take(page, "narrow", full_page=False)
        page.set_viewport_size({"width": 1280, "height": 800})
        pid = status(address)["slots"][2]["pid"]
        os.kill(pid, signal.SIGSEGV)
        page.locator("#slots tr.sub:visible", has_text="killed by SIGSEGV").wait_for()
        page.click("#slots tr.sub button:visible")
        time.sleep(1.2)
        take(page, "worker-dead")
        page.click("#slots .open >> nth=2")
        page.locator("#slots tr.main", has_text="ready").nth(3).wait_for()
        time.sleep(5)
    page.emulate_media(color_scheme="dark")
    os.kill(daemon, signal.SIGSTOP)
    page.get_by_text("No answer from the daemon since").wait_for()
    time.sleep(3)
    take(page, "away")


def take(page: Page, name: str, *, full_page: bool = True) -> None:
    """Writes one picture."""
    path = PICTURES / f"page-{name}.png"
    picture = Image.open(io.BytesIO(page.screenshot(full_page=full_page)))
    # The 256 most frequent colours: a third of the size, and nobody sees a difference.
    picture = picture.convert("RGB")
    frequent = sorted(picture.getcolors(1 << 24), reverse=True)[:256]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in frequent for part in colour])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{path} has {size} bytes, more than {MAX_BYTES}")
    print(f"{path.name}: {size} bytes")


class Load:
    """Clients that send requests at a rate that rises and falls. A context manager."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ends = threading.Event()
        models = ["ranking"] * 6 + ["embeddings"] * 3 + ["thumbnails"]
        self._threads = [threading.Thread(target=self._run, args=(model,)) for model in models]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _run(self, model: str) -> None:
        with Client(self._endpoint, timeout=WITHIN_S) as client:
            while not self._ends.is_set():
                rows = random.choice((1, 1, 2, 4))
                pause = 0.004 + 0.03 * random.random() * (1.3 + np.sin(time.monotonic() / 6))
                try:
                    client.infer(model, {"x": np.ones((rows, 64), np.float32)})
                except MultitowerError as error:
                    print(f"{model}: {error}")
                self._ends.wait(pause)


def ready_address(endpoint: str) -> str | None:
    """Where the gateway serves HTTP, once all slots are ready."""
    try:
        with Client(endpoint, timeout=5, connect_timeout=5) as client:
            daemon = client.status()["daemon"]
    except MultitowerError:
        return None
    return daemon["gateway"]["http"][0] if daemon["slots_ready"] == daemon["slots_total"] else None


def status(address: str) -> dict[str, Any]:
    """What the gateway answers at `/status.json`."""
    with urllib.request.urlopen(f"http://{address}/status.json", timeout=WITHIN_S) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def wait_for(condition: Callable[[], str | None]) -> str:
    """Waits until a condition returns something."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise TimeoutError("the daemon did not become ready")


if __name__ == "__main__":
    main()
