"""The section `gateway` of a configuration: where HTTP and gRPC are served, and within which limits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema, field_validator

from .section_types import (
    OptionalPositiveBytes,
    PositiveBytes,
    PositiveSeconds,
    Section,
    context_of,
    key,
    one_or_more,
    one_or_more_schema,
)
from .security import TlsConfig
from .units import format_size, short_repr
from .validation_errors import raise_missing_key
from .value_syntax import Lacking, both, either, parse_endpoint

UNIX: Final = "unix:"
"""The beginning of an address that is the path of a Unix socket."""

EVERYTHING: Final = Lacking("encryption or authorisation", "security and gateway.tls")
ENCRYPTION: Final = Lacking("encryption", "gateway.tls")
AUTHORISATION: Final = Lacking("authorisation", "security")

FEWEST_BODIES: Final = 2
"""Bodies of the largest size for which the memory of requests must have room."""

ADDRESS_PATTERN: Final = r"^(?:unix:.+|[^/]+:(?:\*|[0-9]+))$"

_TCP: Final = "tcp://"
_IPC: Final = "ipc://"


def endpoint_of(address: str) -> str:
    """The endpoint of an address, in the form of `listen`: `tcp://HOST:PORT` or `ipc://PATH`."""
    return f"{_IPC}{address.removeprefix(UNIX)}" if address.startswith(UNIX) else f"{_TCP}{address}"


def address_of(endpoint: str) -> str:
    """The address of an endpoint that `endpoint_of` returned."""
    return f"{UNIX}{endpoint.removeprefix(_IPC)}" if endpoint.startswith(_IPC) else endpoint.removeprefix(_TCP)


def parse_address(value: object, folder: Path, *, guarded: bool | None, lacks: Lacking = EVERYTHING) -> str:
    """Parses an address to listen on: `HOST:PORT`, where the port may be `*`, or `unix:PATH`.

    Args:
        value: from YAML.
        folder: the configuration file's, where relative paths start.
        guarded: see `parse_endpoint`.
        lacks: see `parse_endpoint`.

    Returns:
        The address, with an absolute path.

    Raises:
        ValueError: it is no such address; the message is for the user.
    """
    forms = "HOST:PORT or unix:PATH, as in 127.0.0.1:8000"
    if not isinstance(value, str):
        raise ValueError(f"must be {forms}, not {short_repr(value)}")
    if "://" in value:
        raise ValueError(f"{short_repr(value)} must be {forms}; an address has no scheme")
    if value.startswith(UNIX):
        path = value.removeprefix(UNIX)
        if not path or "\0" in path:
            raise ValueError(f"{short_repr(value)} must name a file, as in unix:/run/multitower/http.sock")
        return address_of(parse_endpoint(f"{_IPC}{path}", folder, guarded=guarded, lacks=lacks))
    host, colon, port = value.rpartition(":")
    if not colon or not host or not (port == "*" or port.isdecimal()):
        raise ValueError(f"{short_repr(value)} must be {forms}")
    if ":" in host and not host.startswith("["):
        raise ValueError(f"{short_repr(value)}: an IPv6 address is written in brackets and quotes, as in '[::1]:8000'")
    return address_of(parse_endpoint(f"{_TCP}{value}", folder, guarded=guarded, lacks=lacks))


def _addresses(value: object, info: ValidationInfo) -> tuple[str, ...]:
    """Parses one address or a list of them."""
    context = context_of(info)
    found: set[str] = set()
    guarded = either(context.insecure, both(context.security, context.tls))

    lacks = ENCRYPTION if context.security else AUTHORISATION if context.tls else EVERYTHING

    def parse(item: object) -> str:
        address = parse_address(item, context.folder, guarded=guarded, lacks=lacks)
        if address in found:
            raise ValueError(f"{address} is listed twice")
        found.add(address)
        # Each `*` is another port.
        if endpoint_of(address) in context.endpoints and not address.endswith(":*"):
            raise ValueError(f"{address} is an endpoint of `listen`, where clients speak another protocol")
        return address

    return one_or_more(value, parse, "must not be empty; leave the key out to serve nothing there")


def _optional_addresses(value: object, info: ValidationInfo) -> tuple[str, ...]:
    return () if value is None else _addresses(value, info)


_Addresses = Annotated[
    tuple[str, ...],
    PlainValidator(_optional_addresses),
    WithJsonSchema(one_or_more_schema({"type": "string", "pattern": ADDRESS_PATTERN})),
]


def _program(value: object, info: ValidationInfo) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be the path of a program, not {short_repr(value)}")
    return Path(os.path.normpath(context_of(info).folder / value))


class GatewayConfig(Section):
    """The gateway: a program beside the daemon that serves HTTP and gRPC. At least one of both has an address."""

    tls: TlsConfig | None = key(None, "TLS for all tcp addresses; without it, none.")
    http: _Addresses = key(None, "Where HTTP is served: HOST:PORT or unix:PATH, or a list; the port may be *.")
    grpc: _Addresses = key(None, "Where gRPC is served; the same address as `http` is one port for both.")
    threads: Annotated[int, Field(ge=1, le=64)] = key(1, "Threads, each with an event loop of its own.")
    operate: bool = key(False, "Whether clients may load and unload models and change the configuration.")
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = key(
        1024, "Connections of clients that may be open at one time; others wait."
    )
    max_body_size: PositiveBytes = key("64MiB", "The largest body of a request, and the largest message of gRPC.")
    max_buffered_bytes: OptionalPositiveBytes = key(
        None,
        "Memory of all requests and responses; default: 512MiB, or eight times `max_body_size` if that is more.",
    )
    body_timeout: PositiveSeconds = key("60s", "The longest time in which the body of a request must have arrived.")
    idle_timeout: PositiveSeconds = key("5m", "A connection without a request for so long is closed.")
    program: Annotated[Path | None, PlainValidator(_program), WithJsonSchema({"type": "string", "minLength": 1})] = key(
        None, "The gateway's program; default: multitower-gateway beside Python's own program, or in PATH."
    )

    @field_validator("tls", mode="before")
    @classmethod
    def _known_to_be_there(cls, value: object, info: ValidationInfo) -> object:
        context_of(info).tls = None if value is not None else False
        return value

    @field_validator("tls")
    @classmethod
    def _known_to_be_right(cls, value: TlsConfig | None, info: ValidationInfo) -> TlsConfig | None:
        context_of(info).tls = value is not None
        return value

    @field_validator("grpc")
    @classmethod
    def _has_an_address(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not value and not info.data.get("http", True):
            raise_missing_key("http", "grpc")
        return value

    @field_validator("max_buffered_bytes")
    @classmethod
    def _has_room_for_two_bodies(cls, value: int | None, info: ValidationInfo) -> int | None:
        body = info.data.get("max_body_size")  # missing if it is wrong itself
        if value is not None and body is not None and value < FEWEST_BODIES * body:
            raise ValueError(
                f"must be at least twice max_body_size, which is {format_size(body)}: "
                "a compressed body and its content are in memory together"
            )
        return value

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses, each once."""
        return tuple(dict.fromkeys((*self.http, *self.grpc)))
