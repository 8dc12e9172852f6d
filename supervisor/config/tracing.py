"""The section `tracing` of a configuration: where the spans of requests are sent, and of how many."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, PlainValidator, WithJsonSchema

from .section_types import Section, key
from .units import short_repr

ENDPOINT_PATTERN: Final = r"^(?:https?|grpcs?)://[^/@]+(?:/.*)?$"
GRPC: Final = ("grpc", "grpcs")
TRACES_PATH: Final = "/v1/traces"
"""Where a collector takes spans over HTTP."""

_SCHEMES: Final = ("http", "https", *GRPC)
_GRPC_PORT: Final = 4317


def parse_endpoint_of_collector(value: object) -> str:
    """Parses the endpoint of a collector that speaks OTLP.

    Args:
        value: from YAML.

    Returns:
        The endpoint: over HTTP with the path, over gRPC with the port.

    Raises:
        ValueError: it is no such endpoint; the message is for the user.
    """
    forms = "grpc://HOST:PORT or http://HOST:PORT/v1/traces, or grpcs or https for TLS"
    if not isinstance(value, str):
        raise ValueError(f"must be {forms}, not {short_repr(value)}")
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError as error:
        raise ValueError(f"{short_repr(value)} must be {forms}: {error}") from None
    if url.scheme not in _SCHEMES or not url.hostname or any(mark in value for mark in " \t\r\n\0"):
        raise ValueError(f"{short_repr(value)} must be {forms}")
    if url.username is not None or url.password is not None:
        raise ValueError("must not contain a password; OTEL_EXPORTER_OTLP_HEADERS has what a collector needs")
    if url.query or url.fragment:
        raise ValueError(f"{short_repr(value)} must have neither ? nor #")
    if url.scheme not in GRPC:
        return urlunsplit(url._replace(path=url.path if url.path.strip("/") else TRACES_PATH))
    if url.path.strip("/"):
        raise ValueError(f"{short_repr(value)} must have no path: gRPC has none")
    return f"{url.scheme}://{url.netloc.rstrip(':')}" + ("" if port is not None else f":{_GRPC_PORT}")


class TracingConfig(Section):
    """Traces of requests, sent to a collector of OpenTelemetry."""

    endpoint: Annotated[
        str,
        PlainValidator(parse_endpoint_of_collector),
        WithJsonSchema({"type": "string", "pattern": ENDPOINT_PATTERN}),
    ] = Field(description="The collector's endpoint for OTLP: grpc://HOST:4317, or http://HOST:4318/v1/traces.")
    sample: Annotated[float, Field(ge=0, le=1)] = key(
        0.01, "The share of requests that are traced, from 0 to 1, besides those whose client is traced itself."
    )
    max_per_second: Annotated[int, Field(ge=1, le=1_000_000)] = key(
        50, "Requests a second that `sample` chooses at most, so that traces cost little at any rate."
    )
