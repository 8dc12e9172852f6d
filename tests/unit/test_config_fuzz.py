"""Whatever a file or an override holds, `load` returns a configuration or raises ConfigError."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from multitower.supervisor.config.config import Config, schema
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.source import ConfigError, Problem

ROOT = Path(__file__).parents[2]
WHOLE = (ROOT / "configs" / "tuning.yaml").read_text()
LINES = [line.split(" #")[0] for line in WHOLE.splitlines() if line.strip() and not line.lstrip().startswith("#")]
# fmt: off
VALUES = [
    "~", "true", "no", "-1", "0", "1e999", ".nan", "1.5", "99999999999999999999", '""', "''", "[]", "{}", "[[0]]",
    "{a: b}", "&a", "*a", "!t", "30s", "5%", "6GiB", "tcp://127.0.0.1:1", "tcp://0.0.0.0:1", "ipc://x", "all",
    "auto", "digits", "m:C", "<<:", "|", ">", "-", "?", ":", ",", "]", "}", '"', "'", "%YAML", "---", "...",
    "\x00", "\x85", "\ud7ff", "\ufeff", "\t",
]
# fmt: on
FIXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models" / "digits").mkdir(parents=True)
    (tmp_path / "models" / "digits" / "saved_model.pb").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(data: bytes, overrides: tuple[str, ...] = ()) -> None:
    Path("x.yaml").write_bytes(data)
    problems: tuple[Problem, ...] = ()
    try:
        assert isinstance(load("x.yaml", environment={}, overrides=overrides), Config)
    except ConfigError as error:
        problems = error.problems or pytest.fail("refused without a reason")
    for problem in problems:
        assert problem.message
        assert str(problem).startswith(("x.yaml", "--set"))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The whole configuration with lines lost, doubled, moved or given other values, and a few bytes changed."""
    lines = list(LINES)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(lines) - 1)) if lines else 0
        match draw(st.sampled_from(("lose", "double", "indent", "value", "key", "insert"))):
            case "lose" if lines:
                del lines[at]
            case "double" if lines:
                lines.insert(at, lines[at])
            case "indent" if lines:
                lines[at] = " " * draw(st.integers(0, 8)) + lines[at].lstrip()
            case "value" if lines:
                lines[at] = f"{lines[at].split(':')[0]}: {draw(st.sampled_from(VALUES))}"
            case "key" if lines:
                lines[at] = lines[at].replace(":", draw(st.sampled_from(["s:", "_:", ": :", " :", "::", ""])), 1)
            case _:
                lines.insert(at, draw(st.text(max_size=30)))
    data = "\n".join(lines).encode(errors="surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)) :]
    return data


@FIXED
@given(data=mutated())
@example(data=WHOLE.encode())
@example(data=b"models: [{name: h, handler: 'm:C', parameters: {a: 0x" + b"f" * 5000 + b"}}]")
@example(data=b'runtime_dir: \'\\0\'\nmodels: [{name: a, path: "\\0"}]\nlisten: ["ipc://\\0"]')
def test_mutated_files_load_or_are_refused(folder: Path, data: bytes) -> None:
    check(data)


@FIXED
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
def test_arbitrary_files_load_or_are_refused(folder: Path, data: bytes) -> None:
    check(data)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(VALUES)
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
KEYS = [*schema()["properties"], "devices.cpu", "threads.intra_op", "restart.window", "restart.backoff.max"]


@FIXED
@given(key=st.sampled_from(KEYS) | st.text(max_size=20), value=TREES.map(repr) | st.text(max_size=40))
def test_arbitrary_overrides_load_or_are_refused(folder: Path, key: str, value: str) -> None:
    check(b"models: [{name: h, handler: 'm:C'}]\n", (f"{key}={value}",))
