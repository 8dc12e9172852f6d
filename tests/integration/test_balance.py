"""How requests are distributed over real workers: measured by counts, and by times only if these are the behaviour."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import STEP_S, Running
from status_rows import model_row

from multitower import Client, DeadlineExceeded, ModelError, Overloaded


def config(workers: int, **models: str) -> str:
    """Models by name: `parameters` of a Sleeper, or all keys."""
    text = f'listen: ["{{endpoint}}"]\ndevices: {{cpu: {workers}}}\nspares: 0\nmodels:\n'
    for name, keys in models.items():
        handler = "" if "handler:" in keys else "handler: handlers:Sleeper, "
        text += f"  - {{name: {name}, {handler}{keys}}}\n"
    return text


ONE_WORKER = config(
    1,
    shaped="parameters: {seconds: 0.005}, batching: {max_batch_size: 8}",
    total="handler: handlers:Total, batching: {max_batch_size: 8}",
    growing="parameters: {seconds: 0.05}, batching: {max_batch_size: 16}",
    short_queue="parameters: {seconds: 0.5}, queue: {max_size: 5}",
    patient="handler: handlers:Patient",
    slow="parameters: {seconds: 0.5}",
    flooded="parameters: {seconds: 0.02}",
    other="handler: handlers:Echo",
)
TWO_WORKERS = config(
    2,
    equal="parameters: {seconds: 0.004}, batching: {max_batch_size: 8}",
    commanded="handler: commanded_handlers:Commanded",
    small_batches="parameters: {seconds: 0.02}, batching: {max_batch_size: 4}",
    batches="parameters: {seconds: 0.02}, batching: {max_batch_size: 8}",
)


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("one"), ONE_WORKER) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("two"), TWO_WORKERS) as daemon:
        yield daemon.wait_ready()


def closed_loop(client: Client, name: str, requests: int, outstanding: int) -> float:
    """Sends requests, `outstanding` at a time; returns how many seconds it took."""
    room = threading.Semaphore(outstanding)
    futures = []
    begun = time.monotonic()
    for number in range(requests):
        assert room.acquire(timeout=STEP_S)
        future = client.submit(name, {"x": np.array([[number]], np.int32)})
        future.add_done_callback(lambda _: room.release())
        futures.append(future)
    answers = [int(future.result(STEP_S)["x"][0, 0]) for future in futures]
    assert answers == list(range(requests))
    return time.monotonic() - begun


def completed(client: Client, before: Sequence[int] = ()) -> list[int]:
    """What each worker has answered, less what it had answered before."""
    now = [slot["completed"] for slot in client.status()["slots"]]
    return [count - former for count, former in zip(now, before or [0] * len(now), strict=True)]


def in_order_of_answers(client: Client, name: str, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Sends labelled requests to a model at once; returns the labels in the order of the answers."""
    answered: queue.SimpleQueue[str] = queue.SimpleQueue()
    for label, inputs in requests:
        client.submit(name, inputs).add_done_callback(lambda _, label=label: answered.put(label))
    return [answered.get(timeout=STEP_S) for _ in requests]


def test_equal_workers_get_equal_shares(two_workers: Running) -> None:
    with two_workers.client() as client:
        before = completed(client)
        closed_loop(client, "equal", 4000, 64)
        first, second = completed(client, before)
        assert first + second == 4000
        # Where other tests have the cores meanwhile, the workers' speeds differ.
        assert abs(first - second) <= 0.3 * max(first, second)


def test_all_workers_work_in_parallel(tmp_path: Path) -> None:
    text = config(8, m="parameters: {seconds: 0.02}")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        took = closed_loop(client, "m", 400, 64)
        # A single worker takes at least 8 s on any machine; benchmarks/devices.py has figures.
        assert took < 7
        assert min(completed(client)) > 25


@pytest.mark.parametrize(("dispatch", "outstanding"), [("earliest_finish", [64]), ("least_depth", [64, 8])])
def test_a_slow_worker_gets_its_fair_share_of_a_long_queue(
    tmp_path: Path, dispatch: str, outstanding: Sequence[int]
) -> None:
    text = config(4, m="parameters: {seconds: 0.01, slow: 0, factor: 4}") + f"dispatch: {dispatch}\n"
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        for limit in outstanding:
            before = completed(client)
            closed_loop(client, "m", 1000, limit)
            slow, *fast = completed(client, before)
            # Its speed is 1 part in 13 of all; an even share would be 3.25 parts.
            assert 0.3 * 1000 / 13 < slow < 1.7 * 1000 / 13
            assert max(fast) - min(fast) < 0.3 * max(fast)


def test_a_slow_worker_stays_idle_if_the_others_finish_before_it(tmp_path: Path) -> None:
    # So long that a busy machine, on which any worker waits for a core, changes little of what is measured.
    text = config(4, m="parameters: {seconds: 0.03, slow: 0, factor: 4}")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client() as client:
        # Three run and five wait. While the slow one ran one, the others would run four or five each.
        closed_loop(client, "m", 400, 8)
        slow, *fast = completed(client)
        # It got some before it was measured, and then one in 500. Its fair share would be 31.
        assert 1 <= slow < 12
        assert max(fast) - min(fast) < 0.3 * max(fast)


def test_a_request_with_another_shape_is_not_overtaken(one_worker: Running) -> None:
    with one_worker.client() as client:
        wide, narrow = {"x": np.zeros((1, 3), np.int32)}, {"x": np.zeros((1, 2), np.int32)}
        for _ in range(5):
            requests = [("", wide)] * 40 + [("narrow", narrow)] + [("behind", wide)] * 64
            answered = in_order_of_answers(client, "shaped", requests)
            # Those that fill the batch of the last ones before it, and the batch that waits in the worker.
            assert answered[: answered.index("narrow")].count("behind") <= 2 * 8


def test_status_tells_that_a_model_has_no_batch_dimension(one_worker: Running) -> None:
    daemon = one_worker
    with daemon.client() as client:
        assert model_row(client, "total")["unbatched_because"] is None
        futures = [client.submit("total", {"x": np.array([n, n], np.int64)}) for n in range(40)]
        assert [future.result(STEP_S)["sum"].tolist() for future in futures] == [[2 * n] for n in range(40)]
        state = model_row(client, "total")
        assert "rows gave outputs of the shapes 'sum' [1]" in state["unbatched_because"]
        assert client.infer("total", {"x": np.ones(20, np.int64)})["sum"].tolist() == [20], "it is not split"
        # The next worker is not asked again: the first batch of several requests would show it anew.
        pid = client.status()["slots"][0]["pid"]
        os.kill(pid, signal.SIGKILL)
        daemon.wait(lambda: client.status()["slots"][0]["pid"] not in (None, pid))
        daemon.wait_ready()
        assert client.infer("total", {"x": np.ones(20, np.int64)})["sum"].tolist() == [20]
        assert model_row(client, "total")["unbatched_because"] == state["unbatched_because"]
        assert [line["message"] for line in daemon.lines].count("model runs unbatched") == 1


def test_short_unbatched_requests_share_messages_but_not_their_errors(two_workers: Running) -> None:
    with two_workers.client() as client:
        for _ in range(600):  # until they are known to be short
            client.infer("commanded", {"do": np.array([b"nothing"], object)})
        commands = [f"raise {number}" if number % 7 == 0 else "nothing" for number in range(2000)]
        futures = [client.submit("commanded", {"do": np.array([command], object)}) for command in commands]
        pids = {slot["pid"] for slot in client.status()["slots"]}
        for number, (command, future) in enumerate(zip(commands, futures, strict=True)):
            if command == "nothing":
                assert future.result(STEP_S)["pid"][0] in pids
            else:
                with pytest.raises(ModelError, match=rf"\b{number}$"):
                    future.result(STEP_S)
        (statistics,) = (each for each in client.statistics()["model_stats"] if each["name"] == "commanded")
        assert statistics["execution_count"] == 600 + commands.count("nothing"), "without those that failed"
        assert statistics["inference_stats"]["fail"]["count"] == 2000 - commands.count("nothing")
        row = model_row(client, "commanded")
        assert (row["batches"], row["batch_rows"]) == (2600, 2600)


def test_batches_grow_while_all_workers_are_busy(one_worker: Running) -> None:
    with one_worker.client() as client:
        futures = [client.submit("growing", {"x": np.array([[n]], np.int32)}) for n in range(64)]
        assert [int(future.result(STEP_S)["x"][0, 0]) for future in futures] == list(range(64))
        row = model_row(client, "growing")
        assert row["completed"] == 64
        assert row["rows"] == 64
        assert row["batches"] < 20


def test_a_request_larger_than_a_batch_is_split_over_workers(two_workers: Running) -> None:
    with two_workers.client() as client:
        before = completed(client)
        rows = np.arange(50 * 3, dtype=np.float32).reshape(50, 3)
        names = np.array([f"row {n}" for n in range(50)])
        answer = client.infer("small_batches", {"x": rows, "name": names})
        assert np.array_equal(answer["x"], rows)
        assert [name.decode() for name in answer["name"]] == names.tolist()
        assert min(completed(client, before)) > 0
        assert model_row(client, "small_batches")["batches"] >= 13


def test_small_requests_are_answered_during_a_large_one(two_workers: Running) -> None:
    with two_workers.client() as client:
        (before, _) = completed(client)
        rows = np.arange(4000, dtype=np.int32)[:, None]  # five seconds on two workers
        large = client.submit("batches", {"x": rows}, timeout=STEP_S)
        two_workers.wait(lambda: client.status()["slots"][0]["completed"] > before)
        for number in range(20):
            answer = client.infer("batches", {"x": np.array([[number]], np.int32)}, timeout=STEP_S)
            assert answer["x"].tolist() == [[number]]
        assert not large.done(), "otherwise they were answered after it"
        assert large.result(STEP_S)["x"].tolist() == rows.tolist()


def test_a_request_that_cannot_run_in_its_time_is_refused_early(two_workers: Running) -> None:
    with two_workers.client() as client:
        rows = np.arange(800, dtype=np.int32)[:, None]  # a second on two workers
        assert client.infer("batches", {"x": rows}, timeout=STEP_S)["x"].tolist() == rows.tolist()
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="send fewer rows per request") as caught:
            client.infer("batches", {"x": np.repeat(rows, 100, axis=0)}, timeout=STEP_S)
        assert caught.value.details["rows"] == 80_000
        assert time.monotonic() - begun < STEP_S / 2
        assert caught.value.details["estimated_ms"] > 1000 * STEP_S


def test_a_full_queue_refuses_at_once(one_worker: Running) -> None:
    with one_worker.client() as client:
        futures = [client.submit("short_queue", {"x": np.zeros(1)}) for _ in range(20)]
        refused = [error for future in futures if (error := future.exception(STEP_S)) is not None]
        assert 13 <= len(refused) <= 15
        for error in refused:
            assert isinstance(error, Overloaded)
            assert error.reason == "queue_full"
            assert error.details["queue_depth"] == 5
            assert error.details["retry_after_ms"] >= 1


def test_a_deadline_holds_in_the_queue_and_during_execution(one_worker: Running) -> None:
    with one_worker.client() as client:
        before, late = completed(client), client.status()["daemon"]["late"]
        running = client.submit("patient", {"x": np.zeros(1), "seconds": 6.0}, timeout=0.5)
        waiting = client.submit("patient", {"x": np.zeros(1), "seconds": 0.0}, timeout=0.5)
        patient = client.submit("patient", {"x": np.ones(1), "seconds": 0.0})
        for future in (running, waiting):
            with pytest.raises(DeadlineExceeded):
                future.result(STEP_S)
        assert completed(client, before) == [0], "the answers do not wait for the worker"
        assert patient.result(STEP_S)["x"].tolist() == [1.0]
        # The request that expired in the queue never ran; the late result of the other was dropped and counted.
        assert completed(client, before) == [2]
        assert client.status()["daemon"]["late"] == late + 1


def test_a_cancelled_request_is_not_run(one_worker: Running) -> None:
    daemon = one_worker
    with daemon.client() as client:
        before = completed(client)
        running = client.submit("slow", {"x": np.zeros(1)})
        daemon.wait(lambda: client.status()["slots"][0]["depth"] == 1)
        waiting = client.submit("slow", {"x": np.zeros(1)})
        daemon.wait(lambda: model_row(client, "slow")["queue"] == 1)
        assert waiting.cancel()
        daemon.wait(lambda: model_row(client, "slow")["queue"] == 0)
        running.result(STEP_S)
        assert completed(client, before) == [1]


def test_models_take_turns(one_worker: Running) -> None:
    with one_worker.client() as client:
        flood = [client.submit("flooded", {"x": np.zeros(1)}) for _ in range(200)]
        client.infer("other", {"x": np.zeros(1)})
        assert sum(future.done() for future in flood) < 100
        for future in flood:
            future.cancel()
