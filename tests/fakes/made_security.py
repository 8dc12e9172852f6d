"""Files of a daemon with `security`: its CURVE keys, principals and their keys, and a certificate for the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zmq

PRIVATE_KEY: Final = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgoruV7iRkFfBo35h8
rP1HpPFQCqdtIIojjgwMKBnal3KhRANCAAQOeemHaW8neUZ8f4L7z0DLKOxh3NjX
Sk4Re4jVuYNYaRbXfVDJ5ofS4atF7U44cqcN1nEqRLYEWqJDdbPLYhZW
-----END PRIVATE KEY-----
"""
CERTIFICATE: Final = """\
-----BEGIN CERTIFICATE-----
MIIBmjCCAUGgAwIBAgIUOC1y/b4qv0OwZtQlpj1upgj3jtUwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTIwMjAzNDQzMVoYDzIxMjYxMTA4
MDM0NDMxWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQOeemHaW8neUZ8f4L7z0DLKOxh3NjXSk4Re4jVuYNYaRbXfVDJ5ofS
4atF7U44cqcN1nEqRLYEWqJDdbPLYhZWo28wbTAdBgNVHQ4EFgQU1u7V7MUg95CH
3SPk7skaimOsy3UwHwYDVR0jBBgwFoAU1u7V7MUg95CH3SPk7skaimOsy3UwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDRwAwRAIgL7xgxjQtE372u6sfg9/zgteY019OXtKKmRvrg7JR+wICIGAd
1bWXqoKhmlBe8Sx4h4TmQDB1I8ICxQ0sXrc3AMyD
-----END CERTIFICATE-----
"""
"""Of `localhost`, signed by itself; not for anything but tests."""

SERVER_KEY = "server.key_secret"
PRINCIPALS = "principals.yaml"


@dataclass(frozen=True, slots=True)
class Keys:
    """A pair of CURVE keys in Z85."""

    public: str
    secret: str


def make_keys() -> Keys:
    public, secret = zmq.curve_keypair()
    return Keys(public.decode(), secret.decode())


def write_secret(path: Path, keys: Keys, mode: int = 0o600) -> Path:
    """Writes a secret key as `multitower keys new` does, in the format of libzmq's certificates."""
    path.write_text(f'metadata\ncurve\n    public-key = "{keys.public}"\n    secret-key = "{keys.secret}"\n')
    path.chmod(mode)
    return path


def write_principals(path: Path, principals: Iterable[Mapping[str, Any]]) -> Path:
    """Writes a file of principals, each with the keys of the file; JSON is YAML."""
    lines = [f"- {json.dumps(principal)}" for principal in principals]
    path.write_text("\n".join(["principals:", *lines, ""]) if lines else "principals: []\n")
    path.chmod(0o644)
    return path


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Writes certificate.pem and private_key.pem; returns both paths."""
    certificate, private_key = folder / "certificate.pem", folder / "private_key.pem"
    certificate.write_text(CERTIFICATE)
    private_key.write_text(PRIVATE_KEY)
    private_key.chmod(0o600)
    return certificate, private_key


def make_security(folder: Path, principals: Iterable[Mapping[str, Any]] = ()) -> Keys:
    """Writes what `security: {curve: {secret_key: server.key_secret}, principals: principals.yaml}` names, and returns
    the daemon's keys.
    """
    keys = make_keys()
    write_secret(folder / SERVER_KEY, keys)
    write_principals(folder / PRINCIPALS, principals)
    return keys
