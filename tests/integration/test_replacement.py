"""Replacements: restarts by an operator, workers over their limits, and reloads; no request is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from fake_gpus import UUIDS, FakeGpus
from flow import Sent, flow
from running import STEP_S, Running, multitower

from multitower import Client, NotFound
from multitower.cli.configuration import check

pytestmark = pytest.mark.chaos

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
models:
  - name: m
    handler: handlers:Versioned
    parameters: {version: 1}
    batching: {max_batch_size: 8}
"""


@contextmanager
def load(client: Client, rows: int = 1, outstanding: int = 32) -> Iterator[Sent]:
    """Sends requests all the time; each of them must get its answer."""
    with flow(client, "m", rows=rows, outstanding=outstanding) as sent:
        yield sent
    for number, future in sent:
        assert future.result(STEP_S)["x"].tolist() == [[number]] * rows


def grown(sent: list[Any], by: int = 50) -> Callable[[], bool]:
    wanted = len(sent) + by
    return lambda: len(sent) >= wanted


def test_a_slot_is_restarted_under_load_without_a_gap(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        before = client.status()["slots"]
        with load(client) as sent:
            daemon.wait(grown(sent))
            done = multitower("restart", "1", daemon=daemon)
            assert (done.returncode, done.stderr) == (0, "")
            daemon.wait(grown(sent))
        after = client.status()["slots"]
        assert after[0]["pid"] == before[0]["pid"]
        assert f"process {after[1]['pid']}" in done.stdout
        assert after[1]["pid"] != before[1]["pid"]
        assert (after[1]["incarnation"], after[1]["restarts"], after[1]["state"]) == (2, 0, "ready")
        daemon.wait(lambda: not psutil.pid_exists(before[1]["pid"]))
        assert daemon.end() == 0


def test_a_failed_slot_is_restarted_once_the_cause_is_removed(tmp_path: Path) -> None:
    (tmp_path / "crash").touch()
    text = CONFIG.replace("Versioned", "CrashingLoader").replace("{version: 1}", "{}") + (
        "restart: {max_restarts: 1, backoff: {first: 10ms, max: 20ms}}\n"
    )
    with Running(tmp_path, text) as daemon, daemon.client() as client:
        daemon.wait(lambda: [slot["state"] for slot in client.status()["slots"]] == ["failed", "failed"])
        failed = multitower("restart", "0", daemon=daemon)
        assert failed.returncode != 0
        assert "code 3" in failed.stderr
        (tmp_path / "crash").unlink()
        assert multitower("restart", "0", daemon=daemon).returncode == 0
        assert client.infer("m", {"x": np.ones((1, 1))})["x"].tolist() == [[1]]
        assert client.ready()
        assert multitower("status", daemon=daemon).returncode == 1, "one slot is still missing"
        assert multitower("restart", "7", daemon=daemon).stderr.count("there is no slot 7, only 0, 1") == 1


def test_workers_are_replaced_after_max_requests(tmp_path: Path) -> None:
    text = CONFIG + "heartbeat: 100ms\nmax_requests: 200\n"
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        with load(client):
            for slot in (0, 1):
                daemon.wait_line("worker ready", slot=slot, incarnation=3)
        assert sum(slot["restarts"] for slot in client.status()["slots"]) == 0


@pytest.mark.parametrize("limit", ["max_requests: 50", "max_rss: 20MiB"])
def test_limits_set_by_a_reload_apply_to_workers_that_serve_already(tmp_path: Path, limit: str) -> None:
    text = CONFIG.replace("cpu: 2", "cpu: 3") + "heartbeat: 100ms\n"
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        with load(client) as sent:
            daemon.wait(grown(sent, by=600))
            daemon.config.write_text(f"{daemon.config.read_text()}{limit}\n")
            assert multitower("reload", daemon=daemon).stdout == "reloaded; no slot had to change\n"
            for slot in (0, 1, 2):
                assert limit.split(":")[0] in daemon.wait_line("replacing worker", slot=slot)["why"]
                daemon.wait_line("worker replaced", slot=slot)
            messages = [
                line["message"] for line in daemon.lines if line["message"] in ("replacing worker", "worker replaced")
            ]
            assert set(messages[::2]) == {"replacing worker"}, "one after the other"
            assert set(messages[1::2]) == {"worker replaced"}
            daemon.wait(grown(sent))
        assert sum(slot["restarts"] for slot in client.status()["slots"]) == 0


def test_a_reload_under_load_loses_nothing_and_mixes_no_versions(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        # Requests of 20 rows are split over workers; all parts of one must run on one version.
        with load(client, rows=20, outstanding=8) as sent:
            for version in range(2, 8):
                daemon.config.write_text(daemon.config.read_text().replace(f"n: {version - 1}}}", f"n: {version}}}"))
                done = multitower("reload", daemon=daemon)
                assert (done.returncode, done.stdout) == (0, "reloaded; slots replaced 0, 1\n"), done.stderr
        seen = set()
        for _, future in sent:
            (version,) = set(future.result()["version"].tolist())
            seen.add(version)
        assert set(range(2, 7)) <= seen
        assert client.infer("m", {"x": np.ones((1, 1))})["version"].tolist() == [7]


def test_models_and_devices_are_added_and_removed_under_load(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client, load(client) as sent:
        daemon.wait(grown(sent))
        text = daemon.config.read_text()
        more = text.replace("{cpu: 2}", "{cpu: 3}") + "  - {name: n, handler: 'handlers:Echo'}\n"
        daemon.config.write_text(more)
        assert multitower("reload", daemon=daemon).stdout == "reloaded; slots replaced 0, 1; added 2\n"
        assert client.infer("n", {"x": np.ones(1)})["x"].tolist() == [1]
        daemon.wait_ready()
        assert [slot["device"] for slot in client.status()["slots"]] == ["cpu:0", "cpu:1", "cpu:2"]
        daemon.config.write_text(text.replace("{cpu: 2}", "{cpu: 1}"))
        assert multitower("reload", daemon=daemon).stdout == "reloaded; slots replaced 0; removed 1, 2\n"
        assert [slot["slot"] for slot in client.status()["slots"]] == [0]
        with pytest.raises(NotFound):
            client.infer("n", {"x": np.ones(1)})
        assert [model["name"] for model in client.status()["models"]] == ["m"]
        daemon.config.write_text(text.replace("{cpu: 2}", "[cpu:7]"))
        assert multitower("reload", daemon=daemon).stdout == "reloaded; slots added 1; removed 0\n"
        (slot,) = client.status()["slots"]
        assert (slot["device"], slot["state"]) == ("cpu:7", "ready"), "the old one serves until the new one does"
        daemon.wait(grown(sent))


def test_gpus_are_regrouped_under_load(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    text = CONFIG.replace("{cpu: 2}", "[0, 1, 2]")
    with (
        Running(tmp_path, text, environment=fake_gpus.environment()) as daemon,
        daemon.wait_ready().client() as client,
        load(client) as sent,
    ):
        daemon.wait(grown(sent))
        before = len(daemon.lines)
        daemon.config.write_text(daemon.config.read_text().replace("[0, 1, 2]", "[2, [1, 0]]"))
        assert multitower("reload", daemon=daemon).stdout == "reloaded; slots added 3; removed 0, 1\n"
        daemon.wait_line("worker ready", after=before, slot=3)
        slots = [(slot["slot"], slot["device"], slot["visible_devices"]) for slot in client.status()["slots"]]
        names = UUIDS[2], f"{UUIDS[1]},{UUIDS[0]}"
        assert slots == [(2, names[0], names[0]), (3, names[1], names[1])]
        daemon.wait(grown(sent))
        events = [
            (line["message"], line["slot"])
            for line in daemon.lines[before:]
            if line["message"] in ("worker started", "worker ended")
        ]
        assert sorted(events[:2]) == [("worker ended", 0), ("worker ended", 1)]
        assert events[2:] == [("worker started", 3)]


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon whose workers no test replaces."""
    with Running(tmp_path_factory.mktemp("unchanged"), CONFIG) as daemon:
        yield daemon.wait_ready()


def test_a_reload_of_limits_restarts_no_worker(unchanged: Running) -> None:
    with unchanged.client() as client:
        before = [slot["pid"] for slot in client.status()["slots"]]
        former = unchanged.config.read_text()
        unchanged.config.write_text(former + "    retry: 3\n    queue: {timeout: 9s, max_size: 7}\n")
        assert multitower("reload", daemon=unchanged).stdout == "reloaded; no slot had to change\n"
        assert [slot["pid"] for slot in client.status()["slots"]] == before
        unchanged.config.write_text(former)


def test_a_reload_of_dispatch_applies_and_restarts_no_worker(tmp_path: Path) -> None:
    sleeper = CONFIG.split("models:")[0].replace("cpu: 2", "cpu: 4") + (
        "models: [{name: m, handler: 'handlers:Sleeper', parameters: {seconds: 0.01, slow: 0, factor: 8}}]\n"
    )
    with Running(tmp_path, sleeper) as daemon, daemon.wait_ready().client() as client:

        def slow_share_of(requests: int) -> int:
            """Returns how many of so many requests, sent one after the other, the slow worker gets."""
            before = client.status()["slots"][0]["completed"]
            for number in range(requests):
                client.infer("m", {"x": np.array([number])})
            return int(client.status()["slots"][0]["completed"] - before)

        pids = [slot["pid"] for slot in client.status()["slots"]]
        slow_share_of(40)  # until the times of all workers are known
        assert slow_share_of(40) == 0
        daemon.config.write_text(daemon.config.read_text() + "dispatch: least_depth\n")
        assert multitower("reload", daemon=daemon).stdout == "reloaded; no slot had to change\n"
        assert slow_share_of(40) == 10, "they take turns"
        daemon.config.write_text(daemon.config.read_text().replace("least_depth", "earliest_finish"))
        assert multitower("reload", daemon=daemon).stdout == "reloaded; no slot had to change\n"
        assert slow_share_of(40) == 0, "the measured times are kept"
        assert [slot["pid"] for slot in client.status()["slots"]] == pids


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (
            ("spares:", "sparse:"),
            "INVALID_ARGUMENT/config_refused",
            "config.yaml:4:1: sparse: unknown key (did you mean 'spares'?)",
        ),
        (
            ("listen: [", "listen: ['tcp://127.0.0.1:*', "),
            "INVALID_ARGUMENT/config_refused",
            "listen cannot change while the daemon runs: restart it",
        ),
        (
            ("Versioned", "Broken"),
            "INTERNAL/order_failed",
            "slot 0: m: FileNotFoundError: the weights are missing",
        ),
        (("devices: {cpu: 2}", "devices: [GPU-none]"), "INVALID_ARGUMENT/config_refused", "GPU"),
    ],
    ids=["a misspelt key", "an endpoint", "a model that cannot load", "a missing device"],
)
def test_a_wrong_reload_changes_nothing(unchanged: Running, change: tuple[str, str], reason: str, words: str) -> None:
    daemon = unchanged
    with daemon.client() as client:
        before = [(slot["pid"], slot["incarnation"]) for slot in client.status()["slots"]]
        good = daemon.config.read_text()
        daemon.config.write_text(good.replace(*change))
        done = multitower("reload", daemon=daemon)
        assert done.returncode == 1
        assert reason in done.stderr
        assert words in done.stderr
        assert client.infer("m", {"x": np.ones((1, 1))})["version"].tolist() == [1]
        assert [(slot["pid"], slot["incarnation"]) for slot in client.status()["slots"]] == before
        daemon.config.write_text(good)
        assert multitower("reload", daemon=daemon).stdout == "reloaded; no slot had to change\n"


@pytest.mark.parametrize("order", [("reload",), ("load", "m")], ids=lambda order: order[0])
def test_each_mistake_of_a_refused_configuration_has_its_line(unchanged: Running, order: tuple[str, ...]) -> None:
    good = unchanged.config.read_text()
    unchanged.config.write_text(good.replace("    batching:", "    priority: high\n    baching:"))
    try:
        done = multitower(*order, daemon=unchanged)
        checked = CliRunner().invoke(check, [str(unchanged.config)])
    finally:
        unchanged.config.write_text(good)
    first, *mistakes = done.stderr.splitlines()
    assert first == (
        "multitower: INVALID_ARGUMENT/config_refused: the configuration is refused, and nothing has changed:"
    )
    assert mistakes == checked.stderr.splitlines()
    assert [line.split()[0] for line in mistakes] == [f"{unchanged.config}:{row}:5:" for row in (9, 10)]


def test_sighup_reloads_the_configuration(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        daemon.config.write_text(daemon.config.read_text().replace("{version: 1}", "{version: 2}"))
        daemon.signal(signal.SIGHUP)
        daemon.wait_line("reloaded")
        assert client.infer("m", {"x": np.ones((1, 1))})["version"].tolist() == [2]


def test_batches_become_smaller_where_device_memory_is_short(tmp_path: Path) -> None:
    text = CONFIG.replace("Versioned", "Hungry").replace("{version: 1}", "{rows: 5}").replace("cpu: 2", "cpu: 1")
    # Its outputs depend on the number of rows, on purpose.
    text = text.replace("max_batch_size: 8", "max_batch_size: 32, trust: true")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        futures = [client.submit("m", {"x": np.array([[number]])}) for number in range(200)]
        assert [future.result(STEP_S)["x"].tolist() for future in futures] == [[[n]] for n in range(200)]
        large = client.infer("m", {"x": np.arange(32).reshape(32, 1)})
        assert large["x"].tolist() == [[number] for number in range(32)]
        assert large["most"].max() <= 5
        assert daemon.wait_line("device memory is short: smaller batches", slot=0)["safe_rows"] < 32
        assert client.status()["slots"][0]["safe_rows"] == {"m": large["most"].max()}
        assert client.status()["slots"][0]["incarnation"] == 1


def test_a_worker_that_stays_out_of_memory_is_replaced(tmp_path: Path) -> None:
    text = CONFIG.replace("Versioned", "Hungry").replace("{version: 1}", "{calls: 2}").replace("cpu: 2", "cpu: 1")
    text = text.replace("max_batch_size: 8", "max_batch_size: 8, trust: true")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        futures = [client.submit("m", {"x": np.array([[1]])}) for _ in range(30)]
        errors = [error for future in futures if (error := future.exception(STEP_S)) is not None]
        assert all("OOM" in str(error) for error in errors)
        daemon.wait_line("worker ready", slot=0, incarnation=2)
        assert 3 <= len(errors) < 30
        assert client.infer("m", {"x": np.array([[1]])})["x"].tolist() == [[1]]


def test_a_daemon_that_is_stopped_during_a_reload_ends_cleanly(tmp_path: Path) -> None:
    text = CONFIG.replace("{version: 1}", "{version: 1, load_s: 1.0}")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        daemon.config.write_text(text.replace("{endpoint}", daemon.endpoint).replace("version: 1", "version: 2"))
        daemon.signal(signal.SIGHUP)
        daemon.wait_line("replacing worker", slot=0)
        assert client.infer("m", {"x": np.ones((1, 1))})["x"].tolist() == [[1]]
        assert daemon.end() == 0


def test_a_worker_that_dies_or_hangs_during_its_replacement_loses_nothing(tmp_path: Path) -> None:
    text = CONFIG.replace("{version: 1}", "{version: 1, load_s: 1.0}") + "heartbeat: 100ms\n"
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        for number, way in enumerate((signal.SIGKILL, signal.SIGSTOP), 2):
            before = client.status()["slots"]
            seen = len(daemon.lines)
            with load(client) as sent:
                daemon.wait(grown(sent))
                changed = daemon.config.read_text().replace(f"version: {number - 1}", f"version: {number}")
                daemon.config.write_text(changed)
                daemon.signal(signal.SIGHUP)
                daemon.wait_line("replacing worker", after=seen, slot=0)
                os.kill(before[0]["pid"], way)
                daemon.wait_line("reloaded", after=seen)
            assert client.infer("m", {"x": np.ones((1, 1))})["version"].tolist() == [number]
            daemon.wait_ready()


def test_restarting_the_only_slot_while_it_loads_does_not_end_the_daemon(tmp_path: Path) -> None:
    text = CONFIG.replace("cpu: 2", "cpu: 1").replace("{version: 1}", "{version: 1, load_s: 2.0}")
    with Running(tmp_path, text + "exit_when_failed: true\n") as daemon:
        daemon.wait_line("worker started", slot=0)
        daemon.wait(lambda: daemon.slot()["state"] == "loading")
        assert multitower("restart", "0", daemon=daemon).returncode == 0
        slot = daemon.slot()
        assert (slot["state"], slot["incarnation"]) == ("ready", 2)
