"""Messages to the service manager, on a real datagram socket, and when they are sent."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_settings import made
from fake_workers import Scene

from multitower.supervisor.config.config import Config
from multitower.supervisor.gateway.run import GatewayState
from multitower.supervisor.lifecycle import Lifecycle, LifecycleState
from multitower.supervisor.operations.readiness import Readiness
from multitower.supervisor.operations.service_manager import ANNOUNCE_S, RETRY_S, Announcer, ServiceManager
from multitower.supervisor.settings import ActiveSettings

WAIT_S = 10.0


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.variable = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(WAIT_S)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def environment(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.variable, "KEPT": "1", **more}

    def next(self) -> dict[str, str]:
        text = self.socket.recv(65536).decode()
        return dict(line.split("=", 1) for line in text.split("\n"))

    def waiting(self) -> list[dict[str, str]]:
        """Returns everything that has been sent: datagrams between Unix sockets arrive at once."""
        found = []
        self.socket.setblocking(False)
        try:
            while True:
                found.append(self.next())
        except BlockingIOError:
            return found
        finally:
            self.socket.settimeout(WAIT_S)

    def fill(self) -> None:
        """Fills the socket, so that nothing more can be sent."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            for _ in range(100_000):
                try:
                    other.sendto(b"FILL=1", self.socket.getsockname())
                except BlockingIOError:
                    return
            raise AssertionError("the socket does not fill")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Manager]:
    manager = Manager(f"{short_folder}/notify" if request.param == "path" else f"@mt-{secrets.token_hex(8)}")
    yield manager
    manager.socket.close()


@pytest.fixture
def service_manager(manager: Manager) -> Iterator[ServiceManager]:
    service_manager = ServiceManager(manager.environment())
    yield service_manager
    service_manager.close()


def test_without_a_service_manager_nothing_happens() -> None:
    environment = {"WATCHDOG_USEC": "1000000"}
    service_manager = ServiceManager(environment)
    service_manager.ready("ready")
    service_manager.reloading()
    service_manager.extend(1.0)
    service_manager.watchdog(1.0)
    service_manager.status("x")
    service_manager.stopping("stopping")
    assert service_manager.next_wake() is None
    assert service_manager.failures == 0
    assert environment == {}
    service_manager.close()


def test_states_are_sent_as_sd_notify_assignments(manager: Manager, service_manager: ServiceManager) -> None:
    service_manager.ready("4/4 ready")
    assert manager.next() == {"READY": "1", "STATUS": "4/4 ready"}
    before = time.monotonic_ns() // 1000
    service_manager.reloading()
    sent = manager.next()
    assert sent.pop("RELOADING") == "1"
    assert before <= int(sent.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert sent == {}
    service_manager.stopping("draining")
    assert manager.next() == {"STOPPING": "1", "STATUS": "draining"}
    assert manager.waiting() == []


def test_a_status_is_sent_when_it_changes(manager: Manager, service_manager: ServiceManager) -> None:
    service_manager.ready("4/4 ready")
    for text in ("4/4 ready", "3/4 ready", "3/4 ready", "4/4 ready"):
        service_manager.status(text)
    assert [sent["STATUS"] for sent in manager.waiting()] == ["4/4 ready", "3/4 ready", "4/4 ready"]


def test_a_status_is_one_line_of_bounded_length(manager: Manager, service_manager: ServiceManager) -> None:
    service_manager.status("slot 1: it died\nMAINPID=1\r\n\ud800 " + "x" * 10_000)
    sent = manager.next()
    assert set(sent) == {"STATUS"}
    assert sent["STATUS"].startswith("slot 1: it died MAINPID=1 ? xxx")
    assert len(sent["STATUS"]) <= 1000


def test_more_time_is_requested_again_only_when_half_has_passed(
    manager: Manager, service_manager: ServiceManager
) -> None:
    service_manager.extend(60.0)
    service_manager.extend(60.0)
    assert manager.waiting() == [{"EXTEND_TIMEOUT_USEC": "60000000"}]
    until = time.monotonic() + WAIT_S
    while not (again := manager.waiting()) and time.monotonic() < until:
        service_manager.extend(0.001)
    assert {"EXTEND_TIMEOUT_USEC": "1000"} in again


def test_the_watchdog_is_fed_when_half_of_its_time_has_passed(manager: Manager) -> None:
    service_manager = ServiceManager(manager.environment(WATCHDOG_USEC="4000000", WATCHDOG_PID=str(os.getpid())))
    wake = service_manager.next_wake()
    assert wake is not None
    assert wake <= 100.0
    service_manager.watchdog(100.0)
    assert manager.waiting() == [{"WATCHDOG": "1"}]
    assert service_manager.next_wake() == 102.0
    service_manager.watchdog(101.9)
    assert manager.waiting() == []
    service_manager.watchdog(102.0)
    service_manager.watchdog(102.1)
    assert manager.waiting() == [{"WATCHDOG": "1"}]
    assert service_manager.next_wake() == 104.0
    service_manager.close()
    assert service_manager.next_wake() is None


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
    ],
)
def test_a_watchdog_that_is_not_for_this_process_is_not_fed(manager: Manager, variables: dict[str, str]) -> None:
    service_manager = ServiceManager(manager.environment(**variables))
    assert service_manager.next_wake() is None
    service_manager.watchdog(100.0)
    assert manager.waiting() == []
    service_manager.close()


def test_child_processes_do_not_inherit_the_variables(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in manager.environment(WATCHDOG_USEC="4000000", WATCHDOG_PID=str(os.getpid())).items():
        monkeypatch.setenv(name, value)
    service_manager = ServiceManager()
    code = (
        "import os; print([n for n in ('NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID', 'KEPT') if n in os.environ])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['KEPT']\n"
    service_manager.watchdog(1.0)
    assert manager.waiting() == [{"WATCHDOG": "1"}]
    service_manager.close()


def test_a_full_socket_delays_states_and_keeps_their_order(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    service_manager = ServiceManager(manager.environment(WATCHDOG_USEC="60000000"))
    manager.fill()
    with caplog.at_level(logging.WARNING, logger="multitower.notify"):
        service_manager.reloading()
        service_manager.ready("1/4 ready")
        service_manager.status("2/4 ready")
        service_manager.status("3/4 ready")
        service_manager.extend(30.0)
        service_manager.watchdog(100.0)
    assert len(caplog.records) == 1
    assert service_manager.failures > 1
    assert service_manager.next_wake() == 100.0 + RETRY_S
    manager.waiting()

    service_manager.watchdog(100.1)
    assert manager.waiting() == []
    service_manager.status("4/4 ready")  # must not overtake the unsent ones
    assert manager.waiting() == []
    service_manager.watchdog(100.0 + RETRY_S)
    sent = manager.waiting()
    assert sent[0].pop("MONOTONIC_USEC")
    assert sent == [
        {"RELOADING": "1"},
        {"READY": "1", "STATUS": "1/4 ready"},
        {"STATUS": "4/4 ready"},
        {"WATCHDOG": "1"},
    ]
    assert service_manager.next_wake() == 100.0 + RETRY_S + 30.0
    service_manager.close()


def test_unread_messages_are_bounded_and_the_latest_states_are_kept(manager: Manager) -> None:
    service_manager = ServiceManager(manager.environment())
    manager.fill()
    for number in range(1000):
        service_manager.reloading()
        service_manager.ready(f"reload {number}")
    manager.waiting()
    service_manager.watchdog(time.monotonic())
    sent = manager.waiting()
    assert len(sent) < 100
    assert sent[-1] == {"READY": "1", "STATUS": "reload 999"}
    service_manager.close()


def test_a_vanished_socket_is_logged_once(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    service_manager = ServiceManager(manager.environment(WATCHDOG_USEC="2000000"))
    manager.socket.close()
    if manager.variable.startswith("/"):
        Path(manager.variable).unlink()
    with caplog.at_level(logging.WARNING, logger="multitower.notify"):
        service_manager.ready("ready")
        service_manager.status("3/4 ready")
        service_manager.watchdog(100.0)
        service_manager.stopping("draining")
    assert len(caplog.records) == 1
    assert service_manager.failures == 4
    assert service_manager.next_wake() == 101.0  # as with a listener: trying sooner cannot help
    service_manager.close()


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative/path", "/" + "x" * 200])
def test_an_unusable_address_is_logged_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="multitower.notify"):
        service_manager = ServiceManager({"NOTIFY_SOCKET": address})
        service_manager.ready("ready")
        service_manager.stopping("stopping")
    assert len(caplog.records) == 1
    service_manager.close()


class Slots:
    """Stands for `Readiness`."""

    ready = False
    serving = False
    all_failed = False

    def report(self) -> dict[str, Any]:
        return {"ready": self.ready}

    def summary(self) -> str:
        return "4/4 slots ready" if self.ready else "0/4 slots ready"


def announcer_of(service_manager: ServiceManager, lifecycle: Lifecycle, slots: Slots) -> Announcer:
    return Announcer(lifecycle, cast(Any, slots), service_manager, started=100.0)


def test_readiness_is_announced_once_a_model_serves(
    manager: Manager, service_manager: ServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    slots = Slots()
    announcer = announcer_of(service_manager, Lifecycle(LifecycleState.RUNNING), slots)
    announcer.tick(100.0)
    assert manager.waiting() == [{"STATUS": "0/4 slots ready"}, {"EXTEND_TIMEOUT_USEC": "30000000"}]
    slots.ready = slots.serving = True
    announcer.tick(100.0 + ANNOUNCE_S / 2)
    assert manager.waiting() == [], "it is not due yet"
    with caplog.at_level(logging.INFO, logger="multitower.daemon"):
        announcer.tick(100.0 + ANNOUNCE_S)
        announcer.tick(100.0 + 2 * ANNOUNCE_S)
    assert manager.waiting() == [{"READY": "1", "STATUS": "4/4 slots ready"}]
    assert [record.message for record in caplog.records] == ["daemon ready"]


def test_a_first_model_that_serves_is_enough_to_announce_readiness(
    manager: Manager, service_manager: ServiceManager
) -> None:
    slots = Slots()
    slots.serving = True
    announcer = announcer_of(service_manager, Lifecycle(LifecycleState.RUNNING), slots)
    announcer.tick(0.0)
    assert manager.waiting() == [{"READY": "1", "STATUS": "0/4 slots ready"}]


@pytest.mark.parametrize("models_first", [True, False])
def test_ready_lines_wait_for_the_models_and_the_gateway(
    models_first: bool, service_manager: ServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    slots, gateway = Slots(), SimpleNamespace(state=GatewayState.STARTING)
    lifecycle = Lifecycle(LifecycleState.RUNNING)
    announcer = Announcer(lifecycle, cast(Any, slots), service_manager, 0.0, cast(Any, gateway), ["one", "two"])
    with caplog.at_level(logging.INFO, logger="multitower.daemon"):
        for now, is_first in enumerate((True, False)):
            if is_first is models_first:
                slots.ready = True
            else:
                gateway.state = GatewayState.READY
            assert "one" not in caplog.messages
            announcer.tick(float(now))
        announcer.tick(2.0)
    assert [message for message in caplog.messages if message != "daemon ready"] == ["one", "two"]


def test_that_every_slot_has_failed_is_logged_once_each_time(
    service_manager: ServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    slots = Slots()
    announcer = announcer_of(service_manager, Lifecycle(LifecycleState.RUNNING), slots)
    for now, failed in enumerate([False, True, True, False, True]):
        slots.all_failed = failed
        announcer.tick(float(now))
    assert [record.message for record in caplog.records] == ["every slot has failed"] * 2
    fields: dict[str, object] = caplog.records[0].__dict__["fields"]
    assert "with exit_when_failed: true it would exit with code 69" in str(fields["next"])


def test_while_nothing_serves_the_start_timeout_is_extended_again_and_again(
    manager: Manager, service_manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots()
    announcer = announcer_of(service_manager, Lifecycle(LifecycleState.RUNNING), slots)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sent: list[dict[str, str]] = []
    for _ in range(120):
        now += 1.0
        announcer.tick(now)
        sent += manager.waiting()
    extensions = [message for message in sent if "EXTEND_TIMEOUT_USEC" in message]
    assert len(extensions) >= 120 // 15
    assert not [message for message in sent if "READY" in message]
    slots.serving = True
    announcer.tick(now + 1.0)
    assert "READY" in manager.waiting()[0]


def test_a_reload_and_a_drain_are_announced_and_extend_the_timeout(
    manager: Manager, service_manager: ServiceManager
) -> None:
    slots, lifecycle = Slots(), Lifecycle(LifecycleState.RUNNING)
    slots.ready = slots.serving = True
    announcer = announcer_of(service_manager, lifecycle, slots)
    announcer.reload_ended()
    assert manager.waiting() == [], "READY=1 would end a start that is still under way"
    announcer.tick(0.0)
    announcer.reload_began()
    announcer.tick(1.0)
    announcer.reload_ended()
    announcer.tick(2.0)
    sent = manager.waiting()
    assert [next(iter(message)) for message in sent] == ["READY", "RELOADING", "EXTEND_TIMEOUT_USEC", "READY"]
    lifecycle.request_stop(3.0, 30.0)
    announcer.drain_began()
    announcer.reload_ended()
    assert manager.waiting() == [{"STOPPING": "1", "STATUS": "4/4 slots ready"}]


def test_the_status_line_has_a_short_cause_before_what_may_be_cut() -> None:
    scene = Scene(max_restarts=0)
    scene.report(scene.process(), "loading")
    scene.report(scene.process(), "failed", "no weights " * 100)
    scene.tick()
    running = Lifecycle(LifecycleState.RUNNING)
    summary = Readiness(running, scene.manager, scene.router, ActiveSettings(made([("m",)]))).summary()
    assert 0 < summary.index("; m failed: ") < summary.index("; workers per model: ") < 300


@pytest.mark.parametrize("exits", [False, True])
def test_a_daemon_that_exits_when_every_slot_has_failed_does_not_announce_that_it_runs_on(exits: bool) -> None:
    scene = Scene(max_restarts=0)
    scene.die(scene.process())
    settings = replace(made([("m",)]), config=cast(Config, SimpleNamespace(exit_when_failed=exits)))
    running = Lifecycle(LifecycleState.RUNNING)
    assert scene.manager.unavailable
    assert Readiness(running, scene.manager, scene.router, ActiveSettings(settings)).all_failed != exits
