"""Runs a daemon as the flags of tensorflow_model_server ask for it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from typing import Final

from multitower.exit_codes import Exit
from multitower.supervisor.config.config import Config
from multitower.supervisor.config.overrides import PREFIX
from multitower.supervisor.config.value_syntax import is_loopback
from multitower.supervisor.daemon import Daemon, StartError
from multitower.supervisor.gateway.program import ProgramError, check_program
from multitower.supervisor.loop.log import event
from multitower.supervisor.loop.signals import ignore_reopening
from multitower.supervisor.machine.discovery import discover
from multitower.tools.convert.serving import Conversion
from multitower.tools.model_server.flags import Values, without_effect
from multitower.tools.model_server.polling import ConfigPoll
from multitower.tools.model_server.settings import ModelServer
from multitower.wire import DEFAULT_ENDPOINT

log = logging.getLogger("multitower.model_server")

_ANY_PORT: Final = "tcp://127.0.0.1:*"
_ALL_ADDRESSES: Final = ("*", "0.0.0.0", "[::]")


def run(values: Values, host: str, *, insecure: bool) -> int:
    """Serves until a signal ends it; returns the exit code of the daemon.

    Args:
        values: the flags that were given.
        host: the address for HTTP and gRPC.
        insecure: whether other machines may reach it.

    Raises:
        FlagError: the flags cannot be used.
        ConfigError: a file cannot be read, or what it asks for is wrong.
        StartError: the daemon cannot start.
    """
    ignore_reopening()
    gpus = discover()
    server = ModelServer(
        values, host=host, insecure=insecure, devices="all" if gpus.gpus else "{cpu: 1}", listen=own_endpoint(values)
    )
    # Before the file is read for the start, so that a change after that is noticed.
    poll = ConfigPoll(server.models_file, server.poll_s) if server.models_file is not None and server.poll_s else None
    conversion = server.convert()
    config = server.load(conversion)
    _log_differences(values, conversion)
    if not gpus.gpus and f"{PREFIX}DEVICES" not in os.environ:
        event(log, logging.WARNING, "no GPU was found: one worker on the CPU serves", cause=gpus.problem)
    try:
        check_program(config.gateway.program if config.gateway is not None else None)
    except ProgramError as error:
        raise StartError(Exit.UNAVAILABLE, f"{error}; {error.advice}") from None
    daemon = Daemon(config, server.read, ready_lines=ready_lines(config))
    with poll or contextlib.nullcontext():
        return daemon.run()


def ready_lines(config: Config) -> list[str]:
    """What tensorflow_model_server logs when it serves: programs and people wait for these lines."""
    gateway = config.gateway
    if gateway is None:
        return []
    grpc = [
        f"Running gRPC ModelServer at {address.replace('unix:', 'UNIX socket ', 1)} ..." for address in gateway.grpc
    ]
    return [
        *grpc,
        *(f"Exporting HTTP/REST API at:{_shown_for_http(address)} ..." for address in gateway.http),
    ]


def _shown_for_http(address: str) -> str:
    """The address as tensorflow_model_server shows it: with `localhost` as the host, where that name reaches it."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if is_loopback(host) or host in _ALL_ADDRESSES else address


def own_endpoint(values: Values) -> str:
    """The endpoint for multitower's own clients: their default, or a free port if that one is used or a flag names it.

    Args:
        values: the flags that were given.
    """
    host, _, port = DEFAULT_ENDPOINT.removeprefix("tcp://").rpartition(":")
    if int(port) in (values.get("port"), values.get("rest_api_port")):
        return _ANY_PORT
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return _ANY_PORT
    return DEFAULT_ENDPOINT


def _log_differences(values: Values, conversion: Conversion) -> None:
    """Logs what the flags and their files ask for and multitower does otherwise, or not at all."""
    for note in conversion.notes:
        event(log, logging.WARNING, note.text, file=note.file, line=note.line)
    flags = without_effect(values)
    if flags:
        event(log, logging.WARNING, "flags without a counterpart have no effect", flags=" ".join(flags))
    if values.get("enable_per_model_batching_parameters") and not values.get("enable_batching"):
        event(log, logging.WARNING, "--enable_per_model_batching_parameters has no effect without --enable_batching")
    if values.get("enable_batching") is None:
        message = "requests may share batches although --enable_batching was not given"
        event(log, logging.INFO, f"{message}; with --enable_batching=false they do not")
