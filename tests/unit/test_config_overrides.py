"""`--set` over the environment over the file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.source import ConfigError

TEXT = """\
models: [{name: h, handler: 'm:C'}]
restart: {window: 10s, max_restarts: 3}
"""


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(TEXT)
    return tmp_path / "x.yaml"


def loaded(overrides: Sequence[str] = (), **environment: str) -> Config:
    return load("x.yaml", environment=environment, overrides=overrides)


def refused(overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load("x.yaml", environment=environment or {}, overrides=overrides)
    return str(caught.value)


def test_set_takes_precedence_over_the_environment_and_that_over_the_file() -> None:
    variables = {"MULTITOWER_RESTART__WINDOW": "20s"}
    assert loaded().restart.window == 10
    assert loaded(**variables).restart.window == 20
    assert loaded(["restart.window=30s"], **variables).restart.window == 30
    assert loaded(["restart.window=30s", "restart.window=40s"], **variables).restart.window == 40
    assert loaded(["restart.window=30s"]).restart.max_restarts == 3, "its neighbours stay"


def test_the_environment_is_that_of_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTITOWER_SPARES", "7")
    assert load("x.yaml").spares == 7


@pytest.mark.parametrize(
    ("override", "variable", "key", "value"),
    [
        ("spares=0", "MULTITOWER_SPARES", "spares", 0),
        ("spares = 0", "MULTITOWER_SPARES", "spares", 0),
        ("devices=[0, GPU-8f]", "MULTITOWER_DEVICES", "devices", (0, "GPU-8f")),
        ("exit_when_failed=true", "MULTITOWER_EXIT_WHEN_FAILED", "exit_when_failed", True),
        ("listen=[tcp://127.0.0.1:*]", "MULTITOWER_LISTEN", "listen", ("tcp://127.0.0.1:*",)),
        ("listen=tcp://127.0.0.1:*", "MULTITOWER_LISTEN", "listen", ("tcp://127.0.0.1:*",)),
        ("runtime_dir=/run/a=b", "MULTITOWER_RUNTIME_DIR", "runtime_dir", Path("/run/a=b")),
    ],
)
def test_values_of_overrides_are_yaml(override: str, variable: str, key: str, value: object) -> None:
    assert getattr(loaded([override]), key) == value
    assert getattr(loaded(**{variable: override.partition("=")[2]}), key) == value


def test_an_override_adds_sections_that_the_file_lacks() -> None:
    assert loaded(["restart.backoff.first=1s"]).restart.backoff.first == 1
    assert loaded(MULTITOWER_THREADS__INTRA_OP="3").threads.intra_op == 3
    assert loaded(MULTITOWER_THREADS="{inter_op: 2}", MULTITOWER_THREADS__INTRA_OP="3").threads.inter_op == 2


def test_all_models_can_be_replaced() -> None:
    assert [model.name for model in loaded(["models=[{name: b, handler: 'm:C'}]"]).models] == ["b"]


def test_an_override_of_an_aliased_section_changes_one_place_only() -> None:
    Path("x.yaml").write_text(TEXT.replace("{window: 10s", "&r {window: 10s") + "threads: *r\n")
    assert "threads.window" in refused(["restart.window=1s"])


def test_relative_paths_in_overrides_start_at_the_folder_of_the_file(file: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="mt-") as short:  # a socket has to fit in
        config = Path(short, "x.yaml")
        config.write_text(TEXT)
        assert load(config, environment={}, overrides=["runtime_dir=run"]).runtime_dir == Path(short, "run")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("spares", "--set spares: needs a value: --set KEY=VALUE"),
        ("=5", "--set : there is no such key"),
        ("spare=1", "--set spare: there is no such key (did you mean 'spares'?)"),
        ("restart.windw=1s", "(did you mean 'restart.window'?)"),
        ("spares=", "--set spares: spares: has no value"),
        ("spares=many", "--set spares: spares: must be a whole number, not 'many'"),
        ("restart.window=5", "--set restart.window: restart.window: a duration needs its unit"),
        ("restart=5", "--set restart: restart: must be a mapping"),
        ("restart={windw: 1s}", "--set restart: restart.windw: unknown key (did you mean 'window'?)"),
        ("cores=[a", "--set cores: cores: is not valid YAML"),
        ("models[0].retry=2", "--set models[0].retry: models: the items of a list cannot be set one by one"),
        ("models.0.retry=2", "set the whole list with --set models=[...]"),
        ("listen[1]=x", "the items of a list cannot be set one by one"),
        ("gateway.http=1", "--set gateway.http: gateway.http: must be HOST:PORT or unix:PATH"),
        ("devices={cpu: 1}\x00", "holds the character U+0000"),
    ],
)
def test_wrong_arguments_of_set_are_reported(override: str, problem: str) -> None:
    message = refused([override])
    assert problem in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("MULTITOWER_SPARE", "1", "MULTITOWER_SPARE: there is no such key (did you mean 'MULTITOWER_SPARES'?)"),
        ("MULTITOWER_RESTART_WINDOW", "1s", "(did you mean 'MULTITOWER_RESTART__WINDOW'?)"),
        ("MULTITOWER_spares", "1", "MULTITOWER_spares: there is no such key"),
        ("MULTITOWER_", "1", "MULTITOWER_: there is no such key"),
        ("MULTITOWER_SPARES", "", "MULTITOWER_SPARES: spares: has no value"),
        ("MULTITOWER_SPARES", "x", "MULTITOWER_SPARES: spares: must be a whole number"),
        ("MULTITOWER_MODELS__0__RETRY", "1", "set the whole list with MULTITOWER_MODELS=[...]"),
        ("MULTITOWER_GATEWAY__HTTP", "1", "MULTITOWER_GATEWAY__HTTP: gateway.http: must be HOST:PORT or unix:PATH"),
    ],
)
def test_wrong_variables_are_reported(variable: str, value: str, problem: str) -> None:
    message = refused(environment={variable: value})
    assert problem in message
    assert len(message.splitlines()) == 1


def test_an_override_cannot_add_keys_below_a_plain_value() -> None:
    Path("x.yaml").write_text(TEXT + "devices: all\n")
    assert "devices: is 'all' and has no keys below it; set devices as a whole" in refused(["devices.cpu=2"])


@pytest.mark.parametrize(
    "variable",
    [
        "MULTITOWER_COMPILE",
        "MULTITOWER_ENDPOINT",
        "MULTITOWER_SERVICE_HOST",
        "MULTITOWER_PORT",
        "MULTITOWER_PORT_5555_TCP_ADDR",
        "MULTITOWER_FRONT_SERVICE_PORT_HTTP",
        "PATH",
        "XMULTITOWER_SPARES",
    ],
)
def test_variables_of_other_programs_are_ignored(variable: str) -> None:
    assert loaded(**{variable: "tcp://10.0.0.1:5555"}).spares == 1


def test_problems_of_the_file_precede_those_of_overrides() -> None:
    Path("x.yaml").write_text(TEXT + "cores: x\n")
    lines = refused(["spares=x"], {"MULTITOWER_SPARE": "1"}).splitlines()
    assert [line.split(": ")[0] for line in lines] == ["x.yaml:3:8", "MULTITOWER_SPARE", "--set spares"]


def test_an_override_replaces_a_wrong_value_of_the_file() -> None:
    Path("x.yaml").write_text(TEXT + "cores: x\n")
    assert loaded(["cores=shared"]).cores == "shared"
