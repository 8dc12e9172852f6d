"""Connections that end without a word: the client recovers, and the daemon releases what belongs to the other end."""

from __future__ import annotations

import asyncio
import functools
import select
import time
from collections.abc import Iterator
from pathlib import Path

import fake_daemon
import numpy as np
import pytest
import zmq
from accepting import Accepting
from curve_front import CurveLocks, encrypt
from descriptors import accepted_connections
from fake_daemon import FakeDaemon
from running import Running
from swallowing_proxy import SwallowingProxy

from multitower import AsyncClient, Client, Unavailable
from multitower.supervisor.routing.connections import Connections
from multitower.supervisor.routing.router_front import RouterFront
from multitower.supervisor.routing.stream_front import StreamFront
from multitower.supervisor.routing.tcp_listener import TcpListener
from multitower.supervisor.routing.unread import UnreadReplies

WAIT_S = 60.0
PEER_TIMEOUT_S = 1.0  # the threads of a busy machine wait for a core for up to half a second
VANISHED = 20


@pytest.fixture
def proxy(daemon: FakeDaemon) -> Iterator[SwallowingProxy]:
    with SwallowingProxy(daemon.endpoint) as proxy:
        yield proxy


def test_a_swallowed_connection_fails_its_requests_and_the_client_recovers(
    daemon: FakeDaemon, proxy: SwallowingProxy
) -> None:
    with Client(proxy.endpoint, timeout=60, connect_timeout=WAIT_S, peer_timeout=PEER_TIMEOUT_S) as client:
        futures = [client.submit("m", {"x": 1.0}) for _ in range(5)]
        for _ in futures:
            daemon.next()
        proxy.swallow()
        for future in futures:
            error = future.exception(WAIT_S)
            assert isinstance(error, Unavailable)
            assert error.reason == "connection_lost"
        proxy.restore()
        again = client.submit("m", {"x": 1.0}, timeout=WAIT_S)
        request = daemon.next()
        daemon.reply(request, fake_daemon.echo(request))
        assert again.result(WAIT_S)["x"].tolist() == 1.0


def test_a_caller_that_reads_its_own_reply_learns_of_a_swallowed_connection(
    daemon: FakeDaemon, proxy: SwallowingProxy
) -> None:
    with Client(proxy.endpoint, timeout=WAIT_S, connect_timeout=WAIT_S, peer_timeout=PEER_TIMEOUT_S) as client:
        first = client.submit("m", {"x": 1.0})
        request = daemon.next()
        daemon.reply(request, fake_daemon.echo(request))
        first.result(WAIT_S)
        proxy.swallow()
        with pytest.raises(Unavailable) as error:
            client.infer("m", {"x": 1.0})
        assert error.value.reason == "connection_lost"


def test_coroutines_learn_of_a_swallowed_connection(daemon: FakeDaemon, proxy: SwallowingProxy) -> None:
    async def run() -> None:
        arguments = {"timeout": 60.0, "connect_timeout": WAIT_S, "peer_timeout": PEER_TIMEOUT_S}
        async with AsyncClient(proxy.endpoint, **arguments) as client:
            task = client.submit("m", {"x": 1.0})
            await asyncio.to_thread(daemon.next)
            proxy.swallow()
            with pytest.raises(Unavailable) as error:
                await asyncio.wait_for(task, WAIT_S)
            assert error.value.reason == "connection_lost"

    asyncio.run(run())


def test_a_daemon_that_answers_late_is_not_lost(daemon: FakeDaemon) -> None:
    with Client(daemon.endpoint, timeout=WAIT_S, connect_timeout=WAIT_S, peer_timeout=PEER_TIMEOUT_S) as client:
        future = client.submit("m", {"x": 1.0})
        request = daemon.next()
        with pytest.raises(TimeoutError):
            future.result(3 * PEER_TIMEOUT_S)  # heartbeats are answered meanwhile
        daemon.reply(request, fake_daemon.echo(request))
        assert future.result(WAIT_S)["x"].tolist() == 1.0


@pytest.mark.parametrize("seconds", [-1, 0.1, 1e6, float("nan")], ids=str)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_peer_timeout_that_heartbeats_cannot_keep_is_refused(kind: type, seconds: float) -> None:
    with pytest.raises(ValueError, match="peer_timeout"):
        kind("tcp://127.0.0.1:5555", peer_timeout=seconds)


CONFIG = """
listen: ["{{endpoint}}", "tcp://127.0.0.1:*"]
devices: {{cpu: 1}}
spares: 0
peer_timeout: {peer_timeout}
models: [{{name: echo, handler: "handlers:Echo"}}]
"""


def test_the_daemon_releases_the_connections_of_vanished_clients(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG.format(peer_timeout="1s")) as daemon:
        daemon.wait_ready()
        listening = str(daemon.wait_line("daemon started")["listen"])
        endpoint = listening.partition(",")[2]
        pid, port = daemon.process.pid, int(endpoint.rpartition(":")[2])
        with SwallowingProxy(endpoint) as proxy:
            # They keep the connection when it is silent: only the daemon can notice.
            clients = [Client(proxy.endpoint, connect_timeout=WAIT_S, peer_timeout=0) for _ in range(VANISHED)]
            try:
                for client in clients:
                    client.infer("echo", {"x": np.ones((1, 2), np.float32)}, timeout=WAIT_S)
                # On a busy machine a client may answer heartbeats too late. Then it connects again, and looks for
                # the cause over a connection of its own.
                daemon.wait(lambda: accepted_connections(pid, port) == VANISHED)
                proxy.swallow()
                daemon.wait(lambda: accepted_connections(pid, port) == 0)
            finally:
                for client in clients:
                    client.close()


@pytest.mark.parametrize("kind", ["stream", "curve"])
def test_a_client_that_vanishes_within_a_large_reply_is_released(kind: str) -> None:
    """No heartbeat is sent while a frame waits to be written: the kernel has to end the connection."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    connections = Connections(100)
    locks = CurveLocks(context)
    front: RouterFront | StreamFront
    if kind == "stream":
        listen = functools.partial(TcpListener, context, PEER_TIMEOUT_S)
        front = StreamFront("tcp://127.0.0.1:*", 1 << 20, UnreadReplies(), connections, listen=listen)
    else:
        front = locks.open(connections, peer_timeout_s=PEER_TIMEOUT_S)
    peer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    try:
        with SwallowingProxy(front.endpoint) as proxy, Accepting(connections, locks.zap):
            peer.set(zmq.LINGER, 0)
            if isinstance(front, RouterFront):
                encrypt(peer)
            peer.connect(proxy.endpoint)
            peer.send_multipart([b"", b"MT1:infer", b"1", b"{}"])
            begun = time.monotonic()
            while (request := front.receive()) is None:
                assert time.monotonic() - begun < WAIT_S
                select.select([front.descriptor], [], [], 0.01)
            proxy.swallow()
            front.reply(request.address, b"MT1:ok", b"1", (b"{}", bytes(64 << 20)))
            begun = time.monotonic()
            while connections.open:
                assert time.monotonic() - begun < WAIT_S, "the connection is still open"
                assert front.receive() is None  # it notices the end
                time.sleep(0.02)
    finally:
        peer.close()
        front.close()
        locks.close()
        connections.close()
        context.term()
