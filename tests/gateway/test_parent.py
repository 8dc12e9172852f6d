"""The gateway ends with the process that started it, and reports to it: the real program, without a daemon."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import foreign
import pytest
import zmq

from multitower.supervisor.gateway.program import find_program, own_version
from multitower.supervisor.machine.descriptors import plan_gateway_descriptors

LIMIT_S = 60

PARENT = """
import socket, subprocess, sys
program, stdin = sys.argv[1], int(sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
gateway = subprocess.Popen([program], stdin=stdin, stderr=subprocess.PIPE, pass_fds=[listener.fileno()])
print(gateway.pid, listener.fileno(), flush=True)
print(gateway.stderr.readline().decode(), flush=True)
sys.exit(gateway.wait())
"""

pytestmark = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))


class Parent:
    """A process that starts the gateway. The other end of the gateway's stdin stays here.

    Args:
        stack: ends it.
        inside: a command that replaces itself by the process.
    """

    def __init__(self, stack: ExitStack, inside: tuple[str, ...] = ()) -> None:
        stdin, self._settings = os.pipe()
        stack.callback(os.close, self._settings)
        command = [*inside, sys.executable, "-c", PARENT, str(find_program(None)), str(stdin)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[stdin])
        assert self.process.stdout is not None
        stack.enter_context(self.process)  # waits for it, and closes its stdout
        stack.callback(self.process.kill)
        os.close(stdin)
        pid, self._listener = map(int, self.line().split())
        self.pidfd = os.pidfd_open(pid)
        stack.callback(os.close, self.pidfd)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def send_settings(self, daemon_pid: int) -> None:
        listener = {"fd": self._listener, "address": "127.0.0.1:0", "http": True}
        settings = {
            "version": own_version(),
            "daemon": "/nonexistent",
            "daemon_pid": daemon_pid,
            "listeners": [listener],
        }
        os.write(self._settings, json.dumps(settings).encode() + b"\n")


@pytest.fixture
def parent() -> Iterator[Parent]:
    with ExitStack() as stack:
        yield Parent(stack)


def test_the_gateway_ends_with_a_killed_parent_although_its_stdin_stays_open(parent: Parent) -> None:
    parent.send_settings(parent.process.pid)
    assert "cannot connect to the daemon" in parent.line()
    parent.process.kill()
    ended, _, _ = select.select([parent.pidfd], [], [], LIMIT_S)
    if not ended:
        signal.pidfd_send_signal(parent.pidfd, signal.SIGKILL)
    assert ended


def test_the_gateway_ends_when_it_is_asked_to_although_no_daemon_is_connected(parent: Parent) -> None:
    parent.send_settings(parent.process.pid)
    assert "cannot connect to the daemon" in parent.line()
    signal.pidfd_send_signal(parent.pidfd, signal.SIGTERM)
    assert parent.process.wait(LIMIT_S) == 0


def test_the_gateway_does_not_start_for_another_process_than_its_parent(parent: Parent) -> None:
    parent.send_settings(os.getpid())
    assert f"the daemon (process {os.getpid()}) has ended" in parent.line()
    assert parent.process.wait(LIMIT_S) == 2


def test_the_gateway_allows_no_more_connections_than_there_are_descriptors_for() -> None:
    with ExitStack() as stack:
        parent = Parent(stack, ("sh", "-c", 'ulimit -n 300; exec "$@"', "sh"))
        parent.send_settings(parent.process.pid)
        line = json.loads(parent.line())
    assert line["event"].startswith("the limit of file descriptors allows fewer connections")
    fields = line["fields"]
    assert (fields["descriptors"], fields["max_connections"]) == (300, 1024)
    _, allowed = plan_gateway_descriptors(300, threads=1)
    assert fields["allowed"] == allowed < 300 - 64, "doctor says the same; some are left for regions of shared memory"


def test_a_gateway_that_drains_reports_all_that_it_has_counted(tmp_path: Path) -> None:
    with ExitStack() as stack:
        # It connects to a daemon before it accepts requests.
        daemon = stack.enter_context(zmq.Context.instance().socket(zmq.ROUTER))
        daemon.bind(f"ipc://{tmp_path}/d")
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        gateway = stack.enter_context(
            subprocess.Popen(
                [str(find_program(None))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[listener.fileno()],
            )
        )
        stack.callback(gateway.kill)
        assert gateway.stdin is not None
        assert gateway.stdout is not None
        address = {"fd": listener.fileno(), "address": "127.0.0.1:0", "http": True}
        settings = {"version": own_version(), "daemon": f"{tmp_path}/d", "listeners": [address]}
        print(json.dumps(settings), file=gateway.stdin, flush=True)
        records = map(json.loads, gateway.stdout)
        assert next(records) == {"record": "ready"}
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"GET /v2/nosuch HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")
            while client.recv(4096):
                pass
        gateway.send_signal(signal.SIGTERM)
        *_, last = records
        assert (last["record"], last["requests"], last["connections"]) == ("statistics", 1, 0)
        assert last["by_status"] == [["open_inference_http", "404", 1]]
