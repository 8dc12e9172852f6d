"""The rules of `multitower bench`: the rate search, scaling, the bottleneck, and the reports."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from multitower.supervisor.config.loading import load
from multitower.supervisor.machine import placement
from multitower.tools.bench import json_report, text_report
from multitower.tools.bench.arrivals import Load
from multitower.tools.bench.bottleneck import Part, find_bottleneck
from multitower.tools.bench.evidence import Evidence, Snapshot, Worker, gather_evidence
from multitower.tools.bench.rate_search import LOWEST, PRECISION, Objective, RateSearch
from multitower.tools.bench.results import Result, best
from multitower.tools.bench.scaling import MAX_STEPS, efficiency, max_concurrency, next_concurrency, worker_counts
from multitower.tools.bench.scaling_plan import plan_scaling
from multitower.tools.bench.session import only_model
from multitower.tools.bench.tally import Tally

# The search.


def searched(throughput: float, steps: int, holds: Callable[[float], bool]) -> tuple[RateSearch, list[float]]:
    search, tried = RateSearch(throughput, steps), []
    while (rate := search.next_rate()) is not None:
        tried.append(rate)
        search.add_result(rate, held=holds(rate))
    return search, tried


@pytest.mark.parametrize("limit", [1.0, 13.0, 69.0, 70.0, 71.0, 99.0, 250.0, 3000.0])
def test_the_search_ends_close_to_the_limit(limit: float) -> None:
    search, tried = searched(100.0, 30, lambda rate: rate <= limit)
    assert search.held is not None
    assert search.failed is not None
    assert search.held <= limit < search.failed <= search.held * PRECISION
    assert len(tried) <= 18


@pytest.mark.parametrize(
    ("holds", "steps", "tried"),
    [
        (lambda rate: rate <= 100, 1, [70.0]),
        (lambda rate: rate <= 100, 4, [70.0, 105.0, 105 * (2 / 3) ** 0.5, (85.73 * 105) ** 0.5]),
        (lambda rate: True, 4, [70.0, 105.0, 157.5, 236.25]),
        (lambda rate: False, 3, [70.0, 35.0, 17.5]),
    ],
)
def test_the_search_proposes_these_rates(holds: Callable[[float], bool], steps: int, tried: list[float]) -> None:
    assert searched(100.0, steps, holds)[1] == pytest.approx(tried, rel=1e-3)


def test_the_search_ends_if_no_rate_meets_the_objective() -> None:
    search, tried = searched(100.0, 1000, lambda rate: False)
    assert search.held is None
    assert min(tried) >= LOWEST
    assert len(tried) < 12


@pytest.mark.parametrize(
    ("percentile", "held"), [(0.02, True), (0.0201, False), (math.inf, False), (math.nan, False), (0.0, True)]
)
def test_an_objective_holds_up_to_its_latency(percentile: float, held: bool) -> None:
    assert Objective(0.02).holds(percentile) is held


# Scaling.


@pytest.mark.parametrize(
    ("most", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_scaling_doubles_the_number_of_workers(most: int, counts: list[int]) -> None:
    assert worker_counts(most) == counts


@pytest.mark.parametrize(
    ("workers", "throughputs", "places"),
    [
        (1, [], 4),
        (4, [], 16),
        (2, [100], 16),
        (2, [100, 150], 32),
        (2, [100, 104], None),  # saturated
        (2, [100, 90], None),
        (2, [100, 50, 104], None),  # compared with the best step, not with the last
        (1, [2.0**step for step in range(MAX_STEPS)], None),
        (1, [2.0**step for step in range(MAX_STEPS - 1)], max_concurrency(1)),
        (1, [0.0], 8),
    ],
)
def test_concurrency_doubles_until_throughput_stops_growing(
    workers: int, throughputs: list[float], places: int | None
) -> None:
    assert next_concurrency(workers, throughputs) == places


@pytest.mark.parametrize(
    ("throughputs", "shares"),
    [
        ({}, {}),
        ({1: 50.0, 2: 100.0, 4: 150.0}, {1: 1.0, 2: 1.0, 4: 0.75}),
        ({2: 100.0, 4: 100.0}, {2: 1.0, 4: 0.5}),
        ({1: 0.0, 2: 10.0}, {1: 0.0, 2: 0.0}),
    ],
)
def test_efficiency_is_relative_to_the_fewest_workers(throughputs: dict[int, float], shares: dict[int, float]) -> None:
    assert efficiency(throughputs) == shares


# The bottleneck.


def worker(cpu: float | None = 0.1, **changed: Any) -> Worker:
    return replace(Worker(0, "cpu:0", cpu, 100, None, False), **changed)


SEEN: dict[str, tuple[Evidence, Part, tuple[Part, ...]]] = {
    "nothing is known": (Evidence(), Part.NONE, ()),
    "nothing is busy": (Evidence((0.3,), 0.4, 0.3, (worker(),), 0.5, 0.01, machine=0.4), Part.NONE, ()),
    "a client": (Evidence((0.2, 0.95), 0.5, 0.4, (worker(),), 0.5, 0.01, machine=0.5), Part.CLIENT, ()),
    "the router": (Evidence((0.5,), 0.99, 0.9, (worker(),), 0.5, 0.01, machine=0.5), Part.ROUTER, ()),
    "a router of several busy threads": (Evidence((0.5,), 1.2, 0.6, (worker(),), 0.5, 0.01), Part.NONE, ()),
    "the devices": (Evidence((0.3,), 0.5, 0.4, (worker(),), 0.97, 0.02, machine=0.5), Part.DEVICE, ()),
    "devices that are cores": (Evidence((0.3,), 0.5, 0.4, (worker(4.0),), 0.9, 0.02, machine=1.0), Part.DEVICE, ()),
    "handling": (Evidence((0.3,), 0.5, 0.4, (worker(0.9),), 0.3, 0.55), Part.WORKER, ()),
    "workers that only handle": (Evidence((0.3,), 0.5, 0.4, (worker(0.95),), 0.01, 0.05), Part.WORKER, ()),
    "an idle worker does not count": (
        Evidence((0.3,), 0.5, 0.4, (worker(0.9), worker(0.0, rows=0)), 0.01, 0.05),
        Part.WORKER,
        (),
    ),
    "several threads compute": (Evidence((0.3,), 0.5, 0.4, (worker(3.0),), 0.5, 0.05), Part.NONE, ()),
    "the cores": (Evidence((0.6,), 0.7, 0.6, (worker(0.3),), 0.1, 0.05, machine=0.99), Part.MACHINE, ()),
    "two parts": (Evidence((0.85,), 0.97, 0.95, (worker(),), 0.1, 0.05, machine=0.99), Part.ROUTER, (Part.CLIENT,)),
    "a remote daemon": (Evidence((0.3,), None, None, (worker(None),), 0.9, 0.05), Part.DEVICE, ()),
}


@pytest.mark.parametrize("case", SEEN)
def test_the_bottleneck_is_the_part_closest_to_its_limit(case: str) -> None:
    evidence, part, near = SEEN[case]
    verdict = find_bottleneck(evidence)
    assert (verdict.part, verdict.near) == (part, near)


def statistics(requests: int, batches: int, rows: int, compute_s: float, handling_s: float, queue_s: float) -> Any:
    counts = {
        "success": (requests, 0.0),
        "queue": (requests, queue_s),
        "compute_input": (requests, handling_s / 2),
        "compute_infer": (requests, compute_s),
        "compute_output": (requests, handling_s / 2),
    }
    return {
        "execution_count": batches,
        "inference_count": rows,
        "inference_stats": {name: {"count": count, "ns": int(s * 1e9)} for name, (count, s) in counts.items()},
    }


def status(queue: int, completed: int, **slot: Any) -> dict[str, Any]:
    slots = [
        {
            "slot": number,
            "device": f"cpu:{number}",
            "pid": 10 + number,
            "incarnation": 1,
            "completed": completed,
            **slot,
        }
        for number in range(2)
    ]
    return {"daemon": {"pid": 9}, "slots": slots, "models": [{"name": "m", "slots_ready": 2, "queue": queue}]}


def test_evidence_is_computed_from_differences_of_counters() -> None:
    before = statistics(100, 50, 200, 1.0, 0.0, 0.0)
    after = statistics(300, 100, 600, 7.0, 0.8, 4.0)
    snapshots = [
        Snapshot(10.0, before, status(0, 100), {9: 1.0, 10: 5.0, 11: 5.0}, {9: 0.5, 90: 0.5}, (100.0, 1000.0)),
        Snapshot(12.0, after, status(8, 200), {9: 2.0, 10: 6.0, 11: 7.0}, {9: 1.0, 90: 1.0}, (103.0, 1004.0)),
        Snapshot(14.0, after, status(4, 300), {9: 4.0, 10: 7.0, 11: 9.0}, {9: 3.1, 90: 0.9}, (106.0, 1008.0)),
    ]
    evidence = gather_evidence("m", snapshots, [0.5, 0.4], 2)
    assert evidence.router == 0.75
    assert evidence.router_thread == pytest.approx(0.65)
    assert [seen.cpu for seen in evidence.workers] == [0.5, 1.0]
    assert [seen.rows for seen in evidence.workers] == [200, 200]
    assert evidence.compute == pytest.approx(6.0 / 4.0 / 2)
    assert evidence.handling == pytest.approx(0.8 / 4.0 / 2)
    assert (evidence.queued, evidence.queued_most, evidence.queue_s) == (4.0, 8, pytest.approx(0.02))
    assert (evidence.requests, evidence.batch_rows) == (200, 8.0)
    assert evidence.machine == 0.75
    # Clients 0.9, router 0.75, workers 1.5 of two cores.
    assert evidence.own == pytest.approx(1.575)
    assert evidence.others == 0.0


def test_evidence_of_a_remote_daemon_comes_from_its_status() -> None:
    reported = {"cpu_percent": 50.0, "utilization_percent": 80}
    counted = statistics(0, 0, 0, 0.0, 0.0, 0.0)
    snapshots = [
        Snapshot(10.0, counted, status(0, 0, **reported), {}, {}, (0.0, 0.0)),
        Snapshot(11.0, counted, status(0, 0, **reported, incarnation=2), {}, {}, (0.0, 0.0)),
    ]
    evidence = gather_evidence("m", snapshots, [0.5], 2)
    assert (evidence.router, evidence.router_thread, evidence.machine, evidence.own) == (None, None, None, None)
    assert evidence.workers[0] == Worker(0, "cpu:0", 0.5, 0, 0.8, True)
    assert (evidence.batch_rows, evidence.queue_s) == (None, None)


def test_without_snapshots_only_the_client_cpu_is_known() -> None:
    evidence = gather_evidence("m", [], [0.5], 2)
    assert evidence.clients == (0.5,)
    assert evidence.problems
    assert find_bottleneck(evidence).part is Part.NONE


# Reports.


CLOSED = Load("closed", 8)


def result(
    load: Load = CLOSED,
    *,
    latencies: list[int] | None = None,
    evidence: Evidence | None = None,
    **errors: int,
) -> Result:
    tally = Tally(cpu=[0.9])
    for latency in [20_000_000] * 100 if latencies is None else latencies:
        tally.latency.add(latency)
    tally.answered = tally.latency.count
    for reason, count in errors.items():
        tally.fail(reason, f"the message\nof {reason}", count)
    evidence = evidence or Evidence((0.9,), 0.5, 0.4, (worker(),), 0.5, 0.01, 3.0, 5, 0.002, 4.0, 100, 0.95, 2)
    return Result(load, 2.0, 3, 2, tally, evidence, find_bottleneck(evidence))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (math.nan, "-"),
        (0.0, "0.000"),
        (0.000_000_5, "0.001"),
        (0.000_012_3, "0.0123"),
        (0.000_999, "0.999"),
        (0.0123, "12.3"),
        (0.123, "123"),
        (12.3456, "12,346"),
    ],
)
def test_milliseconds_have_three_significant_digits(seconds: float, text: str) -> None:
    assert text_report.milliseconds(seconds) == text


def test_a_result_as_a_row_of_the_table() -> None:
    row = dict(
        zip(text_report.COLUMNS, text_report.result_row(result(queue_full=7, deadline=2, model_error=1)), strict=True)
    )
    assert row == {
        ">Workers": "2",
        "Load": "8 outstanding",
        ">Requests/s": "50.0",
        ">Rows/s": "150",
        ">p50 ms": "20.0",
        ">p90 ms": "20.0",
        ">p99 ms": "20.0",
        ">p99.9 ms": "20.0",
        ">max ms": "20.0",
        ">Errors": "3",
        ">Refused": "7",
        ">Rows a batch": "4.0",
        "Bottleneck": "client",
    }


def test_a_row_without_any_answer() -> None:
    row = text_report.result_row(result(latencies=[], evidence=Evidence(), deadline=5))
    assert row == ("2", "8 outstanding", "0.0", "0.0", *"-----", "5", "0", "-", "none")


def test_the_explanation_contains_verdict_and_evidence() -> None:
    text = "\n".join(text_report.explain_bottleneck(result()))
    for words in (
        "Bottleneck at 8 outstanding, 2 workers: client.",
        "more --processes",
        "cores are all in use",
        "of one core: 90%; 18,000 µs a request",
        "40% in its busiest thread, 50% in all threads",
        "computing: 50% of the workers' time; batches of 4.0 rows",
        "3.0 requests waited on average, 5 at most; 2.00 ms each",
        "95% of 2 cores in use",
    ):
        assert words in text


def test_the_explanation_of_unknown_evidence() -> None:
    text = "\n".join(text_report.explain_bottleneck(result(latencies=[], evidence=Evidence())))
    assert "unknown" in text


def test_notes_name_the_steps_that_they_concern() -> None:
    fine = Evidence((0.1,), 0.1, 0.1, (worker(),), machine=0.15)
    steps = [
        result(evidence=fine, deadline=2),
        result(Load("open", 50.0), evidence=replace(fine, workers=(worker(replaced=True),), requests=5000)),
        result(Load("closed", 64)),
    ]
    steps[1].tally.late.add(15_000_000)
    notes = list(text_report.notes(steps))
    assert notes == [
        "Note on 8 outstanding, 2 workers: 2 requests without an answer: deadline (the message of deadline).",
        "Note on 50 requests/s, 2 workers: 1 in 100 requests was sent 15.0 ms late or more; the latencies include it.",
        "Note on 50 requests/s, 2 workers: a worker was replaced during the step.",
        "Note on 50 requests/s, 2 workers: the daemon answered 5,000 requests, 100 of them ours: it has other clients.",
        "Note on 64 outstanding, 2 workers: the client processes used up to 90% of a core each, so the figures are "
        "partly those of the client; use more --processes.",
        "Note on 64 outstanding, 2 workers: other programs used over 10% of this machine's cores.",
    ]
    assert next(text_report.notes([steps[2], steps[2]])).startswith("Note on all steps: ")


def test_the_lines_about_an_objective() -> None:
    objective = Objective(0.05)
    good, bad = result(Load("open", 100.0)), result(Load("open", 200.0), queue_full=50)
    lines = list(text_report.objective_lines(objective, [good, bad]))
    assert lines[0].startswith("Highest rate with p99 within 50.0 ms: 100 requests/s (p99 of the answers 20.0 ms")
    assert lines[1].startswith("Above it, at 200 requests/s: ")
    assert "50 refused, 0 other errors" in lines[1]
    assert "No higher rate was tried" in list(text_report.objective_lines(objective, [good]))[1]
    (none,) = text_report.objective_lines(objective, [bad])
    assert none.startswith("No rate held p99 within 50.0 ms. At the lowest, 200 requests/s:")


def test_the_rows_of_the_scaling_table() -> None:
    one, two = result(Load("closed", 4)), result(Load("closed", 16), latencies=[30_000_000] * 150)
    rows = list(text_report.scaling_rows({1: one, 2: two}))
    assert rows == [
        ("1", "50.0", "150", "100.0%", "4", "20.0", "client"),
        ("2", "75.0", "225", "75.0%", "16", "30.0", "client"),
    ]
    assert best([one, two, two]) is two


@pytest.mark.parametrize(
    ("devices", "workers", "override"),
    [
        ("{cpu: 2}", (1, 2), "{cpu: 2}"),
        ("[cpu:1, cpu:0]", (1, 2), "[cpu:1, cpu:0]"),
        ("[[cpu:0, cpu:1], [cpu:2, cpu:3]]", (1, 2), "[[cpu:0, cpu:1], [cpu:2, cpu:3]]"),
        ("[cpu:4, [cpu:0, cpu:1], cpu:5]", (1, 2, 3), "[cpu:4, [cpu:0, cpu:1]]"),
    ],
)
def test_fewer_workers_use_the_first_devices_or_groups(
    tmp_path: Path, devices: str, workers: tuple[int, ...], override: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"devices: {devices}\nmodels: [{{name: m, handler: 'handlers:M'}}]\n")
    planned = plan_scaling(load(file, environment={}), None)
    assert planned.workers == workers
    assert planned.override(2) == f"devices={override}"
    again = load(file, environment={}, overrides=[planned.override(2)])
    assert len(placement.place_workers(again)) == 2


def test_the_json_report_is_strict_and_complete() -> None:
    steps = [result(queue_full=1), result(latencies=[], evidence=Evidence(), deadline=1)]
    document = json_report.build_report(
        {"seconds": 2.0},
        daemon=None,
        requests=[],
        steps=steps,
        objective=Objective(0.05),
        tried=steps,
        scaling={1: steps[0]},
        complete=True,
    )
    read = json.loads(json.dumps(document, allow_nan=False))
    first, second = read["steps"]
    assert (first["answered"], first["refused"], first["errors"], first["requests_due"]) == (100, 1, 0, 101)
    assert first["errors_by_reason"]["queue_full"]["count"] == 1
    assert first["bottleneck"]["part"] == "client"
    assert sum(count for _, count in first["latency_buckets_ns"]) == 100
    assert second["latency_s"]["p99"] is None
    assert read["objective"]["highest_rate"] == 8
    assert [entry["efficiency"] for entry in read["scaling"]] == [1.0]
    assert read["machine"]["cores"] >= 1


def test_a_snapshot_uses_the_version_of_its_statistics() -> None:
    entries = [{"name": "n", "version": "1"}, {"name": "m", "version": "1"}, {"name": "m", "version": "2"}]
    snapshot = Snapshot(0.0, {"version": "2"}, {"models": entries}, {}, {}, (0.0, 0.0))
    assert snapshot.model("m") is entries[2]
    assert snapshot.model("n") is entries[0], "a model without versions has one entry"
    assert snapshot.model("o") == {}
    assert only_model({"models": entries[1:]}) == "m"


def test_a_cpu_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_bytes(b"processor\t: 0\nmodel name\t: CPU\xae 1\n")
    assert json_report._cpu_name(tmp_path / "cpuinfo") == "CPU\N{REPLACEMENT CHARACTER} 1"
