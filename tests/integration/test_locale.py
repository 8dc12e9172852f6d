"""The command line under locales that are not UTF-8, and files that are replaced as a whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_daemon
import numpy as np
import pytest
from fake_daemon import FakeDaemon, Received

from multitower import wire
from multitower.tools.replaced_file import replaced_file

TEXT = "Grüße \u2603"
TENSORS = [{"name": TEXT, "datatype": "BYTES", "shape": [-1]}]
MODEL = {"name": "digits", "version": "3", "labels": [], "state": "ready", "cause": None}
METADATA = {"name": "digits", "versions": ["3"], "platform": "handler", "inputs": TENSORS, "outputs": TENSORS}

LOCALES = {
    "posix": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"},
}


def _answer(request: Received) -> list[bytes]:
    if request.kind == wire.STATUS:
        return fake_daemon.ok(request.id, {"models": [MODEL]})
    if request.kind == wire.MODEL_METADATA:
        return fake_daemon.ok(request.id, METADATA)
    return fake_daemon.echo(request)


@pytest.fixture(params=LOCALES)
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    with FakeDaemon(_answer) as daemon:
        yield {**os.environ, **LOCALES[request.param], "MULTITOWER_ENDPOINT": daemon.endpoint}


def _run(environment: dict[str, str], *arguments: str, stdin: bytes = b"") -> bytes:
    command = [sys.executable, "-m", "multitower", *arguments]
    done = subprocess.run(command, env=environment, input=stdin, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"]], ids=" ".join)
def test_models_are_listed_in_utf_8(environment: dict[str, str], arguments: list[str]) -> None:
    out = _run(environment, *arguments).decode()
    if "--json" in arguments:
        assert json.loads(out)[0]["inputs"][0]["name"] == TEXT
    else:
        assert TEXT in out


@pytest.mark.parametrize("to_file", [True, False], ids=["file", "stdout"])
def test_answers_are_json_in_utf_8(environment: dict[str, str], to_file: bool, tmp_path: Path) -> None:
    file = tmp_path / "answer.json"
    file.write_text("an earlier answer")
    sent = json.dumps({TEXT: [TEXT]}, ensure_ascii=False).encode()
    out = _run(environment, "infer", "digits", *(["--output", str(file)] if to_file else []), stdin=sent)
    assert json.loads(file.read_bytes() if to_file else out) == {TEXT: [TEXT]}


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "answer.json"
    file.write_bytes(b"an earlier answer")
    with pytest.raises(TypeError), replaced_file(file) as output:
        output.writelines([b"half of", None])  # type: ignore[list-item]
    assert file.read_bytes() == b"an earlier answer"
    assert list(tmp_path.iterdir()) == [file]


def test_a_replaced_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    file.chmod(0o640)
    link.symlink_to("file")
    with replaced_file(link) as output:
        output.write(b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_new_file_gets_the_mode_of_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        with replaced_file(tmp_path / "new") as output:
            output.write(b"new")
    finally:
        os.umask(umask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_a_pipe_is_written_to_directly(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with replaced_file(pipe) as output:
            output.write(b"through")
        assert os.read(reader, 100) == b"through"
        assert pipe.is_fifo()
    finally:
        os.close(reader)


def test_arrays_are_replaced_whole(tmp_path: Path) -> None:
    from multitower.tools.tensor_files import TensorFileError, save_outputs

    file = tmp_path / "answer.npz"
    file.write_bytes(b"an earlier answer")
    bad = np.array([b"ends in zero\0"], dtype=object)
    with pytest.raises(TensorFileError):
        save_outputs(file, {"x": bad})
    assert file.read_bytes() == b"an earlier answer"
    save_outputs(file, {"x": np.ones(3)})
    with np.load(file) as loaded:
        assert loaded["x"].tolist() == [1.0, 1.0, 1.0]
