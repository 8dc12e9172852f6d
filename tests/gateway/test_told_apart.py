"""A killed, a hung and a slow worker are told apart within two seconds: on the page, in `top`, and in the metrics.

Real workers, a real browser and a real terminal, which all tests share. A page and a `top` look once a second. The time
by which a look is late, since the machine is busy, does not count.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import foreign
import numpy as np
import pytest
from installed import find_program
from pty_terminal import PtyTerminal
from running import STEP_S, Running

from multitower import Client

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

pytestmark = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))

TOLD_S = 2.0
LOOK_S = 1.0

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
gateway: {http: "127.0.0.1:*"}
models:
  - name: sleeper
    handler: "handlers:Sleeper"
    parameters: {seconds: 0.02, slow: 1, factor: 8}
    batching: {max_batch_size: 1}
  - {name: commanded, handler: "commanded_handlers:Commanded"}
"""

WATCH = """
window.looks = [];  // when the page got a status
window.texts = [];  // when it has shown what
const own = window.fetch;
window.fetch = async (path, ...more) => {
  const response = await own(path, ...more);
  if (path === "/status.json") looks.push(Date.now() / 1000);
  return response;
};
addEventListener("DOMContentLoaded", () => new MutationObserver(() => {
  texts.push([Date.now() / 1000, document.querySelector("#notes").innerText]);
}).observe(document.body, {subtree: true, childList: true, characterData: true}));
"""


@dataclass
class Seen:
    """What somebody has seen, and when.

    Attributes:
        looks: when it looked, in seconds since 1970.
        texts: when it has shown what.
    """

    looks: list[float] = field(default_factory=list)
    texts: list[tuple[float, str]] = field(default_factory=list)

    def told_after(self, event: float, text: str) -> float | None:
        """Seconds from the event until it has shown the text, without those by which that look was late."""
        told = next((when for when, shown in self.texts if when >= event and text in shown), None)
        if told is None:
            return None
        looks = [when for when in self.looks if when <= told]
        late_s = max(0.0, told - looks[-2] - LOOK_S) if len(looks) > 1 else 0.0
        return told - event - late_s


class Scene:
    """A daemon with all who watch it."""

    def __init__(self, daemon: Running, client: Client, page: Any, terminal: PtyTerminal) -> None:
        self.daemon = daemon
        self.client = client
        self._page = page
        self._terminal = terminal
        self._ending = threading.Event()
        self.top = Seen()
        self.scrapes: list[tuple[float, str]] = []
        self._threads = [threading.Thread(target=each) for each in (self._read_terminal, self._scrape)]
        for thread in self._threads:
            thread.start()

    def _read_terminal(self) -> None:
        before = len(self._terminal.text)
        while not self._ending.is_set():
            self._terminal.read(0.05)
            if len(self._terminal.text) > before:
                before = len(self._terminal.text)
                now = time.time()
                self.top.looks.append(now)
                self.top.texts.append((now, "\n".join(self._terminal.screen)))

    def _scrape(self) -> None:
        with self.daemon.client() as client:
            while not self._ending.wait(0.2):
                sent = time.time()
                self.scrapes.append((sent, client.metrics()))

    def page(self) -> Seen:
        return Seen(*self._page.evaluate("[looks, texts]"))

    def expect(self, event: float, *, page: str, top: str, metric: Callable[[str], bool]) -> None:
        """Waits until all tell, and checks that each did in time.

        Args:
            event: when it happened, in seconds since 1970.
            page: what the page tells.
            top: what `top` tells.
            metric: whether the metrics tell.
        """

        def told() -> list[float | None]:
            return [self.page().told_after(event, page), self.top.told_after(event, top)]

        self.daemon.wait(lambda: None not in told(), STEP_S)
        self.daemon.wait(lambda: any(metric(text) for sent, text in self.scrapes if sent >= event), STEP_S)
        first = next(number for number, (sent, text) in enumerate(self.scrapes) if sent >= event and metric(text))
        # What a scrape that was asked for later than that must tell, the one before this did not.
        silent_for = self.scrapes[first - 1][0] - event
        assert max(silent_for, *[each for each in told() if each is not None]) <= TOLD_S, (silent_for, told())

    def close(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(STEP_S)


def has(name: str, value: int, **labels: str | int) -> Callable[[str], bool]:
    """Whether a text of metrics has a series with these labels, among others, and this value."""
    wanted = "".join(rf'(?=[^}}]*\b{label}="{text}")' for label, text in labels.items())
    pattern = re.compile(rf"^{name}\{{{wanted}[^}}]*\}} {value}(\.0)?$", re.MULTILINE)
    return lambda text: pattern.search(text) is not None


def condition(slot: int, value: str) -> Callable[[str], bool]:
    return has("multitower_worker_condition", 1, slot=slot, condition=value)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    chromium = find_program("chromium", "chromium")
    terminal = PtyTerminal(120, 40)
    with (
        Running(tmp_path_factory.mktemp("told"), CONFIG) as daemon,
        daemon.wait_ready().client() as client,
        playwright.sync_playwright() as started,
    ):
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.add_init_script(WATCH)
        page.goto(f"http://{daemon.status()['daemon']['gateway']['http'][0]}", timeout=1000 * STEP_S)
        page.locator("#slots tr.main").nth(1).wait_for(timeout=1000 * STEP_S)
        command = [sys.executable, "-m", "multitower", "top", "--endpoint", daemon.endpoint]
        top = subprocess.Popen(
            command,
            stdin=terminal.theirs,
            stdout=terminal.theirs,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TERM": "xterm", "LANG": "C.UTF-8"},
        )
        try:
            terminal.wait_for("2/2 slots ready")
            made = Scene(daemon, client, page, terminal)
            yield made
            made.close()
        finally:
            top.kill()
            top.wait(STEP_S)
            browser.close()
            terminal.close()


def test_a_worker_that_answers_slowly_is_slow(scene: Scene) -> None:
    row = np.ones((1, 1), np.float32)
    asked = 0
    while scene.daemon.slot(1)["completed"] < 3:  # so many are measured before its speed counts
        for future in [scene.client.submit("sleeper", {"x": row}, timeout=STEP_S) for _ in range(2)]:
            future.result(STEP_S)
        asked += 1
        assert asked < 100
    event = time.time()
    scene.expect(event, page="Slot 1 is slow: ", top="ready, slow", metric=condition(1, "slow"))
    assert condition(0, "ok")(scene.scrapes[-1][1]), "the other one is not"


def test_a_worker_that_does_not_answer_is_unresponsive(scene: Scene) -> None:
    def ask(command: str) -> Any:
        return scene.client.submit("commanded", {"do": np.array([command], object)}, timeout=STEP_S)

    for _ in range(8):
        for future in [ask("nothing") for _ in range(2)]:  # how long they usually take
            future.result(STEP_S)
    sent = time.time()
    hung = ask("sleep 6")
    scene.daemon.wait(lambda: bool(scene.daemon.slot(0)["depth"] or scene.daemon.slot(1)["depth"]), STEP_S)
    slot = 0 if scene.daemon.slot(0)["depth"] else 1
    scene.expect(
        sent, page=f"Slot {slot} is unresponsive: ", top="unresponsive", metric=condition(slot, "unresponsive")
    )
    assert not condition(1 - slot, "unresponsive")(scene.scrapes[-1][1])
    hung.result(STEP_S)


def test_a_worker_that_was_killed_has_died(scene: Scene) -> None:
    pid = scene.daemon.slot(0)["pid"]
    event = time.time()
    os.kill(pid, signal.SIGKILL)
    scene.expect(
        event,
        page="Slot 0: its worker died",
        top="worker died: killed by SIGKILL",
        metric=has("multitower_worker_restarts_total", 1, slot=0, cause="killed"),
    )
