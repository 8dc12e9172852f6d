"""`check` and `doctor` find what would keep the gateway from starting."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from gateway_stand_in import write_program

from multitower.cli.commands import multitower
from multitower.exit_codes import Exit
from multitower.supervisor.config.loading import load
from multitower.supervisor.gateway import program
from multitower.tools.doctor import gateway, machine

CONFIG = """
devices: {cpu: 1}
listen: ["ipc://front.sock"]
gateway:
  http: ADDRESS
  grpc: unix:grpc.sock
  program: ./gateway
models:
  - {name: echo, handler: "handlers:Echo"}
"""

PROBLEMS: list[tuple[Mapping[str, object] | None, str]] = [
    (None, "gateway does not exist"),
    ({"VERSION": "9.9.9"}, "has version 9.9.9, but multitower has"),
    ({"VERSION": "0.1.0 of something"}, "is not the gateway of multitower: with --version it prints"),
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.replace("ADDRESS", "127.0.0.1:*"))
    return path


def findings(config: Path) -> list[tuple[str, str]]:
    found = list(gateway.findings(load(config, environment={})))
    assert {each.section for each in found} <= {"gateway"}
    assert all(each.advice for each in found if each.level != "ok")
    return [(each.level, each.text) for each in found]


def test_a_gateway_that_can_be_started_has_no_problem(config: Path) -> None:
    write_program(config.parent / "gateway")
    found = findings(config)
    assert [level for level, _ in found] == ["ok"] * 3
    assert found[2][1].startswith(f"unix:{config.parent}/grpc.sock is free")


@pytest.mark.parametrize(("constants", "words"), PROBLEMS)
def test_a_program_that_is_missing_or_wrong_is_found(
    config: Path, constants: Mapping[str, object] | None, words: str
) -> None:
    if constants is not None:
        write_program(config.parent / "gateway", **constants)
    level, text = findings(config)[0]
    assert level == "problem"
    assert words in text
    checked = CliRunner().invoke(multitower, ["check", str(config), "--devices"])
    assert checked.exit_code == Exit.UNAVAILABLE
    assert words in checked.output
    assert CliRunner().invoke(multitower, ["check", str(config)]).exit_code == 0, "on any machine"


def test_a_program_that_cannot_be_run_is_found(config: Path) -> None:
    (config.parent / "gateway").write_text("#!/nowhere\n")
    assert "cannot be run: Permission denied" in findings(config)[0][1]
    (config.parent / "gateway").chmod(0o755)
    assert "cannot be run: No such file or directory" in findings(config)[0][1]


def test_without_a_configured_program_the_message_tells_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(program.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(program.ProgramError, match=r"is neither in .* nor in PATH") as raised:
        program.find_program(None)
    assert "pip install ./gateway" in raised.value.advice
    assert "cargo-web" in raised.value.advice
    found = write_program(tmp_path / program.NAME)
    assert program.find_program(None) == found


def test_an_address_that_another_process_uses_is_found(config: Path) -> None:
    write_program(config.parent / "gateway")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config.write_text(CONFIG.replace("ADDRESS", address))
        assert findings(config)[1] == ("problem", f"{address} is used by another process")


def test_a_folder_that_is_missing_is_found(config: Path) -> None:
    write_program(config.parent / "gateway")
    config.write_text(CONFIG.replace("ADDRESS", "unix:later/http.sock"))
    level, text = findings(config)[1]
    assert level == "problem"
    assert f"the folder {config.parent}/later does not exist" in text


def test_fewer_connections_than_configured_are_found(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(config.parent / "gateway")
    inspect_machine = machine.inspect_machine
    monkeypatch.setattr(machine, "inspect_machine", lambda: replace(inspect_machine(), descriptors=(256, 300)))
    arguments = ["--no-models", "--json", "--set", "gateway.max_connections=500"]
    examined = CliRunner().invoke(multitower, ["doctor", str(config), *arguments])
    assert examined.exit_code == Exit.UNAVAILABLE, examined.output
    (problem,) = [each for each in json.loads(examined.stdout)["findings"] if each["level"] == "problem"]
    assert (problem["section"], problem["text"]) == (
        "limits",
        "300 file descriptors for the gateway; it needs about 128, and 172 connections of its clients may be open, "
        "not gateway.max_connections: 500",
    )
