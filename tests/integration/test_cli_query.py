"""`multitower status` and `models`, with a scripted daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_scene import DIGITS, STATUS, Script, multitower, scripted_daemon

from multitower.exit_codes import Exit


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    with scripted_daemon(tmp_path, monkeypatch) as script:
        yield script


def test_status_is_readable(script: Script) -> None:
    script.status["slots"][0] |= {
        "batch_ms": {"p50": 4.21, "p99": 12.0},
        "rows_per_s": 1234.5,
        "rss_bytes": 900 << 20,
        "cpu_percent": 87.6,
        "devices": [{"memory_bytes": 6 << 30, "utilization_percent": 93, "present": True}],
    }
    script.status["slots"][1]["devices"] = [{"memory_bytes": None, "utilization_percent": None, "present": False}]
    script.status["models"][0] |= {"host_memory_bytes": 300 << 20, "device_memory_bytes": 1 << 30}
    script.status["daemon"]["quarantine"] = [{"model": "digits", "seconds_left": 12.0, "refused": 6}]
    code, out, err = multitower("status")
    assert (code, err) == (Exit.DEGRADED, "")
    lines = out.splitlines()
    assert lines[0] == "multitower 0.1.0 (compiled), pid 4711: running for 2 h, 1/2 slots ready, 64 MiB"
    assert lines[1] == "listens on tcp://127.0.0.1:5555; spares: idle"
    assert lines[2] == "since the start, requests refused: 3"
    rows = [line.split() for line in lines[4:]]
    use = ["4.2", "ms", "12.0", "ms", "-", "0", "900", "MiB", "88", "%", "6,144", "MiB", "93", "%"]
    assert ["0", "ready", "-", "GPU-8f3a1c20", "5", "1,234", *use, "4712", "123,456", "-"] in rows
    error = ["exit", "code", "3", "[/red]", "while", "loading"]
    assert ["1", "failed", "-", "GPU-2e", "0", *"----", "5", *"---", "gone", "-", "0", *error] in rows
    assert "in quarantine, as they crashed a worker: 1; equal ones refused: 6" in out
    grown = ["+300", "MiB", "+1,024", "MiB"]
    note = [*grown, "the", "label", "canary", "is", "version", "4,", "which", "is", "not", "served"]
    counts = ["-", "-", "1,000", "1", "-", "2.5"]
    assert ["digits", "ready", "3", "(stable,", "best)", "1/2", "2", *counts, *note] in rows
    assert ["other", "loading", "-", "0/2", "0", "-", "-", "0", "0", "-", "-", "-", "-", "-"] in rows


def test_status_notes_the_signatures_that_are_unbatched_or_unverified(script: Script) -> None:
    alone = {"max_batch_size": 0, "unbatched_because": "values of 'y' differ", "unverified_because": None}
    varying = {"max_batch_size": 8, "unbatched_because": None, "unverified_because": "its outputs vary"}
    sound = {"max_batch_size": 8, "unbatched_because": None, "unverified_because": None}
    script.status["models"][0]["signatures"] = {"alone": alone, "varying": varying, "sound": sound}
    words = " ".join(multitower("status")[1].split())
    notes = "signature alone: values of 'y' differ; signature varying: batching is unverified: its outputs vary;"
    assert notes in words
    assert "sound" not in words


def test_status_shows_each_device_of_a_slot_on_its_own_line(script: Script) -> None:
    script.status["slots"][0] |= {
        "device": "GPU-8f3a1c20,GPU-5b,GPU-61",
        "rss_bytes": 900 << 20,
        "devices": [
            {"memory_bytes": 6 << 30, "utilization_percent": 93, "present": True},
            {"memory_bytes": None, "utilization_percent": None, "present": False},
            {"memory_bytes": 1 << 30, "utilization_percent": None, "present": True},
        ],
    }
    lines = [line.split() for line in multitower("status")[1].splitlines()]
    names = next(number for number, line in enumerate(lines) if "GPU-8f3a1c20" in line)
    assert lines[names][:4] == ["0", "ready", "-", "GPU-8f3a1c20"]
    assert [line[0] for line in lines[names + 1 : names + 3]] == ["GPU-5b", "GPU-61"]
    assert lines[names][-7:-3] == ["6,144", "MiB", "93", "%"]
    assert [line[1:] for line in lines[names + 1 : names + 3]] == [["-", "gone"], ["1,024", "MiB", "-"]]


def test_status_shows_the_work_and_the_fallback_nodes_of_each_tower(script: Script) -> None:
    here = {"name": "digits", "device": "GPU-8f", "nodes": {"GPU-8f": 40}, "fallbacks": {}}
    there = {"name": "digits", "device": "GPU-5b", "nodes": {"GPU-5b": 38, "cpu": 2}, "fallbacks": {"StringUpper": 2}}
    cold = {"name": "other", "device": "GPU-5b", "nodes": None, "fallbacks": {}}
    assert "Tower" not in multitower("status")[1], "no slot has several devices"
    script.status["slots"][0]["towers"] = [
        {"devices": ["GPU-8f"], "depth": 3, "completed": 12_000, "batches": 1500, "models": [here]},
        {"devices": ["GPU-5b"], "depth": 0, "completed": 7, "batches": 6, "models": [there, cold]},
    ]
    rows = [line.split() for line in multitower("status")[1].splitlines()]
    assert ["0", "GPU-8f", "3", "1,500", "12,000", "digits", "GPU-8f", "40", "none"] in rows
    elsewhere = ["GPU-5b", "38,", "cpu", "2", "StringUpper", "2"]
    assert ["0", "GPU-5b", "0", "6", "7", "digits", *elsewhere] in rows
    # The figures of the whole tower are printed once.
    assert ["0", "GPU-5b", "other", "unknown:", "no", "warm-up", "run", "-"] in rows


def test_status_is_json_for_programs(script: Script) -> None:
    code, out, _ = multitower("status", "--json")
    assert code == Exit.DEGRADED
    assert json.loads(out) == STATUS


def test_status_exits_with_0_when_all_slots_are_ready(script: Script) -> None:
    script.status["daemon"]["slots_ready"] = script.status["daemon"]["slots_total"]
    assert multitower("status")[0] == Exit.OK


def test_status_exits_with_69_when_the_daemon_is_not_ready(script: Script) -> None:
    script.status["daemon"]["ready"] = False
    assert multitower("status")[0] == Exit.UNAVAILABLE
    assert multitower("status", "--json")[0] == Exit.UNAVAILABLE


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["models"], ["infer", "digits"]])
def test_no_daemon_is_one_line_and_its_own_exit_code(command: list[str], tmp_socket: str) -> None:
    code, out, err = multitower(*command, "--endpoint", tmp_socket, "--timeout", "0.2", stdin=b"{}")
    assert (code, out) == (Exit.UNAVAILABLE, "")
    assert err.count("\n") == 1
    assert err.startswith("multitower: UNAVAILABLE/not_listening: no daemon listens at")
    assert tmp_socket in err


def test_models_are_listed_with_their_inputs_and_outputs(script: Script) -> None:
    script.status["models"][0]["host_memory_bytes"] = 300 << 20
    code, out, err = multitower("models")
    assert (code, err) == (Exit.OK, "")
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "digits ready 3 (stable, best) input x FP32 [any, 2] +300 MiB -" in rows
    assert "output scores FP32 [any, 10]" in rows
    assert "other loading - - - 'other' is not loaded: it is still loading" in rows


def test_models_are_listed_with_their_signatures(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    default = {"inputs": DIGITS["inputs"], "outputs": DIGITS["outputs"], "cause": None}
    other = {**default, "inputs": [{"name": "pixels", "datatype": "INT32", "shape": [4]}]}
    refused = {"inputs": [], "outputs": [], "cause": "the input 'tags' is sparse"}
    monkeypatch.setitem(DIGITS, "signatures", {"serving_default": default, "other": other, "third": refused})
    code, out, _ = multitower("models")
    assert code == Exit.OK
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "digits ready 3 (stable, best) serving_default input x FP32 [any, 2] - -" in rows
    assert rows.count("output scores FP32 [any, 10]") == 2
    assert "other input pixels INT32 [4]" in rows
    assert "third the input 'tags' is sparse" in rows


def test_models_are_json_for_programs(script: Script) -> None:
    code, out, _ = multitower("models", "--json")
    assert code == Exit.OK
    digits, other = json.loads(out)
    assert digits == {**DIGITS, "version": "3", "labels": ["stable", "best"], "state": "ready", "cause": None}
    cause = "'other' is not loaded: it is still loading"
    assert other == {"name": "other", "version": None, "labels": [], "state": "loading", "cause": cause}
