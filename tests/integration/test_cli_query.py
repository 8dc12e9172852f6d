"""`multitower status`, `models` and `infer`, with a scripted daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_daemon
import numpy as np
import pytest
from click.testing import CliRunner
from fake_daemon import FakeDaemon, Received

from multitower import wire
from multitower.cli import commands
from multitower.errors import Reason, make
from multitower.exit_codes import Exit

STATUS: dict[str, Any] = {
    "daemon": {
        "pid": 4711,
        "version": "0.1.0",
        "compiled": True,
        "state": "running",
        "uptime_s": 7500.0,
        "rss_bytes": 64 << 20,
        "listen": ["tcp://127.0.0.1:5555"],
        "spares": [{"pid": 4714, "state": "idle"}],
        "ready": True,
        "slots_ready": 1,
        "slots_total": 2,
        "rejected": 3,
        "late": 0,
        "replies_dropped": 0,
    },
    "slots": [
        {
            "slot": 0,
            "state": "ready",
            "pid": 4712,
            "device": "GPU-8f3a1c20",
            "visible_devices": "GPU-8f3a1c20",
            "incarnation": 1,
            "restarts": 0,
            "depth": 5,
            "completed": 123456,
            "last_error": None,
            "models": [],
        },
        {
            "slot": 1,
            "state": "failed",
            "pid": None,
            "device": "GPU-2e",
            "visible_devices": None,
            "incarnation": 6,
            "restarts": 5,
            "depth": 0,
            "completed": 0,
            "last_error": "exit code 3 [/red] while loading",
            "models": [],
        },
    ],
    "models": [
        {
            "name": "digits",
            "version": "3",
            "labels": ["stable", "best"],
            "labels_not_served": {"canary": "4"},
            "state": "ready",
            "cause": None,
            "slots_ready": 1,
            "queue": 2,
            "queue_bytes": 512,
            "completed": 1000,
            "failed": 1,
            "batches": 100,
            "rows": 250,
            "max_batch_size": 32,
            "unbatched_because": None,
        },
        {
            "name": "other",
            "version": None,
            "labels": [],
            "labels_not_served": {},
            "state": "loading",
            "cause": None,
            "slots_ready": 0,
            "queue": 0,
            "queue_bytes": 0,
            "completed": 0,
            "failed": 0,
            "batches": 0,
            "rows": 0,
            "max_batch_size": 0,
            "unbatched_because": None,
        },
    ],
}
DIGITS = {
    "name": "digits",
    "versions": ["3"],
    "platform": "tensorflow_savedmodel",
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "n", "datatype": "UINT8", "shape": [-1]},
        {"name": "word", "datatype": "BYTES", "shape": [-1]},
        {"name": "wide", "datatype": "COMPLEX64", "shape": [-1]},
    ],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}],
}


class Script:
    """Answers like a daemon that serves `digits`, and keeps the requests."""

    def __init__(self) -> None:
        self.status = json.loads(json.dumps(STATUS))
        self.asked: list[Received] = []
        self.answer: dict[str, np.ndarray] | None = None

    def __call__(self, request: Received) -> list[bytes]:
        if request.kind == wire.STATUS:
            return fake_daemon.ok(request.id, self.status)
        name = request.json["model_name"]
        if name == "other":
            return fake_daemon.error(request.id, Reason.NO_WORKER, "'other' is not loaded: it is still loading")
        if name == "free":
            if request.kind == wire.MODEL_METADATA:
                return fake_daemon.ok(request.id, {**DIGITS, "name": name, "inputs": [], "outputs": []})
        elif name != "digits":
            return fake_daemon.error(request.id, Reason.MODEL_UNKNOWN, f"there is no model {name!r}, only digits")
        if request.kind == wire.MODEL_METADATA:
            return fake_daemon.ok(request.id, DIGITS)
        self.asked.append(request)
        if self.answer is not None:
            return fake_daemon.outputs(request.id, **self.answer)
        return fake_daemon.echo(request)


@pytest.fixture(scope="module")
def daemon() -> Iterator[tuple[FakeDaemon, Script]]:
    script = Script()
    with FakeDaemon(lambda request: script(request)) as daemon:
        yield daemon, script


@pytest.fixture
def script(daemon: tuple[FakeDaemon, Script]) -> Script:
    daemon[1].__init__()  # type: ignore[misc]
    return daemon[1]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, daemon: tuple[FakeDaemon, Script], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MULTITOWER_ENDPOINT", daemon[0].endpoint)
    return tmp_path


def multitower(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    # In this process; test_cli_main.py runs the command line as a process.
    done = CliRunner().invoke(commands.multitower, arguments, input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.stdout, done.stderr


# status and models.


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
    assert lines[2] == "since the start: 3 requests refused"
    rows = [line.split() for line in lines[4:]]
    use = ["4.2", "ms", "12.0", "ms", "-", "0", "900", "MiB", "88", "%", "6,144", "MiB", "93", "%"]
    assert ["0", "ready", "-", "GPU-8f3a1c20", "5", "1,234", *use, "4712", "123,456", "-"] in rows
    error = ["exit", "code", "3", "[/red]", "while", "loading"]
    assert ["1", "failed", "-", "GPU-2e", "0", *"----", "5", *"---", "gone", "-", "0", *error] in rows
    assert "in quarantine: 1 requests that crashed a worker; 6 equal ones were refused" in out
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
    assert "other loading - 'other' is not loaded: it is still loading - -" in rows


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


# infer.

TAKEN: dict[str, tuple[bytes, str, str, list[int], Any]] = {
    # JSON, name of the input, and its datatype, shape and values as sent
    "integers for floats": (b'{"x": [[1, 2], [3, 4]]}', "x", "FP32", [2, 2], [[1.0, 2.0], [3.0, 4.0]]),
    "floats": (b'{"x": [[0.5, 1e-3]]}', "x", "FP32", [1, 2], [[0.5, np.float32(1e-3)]]),
    "whole floats for integers": (b'{"n": [1.0, 255]}', "n", "UINT8", [2], [1, 255]),
    "a scalar": (b'{"n": 7}', "n", "UINT8", [], 7),
    "text": ('{"word": ["grün", ""]}'.encode(), "word", "BYTES", [2], ["grün".encode(), b""]),
    "bytes": (b'{"word": [{"b64": "/wA="}]}', "word", "BYTES", [1], [b"\xff\0"]),
    "real for complex": (b'{"wide": [1.5]}', "wide", "COMPLEX64", [1], [1.5 + 0j]),
    "Open Inference": (
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}]}',
        "x",
        "FP32",
        [2, 2],
        [[1.0, 2.0], [3.0, 4.0]],
    ),
    "Open Inference, nested": (b'{"inputs": [{"name": "n", "data": [[1], [2]]}]}', "n", "UINT8", [2, 1], [[1], [2]]),
}


@pytest.mark.parametrize("case", TAKEN)
@pytest.mark.parametrize("where", ["stdin", "-", "file"])
def test_json_is_converted_to_the_declared_datatypes(case: str, where: str, folder: Path, script: Script) -> None:
    text, name, datatype, shape, wanted = TAKEN[case]
    (folder / "request").write_bytes(text)
    options = {"stdin": [], "-": ["--from", "-"], "file": ["--from", "request"]}[where]
    code, _, err = multitower("infer", "digits", *options, stdin=b"" if where == "file" else text)
    assert (code, err) == (Exit.OK, "")
    (request,) = script.asked
    assert request.json["inputs"] == [{"name": name, "datatype": datatype, "shape": shape}]
    assert request.inputs[name].tolist() == wanted


REFUSED: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "the standard input is not JSON"),
    "not UTF-8": (b'{"x": "\xff"}', "is not JSON"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "a list": (b"[1]", "not an object"),
    "fractions for integers": (b'{"n": [1.5]}', "input 'n' is UINT8, which cannot represent all its values"),
    "too large": (b'{"n": [256]}', "input 'n' is UINT8"),
    "negative": (b'{"n": [-1]}', "input 'n' is UINT8"),
    "beyond a float": (b'{"x": [1e39]}', "input 'x' is FP32"),
    "beyond numpy": (b'{"n": [1' + b"0" * 30 + b"]}", "input 'n' is UINT8, but its values are not all numbers"),
    "text for numbers": (b'{"x": ["1"]}', "input 'x' is FP32, but its values are not all numbers"),
    "null": (b'{"x": [null]}', "not all numbers"),
    "rows of unequal length": (b'{"x": [[1], [2, 3]]}', "input 'x' is not an array"),
    "numbers for text": (b'{"word": [{"b64": "a"}]}', "b64"),
    "a wrong shape": (b'{"inputs": [{"name": "x", "shape": [3], "data": [1, 2]}]}', "input 'x'"),
    "a wrong datatype": (b'{"inputs": [{"name": "x", "datatype": "FP13", "data": [1]}]}', "FP13"),
    "a datatype that is no name": (
        b'{"inputs": [{"name": "x", "datatype": [], "data": [1]}]}',
        "the datatype must be a name",
    ),
    "beyond a double": (b'{"x": [1e400]}', "no double holds 1e400"),
    "no data": (b'{"inputs": [{"name": "x", "datatype": "FP32"}]}', "not all numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_do_not_fit_the_model_are_one_line(case: str, script: Script) -> None:
    text, words = REFUSED[case]
    code, out, err = multitower("infer", "digits", stdin=text)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("multitower: ")
    assert words in err
    assert script.asked == []


def test_inputs_are_read_from_numpy_files(folder: Path, script: Script) -> None:
    np.save(folder / "x.npy", np.array([[1.0, 2.0]]))  # float64
    np.savez(folder / "all.npz", x=np.zeros((3, 2)), n=np.array([1, 2]))
    for options, wanted in (
        (["--input", "x=x.npy"], {"x": [[1.0, 2.0]]}),
        (["--from", "all.npz"], {"x": [[0.0, 0.0]] * 3, "n": [1, 2]}),
        (["--from", "all.npz", "--input", "x=x.npy"], {"x": [[1.0, 2.0]], "n": [1, 2]}),
    ):
        assert multitower("infer", "digits", *options)[0] == Exit.OK
        request = script.asked.pop()
        assert {name: array.tolist() for name, array in request.inputs.items()} == wanted
        assert {entry["name"]: entry["datatype"] for entry in request.json["inputs"]}["x"] == "FP32"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input", "x"], "NAME=FILE.npy"),
        (["--input", "x=missing.npy"], "missing.npy: No such file"),
        (["--input", "x=text.npy"], "text.npy is not a numpy file"),
        (["--input", "x=pickled.npy"], "pickled.npy is not a numpy file"),
        (["--input", "x=all.npz"], "--from"),
        (["--from", "broken.npz"], "broken.npz is not a numpy file"),
        (["--from", "missing.json"], "missing.json: No such file"),
        (["--from", "all.npz", "--output", "no/such/folder.npz"], "No such file"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(options: list[str], words: str, folder: Path, script: Script) -> None:
    (folder / "text.npy").write_text("hello")
    (folder / "broken.npz").write_bytes(b"PK\3\4 not a zip")
    np.save(folder / "pickled.npy", np.array([{}], object), allow_pickle=True)
    np.savez(folder / "all.npz", x=np.zeros((1, 2)))
    code, out, err = multitower("infer", "digits", *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert words in err


OUTPUTS = {
    "scores": np.array([[0.1, 1e-7]], np.float32),
    "half": np.array(0.1, np.float16),
    "double": np.array([0.1]),
    "label": np.array(["grün".encode(), b"\xff"], object),
    "wave": np.array([1 + 2j], np.complex64),
    "yes": np.array([True]),
    "infinite": np.array([np.inf, np.nan]),
    "file": np.array([1], np.int64),
}


def _not_json(literal: str) -> None:
    raise AssertionError(f"{literal} is not JSON")


def test_outputs_are_printed_as_json(script: Script) -> None:
    script.answer = OUTPUTS
    code, out, err = multitower("infer", "digits", stdin=b'{"n": [1]}')
    assert (code, err, out.count("\n")) == (Exit.OK, "", 1)
    answer = json.loads(out, parse_constant=_not_json)
    assert answer == {
        "scores": [[0.1, 1e-7]],
        "half": 0.1,
        "double": [0.1],
        "label": ["grün", {"b64": "/w=="}],
        "wave": [[1.0, 2.0]],
        "yes": [True],
        "infinite": [None, None],
        "file": [1],
    }


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(
    ("nan", "words"),
    [
        ("null", "null, null, null, 1.5"),
        ("string", '"NaN", "Infinity", "-Infinity", 1.5'),
        ("literal", "NaN, Infinity, -Infinity, 1.5"),
    ],
)
def test_nan_and_infinities_are_written_as_asked_for(
    nan: str, words: str, dtype: type[np.generic], folder: Path, script: Script
) -> None:
    values = [np.nan, np.inf, -np.inf, 1.5]
    script.answer = {"y": np.array(values, dtype)}
    shown = f"[{words}]"
    if dtype is np.complex64:
        shown = "[" + ", ".join(f"[{word}, 0.0]" for word in words.split(", ")) + "]"
    arguments = ("infer", "digits", "--nan", nan)
    assert multitower(*arguments, stdin=b'{"n": [1]}') == (Exit.OK, f'{{"y": {shown}}}\n', "")
    assert multitower(*arguments, "--output", "y.json", stdin=b'{"n": [1]}')[0] == Exit.OK
    assert (folder / "y.json").read_text() == f'{{"y": {shown}}}\n'


@pytest.mark.parametrize(("name", "words"), [("no/such/y.npz", "No such file"), ("y.npz", "Is a directory")])
def test_a_file_that_cannot_be_written_is_found_before_the_request(
    name: str, words: str, folder: Path, script: Script
) -> None:
    (folder / "y.npz").mkdir()
    code, out, err = multitower("infer", "digits", "--output", name, stdin=b'{"n": [1]}')
    assert (code, out) == (1, "")
    assert f"{name}: {words}" in err
    assert script.asked == []


def test_outputs_are_written_to_files(folder: Path, script: Script) -> None:
    script.answer = OUTPUTS
    for name in ("answer.npz", "answer.json"):
        assert multitower("infer", "digits", "--output", name, stdin=b'{"n": [1]}') == (Exit.OK, "", "")
    with np.load("answer.npz", allow_pickle=False) as saved:
        assert set(saved) == set(OUTPUTS)
        assert saved["scores"].dtype == np.float32
        assert saved["label"].tolist() == ["grün".encode(), b"\xff"]
        np.testing.assert_array_equal(saved["infinite"], OUTPUTS["infinite"])
    assert json.loads((folder / "answer.json").read_text())["scores"] == [[0.1, 1e-7]]


def test_an_output_that_npz_cannot_hold_is_an_error(script: Script) -> None:
    script.answer = {"label": np.array([b"a\0"], object)}
    code, _, err = multitower("infer", "digits", "--output", "answer.npz", stdin=b'{"n": [1]}')
    assert code == 1
    assert "'label'" in err
    assert ".json" in err


def test_outputs_and_version_can_be_chosen(script: Script) -> None:
    arguments = ["--only", "b", "--only", "a", "--model-version", "3", "--timeout", "2.5"]
    assert multitower("infer", "digits", *arguments, stdin=b'{"n": [1]}')[0] == Exit.OK
    header = script.asked[0].json
    assert header["outputs"] == [{"name": "b"}, {"name": "a"}]
    assert header["model_version"] == "3"
    assert header["parameters"]["timeout"] == 2_500_000


def test_a_model_without_declared_inputs_gets_numpys_datatypes(script: Script) -> None:
    assert multitower("infer", "free", stdin=b'{"a": [1], "b": [1.5], "c": "word"}')[0] == Exit.OK
    datatypes = [(entry["name"], entry["datatype"]) for entry in script.asked[0].json["inputs"]]
    assert datatypes == [("a", "INT64"), ("b", "FP64"), ("c", "BYTES")]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["infer", "nobody"], 1, "NOT_FOUND/model_unknown: there is no model 'nobody', only digits"),
        (["infer", "other"], Exit.UNAVAILABLE, "UNAVAILABLE/no_worker: 'other' is not loaded"),
        (["infer"], Exit.USAGE, "MODEL"),
        (["infer", "digits", "--timeout", "0"], Exit.USAGE, "--timeout"),
        (["infer", "digits", "--timeout", "nan"], Exit.USAGE, "nan is not a number of seconds"),
        (["infer", "digits", "--output", "answer.txt"], Exit.USAGE, ".npz or .json"),
        (["status", "--endpoint", "nowhere"], Exit.UNAVAILABLE, "ipc://PATH"),
    ],
)
def test_errors_have_one_line_and_an_exit_code(arguments: list[str], code: int, words: str, script: Script) -> None:
    got, out, err = multitower(*arguments, stdin=b"{}")
    assert (got, out) == (code, "")
    assert words in err


def test_an_error_of_several_lines_is_one_line(script: Script) -> None:
    with FakeDaemon(lambda request: [wire.ERROR, request.id, _several_lines()]) as daemon:
        code, _, err = multitower("infer", "digits", "--endpoint", daemon.endpoint, stdin=b"{}")
    assert (code, err) == (1, "multitower: INTERNAL/model_error: ValueError: first second\n")


def _several_lines() -> bytes:
    return wire.dump_json(make(Reason.MODEL_ERROR, "ValueError: first\n  second").to_wire())
