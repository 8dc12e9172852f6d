"""Processes with several towers: which tower gets which batch, and how suspects are kept apart."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any, cast

import pytest
from scheduler_scene import LARGEST, Scene, add_worker

from multitower import batch_results, wire, worker_wire
from multitower.errors import MultitowerError, Reason, make
from multitower.spec import MemoryReport, ModelReport, ModelSpec, TowerReport, WorkerReport
from multitower.supervisor.routing.router import Router
from multitower.supervisor.routing.worker_connection import WorkerConnection
from multitower.supervisor.scheduling.pool_worker import Served, Worker
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import Request
from multitower.supervisor.workers.reports import Reports
from multitower.worker.formats.loader import load_replicas
from multitower.worker.formats.towers import (
    AS_SAVED,
    TowerPlacement,
    assign,
    count_nodes,
    tower_placements,
    traced_nodes,
)
from multitower.worker.model_errors import LoadError
from multitower.worker.service import UnreadableMessageError
from multitower.worker.tower_service import _addressed_tower


def add_process(scene: Scene, slot: int, devices: str, towers: int) -> tuple[Worker, ...]:
    """A process with several towers, all of which serve the same version of model `m`."""
    served = Served()
    tower = ({"m": served}, {("m", served.version): served})
    return scene.scheduler.add_process(slot, devices, [tower] * towers, scene.now)


def towers(count: int, *, retry: int = 1, others: int = 0) -> tuple[Scene, list[Worker]]:
    """One process of `count` towers, and `others` of one tower."""
    scene = Scene(retry=retry)
    workers = list(add_process(scene, 0, "cpu:0,cpu:1", count))
    for number in range(others):
        add_worker(scene.scheduler, number + 1, f"cpu:{number + 7}", {"m": Served()}, scene.now)
    return scene, workers


def given(scene: Scene, after: float = 0.0) -> list[Worker]:
    """The workers that get a batch after that many seconds."""
    scene.now += after
    return [cast(Worker, batch.worker) for batch in scene.scheduler.dispatch(scene.now)]


def answer(scene: Scene, worker: Worker) -> None:
    assert worker.batch is not None
    answers: list[Any] = [[b"", b"x"]] * len(worker.batch.requests)
    scene.scheduler.finish(worker, worker.batch.id, answers, scene.now)


def reasons(scene: Scene) -> dict[Request, str | None]:
    return {
        reply.request: reply.answer.reason if isinstance(reply.answer, MultitowerError) else None
        for reply in scene.scheduler.pop_replies()
    }


def test_each_tower_gets_its_own_batches() -> None:
    scene, (first, second, third) = towers(3)
    scene.submit(3 * LARGEST)
    assert set(given(scene)) == {first, second, third}
    assert [worker.depth for worker in (first, second, third)] == [LARGEST] * 3
    scene.submit(1)
    assert given(scene) == []
    answer(scene, second)
    assert given(scene) == [second]


def test_what_all_towers_executed_is_suspect_when_their_process_dies() -> None:
    scene, workers = towers(2)
    requests = scene.submit(2)
    assert set(given(scene)) == set(workers)
    assert not scene.scheduler.remove_process(workers[0], scene.now, crashed=True)
    assert [request.deaths for request in requests] == [1, 1]
    assert scene.scheduler.quarantined_requests(scene.now) == []
    assert not scene.scheduler.workers


def test_a_batch_that_a_tower_had_not_started_makes_no_suspects() -> None:
    scene, (first, second) = towers(2)
    requests = scene.submit(2)
    assert set(given(scene)) == {first, second}
    for worker in (first, second):  # sent behind another, which was answered before the process ended
        assert worker.batch is not None
        worker.batch.queued = True
    assert second.batch is not None
    begun = (12345, second.batch.id)
    scene.scheduler.remove_process(first, scene.now, crashed=True, begun=begun)
    assert sorted(request.deaths for request in requests) == [0, 1]


def test_a_suspect_runs_alone_in_its_process() -> None:
    scene, workers = towers(2)
    (suspect,) = scene.submit(1)
    given(scene)
    scene.scheduler.remove_process(workers[0], scene.now, crashed=True)
    first, second = add_process(scene, 0, "cpu:0,cpu:1", 2)
    scene.submit(2 * LARGEST)
    (chosen,) = given(scene)
    assert chosen.batch is not None
    assert chosen.batch.requests == [suspect]
    assert given(scene) == []
    answer(scene, chosen)
    assert set(given(scene)) == {first, second}


def test_a_busy_process_is_reserved_for_a_suspect_although_others_wait() -> None:
    scene, dying = towers(2)
    (suspect,) = scene.submit(1)
    given(scene)
    first, second = add_process(scene, 1, "cpu:2,cpu:3", 2)
    scene.submit(10 * LARGEST)
    assert {first, second} <= set(given(scene))
    scene.scheduler.remove_process(dying[0], scene.now, crashed=True)
    assert given(scene) == []
    answer(scene, first)
    assert given(scene) == [], "the other tower is still busy"
    answer(scene, second)
    (chosen,) = given(scene)
    assert chosen.batch is not None
    assert chosen.batch.requests[0].deaths == 1
    while suspect.phase.name != "DONE":  # the other suspects run, too
        answer(scene, chosen)
        (chosen, *_) = given(scene)
    assert reasons(scene)[suspect] is None


def test_a_reservation_ends_when_its_suspect_is_cancelled() -> None:
    scene, dying = towers(2)
    (suspect,) = scene.submit(1)
    given(scene)
    first, second = add_process(scene, 1, "cpu:2,cpu:3", 2)
    scene.submit(2 * LARGEST)
    given(scene)
    scene.scheduler.remove_process(dying[0], scene.now)
    for worker in (first, second):
        assert worker.batch is not None
    scene.submit(2 * LARGEST)
    assert given(scene) == []
    for request in list(scene.scheduler.queues["m"].suspects):
        scene.scheduler.cancel(request.sender, request.id)
    answer(scene, first)
    assert given(scene) == [first]
    assert suspect.phase.name == "DONE"


def test_a_running_suspect_stays_alone_when_the_reservation_for_another_ends() -> None:
    scene, dying = towers(2)
    scene.submit(2)
    given(scene)
    one = add_process(scene, 1, "cpu:2,cpu:3", 2)
    other = add_process(scene, 2, "cpu:4,cpu:5", 2)
    scene.submit(4 * LARGEST)
    given(scene)
    scene.scheduler.remove_process(dying[0], scene.now, crashed=True)
    scene.submit(8 * LARGEST)
    for worker in one:
        answer(scene, worker)
        chosen = given(scene)
    assert chosen == [one[0]], "the first suspect"
    for worker in other:
        answer(scene, worker)
        given(scene)
    assert scene.scheduler.pool.reserved == one, "for the second one"
    for worker in other:
        answer(scene, worker)
    assert given(scene) == [other[0]], "it runs there, since that process became idle"
    assert given(scene) == []
    answer(scene, one[0])
    assert set(given(scene)) == set(one)
    answer(scene, other[0])
    assert set(given(scene)) == set(other)


def test_a_reservation_ends_when_its_suspect_runs_in_another_process() -> None:
    scene, dying = towers(1)
    scene.submit(1)
    given(scene)
    one = add_process(scene, 1, "cpu:2,cpu:3", 2)
    other = add_process(scene, 2, "cpu:4,cpu:5", 2)
    scene.submit(4 * LARGEST)
    given(scene)
    scene.scheduler.remove_process(dying[0], scene.now)
    scene.submit(8 * LARGEST)
    answer(scene, one[0])
    assert given(scene) == []
    assert scene.scheduler.pool.reserved == one
    for worker in (one[1], *other):  # in one burst
        answer(scene, worker)
    assert set(given(scene)) == {other[0], *one}


def test_a_suspect_that_crashes_alone_is_quarantined() -> None:
    scene, workers = towers(2)
    (bad,) = scene.submit(1)
    given(scene)
    scene.scheduler.remove_process(workers[0], scene.now, crashed=True)
    again = add_process(scene, 0, "cpu:0,cpu:1", 2)
    scene.submit(LARGEST)
    (chosen,) = given(scene)
    assert scene.scheduler.remove_process(chosen, scene.now, crashed=True)
    assert reasons(scene)[bad] == Reason.POISONED
    assert len(scene.scheduler.quarantined_requests(scene.now)) == 1
    assert not scene.scheduler.workers
    assert again[0].batch is None


def test_a_suspect_needs_no_reservation_if_a_single_tower_is_free() -> None:
    scene, workers = towers(2, others=1)
    requests = scene.submit(3 * LARGEST)
    assert len(given(scene)) == 3
    scene.scheduler.remove_process(workers[0], scene.now)
    (single,) = scene.scheduler.workers
    answer(scene, single)
    assert given(scene) == [single]
    assert single.batch is not None
    assert single.batch.requests[0] in requests
    assert scene.scheduler.pool.reserved == ()


def test_retiring_a_worker_retires_all_towers_of_its_process() -> None:
    scene, workers = towers(3)
    scene.submit(3 * LARGEST)
    scene.scheduler.retire(workers[1])
    assert given(scene) == []
    assert all(worker.retiring and worker.process_idle for worker in workers)


class FrontSocket:
    """A front socket that records the kinds of replies."""

    def __init__(self) -> None:
        self.kinds: list[bytes] = []

    def reply(self, _address: Any, kind: bytes, *_: Any) -> None:
        self.kinds.append(kind)


class Connection:
    """A connection to a worker that records what is sent, or raises `failure`; and errors that are reported to it."""

    def __init__(self) -> None:
        self.sent: list[list[Any]] = []
        self.failure: Exception | None = None
        self.errors: list[Exception] = []

    def send(self, message: list[Any]) -> None:
        if self.failure is not None:
            raise self.failure
        self.sent.append(message)

    def on_error(self, error: Exception) -> None:
        self.errors.append(error)


def routed(*reports: ModelReport) -> tuple[Router, Any, Connection]:
    limits = {report.name: QueueLimits(100, 1 << 20) for report in reports}
    router = Router(limits, dict.fromkeys(limits, 60.0), 1 << 20)
    connection = Connection()
    # Reports arrive as JSON.
    state = WorkerReport.from_json(WorkerReport(state="ready", pid=1, models=reports).to_json())
    generations = {report.key: 1 for report in reports}
    route = router.add_worker(0, "cpu:0,cpu:1", cast(WorkerConnection, connection), state.models, generations, 1.0)
    return router, route, connection


REPLICAS = (
    TowerReport(device="cpu:0", nodes={"cpu:0": 3}),
    TowerReport(device="cpu:1", nodes={"cpu": 1, "cpu:1": 2}, fallbacks={"StringUpper": 1}),
)


def test_a_model_of_fewer_replicas_is_on_the_first_tower_alone() -> None:
    twice, once = ModelReport(name="twice", towers=REPLICAS), ModelReport(name="once")
    _, route, _ = routed(twice, once)
    assert [sorted(each.worker.serves) for each in route.towers] == [["once", "twice"], ["twice"]]
    assert [worker_wire.read_tower_head(each.head[0]) for each in route.towers] == [0, 1]
    _, single, _ = routed(once)
    assert (single.towers, single.head) == ([single], [])


def test_a_worker_has_the_towers_of_models_that_are_configured_no_more() -> None:
    gone, handled = ModelReport(name="gone", towers=REPLICAS), ModelReport(name="handled")
    limits = {"handled": QueueLimits(100, 1 << 20)}
    router = Router(limits, {"handled": 60.0}, 1 << 20)
    connection, generations = cast(WorkerConnection, Connection()), {gone.key: 1, handled.key: 2}
    route = router.add_worker(0, "cpu:0,cpu:1", connection, [gone, handled], generations, 1.0)
    # Such a worker exits if a batch arrives without the number of a tower.
    assert [worker_wire.read_tower_head(each.head[0]) for each in route.towers] == [0, 1]
    assert [sorted(each.worker.serves) for each in route.towers] == [["handled"], []]


def test_the_smallest_number_of_safe_rows_of_all_towers_is_kept() -> None:
    router, route, _ = routed(ModelReport(name="m", towers=REPLICAS))
    slot = cast(Any, SimpleNamespace(safe_rows={}, fields={}, process=None))
    reports = Reports(cast(Any, None), cast(Any, None), cast(Any, None), router, cast(Any, None))
    for rows in (8, 16):
        told = MemoryReport(model="m", safe_rows=rows, exhausted=0)
        reports.handle_message(
            cast(Any, SimpleNamespace(slot=slot, route=route)), [worker_wire.MEMORY, told.to_json()], 1.0
        )
    assert slot.safe_rows == {"m": 8}
    assert [each.worker.safe_rows for each in route.towers] == [{"m": 8}, {"m": 8}]


def test_answers_reach_their_tower_in_any_order() -> None:
    router, route, child = routed(ModelReport(name="m", max_batch_size=LARGEST, towers=REPLICAS))
    front = FrontSocket()
    for number in range(2):
        plan = router.planner.plan(
            b'{"model_name":"m","inputs":[{"name":"x","datatype":"UINT8","shape":[%d,1]}]}' % LARGEST
        )
        router.scheduler.submit(Request((front, ()), b"%d" % number, plan, [bytes(LARGEST)], LARGEST, 1.0))
    router.flush(1.0)
    numbers = {worker_wire.read_tower_head(head): worker_wire.read_batch_head(batch) for head, batch, *_ in child.sent}
    assert sorted(numbers) == [0, 1]
    for tower in (1, 0):
        message = batch_results.result(numbers[tower].batch_id, [[b"{}"]], batch_results.Timing(1, 1, 1))
        router.handle_result(route, message)
    assert [each.batches for each in route.towers] == [1, 1]
    assert (route.depth, route.completed, route.requests) == (0, 2 * LARGEST, 2)
    router.remove_worker(route, 2.0, crashed=False, begun=())
    assert router.routes == {}


@pytest.mark.parametrize(
    ("largest", "failing", "batches", "executions"),
    [(LARGEST, 0, 1, 1), (LARGEST, 1, 1, 1), (LARGEST, 2, 1, 0), (0, 0, 2, 2), (0, 1, 2, 1), (0, 2, 2, 0)],
)
def test_batches_with_nothing_but_errors_count_as_no_executions(
    largest: int, failing: int, batches: int, executions: int
) -> None:
    router, route, child = routed(ModelReport(name="m", max_batch_size=largest))
    plan = router.planner.plan(b'{"model_name":"m","inputs":[{"name":"x","datatype":"UINT8","shape":[1,1]}]}')
    for number in range(2):
        router.scheduler.submit(Request((FrontSocket(), ()), b"%d" % number, plan, [b"x"], 1, 1.0))
    answered = 0
    while answered < 2:
        router.flush(1.0)
        head = worker_wire.read_batch_head(child.sent[-1][0])
        error = wire.dump_json(make(Reason.MODEL_ERROR, "wrong").to_wire())
        answers = [error if answered + number < failing else [b"{}"] for number in range(len(head.rows))]
        router.handle_result(route, batch_results.result(head.batch_id, answers, batch_results.Timing(1, 1, 1)))
        answered += len(head.rows)
    statistics = router.models.statistics["m"]["1"]
    assert (statistics.batches, statistics.executions) == (batches, executions)
    assert statistics.to_json("m", "1")["execution_count"] == executions


@pytest.mark.parametrize(
    ("failure", "broken"),
    [(OSError(errno.ENOTCONN, "not connected"), True), (MemoryError(), True), (BufferError(), False)],
    ids=["a broken socket", "no memory", "a frame that cannot be sent"],
)
def test_a_worker_whose_socket_fails_is_reported_as_broken(failure: Exception, broken: bool) -> None:
    router, _, connection = routed(ModelReport(name="m", max_batch_size=LARGEST))
    connection.failure = failure
    front = FrontSocket()
    plan = router.planner.plan(b'{"model_name":"m","inputs":[{"name":"x","datatype":"UINT8","shape":[1,1]}]}')
    router.scheduler.submit(Request((front, ()), b"1", plan, [b"x"], 1, 1.0))
    router.flush(1.0)
    assert front.kinds == [wire.ERROR]
    assert connection.errors == ([failure] if broken else [])


# Graphs in the worker, without TensorFlow.


def node(name: str = "n", op: str = "MatMul", device: str = "") -> Any:
    return SimpleNamespace(name=name, op=op, device=device)


def graph(*nodes: Any, functions: tuple[list[Any], ...] = ()) -> Any:
    library = SimpleNamespace(function=[SimpleNamespace(node_def=inner) for inner in functions])
    return SimpleNamespace(node=list(nodes), library=library)


def test_every_node_is_assigned_also_in_functions() -> None:
    inner = [node(device="/device:GPU:0"), node()]
    whole = graph(node(device="/job:ps/task:7"), node(), functions=(inner, [node()]))
    assign(whole, "/device:GPU:3")
    found = {each.device for each in (*whole.node, *inner, *whole.library.function[1].node_def)}
    assert found == {"/device:GPU:3"}


@pytest.mark.parametrize(
    ("devices", "placement", "expected"),
    [
        (("cpu:2", "cpu:3"), "towers", [("cpu:2", "/device:CPU:0"), ("cpu:3", "/device:CPU:1")]),
        (("GPU-a", "GPU-b"), "towers", [("GPU-a", "/device:GPU:0"), ("GPU-b", "/device:GPU:1")]),
        (("MIG-a",), "towers", [("MIG-a", "/device:GPU:0")]),
        (("cpu:0", "cpu:1"), AS_SAVED, [("cpu:0,cpu:1", None)]),
    ],
)
def test_the_placement_of_each_tower(
    devices: tuple[str, ...], placement: str, expected: list[tuple[str, str | None]]
) -> None:
    assert [(placement.name, placement.device) for placement in tower_placements(devices, placement)] == expected


@pytest.mark.parametrize(
    ("devices", "told"),
    [(("cpu:0",), "log_device_placement looks at graphs"), (("cpu:0", "cpu:1"), "a worker of several devices runs")],
)
def test_a_model_that_xla_compiles_cannot_be_a_tower(devices: tuple[str, ...], told: str) -> None:
    spec = ModelSpec(name="m", path="m", jit_compile=True, log_device_placement=len(devices) == 1)
    with pytest.raises(LoadError, match=f"XLA compiles functions, but {told}"):
        load_replicas(spec, devices)


def traced(*partitions: Any, steps: dict[str, list[str]] | None = None) -> Any:
    stats = [
        SimpleNamespace(device=device, node_stats=[SimpleNamespace(timeline_label=label) for label in labels])
        for device, labels in (steps or {}).items()
    ]
    return SimpleNamespace(partition_graphs=partitions, step_stats=SimpleNamespace(dev_stats=stats))


HERE, THERE = "/job:localhost/replica:0/task:0/device:GPU:1", "/job:localhost/replica:0/task:0/device:CPU:0"


def test_nodes_that_ran_elsewhere_are_counted_by_operation() -> None:
    metadata = traced(
        graph(node("a", "MatMul", HERE), node("b", "Relu", HERE), node("r", "_Recv", HERE)),
        graph(node("arg", "_Arg", THERE), node("s", "StringUpper", THERE), node("t", "StringUpper", THERE)),
        # Functions that were not inlined are in the steps only; kernels of a stream are no nodes.
        steps={THERE: ["s = StringUpper(arg)", "f/n = Where(x)"], HERE + "/stream:all": ["gemm_kernel"]},
    )
    report = count_nodes(traced_nodes(metadata), TowerPlacement(("GPU-a", "GPU-b"), 1))
    assert report == TowerReport(device="GPU-b", nodes={"GPU-b": 2, "cpu": 3}, fallbacks={"StringUpper": 2, "Where": 1})


def test_a_graph_that_keeps_its_own_devices_has_no_fallbacks() -> None:
    metadata = traced(graph(node("a", "MatMul", HERE), node("s", "StringUpper", THERE)))
    report = count_nodes(traced_nodes(metadata), TowerPlacement(("GPU-a", "GPU-b")))
    assert report == TowerReport(device="GPU-a,GPU-b", nodes={"GPU-b": 1, "cpu": 1})


@pytest.mark.parametrize("calls", [(), (0,), (7, 2**63), tuple(range(64))])
def test_the_last_heartbeat_counts(calls: tuple[int, ...]) -> None:
    one = worker_wire.heartbeat((3, 4, 5))
    assert worker_wire.last_heartbeat(one + worker_wire.heartbeat(calls)) == calls
    cut = worker_wire.heartbeat(calls)[:-1]
    assert worker_wire.last_heartbeat(one + cut) == (3, 4, 5)
    assert worker_wire.last_heartbeat(b"") is None


@pytest.mark.parametrize(
    "message",
    [
        pytest.param([worker_wire.BATCH, b""], id="no tower"),
        pytest.param([worker_wire.tower_head(0)[:2], b""], id="half a number"),
        pytest.param([worker_wire.tower_head(2), b""], id="a tower that does not exist"),
        pytest.param([worker_wire.tower_head(1)], id="no batch"),
    ],
)
def test_a_message_for_no_tower_is_unreadable(message: list[bytes]) -> None:
    towers = [cast(Any, "first"), cast(Any, "second")]
    with pytest.raises(UnreadableMessageError):
        _addressed_tower(message, towers)
    assert _addressed_tower([worker_wire.tower_head(1), b""], towers) == "second"
