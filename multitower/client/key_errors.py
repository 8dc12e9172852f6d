"""Finds out whether the keys prevent a connection, and says what to check.

libzmq reports that a key was refused, or that only one side uses CURVE. It reports neither where the daemon closes the
connection first, or cannot read what was encrypted for another key. So a plain socket reads the daemon's greeting,
which names the mechanism that the daemon uses.
"""

from __future__ import annotations

import socket
import time
from typing import Final

from multitower.addresses import split_tcp
from multitower.client.connect_errors import KEY_ERRORS, Finding
from multitower.errors import ConnectError
from multitower.wire import KEY_VARIABLE, SERVER_KEY_VARIABLE
from multitower.zmtp import GREETING

__all__ = ["KEY_ERRORS", "examine_keys", "refused"]

FAILED_HANDSHAKES: Final = 3
"""If so many handshakes in a row fail with a daemon that uses CURVE, the daemon has another key than the one that was
given. With a daemon that has too many connections, or is ending, only one or two fail."""

_SIGNATURE_BYTES: Final = 11
"""The first bytes of a greeting, up to the version of the protocol. The peer answers them with its whole greeting. If
the client sent a mechanism as well, the peer might close the connection instead."""

_MECHANISM: Final = slice(12, 32)


def refused(endpoint: str, kind: ConnectError, public_key: str | None) -> Finding:
    """What is known where the keys prevent a connection.

    Args:
        endpoint: the daemon's.
        kind: one of `KEY_ERRORS`.
        public_key: the client's; None if it has none.
    """
    messages = {
        ConnectError.KEY_REFUSED: (
            f"the daemon at {endpoint} does not admit this client's key, whose public part is {public_key}: is it "
            "(still) in the daemon's file of principals, and was that reloaded?"
        ),
        ConnectError.KEY_NEEDED: (
            f"the daemon at {endpoint} admits only clients with a key: pass key and server_key, or set {KEY_VARIABLE} "
            f"and {SERVER_KEY_VARIABLE}"
        ),
        ConnectError.NO_CURVE: (
            f"what listens at {endpoint} does not use CURVE and so cannot prove which daemon it is; nothing was sent. "
            "Is this the right endpoint, and has that daemon `security.curve`? A client without key and server_key "
            f"({KEY_VARIABLE}, {SERVER_KEY_VARIABLE}) would connect, unencrypted"
        ),
        ConnectError.SERVER_KEY_WRONG: (
            f"the daemon at {endpoint} has another key than server_key ({SERVER_KEY_VARIABLE}): ask its operator for "
            "its public key, which `multitower keys show FILE` prints"
        ),
    }
    return Finding(kind, messages[kind])


def examine_keys(endpoint: str, timeout_s: float, public_key: str | None, failed_handshakes: int) -> Finding | None:
    """Reads the daemon's greeting, and tells whether the keys prevent a connection.

    Args:
        endpoint: the daemon's, over tcp.
        timeout_s: seconds for an address to connect and to greet.
        public_key: the client's; None if it has none.
        failed_handshakes: how many have failed in a row.

    Returns:
        None if nothing listens, what listens does not speak ZMTP 3, or the keys do not explain it.
    """
    mechanism = _mechanism_at(endpoint, timeout_s)
    if mechanism == "CURVE" and public_key is None:
        return refused(endpoint, ConnectError.KEY_NEEDED, None)
    if mechanism == "NULL" and public_key is not None:
        return refused(endpoint, ConnectError.NO_CURVE, public_key)
    if mechanism == "CURVE" and failed_handshakes >= FAILED_HANDSHAKES:
        return refused(endpoint, ConnectError.SERVER_KEY_WRONG, public_key)
    return None


def _mechanism_at(endpoint: str, timeout_s: float) -> str | None:
    """The mechanism that the first address that answers names in its greeting."""
    host, port = split_tcp(endpoint)
    try:
        with socket.create_connection((host, port), timeout_s) as peer:
            return _read_mechanism(peer, time.monotonic() + timeout_s)
    except (OSError, UnicodeError):
        return None


def _read_mechanism(peer: socket.socket, until: float) -> str | None:
    peer.sendall(GREETING[:_SIGNATURE_BYTES])
    greeting = b""
    while len(greeting) < _MECHANISM.stop and (left_s := until - time.monotonic()) > 0:
        peer.settimeout(left_s)
        data = peer.recv(len(GREETING) - len(greeting))
        if not data:
            break
        greeting += data
    if len(greeting) < _MECHANISM.stop or greeting[0] != GREETING[0] or greeting[10] < 3:
        return None
    return greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")
