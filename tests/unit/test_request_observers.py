"""What observers of requests get from the router."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from fake_front import FakeFront

from multitower import batch_results, wire, worker_wire
from multitower.errors import MultitowerError, Reason
from multitower.spec import ModelReport
from multitower.supervisor.routing import observers
from multitower.supervisor.routing.front_socket import FrontSocket
from multitower.supervisor.routing.observers import MAX_READ_BYTES, record_run
from multitower.supervisor.routing.router import Router
from multitower.supervisor.routing.sampler import Sampler
from multitower.supervisor.routing.worker_connection import WorkerConnection
from multitower.supervisor.scheduling.open_requests import Reply
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import Request
from multitower.trace_context import add_to_header

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Connection:
    def __init__(self) -> None:
        self.sent: list[list[Any]] = []

    def send(self, message: list[Any]) -> None:
        self.sent.append(message)


class Observer:
    def __init__(self, share: float = 1.0) -> None:
        self.sampler = Sampler(share, follows_traces=True)
        self.accepted: list[tuple[bytes, int]] = []
        self.replies: list[Reply] = []
        self.refused: list[tuple[bytes, bytes, str]] = []

    def observe_acceptance(self, request: Request) -> bool:
        self.accepted.append((request.id, len(request.frames)))
        return not request.id.startswith(b"ignored")

    def observe_replies(self, replies: Sequence[Reply], now: float) -> None:
        assert replies, "it is called only for what it has chosen"
        self.replies += replies

    def observe_refusal(self, front: FrontSocket, id: bytes, header: bytes, error: MultitowerError, now: float) -> None:
        self.refused.append((id, header, error.reason))


class Failing(Observer):
    def observe_acceptance(self, request: Request) -> bool:
        if request.id == b"failing":
            raise ZeroDivisionError
        return True

    def observe_replies(self, replies: Sequence[Reply], now: float) -> None:
        raise ZeroDivisionError

    def observe_refusal(self, front: FrontSocket, id: bytes, header: bytes, error: MultitowerError, now: float) -> None:
        raise ZeroDivisionError


class Scene:
    """A router with one worker for model `m`, and the observers."""

    def __init__(self, *watching: Observer, max_batch_size: int = 4) -> None:
        self.router = Router({"m": QueueLimits(100, 1 << 20)}, {"m": 60.0}, 1 << 20)
        self.router.observers += watching
        self.connection = Connection()
        reports = [ModelReport(name="m", max_batch_size=max_batch_size)]
        connection = cast(WorkerConnection, self.connection)
        self.route = self.router.add_worker(3, "cpu:3", connection, reports, {("m", "1"): 1}, 1.0)

    def ask(self, id: bytes, rows: int = 1, header: bytes | None = None) -> FakeFront:
        header = header or wire.infer_header("m", [wire.Tensor("x", "UINT8", (rows, 1))], timeout_us=50_000_000)
        front = FakeFront([wire.INFER, id, header, bytes(rows)])
        self.router.receive(cast(Any, front))
        return front

    def answer(self) -> None:
        self.router.flush(1.0)
        head = worker_wire.read_batch_head(self.connection.sent[-1][0])
        answers: list[list[Any] | bytes] = [[b'{"outputs":[]}'] for _ in head.rows]
        self.router.handle_result(
            self.route, batch_results.result(head.batch_id, answers, batch_results.Timing(10, 20, 30))
        )
        self.router.flush(1.0)


def test_an_observer_gets_answered_requests_with_the_batch_that_they_shared():
    observer = Observer()
    scene = Scene(observer)
    scene.ask(b"a")
    traced = wire.infer_header("m", [wire.Tensor("x", "UINT8", (2, 1))], timeout_us=50_000_000)
    scene.ask(b"b", 2, add_to_header(traced, TRACEPARENT))
    scene.answer()
    first, second = (reply.request for reply in observer.replies)
    (run,) = first.runs
    assert second.runs == (run,)
    assert (run.slot, run.device, run.requests, run.rows) == (3, "cpu:3", 2, 3)
    assert (run.assemble_ns, run.compute_ns, run.slice_ns) == (10, 20, 30)
    assert first.received <= run.sent <= run.started <= run.ended or run.sent == 1.0
    assert first.plan.trace is None
    assert second.plan.trace is not None
    assert second.plan.trace.sampled
    assert second.sender[0].interface == "mt1"


def test_a_request_that_was_split_has_all_its_batches():
    observer = Observer()
    scene = Scene(observer)
    scene.ask(b"large", 8)
    scene.answer()
    scene.answer()
    (reply,) = observer.replies
    assert [run.rows for run in reply.request.runs] == [4, 4]


def test_an_observer_gets_failed_and_refused_requests():
    observer = Observer()
    scene = Scene(observer)
    scene.ask(b"c")
    scene.router.scheduler.abandon("the end")
    scene.router.flush(1.0)
    (reply,) = observer.replies
    assert reply.request.runs == ()
    assert cast(MultitowerError, reply.answer).reason == Reason.DRAINING
    scene.ask(b"d", header=b'{"model_name":"other","inputs":[]}')
    scene.ask(b"e", header=b"{")
    assert [(id, reason) for id, _, reason in observer.refused] == [
        (b"d", Reason.MODEL_UNKNOWN),
        (b"e", Reason.MALFORMED),
    ]


def test_an_observer_that_fails_costs_no_reply(caplog):
    observer = Observer()
    scene = Scene(Failing(), observer)
    front = scene.ask(b"a")
    scene.answer()
    assert [kind for kind, *_ in front.replies] == [wire.OK]
    refused = scene.ask(b"e", header=b"{")
    assert [kind for kind, *_ in refused.replies] == [wire.ERROR]
    assert (len(observer.replies), len(observer.refused)) == (1, 1)
    scene.ask(b"failing")
    scene.answer()
    assert [reply.request.id for reply in observer.replies] == [b"a", b"failing"]
    assert "observing requests" in caplog.text
    assert "observing a request" in caplog.text
    assert "observing a refused request" in caplog.text


def test_without_observers_nothing_is_recorded():
    scene = Scene()
    scene.ask(b"a")
    (waiting,) = list(scene.router.scheduler.queues["m"])
    scene.answer()
    assert waiting.runs == ()


def test_a_request_that_is_not_chosen_costs_no_record(monkeypatch):
    """Where observers are on: no batch is noted for it, and no observer is called."""
    noted: list[int] = []
    monkeypatch.setattr(observers, "BatchRun", lambda id, *_: noted.append(id))
    observer = Observer(share=0.0)
    scene = Scene(observer)
    for number in range(50):
        scene.ask(b"%d" % number)
    waiting = list(scene.router.scheduler.queues["m"])
    while scene.router.scheduler.queues["m"].size:
        scene.answer()
    assert [(request.observers, request.runs) for request in waiting] == [((), ())] * 50
    assert (noted, observer.accepted, observer.replies) == ([], [], [])


def test_of_a_batch_only_the_chosen_requests_are_noted():
    observer = Observer(share=0.0)
    scene = Scene(observer)
    header = wire.infer_header("m", [wire.Tensor("x", "UINT8", (1, 1))], timeout_us=50_000_000)
    scene.ask(b"a")
    scene.ask(b"traced", header=add_to_header(header, TRACEPARENT))
    scene.ask(b"ignored", header=add_to_header(header, TRACEPARENT))
    waiting = list(scene.router.scheduler.queues["m"])
    scene.answer()
    assert observer.accepted == [(b"traced", 1), (b"ignored", 1)], "while its inputs are there"
    (reply,) = observer.replies
    assert [len(request.runs) for request in waiting] == [0, 1, 0]
    assert (reply.request.id, [run.rows for run in reply.request.runs]) == (b"traced", [3])


def test_a_batch_with_several_parts_of_a_request_is_recorded_once():
    first, second = (SimpleNamespace(runs=(), observers=(None,)) for _ in range(2))
    worker = SimpleNamespace(slot=0, device="cpu:0")
    for number in (1, 2):
        parts = [SimpleNamespace(whole=whole) for whole in (first, second, first)]
        batch = SimpleNamespace(id=number, worker=worker, requests=parts, rows=3, size=4, sent=1.0, started=1.0)
        record_run(cast(Any, batch), 2.0, 1, 1, 1)
    assert [run.id for run in first.runs] == [run.id for run in second.runs] == [1, 2]


def test_an_observer_gets_no_copy_of_a_header_that_is_too_large():
    observer = Observer()
    scene = Scene(observer)
    scene.ask(b"f", header=b" " * (wire.MAX_HEADER_BYTES + 1))
    scene.ask(b"g", header=b" " * (MAX_READ_BYTES + 1))
    scene.ask(b"h", header=b" " * MAX_READ_BYTES)
    assert [(id, len(header)) for id, header, _ in observer.refused] == [(b"f", 0), (b"g", 0), (b"h", MAX_READ_BYTES)]
    assert observer.refused[0][2] == Reason.TOO_LARGE
