"""How the daemon starts, and how it refuses to start: leaving nothing behind, with an exit code that says why."""

from __future__ import annotations

import errno
import functools
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from descriptors import open_descriptors
from running import Running

from multitower import Client, Unavailable
from multitower.exit_codes import Exit
from multitower.supervisor import parts
from multitower.supervisor.config.loading import load
from multitower.supervisor.daemon import Daemon, StartError
from multitower.supervisor.machine.descriptors import ENOUGH

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models: [{name: echo, handler: "handlers:Echo"}]
"""


def test_it_listens_on_its_endpoints_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG.replace("[", '["tcp://127.0.0.1:*", ', 1)) as daemon:
        daemon.wait_ready()
        front = Path(daemon.endpoint.removeprefix("ipc://"))
        assert stat.S_IMODE(front.stat().st_mode) == 0o660
        assert stat.S_IMODE(daemon.runtime_dir.stat().st_mode) == 0o700
        tcp, ipc = daemon.status()["daemon"]["listen"]
        assert ipc == daemon.endpoint
        assert tcp.startswith("tcp://127.0.0.1:")
        with Client(tcp) as client:
            assert client.infer("echo", {"x": np.arange(3)})["x"].tolist() == [0, 1, 2]
        assert daemon.end() == Exit.OK
        assert not front.exists()
        assert list(daemon.runtime_dir.iterdir()) == []
        daemon.wait_line("daemon ended", code=0)
        assert daemon.stderr == "", "each line of the log is JSON"


def start_second(daemon: Running, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Starts another daemon beside the running one, which must refuse to start."""
    command = [sys.executable, "-m", "multitower", "serve", str(daemon.config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)


def test_an_ipc_endpoint_in_use_is_refused_and_its_owner_serves_on(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        refused = start_second(daemon, tmp_path, "--set", f"runtime_dir={tmp_path.parent / 'r2'}")
        assert refused.returncode == Exit.TEMPORARY
        assert daemon.endpoint.removeprefix("ipc://") in refused.stderr
        assert "Traceback" not in refused.stderr
        assert client.infer("echo", {"x": np.arange(3)})["x"].tolist() == [0, 1, 2]
        assert daemon.end() == Exit.OK


def test_the_socket_of_another_program_is_not_replaced(tmp_path: Path, tmp_socket: str) -> None:
    path = Path(tmp_socket.removeprefix("ipc://"))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with Running(tmp_path, CONFIG.replace("{endpoint}", tmp_socket)) as daemon:
            assert daemon.wait_end(60) == Exit.TEMPORARY
            assert f"{tmp_socket} is in use by another process" in daemon.stderr
            assert "end it, or change listen" in daemon.stderr
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    # Once nothing listens there, the path is free.
    with Running(tmp_path, CONFIG.replace("{endpoint}", tmp_socket)) as daemon:
        daemon.wait_line("daemon started")


def test_a_tcp_endpoint_in_use_is_refused(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG.replace('"{endpoint}"', '"tcp://127.0.0.1:*"')) as daemon:
        line = daemon.wait_line("daemon started")
        refused = start_second(
            daemon, tmp_path, "--set", f"listen=[{line['listen']}]", "--set", f"runtime_dir={tmp_path.parent / 'r2'}"
        )
        assert refused.returncode == Exit.TEMPORARY
        assert line["listen"] in refused.stderr
        assert "end it, or change listen" in refused.stderr


def test_a_runtime_folder_in_use_is_refused(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon:
        daemon.wait_line("daemon started")
        refused = start_second(
            daemon, tmp_path, "--set", "listen=[tcp://127.0.0.1:*]", "--set", f"runtime_dir={daemon.runtime_dir}"
        )
        assert refused.returncode == Exit.TEMPORARY
        assert f"the folder {daemon.runtime_dir} is held by another process" in refused.stderr
        assert "end it, or change runtime_dir" in refused.stderr


def test_leftovers_of_a_killed_daemon_do_not_stop_the_next(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon:
        daemon.wait_ready()
        daemon.remember()
        daemon.signal(signal.SIGKILL)
        daemon.wait_end()
        again = subprocess.Popen(
            [
                *(sys.executable, "-m", "multitower", "serve", str(daemon.config)),
                *("--set", f"runtime_dir={daemon.runtime_dir}"),
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            with daemon.client() as client:
                client.wait_until_ready(60)
                assert client.status()["daemon"]["pid"] == again.pid
        finally:
            again.terminate()
            assert again.wait(60) == Exit.OK


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("devices:", "device:"), ["did you mean", "devices"]),
        (("cpu: 1", "cpu: 0"), ["devices"]),
        (('"{endpoint}"', '"tcp://0.0.0.0:5555"'), ["insecure"]),
        (("models:", "gateway: {}\nmodels:"), ["gateway", "'http' or 'grpc'"]),
    ],
)
def test_a_wrong_configuration_starts_nothing(tmp_path: Path, change: tuple[str, str], words: list[str]) -> None:
    with Running(tmp_path, CONFIG.replace(*change)) as daemon:
        assert daemon.wait_end(60) == Exit.CONFIG
        assert daemon.lines == [], "nothing was started"
        assert not daemon.runtime_dir.exists() or list(daemon.runtime_dir.iterdir()) == []
        for word in words:
            assert word in daemon.stderr
        assert "Traceback" not in daemon.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("{cpu: 1}", "[0]"), "GPU"),
        (("runtime_dir: ", "runtime_dir: /dev/null/"), "Not a directory"),
        (('"{endpoint}"', '"{endpoint}", "ipc:///nowhere/front.sock"'), "/nowhere does not exist"),
    ],
    ids=["device", "runtime_dir", "endpoint"],
)
def test_a_start_that_fails_leaves_no_descriptor_open(
    tmp_path: Path, tmp_socket: str, change: tuple[str, str], words: str
) -> None:
    text = f"{CONFIG}runtime_dir: {Path(tmp_socket.removeprefix('ipc://')).parent}/run\n"
    config = tmp_path / "config.yaml"
    config.write_text(text.replace(*change).replace("{endpoint}", tmp_socket))
    read = functools.partial(load, config)
    before = open_descriptors()
    with pytest.raises(StartError, match=words):
        Daemon(read(), read, strict=True)
    # What earlier tests have left, as objects that refer to themselves, may be closed at any time.
    assert open_descriptors() <= before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize(("strict", "code"), [(False, Exit.TEMPORARY), (True, Exit.CONFIG)])
def test_a_runtime_dir_that_cannot_be_made_now_is_no_mistake_of_the_file(
    number: int, strict: bool, code: Exit, tmp_path: Path, tmp_socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(tmp_socket.removeprefix("ipc://")).parent / "run"
    config = tmp_path / "config.yaml"
    config.write_text(f"{CONFIG}runtime_dir: {folder}\n".replace("{endpoint}", tmp_socket))
    make = os.mkdir

    def mkdir(path: Path, mode: int = 0o777) -> None:
        if Path(path) == folder:
            raise OSError(number, os.strerror(number), str(path))
        make(path, mode)

    monkeypatch.setattr(os, "mkdir", mkdir)
    read = functools.partial(load, config)
    with pytest.raises(
        StartError, match=re.escape(f"{folder} cannot be made or used: {os.strerror(number)}; see runtime_dir")
    ) as caught:
        Daemon(read(), read, strict=strict)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("path", "arguments", "code"),
    [
        ("/proc/self/mem", (), Exit.TEMPORARY),  # reading its beginning is an I/O error
        ("/proc/self/mem", ("--strict",), Exit.CONFIG),
        ("missing.yaml", (), Exit.CONFIG),
        ("folder", (), Exit.CONFIG),
        ("file/x.yaml", (), Exit.CONFIG),
    ],
)
def test_only_a_wrong_path_of_the_configuration_is_a_mistake(
    path: str, arguments: tuple[str, ...], code: Exit, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "multitower", "serve", path, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert path in done.stderr
    assert "Traceback" not in done.stderr


def test_a_runtime_dir_with_a_wrong_path_is_a_mistake_of_the_file(tmp_path: Path, tmp_socket: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"{CONFIG}runtime_dir: /dev/null/run\n".replace("{endpoint}", tmp_socket))
    read = functools.partial(load, config)
    with pytest.raises(
        StartError, match=r"^/dev/null/run cannot be made or used: Not a directory; see runtime_dir$"
    ) as caught:
        Daemon(read(), read)
    assert caught.value.code == Exit.CONFIG


def test_an_error_of_the_system_with_another_path_names_no_setting(
    tmp_path: Path, tmp_socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("{endpoint}", tmp_socket))

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/proc/self/limits")

    monkeypatch.setattr(parts, "apply_descriptor_limit", refuse)
    read = functools.partial(load, config)
    with pytest.raises(StartError, match=r"^/proc/self/limits cannot be used: Permission denied$"):
        Daemon(read(), read)


def test_the_soft_limit_of_descriptors_is_raised_at_the_start(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    inside = ("sh", "-c", 'ulimit -Sn 256 && exec "$0" "$@"')
    with Running(tmp_path, CONFIG, inside=inside) as daemon:
        daemon.wait_ready()
        assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE) == (enough, hard)
        assert daemon.end() == Exit.OK


def test_exit_when_failed_ends_the_daemon_with_its_own_code(tmp_path: Path) -> None:
    text = CONFIG.replace("Echo", "Broken") + "exit_when_failed: true\n"
    with Running(tmp_path, text) as daemon:
        assert daemon.wait_end(60) == Exit.UNAVAILABLE
        daemon.wait_line("every slot has failed")


def test_the_missing_folder_of_an_endpoint_is_named(tmp_path: Path) -> None:
    text = CONFIG.replace("{endpoint}", f"ipc://{tmp_path}/missing/front.sock")
    with Running(tmp_path, text, arguments=("--strict",)) as daemon:
        assert daemon.wait_end(60) == Exit.CONFIG
        words = f"cannot listen on ipc://{tmp_path}/missing/front.sock: the folder {tmp_path}/missing does not exist"
        assert words in daemon.stderr


def test_a_file_at_the_path_of_the_endpoint_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a socket")
    with Running(tmp_path, CONFIG.replace("{endpoint}", f"ipc://{tmp_path}/file")) as daemon:
        assert daemon.wait_end(60) == Exit.CONFIG
        assert "is a file, not a socket" in daemon.stderr
        assert (tmp_path / "file").read_text() == "not a socket"


def test_a_cause_that_is_not_utf_8_is_reported(tmp_path: Path) -> None:
    text = CONFIG.replace('Echo"', 'Broken", parameters: {file: "e9"}')
    with Running(tmp_path, text) as daemon:
        daemon.wait_line("slot failed")
        with pytest.raises(Unavailable, match=r"the weights are missing\\udce9"), daemon.client() as client:
            client.infer("echo", {"x": np.zeros(1)})
        assert r"the weights are missing\udce9" in daemon.slot()["last_error"]
