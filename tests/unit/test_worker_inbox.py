"""The next batch is received and prepared while one computes, and nothing else changes."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest
import zmq
from new_threads import NewThreads

from multitower import batch_results, frames, worker_wire
from multitower.worker import inbox, service
from multitower.worker.batch_inputs import PreparedBatch
from multitower.worker.bound_socket import BoundSocket
from multitower.worker.executor import Executor
from multitower.worker.formats.model import Arrays
from multitower.worker_wire import KeySpec

KEY = KeySpec("m", (("x", "INT64", ()),), None, True)
BOUND_S = 20.0


class Squares:
    """Squares its input, after calling `before` with the first number."""

    platform = "python"
    volatile = True
    version = "1"
    inputs = None
    outputs = None

    def __init__(self, before: Callable[[int], object]) -> None:
        self._before = before
        self.threads: set[int] = set()

    def infer(self, inputs: Arrays) -> Arrays:
        self.threads.add(threading.get_ident())
        self._before(int(inputs["x"][0]))
        return {"y": inputs["x"] ** 2}

    def try_out(self, inputs: Arrays) -> Arrays:
        return self.infer(inputs)

    def close(self) -> None:
        pass


class Watched(Executor):
    """An executor that records the first number of each prepared batch."""

    def __init__(self, model: Squares) -> None:
        super().__init__("m", model, (), proven=True)
        self.told = threading.Condition()
        self.prepared: list[int] = []

    def prepare(self, *args: Any, **kwargs: Any) -> PreparedBatch:
        made = super().prepare(*args, **kwargs)
        assert made.model_inputs is not None
        with self.told:
            self.prepared.append(int(made.model_inputs["x"][0]))
            self.told.notify_all()
        return made

    def wait_for(self, number: int) -> None:
        with self.told:
            assert self.told.wait_for(lambda: number in self.prepared, BOUND_S)


class Scene:
    """The loop of a worker in a thread, and the supervisor's end of its connection."""

    def __init__(self, end: zmq.Socket[bytes], worker: BoundSocket, before: Callable[[int], object]) -> None:
        self.end = end
        self.begun: list[int] = []
        self.model = Squares(before)
        self.executor = Watched(self.model)
        self._pool = ThreadPoolExecutor(1)
        self.loop = self._pool.submit(service.serve, worker, {("m", "1"): {"": self.executor}}, self.begun.append)

    def send(self, number: int, values: Sequence[int]) -> None:
        data = np.array(values, np.int64).tobytes()
        head = worker_wire.batch_head(number, 1, [1] * len(values), joined=True, described=number == 1)
        frames.send(self.end, [head, *([KEY.to_json()] if number == 1 else []), data])

    def receive(self) -> tuple[int, list[int]]:
        assert self.end.poll(BOUND_S * 1000)
        result = batch_results.read_result(frames.receive(self.end) or [])
        return result.batch_id, [int(np.frombuffer(answer[1], np.int64)[0]) for answer in result.answers]

    def stop(self) -> None:
        frames.send(self.end, [worker_wire.STOP])


@contextmanager
def scene(before: Callable[[int], object]) -> Iterator[Scene]:
    with (
        tempfile.TemporaryDirectory(prefix="mt-") as folder,
        closing(BoundSocket(f"{folder}/worker")) as worker,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as end,
    ):
        end.connect(f"ipc://{folder}/worker")
        worker.wait_for_peer()
        yield Scene(end, worker, before)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MIN_OVERLAP_NS", 0)


@pytest.mark.usefixtures("always")
def test_a_batch_is_prepared_while_the_one_before_it_computes() -> None:
    threads = NewThreads()
    seen: list[list[int]] = []

    def before(number: int) -> None:
        if number < 5:
            made.executor.wait_for(number + 1)  # fails if it is not prepared meanwhile
            seen.append(list(made.begun))

    with scene(before) as made:
        for number in range(1, 6):
            made.send(number, [number, 7])
        assert [made.receive() for _ in range(5)] == [(number, [number**2, 49]) for number in range(1, 6)]
        made.stop()
        made.loop.result(BOUND_S)
    # A waiting batch has not begun, so it would not be blamed for a crash.
    assert seen == [list(range(1, number + 1)) for number in range(1, 5)]
    assert len(made.model.threads) == 1
    assert threads.named("prefetch") == []


def test_answers_keep_their_order_while_threads_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    monkeypatch.setattr(service._Job, "is_worth_overlapping", lambda *_: rng.random() < 0.5)
    with scene(lambda _: None) as made:
        made.send(1, [1])
        for number in range(2, 2001):
            made.send(number, [number] * rng.randrange(1, 4))
            if rng.random() < 0.1:
                threading.Event().wait(0.0002)  # the worker is idle from time to time
            batch_id, answers = made.receive()
            assert batch_id == number - 1
            assert set(answers) == {(number - 1) ** 2}
        assert made.receive()[0] == 2000
        made.stop()
        made.loop.result(BOUND_S)
    assert made.begun == list(range(1, 2001))
    assert len(made.model.threads) == 1


def test_short_batches_are_handled_by_one_thread() -> None:
    threads = NewThreads()
    with scene(lambda _: None) as made:
        for number in range(1, 51):
            made.send(number, [number])
            made.receive()
        assert threads.named("prefetch") == []
        made.stop()
        made.loop.result(BOUND_S)


@pytest.mark.usefixtures("always")
def test_an_exit_ends_both_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = NewThreads()
    run = Executor.run

    def exit_at_the_third(executor: Executor, prepared: PreparedBatch) -> Any:
        if prepared.joined is not None and prepared.joined["x"][0] == 3:
            raise SystemExit(7)
        return run(executor, prepared)

    monkeypatch.setattr(Executor, "run", exit_at_the_third)
    with scene(lambda _: None) as made:
        for number in range(1, 5):
            made.send(number, [number])
        assert isinstance(ended := made.loop.exception(BOUND_S), SystemExit)
        assert ended.code == 7
    assert threads.named("prefetch") == []


@pytest.mark.usefixtures("always")
def test_an_unreadable_message_ends_the_loop_from_either_thread() -> None:
    with scene(lambda _: None) as made:
        made.send(1, [1])
        made.receive()
        frames.send(made.end, [worker_wire.BATCH])
        assert isinstance(made.loop.exception(BOUND_S), service.UnreadableMessageError)


@pytest.mark.parametrize("worth_ns", [0, 1 << 62], ids=["ahead", "in turn"])
def test_unused_mappings_are_dropped_while_no_message_comes(worth_ns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MIN_OVERLAP_NS", worth_ns)
    monkeypatch.setattr(inbox, "IDLE_S", 0.01)
    looked = threading.Semaphore(0)
    monkeypatch.setattr(service._Service, "release_unused", lambda _: looked.release())
    with scene(lambda _: None) as made:
        made.send(1, [1])
        made.receive()
        # One call may be due to the batch.
        assert all(looked.acquire(timeout=BOUND_S) for _ in range(4))
        made.stop()
        made.loop.result(BOUND_S)
