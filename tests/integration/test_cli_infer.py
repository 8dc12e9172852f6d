"""`multitower infer`, with a scripted daemon: its inputs, its outputs and its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_scene import Script, multitower, scripted_daemon
from fake_daemon import FakeDaemon

from multitower import wire
from multitower.errors import Reason, make
from multitower.exit_codes import Exit


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    with scripted_daemon(tmp_path, monkeypatch) as script:
        yield script


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the command runs."""
    return tmp_path


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
    "nothing": (b" \n", 'the standard input is empty; what is expected is JSON such as {"x": [[1.5, 2]]}'),
    "a list": (b"[[1]]", 'not an object of inputs by name; what is expected is JSON such as {"x"'),
    "no JSON": (b"{", "the standard input is not JSON"),
    "not UTF-8": (b'{"x": "\xff"}', "is not JSON"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "fractions for integers": (b'{"n": [1.5]}', "input 'n' is UINT8, which cannot represent all its values"),
    "too large": (b'{"n": [256]}', "input 'n' is UINT8"),
    "negative": (b'{"n": [-1]}', "input 'n' is UINT8"),
    "beyond a float": (b'{"x": [1e39]}', "input 'x' is FP32"),
    "beyond numpy": (b'{"n": [1' + b"0" * 30 + b"]}", "input 'n' is UINT8, but its values are not all numbers"),
    "text for numbers": (b'{"x": ["1"]}', "input 'x' is FP32, but its values are not all numbers"),
    "null": (b'{"x": [null]}', "not all numbers"),
    "rows of unequal length": (b'{"x": [[1], [2, 3]]}', "input 'x' is not an array: its lists have different lengths"),
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
        (["infer", "digits", "--timeout", "nan"], Exit.USAGE, "'nan' is not a duration."),
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
