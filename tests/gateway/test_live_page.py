"""The live page in a real browser: one daemon and one browser for all tests."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import foreign
import numpy as np
import pytest
from http_request import get
from installed import find_program
from running import STEP_S, Running

from multitower import Client

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

LIMIT_MS = STEP_S * 1000
MARKUP = "<img src=x onerror=alert(1)> & 'quotes'"

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
gateway: {http: "127.0.0.1:*"}
models:
  - {name: echo, handler: "handlers:Echo"}
  - {name: commanded, handler: "commanded_handlers:Commanded"}
"""

pytestmark = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("page"), CONFIG) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def address(daemon: Running) -> str:
    return foreign.http_url(daemon)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = find_program("chromium", "chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def listen(page: Any) -> list[str]:
    """Returns the list in which errors and warnings of the page's console appear; requests that fail are none."""
    errors: list[str] = []

    def add(kind: str, text: str) -> None:
        if kind in ("error", "warning") and not text.startswith(("Failed to load resource", "net::ERR")):
            errors.append(text)

    page.on("pageerror", lambda error: add("error", str(error)))
    page.on("console", lambda message: add(message.type, message.text))
    page.set_default_timeout(LIMIT_MS)
    return errors


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors = listen(page)
    page.goto(address)
    page.locator("#slots tr.main").nth(1).wait_for()
    yield page
    assert page.evaluate("[...document.images].length") == 0, "text stayed text"
    assert not errors


class Altered:
    """A page of its own, between which and the gateway a test stands.

    Attributes:
        page: its clock can be moved.
        requests: how many it has sent.
        change: changes a status in place.
        refuse: answers a request instead of the gateway; None for no one.
        expected: what errors on its console contain; None for none.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests = 0
        self.reset()

    def reset(self) -> None:
        """Stands aside."""
        self.change: Callable[[dict[str, Any]], None] = lambda status: None
        self.refuse: Callable[[Any], None] | None = None
        self.expected: str | None = None

    def answer(self, route: Any) -> None:
        """Answers a request for the status."""
        self.requests += 1
        if self.refuse is not None:
            self.refuse(route)
            return
        response = route.fetch()
        status = response.json()
        self.change(status)
        route.fulfill(response=response, json=status)

    def wait_requests(self, more: int) -> None:
        """Waits until it has sent some more requests."""
        wanted, until = self.requests + more, time.monotonic() + STEP_S
        while self.requests < wanted:
            assert time.monotonic() < until
            self.page.evaluate("0")


@pytest.fixture(scope="module")
def altered_page(browser: Any) -> Iterator[tuple[Altered, list[str]]]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    made, errors = Altered(page), listen(page)
    page.route("**/status.json*", made.answer)
    page.clock.install()
    page.add_init_script("Object.defineProperty(document, 'hidden', {get: () => window.isHidden === true})")
    yield made, errors
    page.close()


@pytest.fixture
def altered(altered_page: tuple[Altered, list[str]], address: str) -> Iterator[Altered]:
    made, errors = altered_page
    made.page.goto(address)
    wait_for_text(made.page, "h1", "Healthy")
    yield made
    made.page.goto("about:blank")
    assert [error for error in errors if made.expected is None or made.expected not in error] == []
    errors.clear()
    made.reset()


def wait_for_text(page: Any, selector: str, text: str) -> None:
    """Waits until some element that the selector finds has a text."""
    page.locator(selector, has_text=text).first.wait_for()


def test_the_page_shows_health_models_and_slots(page: Any) -> None:
    wait_for_text(page, "h1", "Healthy: 2 slots and 2 models ready")
    assert page.locator("#models tr.main .name").all_inner_texts() == ["echo", "commanded"]
    assert page.locator("#slots tr.main .badge").all_inner_texts() == ["ready", "ready"]
    assert "cpu:1" in page.inner_text("#slots")
    assert page.title() == "Healthy: 2 slots and 2 models ready - multitower"


def test_requests_and_latencies_appear(page: Any, daemon: Running) -> None:
    with daemon.client() as client:
        for _ in range(20):
            client.infer("echo", {"x": np.ones((2, 3), np.float32)})
    page.locator("#models tr.main td[data-label=p99]", has_text=re.compile(r"[1-9].* ms")).first.wait_for()
    page.locator("#models tr.main .spark-line[d*=L]").first.wait_for(state="attached")


def test_a_killed_worker_is_seen_with_its_cause_and_its_last_output(page: Any, daemon: Running) -> None:
    with daemon.client() as client:
        client.infer("commanded", {"do": np.array([f"shout {MARKUP}"], object)})
    slots = [json.loads(get(f"{page.url}status.json?slot={slot}")[2])["slots"][0] for slot in (0, 1)]
    (slot,) = (
        slot for slot in slots if any(MARKUP in line["text"] for each in slot["output"] for line in each["lines"])
    )
    os.kill(slot["pid"], signal.SIGKILL)
    wait_for_text(page, "#slots tr.sub", "Last error: killed by SIGKILL (9)")
    wait_for_text(page, "#events tr", f"slot {slot['slot']}")
    wait_for_text(page, "#notes", f"Slot {slot['slot']}: its worker died")
    page.locator("#slots tr.sub button:visible").first.click()
    wait_for_text(page, "#slots .output li", MARKUP)
    wait_for_text(page, "#slots .detail p", "ended: killed by SIGKILL (9)")
    wait_for_text(page, "h1", "Healthy")


def test_events_are_filtered_by_kind_and_text(page: Any) -> None:
    page.select_option("#kind", "death")
    wait_for_text(page, "#events-note", "1 of 2")
    page.fill("#words", "nothing like it")
    wait_for_text(page, "#no-events", "No event matches the filter.")
    page.select_option("#kind", "")
    page.fill("#words", "worker ready")
    wait_for_text(page, "#events-note", "1 of 2")
    page.fill("#words", "")


def test_a_stopped_worker_is_shown_as_unresponsive(page: Any, daemon: Running) -> None:
    os.kill(daemon.slot(0)["pid"], signal.SIGSTOP)
    wait_for_text(page, "#notes", "Slot 0 is unresponsive: ")
    # It is killed and replaced.
    wait_for_text(page, "h1", "Healthy")


def test_failing_requests_are_in_the_first_line_and_the_notes(altered: Altered) -> None:
    def fail(status: dict[str, Any]) -> None:
        model = status["models"][0]
        model["refused"]["last_minute"] = {"queue_full": 1062, "shape_invalid": 5000}
        model["errors"]["last_minute"] = {"deadline": 89, "cancelled": 500}

    altered.change = fail
    wait_for_text(altered.page, "h1", "1,151 requests failed or refused in the last minute, 2 of 2 slots ready")
    found = "Model echo: 1,151 requests failed or refused in the last minute: queue_full 1,062, deadline 89"
    wait_for_text(altered.page, "#notes", found)


def test_faults_of_clients_leave_it_healthy(altered: Altered) -> None:
    def fail(status: dict[str, Any]) -> None:
        counts = {"shape_invalid": 5000, "too_large": 7, "model_unknown": 2}
        status["models"][0]["refused"]["last_minute"] = status["daemon"]["refused"]["last_minute"] = counts

    altered.change = fail
    wait_for_text(altered.page, "#tiles", "5,009")
    assert altered.page.inner_text("h1").startswith("Healthy")
    assert "failed or refused" not in altered.page.inner_text("#notes")


def test_a_failed_version_beside_a_served_one_is_not_a_failed_model(altered: Altered) -> None:
    def add(status: dict[str, Any]) -> None:
        status["models"].append({**status["models"][0], "version": "2", "state": "failed", "cause": "no such file"})

    altered.change = add
    wait_for_text(altered.page, "h1", "2 of 3 models ready, 2 of 2 slots ready")
    wait_for_text(altered.page, "#notes", "Model echo version 2 is failed: no such file")


def test_a_slow_worker_is_shown_with_the_cause(altered: Altered) -> None:
    slow = {"condition": "slow", "condition_cause": "its batches of echo take 3 times as long as those of the others"}
    altered.change = lambda status: status["slots"][1].update(slow)
    wait_for_text(altered.page, "#slots tr.main .badge", "slow")
    wait_for_text(altered.page, "#notes", f"Slot 1 is slow: {slow['condition_cause']}")
    wait_for_text(altered.page, "h1", "Slot 1 is slow, 2 of 2 slots ready")


def test_a_daemon_that_is_insecure_is_shown_as_such(altered: Altered) -> None:
    altered.change = lambda status: status["daemon"].update(insecure=True)
    wait_for_text(altered.page, "#notes", "Insecure: other machines may use this daemon")


def test_details_open_by_keyboard_and_keep_the_focus(page: Any) -> None:
    button = page.locator("#models .open").first
    button.focus()
    page.keyboard.press("Enter")
    page.locator("#models .detail").first.wait_for()
    updates = page.inner_text("#live")
    page.locator("#live").filter(has_not_text=updates).wait_for()
    assert button.evaluate("node => node === document.activeElement && node.getAttribute('aria-expanded')") == "true"
    page.keyboard.press("Enter")


def test_all_pages_ask_at_the_same_moments(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.add_init_script("""
      window.planned = [];
      const own = window.setTimeout;
      window.setTimeout = (what, ms, ...more) => {
        if (ms >= 100 && ms <= 1100) planned.push((Date.now() + ms) % 1000);
        return own(what, ms, ...more);
      };
    """)
    page.goto(address)
    until = time.monotonic() + STEP_S
    while page.evaluate("planned.length") < 3:
        assert time.monotonic() < until
        page.wait_for_timeout(100)
    # Rounding, and the moment between two readings of the clock.
    assert [each for each in page.evaluate("planned") if 50 < each < 995] == []
    page.close()


def test_pausing_stops_the_requests_and_the_lines(altered: Altered) -> None:
    page, line = altered.page, altered.page.locator("#models .spark-line").first
    page.locator("#models .spark-line[d^=M]").first.wait_for(state="attached")
    page.click("#pause")
    wait_for_text(page, "#live", "Paused")
    page.click("#models .open >> nth=0")
    sent, drawn = altered.requests, line.get_attribute("d")
    page.clock.run_for(8000)
    for _ in range(2):
        page.click("#models .open >> nth=0")  # it is drawn again when it opens
    assert altered.requests == sent
    assert line.get_attribute("d") == drawn
    page.click("#pause")
    altered.wait_requests(1)
    wait_for_text(page, "#live", "Live")


def test_a_restart_is_noticed_although_the_pid_stays_the_same(altered: Altered) -> None:
    def first(status: dict[str, Any]) -> None:
        events = [
            {"seq": 7, "kind": "death", "level": "error", "time": "2026-12-01T08:00:00.000Z", "message": "former"}
        ]
        status["daemon"] |= {"pid": 1, "started": "2026-12-01T07:00:00.000Z", "events": events}

    def second(status: dict[str, Any]) -> None:
        # The clock was set back meanwhile.
        times = ("2026-12-01T08:00:05.000Z", "2026-12-01T08:00:01.000Z")
        events = [
            {"seq": seq, "kind": "death", "level": "error", "time": when, "message": f"event {seq}"}
            for seq, when in enumerate(times, 1)
        ]
        daemon = status["daemon"]
        daemon |= {"pid": 1, "started": "2026-12-01T09:00:00.000Z", "events": events}
        daemon["uptime_s"] -= 1e6

    altered.change = first
    wait_for_text(altered.page, "#events tr", "former")
    altered.change = second
    wait_for_text(altered.page, "#events tr", "event 1")
    assert altered.page.locator("#events .what").all_inner_texts() == ["event 2", "event 1"]
    altered.page.locator("#models td[data-label='Requests/s']", has_text=re.compile(r"\d")).first.wait_for()


def test_a_hidden_tab_shows_that_the_daemon_is_back(altered: Altered) -> None:
    page = altered.page
    altered.refuse = lambda route: route.abort()
    playwright.expect(page).to_have_title(re.compile("No answer"), timeout=LIMIT_MS)
    page.evaluate("window.isHidden = true")
    altered.refuse = None
    playwright.expect(page).to_have_title(re.compile("^Healthy"), timeout=LIMIT_MS)


def test_an_answer_that_the_page_does_not_understand_does_not_end_it(altered: Altered) -> None:
    altered.expected = "TypeError"
    # The first one is met while figures are noted, the second one while they are shown.
    for change in (lambda status: status.pop("models"), lambda status: status["daemon"].pop("listen")):
        altered.change = change
        wait_for_text(altered.page, "h1", "This page does not understand the daemon's answer: reload it")
        altered.change = lambda status: None
        wait_for_text(altered.page, "h1", "Healthy")
    altered.change = lambda status: status["daemon"].update(version="99.0")
    wait_for_text(altered.page, "#notes", "The daemon has version 99.0 now")
    wait_for_text(altered.page, "h1", "Healthy")


def test_one_refusal_of_a_busy_gateway_does_not_make_the_daemon_away(altered: Altered) -> None:
    page = altered.page
    page.evaluate("""() => {
      window.seen = [];
      new MutationObserver(() => seen.push(document.title)).observe(document.querySelector("title"), {childList: true});
    }""")

    def refuse(route: Any) -> None:
        altered.refuse = None
        route.fulfill(status=503, headers={"multitower-reason": "queue_full"}, json={"error": "busy"})

    altered.refuse = refuse
    altered.wait_requests(3)
    assert page.evaluate("seen") == []


def test_a_page_that_may_not_see_the_status_asks_for_a_token(altered: Altered) -> None:
    page, shown = altered.page, []

    def check(route: Any) -> None:
        shown.append(route.request.headers.get("authorization"))
        if shown[-1] == "Bearer name.secret":
            route.continue_()
        else:
            route.fulfill(status=401, headers={"multitower-reason": "unauthenticated"}, json={"error": "not valid"})

    def wait_shown(value: str | None) -> None:
        until = time.monotonic() + STEP_S
        while shown[-1:] != [value]:
            assert time.monotonic() < until
            page.evaluate("0")

    altered.refuse = check
    wait_shown(None)
    wait_for_text(page, "h1", "A token is needed")
    token = page.get_by_label("Token")
    for given in ("wrong", "name.secret"):
        token.fill(given)
        token.press("Enter")
        wait_shown(f"Bearer {given}")
    token.wait_for(state="hidden")
    wait_for_text(page, "h1", "Healthy")
    altered.wait_requests(2)
    # Nobody who has not typed anything is refused again and again.
    assert shown[:3] == [None, "Bearer wrong", "Bearer name.secret"]
    assert set(shown[3:]) == {"Bearer name.secret"}
    page.evaluate("sessionStorage.clear()")


def shout(client: Client, text: str) -> None:
    """Has both workers write lines, as far as requests at the same time do that."""
    inputs = [{"do": np.array([f"shout {text} {number}"], object)} for number in range(8)]
    for future in [client.submit("commanded", each) for each in inputs]:
        future.result()


def test_new_output_leaves_focus_where_it_is(page: Any, daemon: Running) -> None:
    with daemon.client() as client:
        shout(client, "early")
        for slot in range(2):
            if page.locator("#slots .open").nth(slot).get_attribute("aria-expanded") == "false":
                page.locator("#slots .open").nth(slot).click()
        output = page.locator("#slots .output:visible", has_text="early").first
        output.focus()
        until = time.monotonic() + STEP_S
        while not page.locator("#slots .output:focus", has_text="late").count():
            assert time.monotonic() < until, "no new line in the output that has the focus"
            shout(client, "late")  # again, since one worker may have got all of them
            page.wait_for_timeout(200)
        output = page.locator("#slots .output:focus")
        assert output.evaluate("node => node.scrollTop + node.clientHeight >= node.scrollHeight - 8"), "the newest line"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_keeps_anybody_from_using_the_page(browser: Any, address: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    context = browser.new_context(color_scheme=scheme, bypass_csp=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    errors = listen(page)
    page.goto(address)
    page.click("#models .open >> nth=0")
    page.click("#slots .open >> nth=0")
    wait_for_text(page, "#slots .detail", "Latest output")
    violations = axe.Axe().run(page).response["violations"]
    found = [(each["id"], each["impact"], node["html"]) for each in violations for node in each["nodes"]]
    assert not [each for each in found if each[1] in ("serious", "critical")], found
    assert not errors
    context.close()


def test_a_narrow_page_does_not_scroll_sideways(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 800})
    errors = listen(page)
    page.goto(address)
    page.click("#models .open >> nth=0")
    page.click("#slots .open >> nth=0")
    wait_for_text(page, "#slots .detail", "Latest output")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 400).length"
    assert page.evaluate(f"{wide}") == 0
    assert not errors
    page.close()


def test_another_gateway_process_is_noticed_without_loading_the_page_again(page: Any, daemon: Running) -> None:
    gateway = daemon.status()["daemon"]["gateway"]["pid"]
    os.kill(gateway, signal.SIGKILL)
    wait_for_text(page, "#events tr", "gateway died")
    wait_for_text(page, "h1", "Healthy")


def test_a_daemon_that_is_away_is_shown_with_the_time_since_and_again(page: Any, daemon: Running, address: str) -> None:
    os.kill(daemon.process.pid, signal.SIGSTOP)
    try:
        wait_for_text(page, "h1", "No answer from the daemon since")
        wait_for_text(page, "#notes", "The gateway runs, but the daemon does not answer")
        status, headers, body = get(f"{address}/status.json")
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body) == {"error": "the daemon did not answer within 2 s"}
        assert json.loads(get(f"{address}/healthz")[2])["live"] is False
        assert get(f"{address}/")[0] == 200, "the page itself is still served"
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
    wait_for_text(page, "h1", "Healthy")


def test_a_daemon_that_has_ended_is_shown_and_its_successor_is_found(
    page: Any, daemon: Running, address: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert daemon.end() == 0, daemon.text()
    wait_for_text(page, "#notes", "The gateway cannot be reached")
    port = address.rpartition(":")[2]
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", int(port)))
    config = CONFIG.replace("127.0.0.1:*", f"127.0.0.1:{port}").replace("cpu: 2", "cpu: 1")
    with Running(tmp_path_factory.mktemp("successor"), config) as successor:
        wait_for_text(page, "h1", "Healthy: 1 slot and 2 models ready")
        assert f"pid {successor.process.pid}" in page.inner_text("#daemon")
        assert page.locator("#slots tr.main").count() == 1
