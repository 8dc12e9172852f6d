"""A program that opens connections which must not get in, and waits until the server has ended each of them.

    python bad_handshakes.py < JOB

JOB is one line of JSON, see `Attack`. A third each is garbage, the beginning of a good handshake and then silence, and
a whole handshake with the wrong key or certificate. It prints, as JSON, how many the server has ended, by kind.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import zmq

KINDS = ("garbage", "half", "wrong")
LIMIT_S = 60.0
"""Seconds within which the server must have ended a connection, and accepted it before."""

STRANGERS_AT_ONCE = 25


@dataclass
class Attack:
    """What the program does.

    Attributes:
        host, port: of the server.
        count: connections in all.
        at_once: connections that are open at one time, of garbage and halves.
        server_key: the public key of a daemon with CURVE; None for TLS.
        authority, certificate, key: files, for TLS: the authority to trust; a certificate of another one, and its key.
    """

    host: str
    port: int
    count: int
    at_once: int
    server_key: str | None = None
    authority: str | None = None
    certificate: str | None = None
    key: str | None = None

    def start(self) -> subprocess.Popen[str]:
        """Starts the program."""
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(self)) + "\n")
        process.stdin.close()
        return process


def beginning_of_curve() -> bytes:
    """The greeting of ZMTP with CURVE, and the head of the first command behind it."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32) + b"\x04\xc8\x05HELLO"


def beginning_of_tls() -> bytes:
    """The first message of a handshake of TLS."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("the handshake is over without an answer")


async def until_ended(attack: Attack, data: bytes) -> None:
    """Connects, sends something, and reads until the server ends the connection.

    Raises:
        TimeoutError: it did not.
    """
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection(attack.host, attack.port)
        try:
            writer.write(data)
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass  # it was reset: ended, too
        finally:
            writer.transport.abort()


async def wrong_certificate(attack: Attack) -> None:
    """Shakes hands with a certificate of another authority, and waits for the refusal."""
    context = ssl.create_default_context(cafile=attack.authority)
    assert attack.certificate is not None
    context.load_cert_chain(attack.certificate, attack.key)
    async with asyncio.timeout(LIMIT_S):
        try:
            reader, writer = await asyncio.open_connection(
                attack.host, attack.port, ssl=context, server_hostname="localhost"
            )
        except (ssl.SSLError, ConnectionError):
            return
        try:
            # With TLS 1.3 a client has shaken hands before it learns of the refusal.
            while await reader.read(4096):
                pass
        except (ssl.SSLError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


def wrong_keys(attack: Attack, count: int) -> int:
    """Shakes hands with keys of nobody, by libzmq; returns how many were refused."""
    assert attack.server_key is not None
    refused = 0
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        strangers, monitors = [], []
        for _ in range(count):
            stranger = context.socket(zmq.DEALER)
            strangers.append(stranger)
            public, secret = zmq.curve_keypair()
            stranger.set(zmq.CURVE_SERVERKEY, attack.server_key.encode())
            stranger.set(zmq.CURVE_PUBLICKEY, public)
            stranger.set(zmq.CURVE_SECRETKEY, secret)
            stranger.set(zmq.RECONNECT_IVL, -1)
            monitors.append(stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED))
            stranger.connect(f"tcp://{attack.host}:{attack.port}")
        for monitor in monitors:
            refused += monitor.poll(int(LIMIT_S * 1000)) != 0
    finally:
        context.destroy(linger=0)
    return refused


async def run(attack: Attack) -> Counter[str]:
    """Makes all connections; returns how many of each kind the server has ended."""
    begun = beginning_of_curve() if attack.server_key is not None else beginning_of_tls()
    ended: Counter[str] = Counter()
    places = asyncio.Semaphore(attack.at_once)
    share = attack.count // len(KINDS)

    def garbage(number: int) -> bytes:
        chosen = random.Random(number)
        data = chosen.randbytes(chosen.choice([1, 9, 64, 200, 4000]))
        return begun[:12] + data if number % 2 else data  # every other time after a good beginning

    def half(number: int) -> bytes:
        return begun[: number % len(begun)]

    async def one(kind: str, data: bytes) -> None:
        async with places:
            await until_ended(attack, data)
        ended[kind] += 1

    async def all_of(kind: str, made: Callable[[int], bytes]) -> None:
        await asyncio.gather(*(one(kind, made(number)) for number in range(share)))

    async def strangers() -> None:
        for left in range(share, 0, -STRANGERS_AT_ONCE):
            count = min(left, STRANGERS_AT_ONCE)
            if attack.server_key is not None:
                ended["wrong"] += await asyncio.to_thread(wrong_keys, attack, count)
            else:
                await asyncio.gather(*(wrong_certificate(attack) for _ in range(count)))
                ended["wrong"] += count

    await asyncio.gather(all_of("garbage", garbage), all_of("half", half), strangers())
    return ended


if __name__ == "__main__":
    # Attackers have a machine of their own: what they compute must not look like what they cost.
    os.nice(19)
    print(json.dumps(asyncio.run(run(Attack(**json.loads(sys.stdin.readline()))))))  # noqa: T201  its result
