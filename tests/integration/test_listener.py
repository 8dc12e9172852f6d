"""The listener through which libzmq accepts: it lets a bounded number in, miscounts none, and can be closed."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq
from waiting import wait_until

from multitower.supervisor.routing.binding import listen_on_path
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.listener import MONITOR_QUEUE, Listener

WAIT_S = 60.0


def sockets() -> set[int]:
    """The descriptors of this process that refer to sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.add(int(name))
    return found


def test_a_loop_that_stalls_while_clients_flood_accepts_a_bounded_number(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The valve is open, and the daemon does not run until everybody has tried to connect.

    At a path, since over tcp a client that finds the queue full tries again after a second.
    """
    path = short_folder / "front.sock"
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        router = stack.enter_context(context.socket(zmq.ROUTER))
        listener = Listener(context, router, listen_on_path(path, 100), f"ipc://{path}")
        stack.callback(listener.close)
        connections = stack.enter_context(contextlib.closing(Connections(10 * MONITOR_QUEUE)))
        connections.add(listener)
        stack.callback(connections.remove, listener)
        close_valve = os.eventfd_read
        clients: list[socket.socket] = []
        done = threading.Event()

        def flood() -> None:
            # Those that are not accepted fill the backlog, and then wait.
            with contextlib.suppress(OSError):
                while not done.is_set():
                    client = stack.enter_context(socket.socket(socket.AF_UNIX))
                    client.connect(str(path))
                    clients.append(client)

        thread = threading.Thread(target=flood)

        def stall(descriptor: int) -> int:
            last = -1
            while len(clients) != last:
                last = len(clients)
                time.sleep(0.5)
            return close_valve(descriptor)

        monkeypatch.setattr(os, "eventfd_read", stall)
        before = sockets()
        thread.start()
        wait_until(lambda: clients)
        connections.accept()
        monkeypatch.setattr(os, "eventfd_read", close_valve)
        done.set()
        accepted = len(sockets() - before) - len(clients)
        until = time.monotonic() + WAIT_S
        while thread.is_alive():
            assert time.monotonic() < until
            connections.accept()
            time.sleep(0.005)
        assert MONITOR_QUEUE <= accepted <= MONITOR_QUEUE + 6  # one has a socket, and is not connected yet
        assert connections.open >= MONITOR_QUEUE


def test_a_number_that_an_eventfd_has_by_now_is_not_counted_as_a_connection(short_folder: Path) -> None:
    path = short_folder / "front.sock"
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        front = stack.enter_context(context.socket(zmq.ROUTER))
        listener = Listener(context, front, listen_on_path(path, 10), f"ipc://{path}")
        stack.callback(listener.close)
        connections = stack.enter_context(contextlib.closing(Connections(10)))
        connections.add(listener)
        stack.callback(connections.remove, listener)
        with socket.socket(socket.AF_UNIX) as client:
            before = sockets()
            client.connect(str(path))

            def accepted_by_libzmq() -> bool:
                # One call lets libzmq accept for 2 ms, in which its thread need not have run.
                listener.accept()
                return len(sockets() - before) == 1

            wait_until(accepted_by_libzmq)  # libzmq reports the connection, but `connections` does not read it yet
            (accepted,) = sockets() - before
        wait_until(lambda: accepted not in sockets())
        number = -1
        while number != accepted:
            number = os.eventfd(0)
            stack.callback(os.close, number)
        connections.tick()
        assert connections.open == 0


CLOSING = """
import os, select, sys
import zmq
from curve_front import CurveLocks
from multitower.supervisor.routing.connections import Connections

(case,) = sys.argv[1:]
for _ in range(80):
    stale = select.epoll()
    if case == "numbers that another epoll has kept":
        reading, writing = os.pipe()
        numbers = [os.dup(reading) for _ in range(30)]
        for each in numbers:
            stale.register(each)
            os.close(each)  # the file stays open, so the epoll goes on to watch it
    with zmq.Context() as context:
        locks = CurveLocks(context)
        front = locks.open(Connections(10))
        if case == "libzmq is about to accept":
            os.eventfd_write(front._listener._valve, 1)
        front.close()
        locks.close()
"""


@pytest.mark.parametrize("case", ["libzmq is about to accept", "numbers that another epoll has kept"])
def test_libzmq_does_not_abort_when_a_listener_is_closed(case: str) -> None:
    command = [sys.executable, "-c", CLOSING, case]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
