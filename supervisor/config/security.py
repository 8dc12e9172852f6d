"""The sections `security` and `gateway.tls`: who gets in, and the keys with which connections are encrypted.

The files that they name are examined when the configuration is read, so that `multitower check` and a reload find what
is wrong with them.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import PlainValidator, PrivateAttr, ValidationInfo, WithJsonSchema, field_validator

from multitower.curve_keys import is_key

from ..loop.bounded_call import call_within
from .principals import read_principals
from .secret_files import GuardedFileError, read_curve_keys, read_list, read_secret
from .section_types import Section, context_of, key
from .source import ConfigError
from .units import printable, short_repr
from .value_syntax import ANSWER_S

T = TypeVar("T")


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be the path of a file, not {short_repr(value)}")
    return Path(os.path.normpath(context_of(info).folder / value))


def _answered(path: Path, read: Callable[[], T]) -> T:
    """Reads a file whose file system may not answer."""
    try:
        return call_within(ANSWER_S, read)
    except TimeoutError as late:
        raise ValueError(f"{printable(path)} cannot be read: its file system gave {late}") from late


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def _curve_secret(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if is_key(str(value)) and _answered(path, partial(_is_missing, path)):
        raise ValueError(
            "must be the path of a file; there is none of this name, which is not shown: it may be a secret key itself"
        )
    context_of(info).curve_public_key = _answered(path, partial(read_curve_keys, path)).public
    return path


def _principals(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    context = context_of(info)
    try:
        context.principals = _answered(path, partial(read_principals, path))
    except ConfigError as error:
        # They have positions in that file.
        context.problems_elsewhere += error.problems
    return path


def _certificate(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    _answered(path, partial(_check_certificates, path))
    return path


def _client_ca(value: object, info: ValidationInfo) -> Path | None:
    if value is None:
        return None
    path = _path(value, info)
    # Checked as the file of principals is: a user who may write it can issue a certificate for each of them.
    _answered(path, partial(read_list, path, "certificates of authorities in PEM"))
    _answered(path, partial(_check_certificates, path))
    return path


def _check_certificates(path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"{printable(path)} holds no certificate in PEM") from None
    except OSError as error:
        raise ValueError(f"{printable(path)} cannot be read: {error.strerror}") from None


def _private_key(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    certificate = info.data.get("certificate")  # missing if it is wrong itself
    _answered(path, partial(_check_private_key, path, certificate))
    return path


def _check_private_key(path: Path, certificate: Path | None) -> None:
    if "PRIVATE KEY-----" not in read_secret(path, "a private key in PEM"):
        raise GuardedFileError(f"{printable(path)} holds no private key in PEM")
    if certificate is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, path, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{printable(path)} does not belong to the certificate {printable(certificate)}") from None
        why = (error.reason or "").replace("_", " ").lower()
        raise ValueError(f"{printable(path)} cannot be used with {printable(certificate)}: {why}") from None
    except OSError as error:
        raise ValueError(f"{printable(path)} cannot be read: {error.strerror}") from None


def _no_password() -> str:
    raise ValueError(
        "the private key is encrypted; nobody is there to enter its password: `openssl pkey -in KEY -out PLAIN` writes "
        "it without one"
    )


_FILE = WithJsonSchema({"type": "string", "minLength": 1})


class CurveConfig(Section):
    """CURVE, the encryption of ZeroMQ, for all tcp endpoints of `listen`."""

    secret_key: Annotated[Path, PlainValidator(_curve_secret), _FILE] = key(
        ..., "The file with the daemon's secret key, which nobody else may read: `multitower keys new --server`."
    )
    _public_key: str = PrivateAttr(default="")

    def model_post_init(self, context: Any) -> None:
        """Keeps what was read with the configuration; pydantic calls it."""
        if context is not None:
            self._public_key = context.curve_public_key

    @property
    def public_key(self) -> str:
        """The daemon's public key, in Z85, as the file of `secret_key` had it when the configuration was read."""
        return self._public_key


class SecurityConfig(Section):
    """Who may do what. With this section every client needs credentials, except local users on Unix sockets."""

    curve: CurveConfig | None = key(None, "Encryption of the tcp endpoints of `listen`; required where there is one.")
    principals: Annotated[Path, PlainValidator(_principals), _FILE] = key(
        ..., "The YAML file with the principals, their keys, roles and models; a reload reads it again."
    )

    @field_validator("curve")
    @classmethod
    def _noted(cls, value: CurveConfig | None, info: ValidationInfo) -> CurveConfig | None:
        context_of(info).curve = value is not None
        return value


class TlsConfig(Section):
    """TLS for all tcp addresses of the gateway. Its files are read again when they change."""

    certificate: Annotated[Path, PlainValidator(_certificate), _FILE] = key(
        ..., "The certificate in PEM, with those of intermediate authorities behind it."
    )
    private_key: Annotated[Path, PlainValidator(_private_key), _FILE] = key(
        ..., "Its private key in PEM, which nobody else may read."
    )
    client_ca: Annotated[Path | None, PlainValidator(_client_ca), _FILE] = key(
        None, "Certificates of authorities, in PEM: clients may show a certificate by one of them, CN the principal."
    )
