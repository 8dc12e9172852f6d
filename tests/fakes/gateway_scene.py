"""A gateway as the daemon supervises it, without a daemon: a stand-in, and a clock that a test moves forward."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import zmq

from multitower.supervisor.config.gateway import GatewayConfig
from multitower.supervisor.config.section_types import Context
from multitower.supervisor.gateway.listeners import GatewayListeners
from multitower.supervisor.gateway.run import GatewayState
from multitower.supervisor.gateway.supervision import STALL_S, Gateway
from multitower.supervisor.loop.containment import ErrorLog
from multitower.supervisor.loop.history import EventHistory
from multitower.supervisor.loop.reactor import Reactor
from multitower.supervisor.workers.output import OutputReader
from multitower.supervisor.workers.restart_budget import RestartPolicy


def settings_with(config: GatewayConfig) -> Any:
    whole = SimpleNamespace(gateway=config, security=None, drain_timeout=5.0)
    workers = SimpleNamespace(policy=RestartPolicy(max_restarts=2, first_s=0.01, max_s=0.01))
    return SimpleNamespace(config=whole, worker_settings=workers, timeouts={"echo": 30.0})


class GatewayScene:
    """A gateway, its reactor, and a clock that a test moves forward."""

    def __init__(self, stack: ExitStack, program: Path, http: str = "127.0.0.1:*") -> None:
        config = GatewayConfig.model_validate(
            {"grpc": f"unix:{program.parent}/g", "http": http}, context=Context(program.parent, insecure=False)
        )
        settings: Any = SimpleNamespace(current=settings_with(config))
        self.config, self._settings = config, settings
        runtime = SimpleNamespace(gateway_socket=Path("/gateway.sock"), control_socket=Path("/control.sock"))
        endpoints: Any = SimpleNamespace(gateway=object(), runtime=runtime)
        output = stack.enter_context(closing(OutputReader()))
        descendants = SimpleNamespace(add_helper=lambda _: None, remove_helper=lambda _: None)
        launcher: Any = SimpleNamespace(output=output, descendants=descendants)
        listeners = GatewayListeners(stack.enter_context(zmq.Context()), config, None)
        stack.callback(listeners.close)
        self.reactor = stack.enter_context(closing(Reactor()))
        self.history = EventHistory()
        errors = ErrorLog(logging.getLogger("multitower.daemon"))
        self.gateway = Gateway(program, settings, listeners, endpoints, launcher, self.reactor, self.history, errors)
        stack.callback(self.gateway.close)
        self._path = f"{program.parent}/g"
        self._began = time.monotonic()
        self._ahead = 0.0

    def change(self, **keys: object) -> None:
        """Changes keys of `gateway`, as a reload does."""
        self.config = self.config.model_copy(update=keys)
        self._settings.current = settings_with(self.config)

    def now(self) -> float:
        return time.monotonic() + self._ahead

    def tick(self) -> None:
        self.gateway.tick(self.now())

    def wait(self, state: GatewayState) -> None:
        self.wait_until(lambda: self.gateway.state is state)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until, self.gateway.report(0.0)
            self.tick()
            self.reactor.wait(0.05)

    def let_pass(self, seconds: float) -> None:
        """Moves the clock forward, in steps that are no stall."""
        until = self._ahead + seconds
        while self._ahead < until:
            self._ahead = min(until, self._ahead + STALL_S / 2)
            self.gateway.tick(time.monotonic() + self._ahead)

    def stall(self, seconds: float) -> None:
        """Moves the clock forward at once, as on a suspended machine."""
        self._ahead += seconds
        self.gateway.tick(time.monotonic() + self._ahead)

    def ask(self, word: str) -> dict[str, Any]:
        """Sends a word to the address of gRPC, a path."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(self._path)
            return _answer(connection, word)

    def ask_http(self, word: str) -> dict[str, Any]:
        """Sends a word to the address of HTTP, over tcp."""
        with self.connect_http() as connection:
            return _answer(connection, word)

    def connect_http(self) -> socket.socket:
        """Connects to the address of HTTP."""
        host, port = self.gateway.report(0.0)["http"][0].split(":")
        return socket.create_connection((host, int(port)), timeout=60)

    def pid(self) -> int | None:
        pid: int | None = self.gateway.report(0.0)["pid"]
        return pid


def _answer(connection: socket.socket, word: str) -> dict[str, Any]:
    connection.sendall(word.encode())
    about: dict[str, Any] = json.loads(connection.makefile().read())
    return about
