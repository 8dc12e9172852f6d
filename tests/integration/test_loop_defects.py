"""Defects injected into the daemon's event loop: which of them it survives, and which of them end it.

The defects are put into modules that are never compiled, so that the tests run on a compiled installation too.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import zmq
from running import STEP_S, Running, multitower

from multitower import Client, Unavailable, wire
from multitower.exit_codes import Exit

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
heartbeat: 100ms
models: [{name: echo, handler: "handlers:Echo"}]
"""

PROGRAM = """
import runpy
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.loop.containment import EventSources
from multitower.supervisor.loop.signals import SignalInbox
from multitower.supervisor.operations.control import ControlSocket
from multitower.supervisor.operations.orders import Orders
from multitower.supervisor.operations.service_manager import Announcer, ServiceManager
from multitower.supervisor.operations.version_watch import VersionWatch
from multitower.supervisor.scheduling.scheduler import StateError
from multitower.supervisor.workers.capacity import Capacity
from multitower.supervisor.workers.manager import WorkerManager


def inject(owner, name, times=10**9, error=ZeroDivisionError, when=lambda _: True):
    function = getattr(owner, name)

    def replacement(self, *arguments):
        nonlocal times
        if times > 0 and when(self):
            times -= 1
            raise error("an injected defect")
        return function(self, *arguments)

    setattr(owner, name, replacement)


DEFECTS
runpy.run_module("multitower", run_name="__main__")
"""


def running(folder: Path, *defects: str) -> Running:
    return Running(folder, CONFIG, program=("-c", PROGRAM.replace("DEFECTS", "\n".join(defects))))


def check_requests(client: Client) -> None:
    """Requests get their own answers."""
    futures = [client.submit("echo", {"x": np.full(3, number)}) for number in range(100)]
    for number, future in enumerate(futures):
        assert future.result(STEP_S)["x"].tolist() == [number] * 3


def logged(daemon: Running, doing: str) -> list[str]:
    """Returns the tracebacks of the contained errors of this kind."""
    message = f"internal error while {doing}"
    return [line["traceback"] for line in daemon.lines if line["message"] == message]


CHORES = {
    "announcing the state": 'inject(Announcer, "tick")',
    "measuring workers": 'inject(Capacity, "measure")',
    "watching model versions": 'inject(VersionWatch, "tick")',
    "feeding the watchdog": 'inject(ServiceManager, "next_wake")',
    "resuming event sources": 'inject(EventSources, "resume")',
    "managing workers": 'inject(WorkerManager, "next_wake", when=lambda manager: not manager.replacing)',
}


def test_chores_that_always_raise_cost_neither_requests_nor_workers_nor_cpu_time(tmp_path: Path) -> None:
    with running(tmp_path, *CHORES.values()) as daemon, daemon.wait_ready().client() as client:
        check_requests(client)
        victim = client.status()["slots"][0]["pid"]
        psutil.Process(victim).kill()
        daemon.wait_line("worker ready", slot=0, incarnation=2)
        check_requests(client)
        process = psutil.Process(daemon.process.pid)
        cpu_s, until = sum(process.cpu_times()[:2]), time.monotonic() + 2.0
        daemon.wait(lambda: time.monotonic() > until)
        assert sum(process.cpu_times()[:2]) - cpu_s < 0.5, "the loop spins"
        for chore in CHORES:
            (traceback,) = logged(daemon, chore)
            assert "ZeroDivisionError: an injected defect" in traceback
        assert daemon.end() == Exit.OK


def test_a_signal_is_handled_once_its_reading_no_longer_fails(tmp_path: Path) -> None:
    with running(tmp_path, 'inject(SignalInbox, "read", times=60)') as daemon:
        with daemon.wait_ready().client() as client:
            daemon.signal(signal.SIGTERM)
            daemon.wait_line("internal error while handling signals")
            check_requests(client)  # 20 failures a second, the rest is a pause
        assert daemon.wait_end() == Exit.OK
        assert len(logged(daemon, "handling signals")) == 1


def test_a_defect_in_an_order_by_signal_leaves_the_daemon_serving(tmp_path: Path) -> None:
    with running(tmp_path, 'inject(Orders, "reload", times=1)') as daemon, daemon.wait_ready().client() as client:
        daemon.signal(signal.SIGHUP)
        daemon.wait_line("internal error while handling signals", signal="SIGHUP")
        check_requests(client)
        daemon.signal(signal.SIGHUP)
        daemon.wait_line("reloaded")


def test_a_defect_in_a_step_of_a_reload_fails_that_reload_only(tmp_path: Path) -> None:
    with running(tmp_path, 'inject(Orders, "_apply", times=1)') as daemon, daemon.wait_ready().client() as client:
        failed = multitower("reload", daemon=daemon)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert "INTERNAL/internal_error" in failed.stderr
        assert "ZeroDivisionError" in daemon.wait_line("order cannot be carried out")["traceback"]
        check_requests(client)
        assert multitower("reload", daemon=daemon).stdout == "reloaded; no slot had to change\n"


def send_order(daemon: Running) -> None:
    """Sends an order without waiting for its answer."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(daemon.status()["daemon"]["control"])
        socket.send_multipart([b"", wire.RELOAD, b"id"])


def send_signal(daemon: Running) -> None:
    """Has the daemon read its configuration in the background."""
    daemon.signal(signal.SIGHUP)


@pytest.mark.parametrize(
    ("defect", "trigger", "doing"),
    [
        ('inject(ControlSocket, "receive")', send_order, "reading orders"),
        ('inject(BackgroundJobs, "run_callbacks")', send_signal, "handling outcomes of background jobs"),
    ],
    ids=["orders", "background jobs"],
)
def test_an_event_source_whose_callback_always_raises_does_not_disturb_requests(
    tmp_path: Path, defect: str, trigger: Callable[[Running], None], doing: str
) -> None:
    with running(tmp_path, defect) as daemon, daemon.wait_ready().client() as client:
        trigger(daemon)
        daemon.wait_line(f"internal error while {doing}")
        process = psutil.Process(daemon.process.pid)
        cpu_s, until = sum(process.cpu_times()[:2]), time.monotonic() + 2.0
        daemon.wait(lambda: time.monotonic() > until)
        assert sum(process.cpu_times()[:2]) - cpu_s < 0.5, "the loop spins"
        check_requests(client)
        assert len(logged(daemon, doing)) == 1
        assert daemon.end() == Exit.OK


def test_a_drain_whose_end_fails_is_tried_again(tmp_path: Path) -> None:
    with running(tmp_path, 'inject(WorkerManager, "stop", times=2)') as daemon:
        daemon.wait_ready()
        assert daemon.end() == Exit.OK
        assert len(logged(daemon, "draining")) == 1


@pytest.mark.parametrize(
    "defect",
    [
        'inject(WorkerManager, "tick", error=StateError, when=lambda manager: manager.slots[1].route is not None)',
        "from multitower.supervisor.routing.router import Router\n"
        'inject(Router, "flush", when=lambda router: len(router.routes) == 2)',
    ],
    ids=["the scheduler fails to move requests", "batches and replies cannot be collected"],
)
def test_doubt_about_the_state_of_requests_ends_the_daemon_and_its_workers(tmp_path: Path, defect: str) -> None:
    # An init system restarts a daemon that ends, but not one that hangs or leaves workers behind.
    with running(tmp_path, defect) as daemon:
        worker = daemon.wait_line("worker ready")["pid"]
        assert daemon.wait_end() == 1
        line = daemon.wait_line("daemon ends because of an internal error")
        assert "an injected defect" in line["traceback"]
        assert not psutil.pid_exists(worker)


def test_replies_that_cannot_be_collected_at_the_end_of_a_drain_end_the_daemon(tmp_path: Path) -> None:
    text = CONFIG.replace('Echo"', 'Sleeper", parameters: {seconds: 60}') + "drain_timeout: 200ms\n"
    defect = (
        "from multitower.supervisor.routing.router import Router\n"
        'inject(Router, "flush", times=1, when=lambda router: router._admission.draining and not router.scheduler.busy)'
    )
    with Running(tmp_path, text, program=("-c", PROGRAM.replace("DEFECTS", defect))) as daemon:
        with daemon.wait_ready().client(retries=0) as client:
            waiting = client.submit("echo", {"x": np.full(1, 0)})
            daemon.wait(lambda: any(slot["depth"] for slot in client.status()["slots"]))
            daemon.signal(signal.SIGTERM)
            with pytest.raises(Unavailable):
                waiting.result(STEP_S)
        assert daemon.wait_end() == 1
        assert "an injected defect" in daemon.wait_line("daemon ends because of an internal error")["traceback"]


def test_clients_of_a_daemon_that_ends_are_told_at_once(tmp_path: Path) -> None:
    text = CONFIG.replace('Echo"', 'Sleeper", parameters: {seconds: 60}')
    defect = 'inject(Orders, "reload", error=StateError)'
    with Running(tmp_path, text, program=("-c", PROGRAM.replace("DEFECTS", defect))) as daemon:
        with daemon.wait_ready().client(retries=0) as client:
            waiting = client.submit("echo", {"x": np.full(1, 0)})
            daemon.wait(lambda: any(slot["depth"] for slot in client.status()["slots"]))
            daemon.signal(signal.SIGHUP)
            with pytest.raises(Unavailable) as raised:
                waiting.result(STEP_S)
            assert raised.value.reason == "connection_lost"
        assert daemon.wait_end() == 1
