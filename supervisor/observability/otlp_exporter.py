"""Sends spans to a collector: makes OpenTelemetry's exporter for an endpoint, and keeps what it logs.

Without the extra `otel`, only `missing_packages` works.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ..config.tracing import GRPC

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

INSTALL: Final = "`pip install '.[otel]'` in the folder of multitower's sources installs them"

_LOGGERS: Final = ("opentelemetry", "urllib3")


def missing_packages(endpoint: str) -> list[str]:
    """The packages that sending spans to this endpoint needs and that are not installed."""
    protocol = "grpc" if urlsplit(endpoint).scheme in GRPC else "http"
    needed = {
        "opentelemetry-sdk": "opentelemetry.sdk.trace",
        f"opentelemetry-exporter-otlp-proto-{protocol}": f"opentelemetry.exporter.otlp.proto.{protocol}",
    }
    return [name for name, module in needed.items() if not _is_installed(module)]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


class CollectorError(Exception):
    """The collector has not taken all spans; the message has the cause.

    Attributes:
        taken: how many it has taken nevertheless.
    """

    def __init__(self, message: str, taken: int = 0) -> None:
        super().__init__(message)
        self.taken = taken


class Collector:
    """A collector of OpenTelemetry. Its methods block, so they are for a thread of their own.

    Headers, certificates, compression and time-outs are those of the environment variables `OTEL_EXPORTER_OTLP_*`.

    Args:
        endpoint: as `config.tracing` has checked it.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        for name in _LOGGERS:
            # They log each attempt. The daemon logs a failure itself, at a limited rate.
            logger = logging.getLogger(name)
            logger.propagate = False
            logger.handlers = [_messages]
        self._exporter = _make_exporter(endpoint)

    def send(self, spans: Sequence[ReadableSpan]) -> None:
        """Sends spans; tries again for as long as OTEL_EXPORTER_OTLP_TIMEOUT allows, 10 s by default.

        A span that cannot be encoded is left out.

        Raises:
            CollectorError: it has not taken them all.
        """
        try:
            self._export(spans)
        except CollectorError as error:
            encodable = [span for span in spans if _is_encodable(span)]
            if not encodable or len(encodable) == len(spans):
                raise
            self._export(encodable)
            raise CollectorError(f"some spans cannot be encoded: {error}", taken=len(encodable)) from error

    def _export(self, spans: Sequence[ReadableSpan]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        _messages.text = ""
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            raise CollectorError(f"{type(error).__name__}: {error}") from error
        if result is not SpanExportResult.SUCCESS:
            raise CollectorError(_messages.text or "the collector has not taken them")

    def close(self) -> None:
        """Ends a `send` that waits for its next attempt, in any thread, and releases the connection."""
        self._exporter.shutdown()


class _FirstMessage(logging.Handler):
    """Keeps the first message that is logged after `text` has been emptied: that of the first attempt has the cause.

    Each thread has a text of its own, so that an export that ends and its successor do not get each other's messages.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.local()

    @property
    def text(self) -> str:
        """The message; "" for none."""
        return getattr(self._thread, "text", "")

    @text.setter
    def text(self, text: str) -> None:
        self._thread.text = text

    def emit(self, record: logging.LogRecord) -> None:
        self.text = self.text or record.getMessage()


_messages: Final = _FirstMessage()


def _is_encodable(span: ReadableSpan) -> bool:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    try:
        encode_spans([span])
    except Exception:  # noqa: BLE001  the exporter has raised the same, which is reported
        return False
    return True


def _make_exporter(endpoint: str) -> SpanExporter:
    scheme = urlsplit(endpoint).scheme
    if scheme in GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        secure = scheme == "grpcs"
        address = endpoint.removeprefix(f"{scheme}://")
        return GrpcExporter(endpoint=f"{'https' if secure else 'http'}://{address}", insecure=not secure)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(endpoint=endpoint)
