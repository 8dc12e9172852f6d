"""Who a client is, to a daemon with `security`: its pair of CURVE keys, and the daemon's public key."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TypeAlias

from multitower.curve_keys import (
    KEY_FORM,
    KeyPair,
    KeyProblemError,
    check_curve,
    exists,
    is_key,
    pair_of,
    read_public_file,
    read_secret_file,
)
from multitower.errors import InvalidKey
from multitower.wire import KEY_VARIABLE, SERVER_KEY_VARIABLE

Key: TypeAlias = str | os.PathLike[str] | tuple[str | bytes, str | bytes]
"""A client's keys: the path of a secret key file, a secret key in Z85, or a pair of a public and a secret key."""

ServerKey: TypeAlias = str | bytes | os.PathLike[str]
"""A daemon's public key in Z85, or the path of a file that holds it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What CURVE needs to connect. Its representation lacks the secret key.

    Attributes:
        public: the client's public key, in Z85.
        secret: the client's secret key, in Z85.
        server: the daemon's public key, in Z85.
    """

    public: str
    secret: str = field(repr=False)
    server: str


def find_credentials(endpoint: str, key: Key | None, server_key: ServerKey | None) -> Credentials | None:
    """The credentials for an endpoint.

    Args:
        endpoint: the daemon's. Over ipc there are none: the daemon asks the kernel who connects.
        key: the client's keys; None for what `MULTITOWER_KEY` has.
        server_key: the daemon's public key; None for what `MULTITOWER_SERVER_KEY` has.

    Returns:
        None if neither key is given.

    Raises:
        InvalidKey: a key cannot be used, or only one of the two is given. An empty variable counts as given.
    """
    if not endpoint.startswith("tcp://"):
        return None
    key_name, server_name = "key", "server_key"
    if key is None and KEY_VARIABLE in os.environ:
        key, key_name = os.environ[KEY_VARIABLE], KEY_VARIABLE
    if server_key is None and SERVER_KEY_VARIABLE in os.environ:
        server_key, server_name = os.environ[SERVER_KEY_VARIABLE], SERVER_KEY_VARIABLE
    if key is None and server_key is None:
        return None
    if key is None or server_key is None:
        given, missing = (server_name, "key") if key is None else (key_name, "server_key")
        variable = KEY_VARIABLE if key is None else SERVER_KEY_VARIABLE
        raise InvalidKey(missing, f"{given} is given, and {missing} is not: pass it, or set {variable}")
    try:
        check_curve()
        pair = _read_key(key)
    except KeyProblemError as error:
        raise InvalidKey("key", f"{key_name}: {error}") from None
    try:
        server = _read_server_key(server_key)
    except KeyProblemError as error:
        raise InvalidKey("server_key", f"{server_name}: {error}") from None
    return Credentials(pair.public, pair.secret, server)


def _read_key(key: Key) -> KeyPair:
    if isinstance(key, tuple):
        if len(key) != 2:
            raise KeyProblemError("a pair is a public and a secret key")
        public, secret = map(_to_text, key)
        pair = pair_of(secret)
        if pair.public != public:
            raise KeyProblemError("the public and the secret key are no pair")
        return pair
    if not isinstance(key, str):
        return read_secret_file(_to_path(key))
    if exists(key):
        return read_secret_file(key)
    if is_key(key):
        return pair_of(key)
    if key.endswith(".key_secret"):
        raise KeyProblemError(f"there is no file {key}")
    # Not repeated: it may be a secret key with a slip in it.
    raise KeyProblemError(f"it is neither a file that exists nor {KEY_FORM}" if key else "it is empty")


def _read_server_key(key: ServerKey) -> str:
    if isinstance(key, bytes):
        key = _to_text(key)
    if not isinstance(key, str):
        return read_public_file(_to_path(key))
    if exists(key):
        return read_public_file(key)
    if is_key(key):
        return key
    raise KeyProblemError(f"{key[:200]!r} is neither a file that exists nor {KEY_FORM}" if key else "it is empty")


def _to_text(key: object) -> str:
    if isinstance(key, bytes):
        return key.decode("ascii", "replace")
    if isinstance(key, str):
        return key
    raise KeyProblemError(f"it is {type(key).__name__}, not str or bytes")


def _to_path(key: object) -> str:
    if isinstance(key, os.PathLike) and isinstance(path := os.fspath(key), str):
        return path
    raise KeyProblemError(f"it is {type(key).__name__}, neither a path nor {KEY_FORM}")
