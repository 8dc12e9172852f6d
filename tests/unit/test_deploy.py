"""deploy/ matches the code: exit codes, times, folders; and systemd can parse the unit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_security import make_security

from multitower.exit_codes import Exit
from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.overrides import PREFIX
from multitower.supervisor.config.units import parse_duration
from multitower.supervisor.workers import exits as endings

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "multitower.service"
README = ROOT / "deploy" / "README.md"
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
PROGRAM = "/opt/multitower/bin/multitower"


def parsed() -> dict[str, dict[str, list[str]]]:
    """The sections of the unit with their keys, and the values of each key in order: keys may be repeated."""
    sections: dict[str, dict[str, list[str]]] = {}
    keys: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            keys = sections.setdefault(heading[1], {})
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            keys.setdefault(key, []).append(value)
    return sections


SERVICE = parsed()["Service"]


def value(key: str) -> str:
    (only,) = SERVICE[key]
    return only


def environment() -> dict[str, str]:
    return dict(setting.split("=", 1) for setting in SERVICE["Environment"])


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("KillMode", "mixed"),
        ("Restart", "on-failure"),
        ("OOMPolicy", "continue"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("PrivateTmp", "yes"),
        ("CapabilityBoundingSet", ""),
    ],
)
def test_settings_that_the_daemon_needs_are_set(key: str, wanted: str) -> None:
    assert value(key) == wanted


def test_the_unit_has_the_sections_of_a_service() -> None:
    assert set(parsed()) == {"Unit", "Service", "Install"}
    assert parsed()["Install"] == {"WantedBy": ["multi-user.target"]}


def test_only_exit_codes_that_a_restart_cannot_help_are_final() -> None:
    assert {int(code) for code in value("RestartPreventExitStatus").split()} == {Exit.USAGE, Exit.CONFIG}
    assert {int(code) for code in value("SuccessExitStatus").split()} == {Exit.SECOND_SIGNAL}


def test_the_stop_timeout_is_longer_than_a_drain() -> None:
    drain = parse_duration(Config.model_fields["drain_timeout"].default)
    assert int(value("TimeoutStopSec")) >= drain + endings.STOP_S + 5
    assert 0 < int(value("WatchdogSec")) < int(value("TimeoutStartSec"))


def test_worker_sockets_have_a_private_folder() -> None:
    name = "runtime_dir"
    assert name in Config.model_fields
    public = f"%t/{value('RuntimeDirectory')}"
    assert environment()[PREFIX + name.upper()] == f"{public}/private"
    # The group of the applications may enter, for the endpoint that the example has there.
    assert value("RuntimeDirectoryMode") == "0750"
    example = (ROOT / "configs" / "gpus.yaml").read_text()
    assert f"ipc://{public.replace('%t', '/run')}/front.sock" in example


def test_no_setting_hides_the_gpus() -> None:
    hiding = {"PrivateDevices", "MemoryDenyWriteExecute", "ProtectClock", "ProcSubset", "RootDirectory", "RootImage"}
    assert not hiding & set(SERVICE)
    assert value("DevicePolicy") == "closed"
    assert value("DeviceAllow").split()[0] == "char-nvidia*"


def test_programs_of_gpu_drivers_are_optional() -> None:
    assert all(command.startswith("-+/usr/bin/nvidia-") for command in SERVICE["ExecStartPre"])


def test_the_unit_runs_the_program_that_the_readme_installs() -> None:
    program, command, path = value("ExecStart").split()
    assert (program, command) == (PROGRAM, "serve")
    text = README.read_text()
    assert f"python3 -m venv {Path(program).parents[1]}" in text
    assert path in text
    assert f"useradd --system --no-create-home --shell /usr/sbin/nologin {value('User')}" in text
    assert value("Group") == value("User")


CREDENTIAL = re.compile(r"^#((?:LoadCredential|Environment)=.+)$", re.MULTILINE)
"""Lines of the unit that are for a daemon with `security`: they are comments, since systemd wants the file."""


def test_a_credential_is_the_key_that_the_configuration_names(tmp_path: Path) -> None:
    credential, variable = CREDENTIAL.findall(UNIT.read_text())
    name, _, source = credential.removeprefix("LoadCredential=").partition(":")
    assert f"--out {Path(source).parent}" in README.read_text()
    variable, _, path = variable.removeprefix("Environment=").partition("=")
    assert path == f"%d/{name}"

    make_security(tmp_path)
    secret = (tmp_path / name).rename(tmp_path / "credential")
    (tmp_path / "config.yaml").write_text(
        "security: {curve: {secret_key: server.key_secret}, principals: principals.yaml}\n"
        "models: [{name: digits, path: digits}]\n"
    )
    config = load(tmp_path / "config.yaml", strict=False, environment={variable: str(secret)})
    assert config.security is not None
    assert config.security.curve is not None
    assert config.security.curve.secret_key == secret


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="there is no systemd here")
@pytest.mark.parametrize("credential", [False, True], ids=["", "credential"])
def test_systemd_can_parse_every_line(tmp_path: Path, credential: bool) -> None:
    program = tmp_path / "multitower"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    text = UNIT.read_text().replace(PROGRAM, str(program))
    unit.write_text(CREDENTIAL.sub(r"\1", text) if credential else text)
    done = subprocess.run(
        [str(SYSTEMD_ANALYZE), "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    # It may complain about other units of this machine.
    assert [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line] == []
    assert done.returncode == 0, done.stderr


def test_settings_that_hardening_adds_replace_those_of_the_unit() -> None:
    """systemd adds further lines of these keys to those of the unit, unless an empty line comes first."""
    snippet = (
        (ROOT / "docs" / "hardening.md").read_text().partition("systemctl edit multitower`:")[2].partition("```\n\n")[0]
    )
    lists = re.findall(r"^(RestrictAddressFamilies|CapabilityBoundingSet|DeviceAllow)=(.*)$", snippet, re.MULTILINE)
    assert lists == [("RestrictAddressFamilies", ""), ("RestrictAddressFamilies", "AF_UNIX AF_NETLINK")]
