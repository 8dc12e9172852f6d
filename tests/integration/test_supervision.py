"""Real workers that die in every way: seen, replaced, and never missed by a client."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from running import STEP_S, Running, outliving

from multitower import MultitowerError, Poisoned, Unavailable
from multitower.supervisor.lifecycle import REPEAT_S

pytestmark = pytest.mark.chaos


def config(handler: str = "Echo", *, workers: int = 2, spares: int = 0, more: str = "", model: str = "") -> str:
    return f"""
listen: ["{{endpoint}}"]
devices: {{cpu: {workers}}}
spares: {spares}
{more}
models:
  - name: m
    handler: handlers:{handler}
    {model}
"""


COMMANDED = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
restart: {max_restarts: 1000, window: 1s, backoff: {first: 10ms, max: 100ms}}
models:
  - {name: m, handler: "commanded_handlers:Commanded"}
  - {name: untried, handler: "commanded_handlers:Commanded", retry: 0, quarantine: 0}
"""


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon whose only worker may be killed. It does not retry requests of the model `untried`."""
    with Running(tmp_path_factory.mktemp("commanded"), COMMANDED) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon whose two workers may be killed."""
    with Running(tmp_path_factory.mktemp("pair"), COMMANDED.replace("cpu: 1", "cpu: 2")) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def spared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon with a spare, which may be killed, and a worker, which may not."""
    with Running(tmp_path_factory.mktemp("spared"), config(workers=1, spares=1)) as daemon:
        yield daemon.wait_ready()


def do(command: str) -> dict[str, Any]:
    return {"do": np.array([command])}


def test_of_two_batches_only_the_one_that_killed_the_worker_is_suspect(commanded: Running) -> None:
    # The second request is sent shortly before the first one ends, and kills before that one's answer may have left.
    with commanded.client() as client:
        for number in range(3):
            for _ in range(4):
                client.infer("untried", do("sleep 0.1"))  # until its time is known
            first = client.submit("untried", do("sleep 0.1"))
            second = client.submit("untried", do(f"exit {number + 1}"))
            third = client.submit("untried", do("sleep 0.1"))
            with pytest.raises(Unavailable, match="the worker died with this request"):
                second.result(STEP_S)
            assert first.result(STEP_S)["pid"].shape == (1,)
            assert third.result(STEP_S)["pid"].shape == (1,)


def test_kill_under_load_loses_nothing_and_the_spare_takes_over(tmp_path: Path) -> None:
    sleeper = config("Sleeper", spares=1, model="parameters: {seconds: 0.005}\n    batching: {max_batch_size: 8}")
    with Running(tmp_path, sleeper) as daemon, daemon.wait_ready().client() as client:
        daemon.wait(lambda: [s["state"] for s in client.status()["daemon"]["spares"]] == ["idle"])
        before = client.status()
        victim = before["slots"][0]["pid"]
        spare = before["daemon"]["spares"][0]["pid"]
        stop, futures = threading.Event(), []

        def load() -> None:
            number = 0
            room = threading.Semaphore(32)
            while not stop.is_set():
                assert room.acquire(timeout=STEP_S)
                number += 1
                future = client.submit("m", {"x": np.array([[number]], np.int64)})
                future.add_done_callback(lambda _: room.release())
                futures.append((number, future))

        thread = threading.Thread(target=load)
        thread.start()
        daemon.wait(lambda: len(futures) > 100)
        os.kill(victim, signal.SIGKILL)
        daemon.wait_line("worker ready", slot=0, incarnation=2)
        seen = len(futures)
        daemon.wait(lambda: len(futures) > seen + 100)
        stop.set()
        thread.join(STEP_S)
        for number, future in futures:
            assert future.result(STEP_S)["x"].tolist() == [[number]]
        slot = client.status()["slots"][0]
        assert (slot["pid"], slot["incarnation"], slot["restarts"]) == (spare, 2, 1)
        died = daemon.wait_line("worker died", slot=0)
        assert died["pid"] == victim
        assert died["device"] == "cpu:0"
        assert "SIGKILL" in died["cause"]
        assert "memory" in died["check"], "an OOM kill is what to look for"
        daemon.wait(lambda: [s["state"] for s in client.status()["daemon"]["spares"]] == ["idle"])
        assert daemon.end() == 0


def test_a_death_is_seen_though_a_helper_has_the_descriptors_and_the_helper_ends(commanded: Running) -> None:
    daemon = commanded
    with daemon.client() as client:
        pid = int(client.infer("m", do("fork 600"))["pid"][0])
        (helper,) = psutil.Process(pid).children()
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        daemon.wait_line("worker died", slot=0, pid=pid)
        assert not outliving([helper], STEP_S)
        # The helper sleeps for 10 min: waiting for its descriptors would take far longer than this.
        assert time.monotonic() - killed < 2 * STEP_S
        daemon.wait(lambda: client.status()["slots"][0]["state"] == "ready")
        assert int(client.infer("m", do("pid"))["pid"][0]) != pid


@pytest.mark.parametrize(
    ("command", "cause"),
    [("segfault", "SIGSEGV"), ("exit 3", "code 3"), ("exit 0", "code 0")],
)
def test_a_request_that_kills_workers_is_poisoned_after_its_retry(pair: Running, command: str, cause: str) -> None:
    daemon = pair
    with daemon.client() as client:
        before, seen = sum(slot["restarts"] for slot in client.status()["slots"]), len(daemon.lines)
        good = [client.submit("m", do("echo")) for _ in range(50)]
        bad = client.submit("m", do(command))
        good += [client.submit("m", do("echo")) for _ in range(50)]
        with pytest.raises(Poisoned, match="2 workers died"):
            bad.result(STEP_S)
        for future in good:
            future.result(STEP_S)
        daemon.wait_ready()
        assert sum(slot["restarts"] for slot in client.status()["slots"]) == before + 2
        assert cause in daemon.wait_line("worker died", after=seen)["cause"]


def test_without_retry_a_death_is_reported_as_worker_died(commanded: Running) -> None:
    with commanded.client() as client:
        with pytest.raises(Unavailable) as raised:
            client.infer("untried", do("exit 9"))
        assert raised.value.reason == "worker_died"


COUNTED = ("batches", "batch_rows", "rows", "failed")


def test_an_exception_of_the_model_costs_no_worker(commanded: Running) -> None:
    with commanded.client() as client:
        client.infer("m", do("echo"))  # the worker that the last test has killed is back
        before = client.status()
        with pytest.raises(MultitowerError, match="RuntimeError: no such digit") as raised:
            client.infer("m", do("raise no such digit"))
        assert raised.value.reason == "model_error"
        client.infer("m", do("echo"))
        after = client.status()
        assert after["slots"][0]["pid"] == before["slots"][0]["pid"]
        counts = {key: after["models"][0][key] - before["models"][0][key] for key in COUNTED}
        assert counts == {"batches": 2, "batch_rows": 2, "rows": 1, "failed": 1}


def test_errors_that_no_reply_can_carry_cost_no_worker(commanded: Running) -> None:
    expected = {
        "refuse it": ("shape_invalid", "it"),  # its details are left out
        "refuse_deep it": ("shape_invalid", "it"),
        "refuse_own it": ("shape_invalid", "x: it"),
        "refuse_unknown it": ("model_error", "'m' raised InvalidRequest: INVALID_ARGUMENT/my_reason: it"),
        "unprintable": ("model_error", "'m' raised Unprintable: (its message cannot be shown)"),
        "sys.exit 3": ("model_error", "'m' raised SystemExit: 3"),
    }
    with commanded.client() as client:
        pid = int(client.infer("m", do("pid"))["pid"][0])
        for command, (reason, message) in expected.items():
            with pytest.raises(MultitowerError) as raised:
                client.infer("m", do(command))
            assert (raised.value.reason, raised.value.message) == (reason, message)
        with pytest.raises(MultitowerError) as raised:
            client.infer("m", do(f"refuse_own {'long ' * 1000}"))
        assert (raised.value.reason, raised.value.details) == ("shape_invalid", {"field": "x"})
        assert int(client.infer("m", do("pid"))["pid"][0]) == pid


def test_output_of_a_worker_goes_to_the_log_with_its_slot(commanded: Running) -> None:
    with commanded.client() as client:
        client.infer("m", do("shout hear me"))
        line = commanded.wait_line("hear me", slot=0)
        assert line["logger"] == "multitower.worker"


def test_a_loader_that_crashes_spends_the_budget_and_the_daemon_stays(tmp_path: Path) -> None:
    (tmp_path / "crash").touch()
    restart = "restart: {max_restarts: 2, backoff: {first: 10ms, max: 20ms}}"
    with Running(tmp_path, config("CrashingLoader", workers=1, more=restart)) as daemon:
        daemon.wait_line("slot failed", slot=0)
        with daemon.client() as client:
            state = client.server_ready()
            assert (state["ready"], state["slots_ready"], state["slots_total"]) == (False, 0, 1)
            with pytest.raises(Unavailable, match="code 3") as raised:
                client.infer("m", {"x": np.zeros(1)})
            assert raised.value.reason == "no_worker"
            slot = client.status()["slots"][0]
            assert slot["state"] == "failed"
            assert slot["restarts"] == 2
            assert "code 3" in slot["last_error"]
        assert daemon.end() == 0


def test_a_loader_that_recovers_serves_after_its_backoff(tmp_path: Path) -> None:
    (tmp_path / "crash").touch()
    with Running(tmp_path, config("CrashingLoader", workers=1)) as daemon:
        daemon.wait_line("worker died", slot=0)
        (tmp_path / "crash").unlink()
        daemon.wait_ready()
        assert daemon.slot()["state"] == "ready"


def test_a_model_that_cannot_load_fails_alone(tmp_path: Path) -> None:
    text = config("Echo", workers=1, model="") + "  - {name: broken, handler: 'handlers:Broken'}\n"
    with Running(tmp_path, text) as daemon:
        daemon.wait_line("worker ready", slot=0)
        line = daemon.wait_line("model cannot load", model="broken")
        assert "the weights are missing" in line["cause"]
        with daemon.client() as client:
            client.infer("m", {"x": np.zeros(1)})
            with pytest.raises(Unavailable, match="the weights are missing") as raised:
                client.infer("broken", {"x": np.zeros(1)})
            assert raised.value.reason == "no_worker"
            states = {model["name"]: model["state"] for model in client.status()["models"]}
            assert states == {"m": "ready", "broken": "failed"}
            assert client.server_ready()["ready"] is False


def test_if_no_model_loads_the_slot_fails_with_the_cause(tmp_path: Path) -> None:
    with Running(tmp_path, config("Broken", workers=1)) as daemon:
        line = daemon.wait_line("slot failed", slot=0)
        assert "the weights are missing" in line["cause"]
        daemon.wait(lambda: daemon.slot()["pid"] is None)
        assert "the weights are missing" in daemon.slot()["last_error"]


def test_a_handler_that_does_not_exist_says_so(tmp_path: Path) -> None:
    with Running(tmp_path, config("Nonsense", workers=1)) as daemon:
        assert "Nonsense" in daemon.wait_line("slot failed", slot=0)["cause"]


def test_a_dead_spare_is_replaced_and_costs_no_slot(spared: Running) -> None:
    daemon = spared
    with daemon.client() as client:
        daemon.wait(lambda: bool(client.status()["daemon"]["spares"]))
        pid = client.status()["daemon"]["spares"][0]["pid"]
        os.kill(pid, signal.SIGKILL)
        daemon.wait_line("spare died", pid=pid)
        daemon.wait(lambda: [s["state"] for s in client.status()["daemon"]["spares"]] == ["idle"])
        assert client.status()["slots"][0]["restarts"] == 0


@pytest.mark.parametrize("handler", ["Echo", "SlowLoader"])
def test_no_process_outlives_a_killed_parent(tmp_path: Path, handler: str) -> None:
    with Running(tmp_path, config(handler, workers=3, spares=2)) as daemon:
        if handler == "Echo":
            daemon.wait_ready()
            daemon.wait(lambda: len(daemon.status()["daemon"]["spares"]) == 2)
            expected = 5
        else:
            for slot in range(3):
                daemon.wait(lambda slot=slot: daemon.slot(slot)["state"] == "loading")
            expected = 3
        # multiprocessing's resource tracker may be one more.
        children = daemon.remember()
        assert len(children) >= expected
        daemon.signal(signal.SIGKILL)
        assert not outliving(children, timeout=30)


def test_workers_ignore_the_signals_of_their_process_group(spared: Running) -> None:
    daemon = spared
    with daemon.client() as client:
        daemon.wait(lambda: [s["state"] for s in client.status()["daemon"]["spares"]] == ["idle"])
        status = client.status()
        pids = [status["slots"][0]["pid"], status["daemon"]["spares"][0]["pid"]]
        for pid in pids:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
        client.infer("m", {"x": np.zeros(1)})
        status = client.status()
        assert [status["slots"][0]["pid"], status["daemon"]["spares"][0]["pid"]] == pids


def test_a_drain_answers_what_was_accepted_and_refuses_the_rest(tmp_path: Path) -> None:
    text = config("Sleeper", workers=1, model="parameters: {seconds: 0.05}")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        accepted = [client.submit("m", {"x": np.array([n])}) for n in range(20)]
        daemon.wait(lambda: client.status()["models"][0]["queue"] > 0)
        daemon.remember()
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("draining")
        with pytest.raises(Unavailable) as raised:
            client.infer("m", {"x": np.array([99])})
        assert raised.value.reason == "draining"
        assert [future.result(STEP_S)["x"].tolist() for future in accepted] == [[n] for n in range(20)]
        assert daemon.wait_end() == 0


def test_a_second_signal_ends_the_daemon_at_once(tmp_path: Path) -> None:
    text = config("Sleeper", workers=2, spares=1, model="parameters: {seconds: 20}")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        stuck: Future[Any] = client.submit("m", {"x": np.zeros(1)})
        daemon.wait(lambda: any(slot["depth"] for slot in client.status()["slots"]))
        daemon.remember()
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("draining")
        second_at = time.monotonic() + REPEAT_S
        daemon.wait(lambda: time.monotonic() > second_at)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_end() == 130
        with pytest.raises(Unavailable):
            stuck.result(STEP_S)


def test_a_signal_repeated_within_a_second_is_the_same_request(tmp_path: Path) -> None:
    # GNU timeout signals its child and then its process group.
    text = config("Sleeper", workers=1, model="parameters: {seconds: 0.5}")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        accepted = client.submit("m", {"x": np.array([7])})
        daemon.wait(lambda: any(slot["depth"] for slot in client.status()["slots"]))
        daemon.remember()
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("draining")
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("already draining", signal="SIGTERM")
        assert accepted.result(STEP_S)["x"].tolist() == [7]
        assert daemon.wait_end() == 0


def test_a_drain_has_a_limit(tmp_path: Path) -> None:
    text = config("Sleeper", workers=1, more="drain_timeout: 200ms", model="parameters: {seconds: 60}")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        stuck = client.submit("m", {"x": np.zeros(1)})
        daemon.wait(lambda: any(slot["depth"] for slot in client.status()["slots"]))
        assert daemon.end() == 0
        daemon.wait_line("drain_timeout is over")
        with pytest.raises(Unavailable):
            stuck.result(STEP_S)


def test_an_answer_given_before_the_death_counts(commanded: Running) -> None:
    """What a dead worker had sent is read first. The daemon is stopped meanwhile, so that it finds both at once."""
    daemon = commanded
    with daemon.wait_ready().client() as client:
        future = client.submit("untried", do("farewell 1"))
        daemon.wait(lambda: client.status()["slots"][0]["depth"] == 1)
        worker = psutil.Process(client.status()["slots"][0]["pid"])
        daemon.signal(signal.SIGSTOP)
        try:
            daemon.wait(lambda: worker.status() == psutil.STATUS_ZOMBIE)
        finally:
            daemon.signal(signal.SIGCONT)
        assert int(future.result(STEP_S)["pid"][0]) == worker.pid
        daemon.wait_line("worker died", pid=worker.pid)
