"""`MT1:metrics` of a daemon: what it reports is what clients got, in both formats and by every way to ask."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus
from running import STEP_S, Running, multitower

from multitower import Client, InvalidRequest, MultitowerError, NotFound
from multitower.exit_codes import Exit

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
models:
  - {name: m, handler: "handlers:Versioned", parameters: {version: 1}, batching: {max_batch_size: 8}}
  - {name: commanded, handler: "commanded_handlers:Commanded", batching: {max_batch_size: 1}}
"""

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("metrics"), CONFIG) as daemon:
        yield daemon.wait_ready()


@pytest.fixture
def client(daemon: Running) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


def values(text: str) -> Values:
    """The value of each series, by its name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_prometheus(text)
        for sample in family.samples
    }


def value(found: Values, name: str, **labels: str) -> float:
    """The value of a series; 0 if there is none."""
    return found.get((name, tuple(sorted(labels.items()))), 0.0)


def refuse(client: Client, error: type[MultitowerError], model: str, **inputs: object) -> None:
    with pytest.raises(error):
        client.infer(model, inputs)


def test_requests_are_counted_exactly_by_outcome(client: Client) -> None:
    before = values(client.metrics())
    row = np.ones((1, 1), np.float32)
    futures = [client.submit("m", {"x": row}) for _ in range(100)]
    for future in futures:
        future.result(STEP_S)
    for _ in range(3):
        refuse(client, MultitowerError, "commanded", do=[["raise no"]])
    refuse(client, InvalidRequest, "commanded", do=[["refuse_own no"]])
    refuse(client, InvalidRequest, "m", x=np.ones((2, 1), np.float32), y=row)
    refuse(client, NotFound, "no_such_model", x=row)
    after = values(client.metrics())

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    def requests(model: str, version: str, outcome: str) -> float:
        return grown("multitower_requests_total", model=model, version=version, outcome=outcome)

    assert requests("m", "1", "ok") == 100
    assert requests("commanded", "1", "model_error") == 3
    assert requests("commanded", "1", "shape_invalid") == 1
    assert requests("m", "", "shape_invalid") == 1
    assert requests("", "", "model_unknown") == 1, "names that clients make up are no labels"
    for name in ("request", "queue"):
        assert grown(f"multitower_{name}_seconds_count", model="m", version="1") == 100
        assert grown(f"multitower_{name}_seconds_bucket", model="m", version="1", le="+Inf") == 100
    statistics = client.statistics("m")["model_stats"][0]
    labels = {"model": "m", "version": "1"}
    assert value(after, "multitower_rows_total", **labels) == statistics["inference_count"]
    assert value(after, "multitower_batch_rows_count", **labels) == statistics["execution_count"]
    assert value(after, "multitower_compute_seconds_count", **labels) == statistics["execution_count"]
    assert value(after, "multitower_batch_rows_sum", **labels) == 100
    seconds = statistics["inference_stats"]["success"]["ns"] / 1e9
    assert value(after, "multitower_request_seconds_sum", **labels) == pytest.approx(seconds)


def test_both_formats_have_the_same_metrics(daemon: Running, client: Client) -> None:
    slots = [{"slot": str(slot), "device": f"cpu:{slot}"} for slot in (0, 1)]

    def sampled() -> bool:
        found = values(client.metrics())
        return all(value(found, "multitower_worker_resident_memory_bytes", **slot) > 0 for slot in slots)

    # The memory of a worker is measured once a second: until then it has no series.
    daemon.wait(sampled)
    prometheus, openmetrics = client.metrics(), client.metrics("openmetrics")
    assert openmetrics.endswith("# EOF\n")
    found = [
        {(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples}
        for families in (parse_prometheus(prometheus), parse_openmetrics(openmetrics))
    ]
    assert found[0] == found[1]


def test_the_state_of_a_worker_is_one_of_all_states(client: Client) -> None:
    found = values(client.metrics())
    for slot in ("0", "1"):
        states = {
            dict(labels)["state"]: number
            for (name, labels), number in found.items()
            if name == "multitower_worker_state" and dict(labels)["slot"] == slot
        }
        assert states.pop("ready") == 1
        assert set(states.values()) == {0}
        assert len(states) == 7


def test_an_unknown_format_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="format must be prometheus or openmetrics"):
        client.metrics("xml")


def test_many_clients_at_once_share_what_is_written(daemon: Running, client: Client) -> None:
    futures = [client._requests.start_metrics(format) for format in ("prometheus", "openmetrics") * 30]
    texts = [future.result(STEP_S) for future in futures]
    assert all(text.startswith("# HELP multitower_requests") for text in texts)
    assert [text.endswith("# EOF\n") for text in texts] == [False, True] * 30


def test_the_command_prints_what_the_daemon_exports(daemon: Running) -> None:
    done = multitower("metrics", daemon=daemon)
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert value(values(done.stdout), "multitower_outstanding_requests") == 0
    openmetrics = multitower("metrics", "--format", "openmetrics", daemon=daemon)
    assert openmetrics.stdout.endswith("\n# EOF\n")


def test_the_control_endpoint_answers_too(daemon: Running) -> None:
    control = daemon.status()["daemon"]["control"]
    with Client(control, timeout=STEP_S) as client:
        assert "multitower_build_info{" in client.metrics()


def test_a_killed_worker_and_its_request_are_counted_by_cause(daemon: Running, client: Client) -> None:
    before = values(client.metrics())
    future = client.submit("commanded", {"do": [["sleep 1"]]})

    def busy() -> list[dict[str, Any]]:
        return [slot for slot in client.status()["slots"] if slot["depth"]]

    daemon.wait(lambda: bool(busy()))
    (slot,) = busy()
    labels = {"slot": str(slot["slot"]), "device": slot["device"]}
    daemon.wait(lambda: value(values(client.metrics()), "multitower_worker_batch_age_seconds", **labels) > 0)
    os.kill(slot["pid"], signal.SIGKILL)
    assert future.result(STEP_S)["pid"] != slot["pid"], "it ran again"
    daemon.wait(lambda: client.server_ready()["slots_ready"] == 2)
    after = values(client.metrics())
    restarts = {"slot": str(slot["slot"])}
    for cause, wanted in (("killed", 1), ("hung", 0), ("crashed", 0)):
        name = "multitower_worker_restarts_total"
        assert value(after, name, cause=cause, **restarts) - value(before, name, cause=cause, **restarts) == wanted
    name = "multitower_retried_requests_total"
    assert value(after, name, model="commanded") - value(before, name, model="commanded") == 1
    for name in ("multitower_worker_batches_total", "multitower_worker_busy_seconds_total"):
        assert value(after, name, **labels) >= value(before, name, **labels), "counters go on over incarnations"


def test_without_a_daemon_the_command_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "multitower", "metrics", "--endpoint", f"ipc://{tmp_path}/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_S, check=False)
    assert done.returncode == Exit.UNAVAILABLE
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
