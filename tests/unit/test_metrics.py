"""The metrics: their texts, their exactness, and that docs/metrics.md lists what is exported."""

from __future__ import annotations

import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from daemon_scene import DaemonScene
from hypothesis import given
from hypothesis import strategies as st
from installed import find_program
from prometheus_client.parser import text_string_to_metric_families as parse

from multitower import wire
from multitower.errors import MultitowerError, Reason
from multitower.spec import UNREADABLE_MESSAGE, ModelReport
from multitower.supervisor.gateway.run import Counts
from multitower.supervisor.machine.gpu_sampler import GpuUsage
from multitower.supervisor.observability.compatibility import compatible_families
from multitower.supervisor.observability.exposition import Exposition, Family, Kind, Metric
from multitower.supervisor.observability.metric_families import EDGES_S, USUAL_OUTCOMES, USUAL_REFUSALS, families, times
from multitower.supervisor.observability.metrics_reply import MAX_WAITING, Done
from multitower.supervisor.observability.process_metrics import process_families
from multitower.supervisor.observability.snapshot import Snapshot, Times, VersionSnapshot
from multitower.supervisor.routing.recent import LatencyHistogram, RefusedRequests
from multitower.supervisor.routing.router import Router
from multitower.supervisor.routing.statistics import ModelStatistics
from multitower.supervisor.routing.worker_connection import WorkerConnection
from multitower.supervisor.routing.worker_totals import WorkerTotals
from multitower.supervisor.scheduling.queue import QueueLimits
from multitower.supervisor.workers.exit_cause import DeathKind, ExitCause, Fault, Verdict, kind_of_death

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)

FAILURES = {("http", "wrong_token"): 3, ("mt1", "unknown_key"): 1}


def snapshot_of(folder: Path, **changes: Any) -> Snapshot:
    """A snapshot with all that can be in one."""
    daemon = DaemonScene(folder, [("m",), ("m",)])
    gpu = GpuUsage(True, 3 << 30, 5 << 30, 40, {}, 8 << 30, 123.4, 56, 1e6)
    gateway = Counts(
        2, 1, 9, 1, 1000, 2000, {("open_inference_grpc", "OK"): 8, ("operations", "404"): 1}, 1_796_212_800
    )
    snapshot = daemon.operations.snapshots.take(daemon.scene.now)
    return replace(
        snapshot, **{"gpus": {"GPU-1": gpu}, "gateway": gateway, "authentication_failures": FAILURES, **changes}
    )


def text_of(snapshot: Snapshot, format: str = wire.PROMETHEUS) -> str:
    found = [*families(snapshot), *process_families(), *compatible_families(snapshot)]
    return Exposition(format).write(found).decode()


def samples(text: str) -> dict[str, float]:
    """The value of each series, by its name and labels as they are written."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def documented() -> dict[str, tuple[str, list[str]]]:
    """By name: the type and the labels that docs/metrics.md tells."""
    return {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in ROW.findall(DOCUMENT)}


def test_the_document_lists_every_metric_with_its_type_and_labels(tmp_path: Path) -> None:
    text = text_of(snapshot_of(tmp_path))
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    assert {name: kind for name, (kind, _) in documented().items()} == types
    for family in parse(text):
        for sample in family.samples:
            name = f"{family.name}_total" if family.type == "counter" else family.name
            assert sorted(documented()[name][1]) == sorted(sample.labels.keys() - {"le"}), sample


@given(st.lists(st.integers(0, 2 * 10**11), max_size=50))
def test_the_counts_of_buckets_are_exact(measured: list[int]) -> None:
    histogram = LatencyHistogram()
    for ns in measured:
        histogram.add(ns)
    *buckets, infinite, count, seconds = times(Times(histogram.copy_counts(), sum(measured)))
    assert buckets == [sum(ns < round(edge * 1e9) for ns in measured) for edge in EDGES_S]
    assert infinite == count == len(measured)
    assert seconds == sum(measured) / 1e9


@pytest.mark.parametrize("format", wire.METRICS_FORMATS)
def test_series_that_come_and_go_are_written_each_time(format: str) -> None:
    exposition = Exposition(format)
    metric = Metric("x", Kind.GAUGE, "Help.", ("a",))
    end = "# EOF\n" if format == wire.OPENMETRICS else ""
    head = "# HELP x Help.\n# TYPE x gauge\n"
    for labels in (["1"], ["1", "2"], ["2"], [], ["1"]):
        text = exposition.write([Family(metric, [((label,), (float(label) / 2,)) for label in labels])]).decode()
        assert text == head + "".join(f'x{{a="{label}"}} {float(label) / 2}\n' for label in labels) + end


@given(st.text())
def test_any_label_can_be_read_back(label: str) -> None:
    text = Exposition(wire.PROMETHEUS).write([Family(Metric("x", Kind.GAUGE, "Help.", ("a",)), [((label,), (1,))])])
    (family,) = parse(text.decode())
    assert family.samples[0].labels == {"a": label.encode("utf-8", "replace").decode()}


def test_counters_of_other_programs_keep_their_names() -> None:
    metric = Metric("nv_inference_count", Kind.FOREIGN_COUNTER, "Help.")
    found = [Family(metric, [((), (3,))])]
    text = Exposition(wire.PROMETHEUS).write(found).decode()
    assert text == "# HELP nv_inference_count Help.\n# TYPE nv_inference_count counter\nnv_inference_count 3\n"
    assert "# TYPE nv_inference_count unknown\n" in Exposition(wire.OPENMETRICS).write(found).decode()


def test_refused_requests_of_removed_models_do_not_count_again() -> None:
    refused = RefusedRequests()
    for model in ("m", "m", None):
        refused.add(Reason.QUEUE_FULL)
        if model is not None:
            refused.add_of_model(model, Reason.QUEUE_FULL)
    assert refused.without_model() == {Reason.QUEUE_FULL: 1}
    refused.remove_model("m")
    assert refused.without_model() == {Reason.QUEUE_FULL: 1}


def test_only_so_many_requests_for_metrics_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = DaemonScene(tmp_path, [("m",)]).operations.metrics
    jobs: list[tuple[object, Done]] = []
    monkeypatch.setattr(metrics._background, "run", lambda job, then: jobs.append((job, then)))
    answers: list[object] = []
    for _ in range(MAX_WAITING + 1):
        metrics.answer({}, answers.append)
    with pytest.raises(MultitowerError) as refusal:
        metrics.answer({}, answers.append)
    assert refusal.value.reason == Reason.QUEUE_FULL
    assert answers == []
    for _ in range(2):
        job, then = jobs.pop()
        then(job())  # type: ignore[operator]
    assert (len(answers), jobs) == (MAX_WAITING + 1, [])


def test_what_raises_while_metrics_are_collected_is_an_error_of_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = DaemonScene(tmp_path, [("m",)]).operations.metrics
    answers: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(metrics._snapshots, "take", lambda _now: 1 / 0)
        metrics.answer({}, answers.append)
    (error,) = answers
    assert isinstance(error, MultitowerError)
    assert error.reason == Reason.INTERNAL_ERROR
    metrics.answer({}, answers.append)
    assert not isinstance(answers[1], MultitowerError)


def test_promtool_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    promtool = find_program("promtool", "prometheus")
    text = text_of(snapshot_of(tmp_path))
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def version_of(model: str, number: str, ok: int, **errors: int) -> VersionSnapshot:
    histogram = LatencyHistogram()
    histogram.add(3_000_000, ok)
    measured = Times(histogram.copy_counts(), 3_000_000 * ok)
    return VersionSnapshot(
        model=model,
        version=number,
        ok=ok,
        errors=errors,
        rows=2 * ok,
        executions=ok,
        batch_rows=2 * ok,
        batch_sizes=[0, ok, *[0] * 13],
        latency=measured,
        queue=measured,
        compute=measured,
        input_ns=0,
        output_ns=0,
    )


def test_names_of_triton_and_tensorflow_serving_are_added(tmp_path: Path) -> None:
    versions = [version_of("m", "1", 5, queue_full=2, model_error=1), version_of("m", "2", 7)]
    removed = [version_of("m", "", 100, model_error=3)]
    both = ("triton", "tensorflow_serving")
    found = samples(text_of(snapshot_of(tmp_path, versions=versions, removed=removed, compatibility=both)))
    assert found['nv_inference_request_success{model="m",version="1"}'] == 5
    assert found['nv_inference_request_failure{model="m",reason="REJECTED",version="1"}'] == 2
    assert found['nv_inference_request_failure{model="m",reason="BACKEND",version="1"}'] == 1
    assert found['nv_inference_request_duration_us{model="m",version="2"}'] == 21_000
    assert found['nv_inference_count{model="m",version="2"}'] == 14
    assert found['nv_gpu_utilization{gpu_uuid="GPU-1"}'] == 0.4
    assert found['nv_gpu_power_usage{gpu_uuid="GPU-1"}'] == 123.4
    assert found['nv_energy_consumption{gpu_uuid="GPU-1"}'] == 1e6
    # TensorFlow Serving has no label for the version: counters must not fall when a version is unloaded.
    assert found[':tensorflow:serving:request_count{model_name="m",status="OK"}'] == 112
    assert found[':tensorflow:serving:request_count{model_name="m",status="INTERNAL"}'] == 4
    assert found[':tensorflow:serving:request_count{model_name="m",status="RESOURCE_EXHAUSTED"}'] == 2
    latency = ':tensorflow:serving:request_latency_{}{{API="Predict",entrypoint="",model_name="m"}}'
    assert found[latency.format("count")] == 112
    assert found[latency.format("sum")] == pytest.approx(112 * 3000)


def test_without_compatibility_there_are_only_names_of_multitower(tmp_path: Path) -> None:
    names = set(re.findall(r"^# TYPE (\S+)", text_of(snapshot_of(tmp_path)), re.MULTILINE))
    assert {name.split("_")[0] for name in names} == {"multitower", "process"}


def test_counts_of_an_unloaded_version_are_kept_for_the_model() -> None:
    kept, other = ModelStatistics(), ModelStatistics()
    for statistics in (kept, other):
        statistics.count_success(3, 0.001, 0.002)
        statistics.count_failure(Reason.MODEL_ERROR, 0.001, 0.0)
        statistics.count_batches(1, 3, 1, 10, 20, 30)
    kept.add_removed(other)
    entry = kept.to_json("m", "")
    assert (entry["inference_count"], entry["execution_count"], kept.batch_rows) == (6, 2, 6)
    assert entry["inference_stats"]["success"] == {"count": 2, "ns": 4_000_000}
    assert entry["inference_stats"]["compute_infer"] == {"count": 2, "ns": 40}
    assert kept.errors.total == {Reason.MODEL_ERROR: 2}
    for histogram in (kept.latency, kept.queue_times, kept.compute_times):
        assert sum(histogram.copy_counts()) == 2
    assert kept.batch_sizes[2] == 2


def test_counts_without_a_version_stay_when_a_version_is_unloaded() -> None:
    router = Router({"m": QueueLimits(100, 1 << 20)}, {"m": 60.0}, 1 << 20)
    reports = [ModelReport(name="m", max_batch_size=4, version=version) for version in ("3", "4")]
    generations = {report.key: 1 for report in reports}
    route = router.add_worker(0, "cpu:0", cast(WorkerConnection, None), reports, generations, 1.0)
    unanswered, answered = (
        router.models.statistics["m"].setdefault(version, ModelStatistics()) for version in ("", "3")
    )
    unanswered.count_failure(Reason.DEADLINE, 0.001, 0.0)
    answered.count_failure(Reason.MODEL_ERROR, 0.001, 0.0)
    router.models.withdraw_versions(route)
    assert router.models.statistics["m"] == {"": unanswered}
    assert router.models.removed_statistics["m"].errors.total == {Reason.MODEL_ERROR: 1}


def test_the_counts_of_an_unloaded_model_end(tmp_path: Path) -> None:
    daemon = DaemonScene(tmp_path, [("m",)])
    router = daemon.scene.router
    request = daemon.scene.submit(rows=1)
    router.models.statistics["m"]["1"].count_success(3, 0.001, 0.002)
    for process in list(daemon.scene.manager.slots):
        daemon.scene.die(daemon.scene.process(process.number))
    router.models.close_model("m")
    router.models.finish_unload("m")
    assert request.answered
    snapshot = daemon.operations.snapshots.take(daemon.scene.now)
    assert not snapshot.versions
    names = samples(text_of(replace(snapshot, compatibility=())))
    assert not [name for name in names if 'version="1"' in name]
    for _ in range(2):
        removed = router.models.removed_statistics["m"]
        assert (removed.rows, removed.fail.count) == (3, 1), "what has no versions still counts them"
        router.models.finish_unload("m")


def test_usual_outcomes_are_there_before_the_first_request(tmp_path: Path) -> None:
    found = samples(text_of(snapshot_of(tmp_path)))
    name = 'multitower_requests_total{{model="m",outcome="{1}",version="{0}"}}'
    for version, outcomes in (("1", USUAL_OUTCOMES), ("", USUAL_REFUSALS)):
        assert {found[name.format(version, outcome)] for outcome in outcomes} == {0}
    requests = [series for series in found if series.startswith("multitower_requests_total{")]
    assert len(requests) == len(USUAL_OUTCOMES) + len(USUAL_REFUSALS), "no others"


@pytest.mark.parametrize(("rows", "exponent"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8192, 13), (8193, 14)])
def test_batches_are_counted_by_the_power_of_two_that_holds_their_rows(rows: int, exponent: int) -> None:
    statistics = ModelStatistics()
    statistics.count_batches(1, rows, 1, 0, 0, 0)
    assert [number for number, count in enumerate(statistics.batch_sizes) if count] == [exponent]


def test_the_busy_share_of_a_worker_counts_the_batch_that_it_is_executing() -> None:
    totals = WorkerTotals()
    assert totals.busy_ratio(0.0, 0.0, 1) == 0
    for tick in range(12):
        totals.tick(tick / 4, 0.0)
    totals.add(0.5, 8)  # half a second of the last two
    assert totals.busy_ratio(3.0, 0.0, 1) == pytest.approx(0.5 / 2, rel=0.2)
    assert totals.busy_ratio(3.0, 1.0, 1) == pytest.approx(1.5 / 2, rel=0.2)
    assert totals.busy_ratio(3.0, 1.0, 2) == pytest.approx(1.5 / 4, rel=0.2)
    assert totals.busy_ratio(3.0, 100.0, 1) == 1
    assert (totals.batches, totals.rows, totals.busy_s) == (1, 8, 0.5)


@pytest.mark.parametrize(
    ("cause", "verdict", "kind"),
    [
        (ExitCause(-signal.SIGSEGV), None, DeathKind.CRASHED),
        (ExitCause(-signal.SIGKILL), None, DeathKind.KILLED),
        (ExitCause(-signal.SIGTERM), None, DeathKind.SIGNALLED),
        (ExitCause(3), None, DeathKind.EXITED),
        (ExitCause(UNREADABLE_MESSAGE), None, DeathKind.DEFECT),
        (ExitCause(None), None, DeathKind.UNKNOWN),
        (ExitCause(-signal.SIGKILL), Verdict(Fault.HANGS, "x"), DeathKind.HUNG),
        (ExitCause(-signal.SIGKILL), Verdict(Fault.OVERRUN, "x", 1.0), DeathKind.HUNG),
        (ExitCause(-signal.SIGKILL), Verdict(Fault.DEVICE_LOST, "x"), DeathKind.DEVICE_LOST),
    ],
)
def test_deaths_are_told_apart(cause: ExitCause, verdict: Verdict | None, kind: DeathKind) -> None:
    assert kind_of_death(cause, verdict) is kind


def test_each_fault_has_a_kind_of_death() -> None:
    assert {kind_of_death(None, Verdict(fault, "x")) for fault in Fault} <= set(DeathKind) - {DeathKind.UNKNOWN}
