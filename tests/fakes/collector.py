"""Stand-ins for a collector of OpenTelemetry: one that takes spans over gRPC and HTTP, and one that never answers."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


class Span:
    """A span that has arrived. Times are nanoseconds since the Unix epoch."""

    def __init__(self, span: Any, resource: dict[str, Any]) -> None:
        self.name: str = span.name
        self.trace_id: str = span.trace_id.hex()
        self.id: str = span.span_id.hex()
        self.parent_id: str = span.parent_span_id.hex()
        self.state: str = span.trace_state
        self.kind: int = span.kind
        self.start: int = span.start_time_unix_nano
        self.end: int = span.end_time_unix_nano
        self.attributes = _attributes(span.attributes)
        self.links = [link.span_id.hex() for link in span.links]
        self.failed: bool = span.status.code == 2
        self.resource = resource

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9


def _attributes(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


class Collector(TraceServiceServicer):
    """Takes spans on two ports of this machine.

    Attributes:
        grpc, http: its endpoints, as in the configuration.
        headers: of the last message, with names in lower case.
    """

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self._spans: list[Span] = []
        self._changed = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self._server)
        self.grpc = f"grpc://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._take))
        self.http = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._server.stop(None)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  gRPC's name
        self._take(request, {key.lower(): str(value) for key, value in context.invocation_metadata()})
        return ExportTraceServiceResponse()

    def _take(self, request: Any, headers: dict[str, str]) -> None:
        with self._changed:
            self.headers = headers
            for of_resource in request.resource_spans:
                resource = _attributes(of_resource.resource.attributes)
                for scope in of_resource.scope_spans:
                    self._spans += [Span(span, resource) for span in scope.spans]
            self._changed.notify_all()

    def spans(self) -> list[Span]:
        """All spans that have arrived."""
        with self._changed:
            return list(self._spans)

    def wait(self, wanted: Callable[[list[Span]], object]) -> list[Span]:
        """Returns all spans once they satisfy the condition."""
        until = time.monotonic() + 60
        with self._changed:
            while not wanted(self._spans):
                assert self._changed.wait(until - time.monotonic()), [span.name for span in self._spans]
            return list(self._spans)

    def wait_for_trace(self, trace_id: str, count: int = 4) -> dict[str, Span]:
        """Returns the spans of a trace by name, once there are as many."""

        def of_trace(spans: list[Span]) -> list[Span]:
            return [span for span in spans if span.trace_id == trace_id]

        return {span.name: span for span in of_trace(self.wait(lambda spans: len(of_trace(spans)) >= count))}


def _handler(take: Callable[[Any, dict[str, str]], None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            found = self.path == "/v1/traces"
            if found:
                take(
                    ExportTraceServiceRequest.FromString(body),
                    {key.lower(): value for key, value in self.headers.items()},
                )
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Tests print nothing."""

    return Handler


class SilentListener:
    """Accepts connections and never answers.

    Attributes:
        port: where it listens.
        connected: set once something has connected.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connected = threading.Event()
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._listener.close()
        for connection in self._connections:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                self._connections.append(self._listener.accept()[0])
            except OSError:
                return
            self.connected.set()


def unused_port() -> int:
    """A port of this machine where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
