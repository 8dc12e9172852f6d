"""What the gateway answers to operators over HTTP: status, health, readiness, metrics, the page, and load reports.

The page itself is tried in a browser, by `test_live_page.py`.
"""

from __future__ import annotations

import gzip
import json
import re
import time
import urllib.request
from collections.abc import Iterator

import foreign
import pytest
from http_request import get
from running import STEP_S, Running

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
gateway: {http: "127.0.0.1:*"}
models:
  - {name: echo, handler: "handlers:Echo"}
"""

pytestmark = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("paths"), CONFIG) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def address(daemon: Running) -> str:
    return foreign.http_url(daemon)


def test_status_health_and_readiness_are_answered_over_http(daemon: Running, address: str) -> None:
    status, headers, body = get(f"{address}/status.json")
    report = json.loads(body)
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "application/json", "no-store")
    assert report["daemon"]["pid"] == daemon.process.pid
    assert [slot["slot"] for slot in report["slots"]] == [0, 1]
    status, headers, body = get(f"{address}/status.json", accept_encoding="gzip")
    assert (headers["content-encoding"], headers["vary"]) == ("gzip", "Accept-Encoding")
    assert json.loads(gzip.decompress(body))["models"][0]["name"] == "echo"
    assert get(f"{address}/healthz")[::2] == (200, b'{"live":true}')
    status, _, body = get(f"{address}/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True, "slots_ready": 2, "slots_total": 2})
    assert json.loads(get(f"{address}/status.json?slot=1")[2])["slots"][0]["slot"] == 1
    assert get(f"{address}/status.json?slot=7")[0] == 400


def test_clients_that_ask_for_events_share_one_answer_whatever_the_number(address: str) -> None:
    answers = {get(f"{address}/status.json?events={number}")[2] for number in range(50)}
    assert len(answers) < 25, "at most two a second"
    assert "events" in json.loads(answers.pop())["daemon"]


def test_clients_that_ask_for_many_slots_do_not_hurry_the_daemon(address: str) -> None:
    began = time.monotonic()
    for number in range(20):
        get(f"{address}/status.json?slot={100 + number}")
    assert time.monotonic() - began > 0.9, "at most 20 a second"


def test_metrics_come_in_the_format_that_the_client_accepts(address: str) -> None:
    for path in ("/metrics", "/monitoring/prometheus/metrics"):
        status, headers, body = get(f"{address}{path}")
        assert (status, headers.get_content_type()) == (200, "text/plain")
        assert b"\nmultitower_build_info{" in body
    accepted = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4"
    status, headers, body = get(f"{address}/metrics", accept=accepted, accept_encoding="gzip")
    assert (status, headers.get_content_type()) == (200, "application/openmetrics-text")
    assert gzip.decompress(body).endswith(b"# EOF\n")


def test_other_methods_and_paths_are_refused(address: str) -> None:
    for path in ("/", "/status.json", "/metrics", "/healthz"):
        status, headers, body = get(f"{address}{path}", "DELETE")
        assert (status, headers["allow"], json.loads(body)) == (405, "GET, HEAD", {"error": "Method Not Allowed"})
    assert get(f"{address}/status")[0] == 404
    status, headers, body = get(f"{address}/healthz", "HEAD")
    assert (status, headers["content-length"], body) == (200, "13", b"")


def test_the_page_is_small_and_may_load_nothing_from_elsewhere(address: str) -> None:
    status, headers, body = get(f"{address}/", accept_encoding="gzip")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert len(body) < 60_000
    assert len(gzip.decompress(body)) < 60_000
    policy = headers["content-security-policy"]
    for rule in ("default-src 'none'", "frame-ancestors 'none'", "connect-src 'self'", "base-uri 'none'"):
        assert rule in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    status, headers, body = get(f"{address}/", if_none_match=headers["etag"].removeprefix("W/"))
    assert (status, headers["vary"], body) == (304, "Accept-Encoding", b"")


def test_requests_of_operators_do_not_count_as_inference(daemon: Running, address: str) -> None:
    before = daemon.status()["daemon"]["gateway"]["requests"]
    for path in ("/healthz", "/readyz", "/nosuch", "/status.json"):
        get(f"{address}{path}")
    get(f"{address}/v2/health/live")
    daemon.wait(lambda: daemon.status()["daemon"]["gateway"]["requests"] > before)
    assert daemon.status()["daemon"]["gateway"]["requests"] == before + 1


def test_load_balancers_get_a_load_report_when_they_ask_for_it(address: str) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}

    def report(form: str | None) -> str | None:
        headers = {"content-type": "application/json", **({"endpoint-load-metrics-format": form} if form else {})}
        url = f"{address}/v2/models/echo/infer"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=STEP_S) as response:
            written: str | None = response.headers["endpoint-load-metrics"]
            return written

    assert report(None) is None
    until = time.monotonic() + STEP_S
    while "rps_fractional" not in (text := report("text") or ""):
        assert time.monotonic() < until, text
    assert re.fullmatch(
        r"TEXT application_utilization=[\d.]+, rps_fractional=[\d.]+, eps=[\d.]+, "
        r"named_metrics.queue_requests=\d+, named_metrics.outstanding_requests=\d+",
        text,
    )
    written = report("json")
    assert written is not None
    assert json.loads(written.removeprefix("JSON "))["named_metrics"]["queue_requests"] == 0
