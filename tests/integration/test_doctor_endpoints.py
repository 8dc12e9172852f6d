"""The doctor's findings about endpoints and folders that are free, in use, or not usable."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
import without_privileges
from running import Running

from multitower.account_names import group_name, user_name
from multitower.supervisor.loop.runtime_dir import SUBFOLDER, FileLock
from multitower.tools.doctor import endpoints
from multitower.tools.doctor.findings import Finding, Level


@pytest.fixture(autouse=True)
def _no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)


@pytest.fixture
def short(tmp_socket: str) -> Path:
    """A folder with a short path."""
    return Path(tmp_socket.removeprefix("ipc://")).parent


def finding_of(endpoint: str) -> Finding:
    finding, _ = endpoints.findings([endpoint], None)
    return finding


def finding_of_folder(runtime_dir: Path | None) -> Finding:
    (finding,) = endpoints.findings([], runtime_dir)
    return finding


def test_free_endpoints_are_ok_and_stay_free(tmp_socket: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for endpoint in (tmp_socket, f"tcp://127.0.0.1:{port}", f"tcp://localhost:{port}", "tcp://127.0.0.1:*"):
        assert finding_of(endpoint).level is Level.OK, endpoint
    assert list(Path(tmp_socket.removeprefix("ipc://")).parent.iterdir()) == []
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_free_socket_is_reported_with_who_can_connect(tmp_socket: str, short: Path) -> None:
    user = user_name(os.geteuid())
    short.chmod(0o700)
    assert finding_of(tmp_socket).text.endswith(f"only {user} can connect: the folder {short} has mode 0700")
    short.chmod(0o755)
    group = group_name(os.getegid())
    assert finding_of(tmp_socket).text.endswith(f"with this user {user} and group {group} can connect (mode 0660)")


def test_a_closed_folder_above_the_one_of_the_socket_is_named(short: Path) -> None:
    short.chmod(0o700)
    folder = short / "run"
    folder.mkdir(mode=0o755)
    found = finding_of(f"ipc://{folder}/front.sock")
    user = user_name(os.geteuid())
    assert found.text.endswith(f"only {user} can connect: the folder {short} has mode 0700")


AS_ANOTHER_USER = """
import sys
from multitower.tools.doctor import endpoints
found, _ = endpoints.findings([sys.argv[1]], None)
print(found.level.name, found.text, found.advice)
"""


def test_a_socket_of_another_user_is_not_called_another_process(tmp_socket: str, short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short / "front.sock"))
        server.listen(4)
        without_privileges.give_away(short / "front.sock", 0o660)
        done = without_privileges.run(["-c", AS_ANOTHER_USER, tmp_socket])
    assert done.stdout.startswith(f"WARNING {tmp_socket} belongs to another user no permission to connect to")


def test_a_port_in_use_is_a_problem() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = finding_of(f"tcp://127.0.0.1:{server.getsockname()[1]}")
    assert found.level is Level.PROBLEM
    assert "is used by another process" in found.text


def test_an_address_of_another_machine_is_a_problem() -> None:
    found = finding_of("tcp://192.0.2.1:5555")
    assert found.level is Level.PROBLEM
    assert "cannot be used: Cannot assign requested address" in found.text


def test_a_port_without_permission_is_a_problem_that_serve_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(endpoints, "_try_to_listen", refuse)
    found = finding_of("tcp://127.0.0.1:80")
    assert found.level is Level.PROBLEM
    assert "cannot be used: Permission denied" in found.text
    assert "`multitower serve` waits until it can listen, unless --strict is given" in (found.advice or "")


def test_a_name_that_cannot_be_resolved_is_a_note() -> None:
    found = finding_of("tcp://no-such-host.invalid:5555")
    assert found.level is Level.NOTE
    assert "was not checked" in found.text


def test_a_running_daemon_is_a_warning(tmp_path: Path) -> None:
    config = 'listen: ["{endpoint}"]\ndevices: {cpu: 1}\nspares: 0\nmodels: [{name: e, handler: "handlers:Echo"}]\n'
    with Running(tmp_path, config) as daemon:
        daemon.wait_ready()
        found, folder = endpoints.findings([daemon.endpoint], daemon.runtime_dir)
        assert found.level is Level.WARNING
        assert "a daemon is running there" in found.text
        assert folder.level is Level.WARNING
        assert "in use by a running daemon" in folder.text


def test_a_locked_endpoint_that_does_not_answer_is_a_problem(tmp_socket: str) -> None:
    path = Path(tmp_socket.removeprefix("ipc://"))
    lock = FileLock(path.with_name(path.name + ".lock"))
    found = finding_of(tmp_socket)
    lock.release()
    assert found.level is Level.PROBLEM
    assert "is used by another process" in found.text
    assert finding_of(tmp_socket).level is Level.OK


def test_a_path_where_another_program_listens(tmp_socket: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(tmp_socket.removeprefix("ipc://"))
        assert finding_of(tmp_socket).level is Level.OK, "a socket that is left over"
        server.listen()
        found = finding_of(tmp_socket)
    assert found.level is Level.PROBLEM
    assert "is used by another process" in found.text


def test_paths_that_cannot_be_used_are_problems(short: Path) -> None:
    found = finding_of(f"ipc://{short}/no/front.sock")
    assert found.level is Level.PROBLEM
    assert found.advice == f"mkdir -p {short}/no"
    found = finding_of("ipc:///run/multitower-nowhere/front.sock")
    assert found.advice is not None
    assert found.advice.startswith("RuntimeDirectory=multitower-nowhere in the systemd unit creates it")
    (short / "file").touch()
    found = finding_of(f"ipc://{short}/file")
    assert found.level is Level.PROBLEM
    assert "is a file, not a socket" in found.text


def test_findings_about_the_runtime_folder(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert finding_of_folder(short).level is Level.OK
    short.chmod(0o755)
    assert f"get a folder in {short}" in finding_of_folder(short).text
    assert not list(short.iterdir())
    assert finding_of_folder(short / "new").level is Level.OK
    assert not (short / "new").exists()
    (short / "file").touch()
    assert "no folder can be created" in finding_of_folder(short / "file" / "new").text
    long = short / ("x" * 90)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    found = finding_of_folder(None)
    assert found.level is Level.NOTE
    assert f"since XDG_RUNTIME_DIR {long} cannot be used: No such file or directory" in found.text
    for make in (False, True):
        if make:
            long.mkdir()
            assert "the limit is 107" in finding_of_folder(None).text
        found = finding_of_folder(long)
        assert found.level is Level.PROBLEM
        assert "the limit is 107" in found.text
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    assert f"get a folder in {short}" in finding_of_folder(None).text
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{short}:/elsewhere")
    assert f"get a folder in {short}" in finding_of_folder(None).text
    (short / SUBFOLDER).mkdir(mode=0o755)
    found = finding_of_folder(None)
    assert found.level is Level.PROBLEM
    assert "has mode 755, not 700" in found.text
