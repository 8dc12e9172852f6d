"""The results of `multitower compare`: its table, JSON and notes, and the configurations that it serves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from multitower.cli.commands import multitower
from multitower.supervisor.config.loading import load
from multitower.tools.bench.session import Options
from multitower.tools.compare.crash import longest_gap, original_pids
from multitower.tools.compare.measure import Plan, make_config
from multitower.tools.compare.results import Crash, Figures, Way, notes, table
from multitower.tools.compare.sessions import NO_GPU, describe_session, try_sessions
from multitower.tools.errors import ToolError

CRASH = Crash(devices=2, lost=1, answered=1200, failed=0, silent_s=0.051, back_s=6.25)
FIGURES = Figures(
    requests_per_s=5678.4,
    outstanding=16,
    rows=1,
    p50_s=0.0027,
    p99_s=0.0058,
    single_request_s=0.00063,
    failed=0,
    processes=2,
    memory_bytes=919 << 20,
    device_memory_bytes=None,
    ready_s=9.6,
    fallbacks=None,
    crash=CRASH,
)


def test_the_table_has_a_column_for_each_measured_way() -> None:
    towers = replace(
        FIGURES,
        device_memory_bytes=3 << 30,
        fallbacks={"StringUpper": 2, "Where": 1},
        crash=replace(CRASH, lost=2, silent_s=6.2, back_s=None),
    )
    ways = [Way(number=1, figures=FIGURES), Way(number=2, not_run=NO_GPU), Way(number=4, figures=towers)]
    headings, *rows = table(ways)
    assert headings == ["", "1. a process per device", "4. towers"]
    cells = {row[0].strip(): row[1:] for row in rows}
    assert cells["Requests/s"] == ["5,678 with 16 outstanding"] * 2
    assert cells["Latency p50, p99"][0] == "2.70 ms, 5.80 ms"
    assert cells["Their memory"][0] == "919 MiB"
    assert cells["Device memory"] == ["-", "3,072 MiB"]
    assert cells["Nodes not on their device"] == ["unknown", "StringUpper 2, Where 1"]
    assert cells["A process killed: lost"] == ["1 of 2 devices", "2 of 2 devices"]
    assert cells["meanwhile"][1] == "1,200 answered, 0 failed; at most 6.20 s without an answer"
    assert cells["all devices again"] == ["after 6.2 s", "not in time"]
    assert notes(ways) == [f"2. visible_device_list: not run: {NO_GPU}"]


def test_the_json_of_a_way_is_complete() -> None:
    found = json.loads(json.dumps(Way(number=4, figures=FIGURES, found=("a", "b")).to_json()))
    assert (found["title"], found["number"], found["found"]) == ("towers", 4, ["a", "b"])
    assert found["figures"]["crash"]["back_s"] == 6.25


def test_a_session_is_described_by_the_gpu_that_it_used() -> None:
    used = {"asked": "1", "device": "/device:GPU:0", "physical": "pci bus id: 0000:17:00.0", "error": None}
    assert describe_session(used) == (
        "the session with visible_device_list '1' computed on /device:GPU:0, which is pci bus id: 0000:17:00.0"
    )
    assert describe_session({**used, "error": "it raised"}).endswith("'1' failed: it raised")
    assert try_sessions((), 1.0) == Way(number=2, not_run=NO_GPU)


@pytest.mark.parametrize("change", [{"state": "backoff", "pid": None}, {"restarts": 1}])
def test_a_process_that_died_before_is_not_measured(change: dict[str, object]) -> None:
    slots = [{"slot": number, "state": "ready", "pid": 40 + number, "restarts": 0} for number in range(2)]
    assert original_pids(slots) == [40, 41]
    with pytest.raises(ToolError, match="the process of slot 1 died before it was killed: killed by SIGSEGV"):
        original_pids([slots[0], {**slots[1], "last_error": "killed by SIGSEGV", **change}])


@pytest.mark.parametrize("most_s", [60.0, 90.5, 3600.0])
def test_requests_may_wait_as_long_as_a_killed_process_may_take(most_s: float, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").touch()
    options = Options(seconds=1.0, warmup=0.0, timeout=30.0)
    plan = Plan(path=tmp_path, devices=("cpu:0", "cpu:1"), outstanding=8, most_s=most_s, options=options)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(make_config(plan, [["cpu:0", "cpu:1"]])))
    config = load(file, environment={})
    assert config.spares == 0
    (model,) = config.models
    assert model.queue.timeout >= most_s + 30


@pytest.mark.parametrize(
    ("moments", "longest"), [([], 0.0), ([5.0], 0.0), ([1.0, 1.5, 4.0, 4.25], 2.5), ([0.0, 3.0], 3.0)]
)
def test_the_longest_gap_between_moments(moments: list[float], longest: float) -> None:
    assert longest_gap(moments) == longest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nosuch",), "does not exist"),
        ((".", "--cpu", "--devices", "1"), "1 is not in the range"),
        ((".", "--cpu", "--graph-input", "x"), "'x' is not NAME=TENSOR"),
        ((".", "--cpu", "--shape", "x:a"), "is not NAME:DIM"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(arguments: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(multitower, ["compare", *arguments])
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ((), "give --graph-input and --graph-output, as in --graph-input x=x:0 --graph-output y=softmax:0"),
        (("--graph-input", "x=x:0"), "give --graph-output, as in"),
    ],
)
@pytest.mark.parametrize("name", ["frozen.pb", "frozen.pbtxt"])
def test_a_frozen_graph_without_names_is_asked_for_them(
    name: str, options: tuple[str, ...], asked: str, tmp_path: Path
) -> None:
    graph = tmp_path / name
    graph.touch()
    result = CliRunner().invoke(multitower, ["compare", str(graph), "--cpu", *options])
    assert result.exit_code == 2
    assert asked in " ".join(result.output.split())


def test_names_of_tensors_are_refused_for_a_saved_model(tmp_path: Path) -> None:
    result = CliRunner().invoke(multitower, ["compare", str(tmp_path), "--cpu", "--graph-output", "y=y:0"])
    assert result.exit_code == 2
    assert "--graph-output is for frozen graphs" in " ".join(result.output.split())
