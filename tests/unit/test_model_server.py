"""`multitower model-server` takes tensorflow_model_server's flags, and makes a configuration of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from multitower.cli.commands import multitower
from multitower.cli.model_server import model_server
from multitower.exit_codes import Exit
from multitower.supervisor.config.config import CpuDevices
from multitower.supervisor.config.source import ConfigError
from multitower.tools.model_server.flags import Effect, Kind, Values, all_flags, without_effect
from multitower.tools.model_server.polling import ConfigPoll
from multitower.tools.model_server.run import own_endpoint, ready_lines
from multitower.tools.model_server.settings import FlagError, ModelServer
from multitower.wire import DEFAULT_ENDPOINT

PER_FLAG = {Kind.TEXT: "text", Kind.INTEGER: "3", Kind.FRACTION: "0.5", Kind.SWITCH: "true"}


def given(*arguments: str) -> dict[str, Any]:
    """What the command line makes of arguments: the flags that were given."""
    params = model_server.make_context("model-server", list(arguments)).params
    return {name: value for name, value in params.items() if value is not None and name not in ("host", "insecure")}


@pytest.fixture(autouse=True)
def models(tmp_path: Path) -> Path:
    for model, version in (("digits", "1"), ("digits", "42"), ("words", "7")):
        (tmp_path / model / version).mkdir(parents=True)
        (tmp_path / model / version / "saved_model.pb").touch()
    return tmp_path


def server(
    folder: Path, *, host: str = "127.0.0.1", insecure: bool = False, devices: str = "all", **values: Any
) -> Any:
    values = values or {"model_base_path": "digits"}
    endpoint = "tcp://127.0.0.1:5555"
    return ModelServer(values, host=host, insecure=insecure, devices=devices, listen=endpoint, folder=folder)


def converted(folder: Path, **values: Any) -> Any:
    return YAML(typ="safe").load(server(folder, **values).convert().yaml)


# The command line.


@pytest.mark.parametrize("flag", list(all_flags()), ids=lambda flag: flag.name)
def test_each_flag_is_taken_with_and_without_an_equals_sign(flag: Any) -> None:
    value = PER_FLAG[flag.kind]
    for arguments in ([f"--{flag.name}={value}"], [f"--{flag.name}", value]):
        assert str(given(*arguments)[flag.name]).lower() == value


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--enable_batching"], "true"),
        (["--enable_batching=true"], "true"),
        (["--enable_batching=1"], "1"),
        (["--enable_batching=FALSE"], "false"),
        (["--noenable_batching"], "false"),
        (["--enable_batching", "--port=1"], "true"),
        (["--enable_batching", "false", "--port=1"], "false"),
        (["--enable_batching", "--noenable_batching"], "false"),
        (["--port=1"], None),
    ],
)
def test_switches_are_read_as_tensorflow_reads_them(arguments: list[str], wanted: str | None) -> None:
    assert given(*arguments).get("enable_batching") == wanted


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--model_nane=m", "--model_name"),
        ("--model-base-path=m", "--model_base_path"),
        ("--enable_batchin", "--enable_batching"),
        ("--port=http", "'http' is not a valid integer"),
        ("--enable_batching=maybe", "'maybe' is not one of"),
        ("digits", "unexpected extra argument (digits)"),
    ],
)
def test_an_unknown_flag_or_value_is_an_error_with_a_hint(argument: str, text: str) -> None:
    done = CliRunner().invoke(multitower, ["model-server", argument])
    assert done.exit_code == 2
    assert text in done.output


def test_the_help_lists_every_flag_within_80_columns() -> None:
    done = CliRunner().invoke(multitower, ["model-server", "--help"], terminal_width=80)
    assert all(f"--{flag.name} " in done.output for flag in all_flags())
    assert max(map(len, done.output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--model_base_path or --model_config_file is needed"),
        (["--ssl_config_file=absent.config"], "absent.config"),
        (["--use_alts_credentials"], "--use_alts_credentials promises ALTS"),
        (["--batching_parameters_file=b"], "--batching_parameters_file needs --enable_batching"),
        (["--port=0"], "nothing to listen on: --port is 0"),
        (["--port=70000"], "--port must be from 0 to 65535, not 70000"),
        (["--per_process_gpu_memory_fraction=1.5"], "--per_process_gpu_memory_fraction must be from 0 to 1, not 1.5"),
        (["--model_config_file=absent.config"], "absent.config: cannot be read: No such file"),
        (["--model_base_path=gs://bucket/m"], "models are read from this machine only, not from gs://"),
        (
            [f"--tensorflow_{kind}_parallelism=2" for kind in ("session", "intra_op", "inter_op")],
            "--tensorflow_session_parallelism sets both other flags",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_flags_that_cannot_be_used_end_the_start(
    arguments: list[str], text: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    more = [] if not arguments or "--model" in arguments[0] else ["--model_base_path=digits"]
    done = CliRunner().invoke(multitower, ["model-server", *more, *arguments])
    assert done.exit_code == Exit.CONFIG
    assert text in done.output


def test_the_command_line_imports_no_server() -> None:
    code = (
        "import multitower.cli.model_server, sys; print([m for m in ('pydantic', 'zmq', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_gateway_is_named_without_advice_about_a_file(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTITOWER_GATEWAY__PROGRAM", str(models / "absent"))
    done = CliRunner().invoke(multitower, ["model-server", f"--model_base_path={models}/digits"])
    assert done.exit_code == Exit.UNAVAILABLE
    assert f"{models}/absent" in done.output
    assert "remove `gateway`" not in done.output


# The configuration.


def test_one_model_is_served_at_both_ports(models: Path) -> None:
    values: Values = {"model_name": "m", "model_base_path": str(models / "digits"), "rest_api_port": 8501}
    assert converted(models, **values) == {
        "listen": ["tcp://127.0.0.1:5555"],
        "gateway": {"http": "127.0.0.1:8501", "grpc": ["127.0.0.1:8500"]},
        "devices": "all",
        "watch": {"interval": "1s"},
        "models": [{"name": "m", "path": str(models / "digits"), "queue": {"timeout": "30s"}}],
    }


@pytest.mark.parametrize(
    ("values", "key", "wanted"),
    [
        ({"port": 9000}, "gateway", {"grpc": ["127.0.0.1:9000"]}),
        ({"port": 0, "rest_api_port": 1}, "gateway", {"http": "127.0.0.1:1"}),
        ({"port": 7, "rest_api_port": 7}, "gateway", {"http": "127.0.0.1:7", "grpc": ["127.0.0.1:7"]}),
        ({"grpc_socket_path": "/run/g"}, "gateway", {"grpc": ["127.0.0.1:8500", "unix:/run/g"]}),
        ({"host": "0.0.0.0", "insecure": True}, "gateway", {"grpc": ["0.0.0.0:8500"]}),
        ({"host": "0.0.0.0", "insecure": True}, "insecure", True),
        ({"host": "::1"}, "gateway", {"grpc": ["[::1]:8500"]}),
        ({"devices": "{cpu: 1}"}, "devices", {"cpu": 1}),
        ({"per_process_gpu_memory_fraction": 0.3333}, "memory", "33.33%"),
        ({"per_process_gpu_memory_fraction": 0.5, "devices": "{cpu: 1}"}, "memory", None),
        ({"tensorflow_session_parallelism": 4}, "threads", {"intra_op": 4, "inter_op": 4}),
        ({"tensorflow_intra_op_parallelism": 2}, "threads", {"intra_op": 2}),
        ({"file_system_poll_wait_seconds": 30}, "watch", {"interval": "30s"}),
        ({"file_system_poll_wait_seconds": 0}, "watch", {"interval": "0ms"}),
    ],
    ids=str,
)
def test_flags_set_keys_of_the_configuration(values: dict[str, Any], key: str, wanted: Any, models: Path) -> None:
    assert converted(models, model_base_path="digits", **values).get(key) == wanted


@pytest.mark.parametrize(
    ("values", "key", "wanted"),
    [
        ({}, "name", "default"),
        ({}, "batching", None),
        ({"enable_batching": True}, "batching", None),
        ({"enable_batching": False}, "batching", {"max_batch_size": 0}),
        ({"rest_api_timeout_in_ms": 1500}, "queue", {"timeout": "1.5s"}),
        ({"saved_model_tags": "serve,gpu"}, "tags", ["serve", "gpu"]),
    ],
    ids=str,
)
def test_flags_set_keys_of_each_model(values: dict[str, Any], key: str, wanted: Any, models: Path) -> None:
    (model,) = converted(models, model_base_path="digits", **values)["models"]
    assert model.get(key) == wanted


def test_a_file_of_models_and_batching_parameters_are_converted(models: Path) -> None:
    (models / "models.config").write_text(
        """model_config_list {
        config { name: 'digits' base_path: 'digits' model_platform: 'tensorflow'
                 model_version_policy { specific { versions: 1 versions: 42 } }
                 version_labels { key: 'stable' value: 1 } }
        config { name: 'words' base_path: 'words' model_version_policy { all {} } } }"""
    )
    (models / "batching.txt").write_text("max_batch_size { value: 64 } max_enqueued_batches { value: 10 }")
    files = {"model_config_file": "models.config", "batching_parameters_file": "batching.txt"}
    made = converted(models, **files, enable_batching=True, model_base_path="ignored", rest_api_timeout_in_ms=1000)
    same = {"batching": {"max_batch_size": 64}, "queue": {"max_size": 640, "timeout": "1s"}}
    assert made["models"] == [
        {
            "name": "digits",
            "path": str(models / "digits"),
            "versions": {"specific": [1, 42]},
            "version_labels": {"stable": 1},
            **same,
        },
        {"name": "words", "path": str(models / "words"), "versions": "all", **same},
    ]


def test_the_configuration_is_checked_as_a_files_is(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = server(models, model_base_path="digits", rest_api_port=8501, grpc_socket_path="g.sock").read()
    assert config.gateway is not None
    assert config.gateway.http == ("127.0.0.1:8501",)
    assert config.gateway.grpc == ("127.0.0.1:8500", f"unix:{models}/g.sock")
    assert ready_lines(config) == [
        "Running gRPC ModelServer at 127.0.0.1:8500 ...",
        f"Running gRPC ModelServer at UNIX socket {models}/g.sock ...",
        "Exporting HTTP/REST API at:localhost:8501 ...",
    ]
    assert server(models).read("default").models == server(models).read().models
    with pytest.raises(FlagError, match=r"--host=0\.0\.0\.0 can be reached .* or give --insecure to allow it"):
        server(models, host="0.0.0.0", model_base_path="digits")
    with pytest.raises(ConfigError, match=r"gateway\.grpc\[1\]: .* bytes; a socket's address allows"):
        server(models, grpc_socket_path="x" * 200, model_base_path="digits").read()
    assert server(models, host="0.0.0.0", insecure=True, model_base_path="digits").read().insecure
    absent = server(models, model_base_path="absent").read()
    assert list(absent.not_yet) == ["default"], "it is waited for"
    monkeypatch.setenv("MULTITOWER_DEVICES", "{cpu: 3}")
    assert str(server(models).read().devices) == str(CpuDevices(cpu=3))


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "localhost"),
        ("127.0.0.2", "localhost"),
        ("localhost", "localhost"),
        ("::1", "localhost"),
        ("0.0.0.0", "localhost"),
        ("::", "localhost"),
        ("*", "localhost"),
        ("10.1.2.3", "10.1.2.3"),
        ("fd00::1", "[fd00::1]"),
    ],
)
def test_the_line_about_http_names_localhost_as_scripts_expect(models: Path, host: str, shown: str) -> None:
    config = server(models, host=host, insecure=True, model_base_path="digits", rest_api_port=8501).read()
    assert ready_lines(config)[-1] == f"Exporting HTTP/REST API at:{shown}:8501 ..."


def test_a_mistake_in_the_file_of_models_has_its_position(models: Path) -> None:
    (models / "models.config").write_text("model_config_list {\n  config { name 'm' } }")
    with pytest.raises(ConfigError, match=r"models\.config:2:17: ':' is expected"):
        server(models, model_config_file="models.config").read()


@pytest.mark.parametrize("name", ["port", "rest_api_port"])
def test_a_flag_may_name_the_port_of_multitowers_own_clients(name: str, models: Path) -> None:
    values: Values = {"model_base_path": "digits", name: int(DEFAULT_ENDPOINT.rpartition(":")[2])}
    server = ModelServer(
        values, host="127.0.0.1", insecure=False, devices="{cpu: 1}", listen=own_endpoint(values), folder=models
    )
    assert server.load(server.convert()).listen == ("tcp://127.0.0.1:*",)


def test_flags_without_a_counterpart_are_named_unless_they_ask_for_nothing() -> None:
    asked: Values = {"num_load_threads": 4, "enable_profiler": True, "monitoring_config_file": "m.config"}
    nothing: Values = {
        "enable_model_warmup": True,
        "enable_profiler": False,
        "flush_filesystem_caches": False,
        "grpc_channel_arguments": "",
        "port": 1,
    }
    assert sorted(without_effect({**nothing, **asked})) == [
        "--enable_profiler=true",
        "--monitoring_config_file=m.config",
        "--num_load_threads=4",
    ]
    assert without_effect(nothing) == []
    assert without_effect({"enable_model_warmup": False}) == ["--enable_model_warmup=false"]
    refused = {flag.name for flag in all_flags() if flag.effect is Effect.REFUSED}
    for name in refused:
        with pytest.raises(FlagError, match=f"--{name} promises"):
            server(Path(), model_base_path="m", **{name: "x"})


# Polling.


def test_a_changed_file_of_models_is_reloaded_once(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text("1")
    arrived = threading.Semaphore(0)
    former = signal.signal(signal.SIGHUP, lambda *_: arrived.release())
    try:
        with ConfigPoll(path, 0.01):
            for content in ("2", "3"):
                new = tmp_path / "new"
                new.write_text(content)
                os.replace(new, path)
                assert arrived.acquire(timeout=30)
            path.unlink()
            assert not arrived.acquire(timeout=0.1), "a file that is missing, or unchanged, is no new one"
    finally:
        signal.signal(signal.SIGHUP, former)


def test_no_signal_is_sent_before_the_daemon_handles_it(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text("1")
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    arrived = threading.Semaphore(0)
    try:
        with ConfigPoll(path, 0.01):
            path.write_text("2")
            assert not arrived.acquire(timeout=0.1), "this process would have ended"
            signal.signal(signal.SIGHUP, lambda *_: arrived.release())
            assert arrived.acquire(timeout=30), "the change is not forgotten"
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
