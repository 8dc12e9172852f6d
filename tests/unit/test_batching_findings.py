"""What one worker has found out about a model holds for all workers of its generation, and for requests that wait."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, cast

import pytest
from fake_workers import LARGEST, Scene, spec

from multitower import wire, worker_wire
from multitower.spec import BatchingReport, ModelReport, SignatureReport, TensorReport, TowerReport
from multitower.supervisor.routing.request_plans import RequestPlanner
from multitower.supervisor.routing.router import Router
from multitower.supervisor.routing.worker_connection import WorkerConnection
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.scheduling.request import BatchKey, Plan, Request
from multitower.supervisor.workers.slot import WorkerProcess
from multitower.worker_wire import SIZES, KeySpec

BECAUSE = "the values of output 'y' differ"
HEADER = b'{"model_name": "m", "inputs": [{"name": "x", "datatype": "UINT8", "shape": [%d]}]}'


def find(scene: Scene, process: WorkerProcess, signature: str = "", version: str = "1") -> None:
    """A worker finds out that requests must not share batches."""
    report = BatchingReport(
        model="m", version=version, signature=signature, unbatched_because=BECAUSE, unverified_because=None
    )
    scene.send(process, [worker_wire.BATCHING, report.to_json()])
    scene.tick()


def described(scene: Scene) -> ModelReport:
    report = scene.router.models.report("m", "1")
    assert report is not None
    return report


def submit(scene: Scene, rows: int) -> None:
    """A request that is checked against what is served now."""
    plan = scene.router.planner.plan(HEADER % rows)
    request = Request(("front",), b"id", plan, [bytes(rows)], rows, scene.now)
    scene.router.scheduler.submit(request)
    scene.dispatch()


def is_batched(scene: Scene) -> bool:
    """Whether new requests share batches."""
    return scene.router.planner.plan(HEADER % 1).key.spec.batched


def executing(scene: Scene) -> list[tuple[bool, list[tuple[int, tuple[int, ...]]]]]:
    """Of each batch that a worker has: whether it is batched, and of each request the rows and the input's shape."""
    return [
        (batch.key.spec.batched, [(request.rows, batch.key.spec.inputs[0][2]) for request in batch.requests])
        for batches in scene.running.values()
        for batch in batches
    ]


def test_requests_that_wait_run_unbatched() -> None:
    scene = Scene(2)
    first, second = (scene.serve(scene.process(slot)) for slot in (0, 1))
    requests = [scene.submit(rows) for rows in (1, 1, 2, 2, 1)]
    assert all(batched for batched, _ in executing(scene))
    find(scene, first)
    assert (described(scene).max_batch_size, described(scene).unbatched_because) == (0, BECAUSE)
    assert not is_batched(scene)
    waiting = [request for request in requests if not request.sent]
    scene.running.clear()
    assert [request.plan.key.spec.inputs[0][2] for request in waiting] == [(2,), (2,), (1,)][-len(waiting) :]
    assert all(not request.plan.key.spec.batched and request.rows == 1 for request in waiting)
    scene.dispatch()
    for process in (first, second):
        assert process.route is not None
        assert process.route.worker.can_run(waiting[0]), "all workers of the generation serve it unbatched"


def test_every_request_is_answered_once() -> None:
    scene = Scene(2)
    first = scene.serve(scene.process(0))
    scene.serve(scene.process(1))
    for rows in (1, 5, 1, 2, 7, 1):
        scene.submit(rows)
    find(scene, first)
    submit(scene, 3)
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list] * 7
    assert not scene.router.scheduler.busy


def test_a_split_request_starts_again_as_a_whole() -> None:
    scene = Scene()
    process = scene.serve(scene.process())
    request = scene.submit(5)
    assert executing(scene) == [(True, [(LARGEST, ())])]
    find(scene, process)
    scene.answer(process)  # a part of what is no longer split
    assert executing(scene) == [(False, [(1, (5,))])]
    assert not scene.replies()
    scene.answer(process)
    assert len(scene.replies()) == 1
    assert request.split is None


@pytest.mark.parametrize("rows", [1, 5])
def test_a_request_that_its_worker_dies_with_runs_again_unbatched(rows: int) -> None:
    scene = Scene(2)
    first, second = (scene.serve(scene.process(slot)) for slot in (0, 1))
    scene.submit(rows)
    find(scene, second)
    scene.die(first)
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list]


@pytest.mark.parametrize("signature", ["", "other"], ids=["of its signature", "of another signature"])
def test_a_split_request_that_started_again_after_a_death_is_answered_once(
    monkeypatch: pytest.MonkeyPatch, signature: str
) -> None:
    """It waits among the others, although a worker has died with a part of it: it is larger than a batch."""
    scene = Scene(2, fits=False)
    other = SignatureReport(name="other", max_batch_size=LARGEST)

    def serve(process: WorkerProcess) -> None:
        scene.report(process, "loading")
        models = (ModelReport(name="m", max_batch_size=LARGEST, signatures=(other,)),)
        scene.report(process, "ready", models=models)
        scene.tick()

    monkeypatch.setattr(scene, "serve", serve)
    first, second = (scene.process(slot) for slot in (0, 1))
    serve(first)
    serve(second)
    request = scene.submit(5)
    scene.order(1)
    scene.die(first)
    assert (request.deaths, request.split, second.usable) == (1, None, True), "the second one drains"
    find(scene, second, signature)
    runs_whole = request in scene.router.scheduler.queues["m"].suspects
    assert runs_whole == (not signature), "as long as it is batched, it is split again"
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list]
    assert not scene.router.scheduler.busy


def test_a_finding_is_kept_for_the_next_workers() -> None:
    scene = Scene()
    process = scene.serve(scene.process())
    find(scene, process)
    scene.die(process)
    scene.settle()
    assert scene.process() is not process
    assert (described(scene).max_batch_size, described(scene).unbatched_because) == (0, BECAUSE)
    assert scene.slot().models[0].unbatched_because == BECAUSE
    assert not is_batched(scene)
    submit(scene, 5)
    assert executing(scene) == [(False, [(1, (5,))])]


def test_what_one_warm_up_finds_holds_for_workers_that_found_nothing() -> None:
    scene = Scene(2)
    first = scene.serve(scene.process(0))
    second = scene.process(1)
    scene.report(second, "loading")
    scene.report(second, "ready", models=(ModelReport(name="m", unbatched_because=BECAUSE),))
    scene.tick()
    assert not is_batched(scene)
    plan = scene.router.planner.plan(HEADER % 1)
    request = Request(("sender",), b"id", plan, [b"x"], 1, scene.now)
    for process in (first, second):
        assert process.route is not None
        assert process.route.worker.can_run(request)


def test_another_generation_starts_without_the_finding() -> None:
    scene = Scene()
    find(scene, scene.serve(scene.process()))
    outcomes = scene.order(0, specs=(spec(2),))
    scene.settle(lambda: bool(outcomes))
    assert outcomes == [None]
    assert described(scene).unbatched_because is None
    assert is_batched(scene)


def test_a_generation_that_is_being_replaced_does_not_affect_its_successor() -> None:
    scene = Scene(2)
    old, _ = (scene.serve(scene.process(slot)) for slot in (0, 1))
    outcomes = scene.order(1, specs=(spec(2),))
    scene.settle(lambda: bool(outcomes))
    find(scene, old)
    assert described(scene).unbatched_because is None
    assert is_batched(scene)
    scene.submit()
    scene.settle()
    assert [type(answer) for answer in scene.replies()] == [list]


def test_a_finding_about_another_signature_leaves_the_default_one_batched() -> None:
    other = SignatureReport(name="other", max_batch_size=LARGEST)
    scene = Scene()
    process = scene.process()
    scene.report(process, "loading")
    scene.report(process, "ready", models=(ModelReport(name="m", max_batch_size=LARGEST, signatures=(other,)),))
    scene.tick()
    find(scene, process, "other")
    assert described(scene).max_batch_size == LARGEST
    assert (described(scene).signatures[0].max_batch_size, described(scene).signatures[0].unbatched_because) == (
        0,
        BECAUSE,
    )
    assert is_batched(scene)


def test_a_finding_about_a_version_on_the_first_tower_alone_holds_after_a_newer_worker_has_gone() -> None:
    router = Router({"m": QueueLimits(100, 1 << 20)}, {"m": 60.0}, 1 << 20)
    once = ModelReport(name="m", version="1", max_batch_size=LARGEST)
    twice = replace(once, version="2", towers=(TowerReport(device="cpu:0"), TowerReport(device="cpu:1")))
    older, newer = {once.key: 1, twice.key: 2}, {once.key: 1, twice.key: 3}
    connection = cast(WorkerConnection, None)
    router.add_worker(0, "cpu:0,cpu:1", connection, [once, twice], older, 1.0)
    gone = router.add_worker(1, "cpu:2", connection, [once, replace(twice, max_batch_size=0)], newer, 1.0)
    router.remove_worker(gone, 2.0, crashed=False, begun=[])
    router.batching.add_unbatched(once.key, 1, "", BECAUSE)
    header = b'{"model_name": "m", "model_version": "1", "inputs": [{"name": "x", "datatype": "UINT8", "shape": [1]}]}'
    assert not router.planner.plan(header).key.spec.batched


def test_a_finding_about_a_withdrawn_version_does_not_bring_it_back() -> None:
    router = Router({"m": QueueLimits(100, 1 << 20)}, {"m": 60.0}, 1 << 20)
    old = ModelReport(name="m", version="1", max_batch_size=LARGEST)
    new = replace(old, version="2")
    connection = cast(WorkerConnection, None)
    ending = router.add_worker(0, "cpu:0", connection, [old], {old.key: 1}, 1.0)
    named = b'{"model_name": "m", "model_version": "1", "inputs": [{"name": "x", "datatype": "UINT8", "shape": [1]}]}'
    requests = [
        Request((str(number),), b"id", router.planner.plan(named), [b"x"], 1, 1.0) for number in range(2 + LARGEST)
    ]
    for request in requests:
        router.scheduler.submit(request)
    router.scheduler.dispatch(1.0)
    router.add_worker(1, "cpu:1", connection, [new], {new.key: 2}, 1.0)
    router.models.withdraw_versions(ending)
    assert router.models.versions("m") == ["2"]
    router.batching.add_unbatched(old.key, 1, "", BECAUSE)
    assert router.models.versions("m") == ["2"]
    assert not requests[-1].sent
    assert ending.worker.can_run(requests[-1]), "it was accepted before"


def test_what_is_known_of_a_generation_is_forgotten_with_its_last_worker() -> None:
    scene = Scene(2)
    for number in range(2, 9):
        for slot in (0, 1):
            scene.order(slot, specs=(spec(number),))
        scene.settle()
        find(scene, scene.process())
    generations = set(scene.process(1).generations.values())
    assert generations == {7}
    assert {generation for _, generation in scene.router.batching._unbatched} == generations
    assert len(scene.manager._slots._assignments._generations) == 2, "its own one, and that of the configuration"
    for slot in (0, 1):
        scene.die(scene.process(slot))
    scene.settle()
    assert set(scene.process().generations.values()) == generations, "a slot has it without a process"
    assert not is_batched(scene)


def test_a_comparison_of_requests_is_kept_for_the_next_workers() -> None:
    scene = Scene()

    def serve() -> WorkerProcess:
        process = scene.process()
        scene.report(process, "loading")
        model = ModelReport(name="m", max_batch_size=LARGEST, unverified_because="no recorded requests")
        scene.report(process, "ready", models=(model,))
        scene.tick()
        return process

    process = serve()
    assert described(scene).unverified_because == "no recorded requests"
    plan = scene.router.planner.plan(HEADER % 1)
    report = BatchingReport(model="m", version="1", signature="", unbatched_because=None, unverified_because=None)
    scene.send(process, [worker_wire.BATCHING, report.to_json()])
    assert described(scene).unverified_because is None
    assert scene.router.planner.plan(HEADER % 1) is plan
    scene.die(process)
    scene.tick(1.0)
    serve()
    assert described(scene).unverified_because is None


def test_a_finding_about_a_model_that_the_worker_was_not_to_load_kills_it() -> None:
    scene = Scene()
    process = scene.serve(scene.process())
    find(scene, process, version="7")
    assert process.verdict is not None
    assert "a report on 'm'" in str(process.verdict)


def test_a_padded_request_gets_its_own_sizes_back() -> None:
    scene = Scene()
    scene.serve(scene.process())
    planner = scene.router.planner
    inputs: Any = (("a", "UINT8", (-1, 3)), ("b", "UINT8", (-1,)), (SIZES, "INT64", (2,)))
    key = BatchKey(KeySpec("m", inputs, None, True), LARGEST)
    sizes = (4).to_bytes(8, "little") + (7).to_bytes(8, "little")
    plan = Plan(key, 2, (0, 1), (24, 14), (False, False), ("a", "b"), 9.0, sizes_frame=sizes)
    changed = planner.change_plan(plan, ModelReport(name="m", unbatched_because=BECAUSE))
    assert changed.key.spec.inputs == (("a", "UINT8", (2, 4, 3)), ("b", "UINT8", (2, 7)))
    assert (changed.rows, changed.sizes_frame, changed.key.max_batch_size) == (1, None, 0)


OFFSET = TensorReport(name="offset", datatype="FP32", shape=(), optional=True)
PARTLY_BATCHED = ModelReport(
    name="m",
    inputs=(OFFSET, TensorReport(name="x", datatype="UINT8", shape=(-1,))),
    max_batch_size=LARGEST,
    signatures=(SignatureReport(name="other", max_batch_size=LARGEST),),
)
WITH_OFFSET = (wire.Tensor("offset", "FP32", ()), wire.Tensor("x", "UINT8", (2,)))


def test_a_finding_elsewhere_leaves_unbatched_requests_unbatched() -> None:
    planner = RequestPlanner({"m": 30.0})
    planner.add_version(PARTLY_BATCHED, newest=True, generation=0)
    plan = planner.plan(wire.infer_header("m", WITH_OFFSET))
    assert (plan.key.spec.batched, plan.key.max_batch_size) == (False, 0)
    others = (replace(PARTLY_BATCHED.signatures[0], max_batch_size=0, unbatched_because=BECAUSE),)
    described = replace(PARTLY_BATCHED, signatures=others)
    planner.add_version(described, newest=True, generation=0)
    changed = planner.change_plan(plan, described)
    assert (changed.key.spec.batched, changed.key.max_batch_size) == (False, 0)
    assert planner.plan(wire.infer_header("m", WITH_OFFSET)).key is changed.key, "new requests share it"


@pytest.mark.parametrize("inputs", [WITH_OFFSET, WITH_OFFSET[1:]], ids=["unbatched before", "batched before"])
def test_a_changed_plan_keeps_what_batching_does_not_concern(inputs: tuple[wire.Tensor, ...]) -> None:
    planner = RequestPlanner({"m": 30.0})
    planner.add_version(PARTLY_BATCHED, newest=True, generation=0)
    area = wire.Area("mt-1-2-" + "0" * 32, 4096, 24)
    plan = planner.plan(wire.infer_header("m", inputs, timeout_us=5_000_000, priority=7, areas={"y": area}))
    assert (plan.timeout_is_own, plan.priority, plan.shared is None) == (True, 7, False)
    changed = planner.change_plan(plan, replace(PARTLY_BATCHED, max_batch_size=0, unbatched_because=BECAUSE))
    names = {field.name for field in fields(Plan)} - {"key", "rows", "sizes_frame"}
    assert {name: getattr(changed, name) for name in names} == {name: getattr(plan, name) for name in names}
