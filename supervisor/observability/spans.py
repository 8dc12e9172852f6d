"""Makes the spans of traced requests, in OpenTelemetry's form.

Of each request: a span `infer MODEL` from its receipt to its reply; in it `queue`, until it was sent to a worker; a
span `batch` for each batch that it was in; and in that one `compute`, the execution of the model. The spans of the
requests in one batch are linked: the first one's span `batch` has links to the other requests, and their spans `batch`
have a link to it.

This module needs the extra `otel`, so it is imported in the thread that exports spans and nowhere else.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Final, TypeAlias

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from multitower.errors import Code

from ..scheduling.batch_run import BatchRun
from .traced_request import TracedRequest

MAX_LINKS: Final = 128
"""Links of a span, as OpenTelemetry limits them."""

_REMEMBERED_BATCHES: Final = 1024
"""Batches whose first span is known for links of requests that are answered later."""

_SERVER_ERRORS: Final = (Code.UNIMPLEMENTED, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.INTERNAL)
"""Codes that make a server's span an error, by the conventions for gRPC; others are the client's."""

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)

Attributes: TypeAlias = dict[str, str | int | float]


class _ConstantResource(Resource):
    """A resource whose hash is computed once. Exporters need it for each span, and it takes a fifth of their time."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)

    def __hash__(self) -> int:
        return self._hash


def own_resource() -> Resource:
    """What the spans tell of this daemon. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override it."""
    own = Resource({"service.name": "multitower", "service.version": version("multitower")})
    return _ConstantResource(Resource.create(dict(own.merge(OTELResourceDetector().detect()).attributes)))


class SpanMaker:
    """Makes spans.

    Args:
        resource: what the spans tell of the daemon.
    """

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._scope = InstrumentationScope("multitower", version("multitower"))
        self._ids = RandomIdGenerator()
        self._first_of_batch: OrderedDict[int, SpanContext] = OrderedDict()

    def make(self, requests: Sequence[TracedRequest]) -> list[ReadableSpan]:
        """Makes the spans of requests that were answered at the same time."""
        # One offset for all of them, so that spans lie within their parents whatever becomes of the clock.
        offset_ns = time.time_ns() - time.monotonic_ns()
        trees = [_Tree(request, self._ids) for request in requests]
        others: dict[int, list[SpanContext]] = {}
        for tree in trees:
            for run, context in tree.batches:
                if run.id not in self._first_of_batch:
                    self._first_of_batch[run.id] = context
                elif len(others.setdefault(run.id, [])) < MAX_LINKS:
                    others[run.id].append(tree.context)
        spans = [span for tree in trees for span in self._spans_of(tree, others, offset_ns)]
        while len(self._first_of_batch) > _REMEMBERED_BATCHES:
            self._first_of_batch.popitem(last=False)
        return spans

    def _spans_of(self, tree: _Tree, others: dict[int, list[SpanContext]], offset_ns: int) -> Iterable[ReadableSpan]:
        request = tree.request
        start, end = _nanoseconds(request.received), _nanoseconds(request.answered)
        yield ReadableSpan(
            f"infer {request.model}" if request.model else "infer",
            tree.context,
            tree.parent,
            self._resource,
            _request_attributes(request),
            kind=SpanKind.SERVER,
            status=_status(request),
            start_time=start + offset_ns,
            end_time=end + offset_ns,
            instrumentation_scope=self._scope,
        )
        sent = _nanoseconds(min([run.sent for run in request.runs], default=request.sent or request.answered))
        sent = min(max(sent, start), end)
        if request.received != request.answered:
            yield self._child(tree, tree.context, "queue", start, sent, offset_ns)
        if request.sent is not None and not request.runs:
            # No worker has answered it: its worker died, or its deadline passed.
            yield self._child(tree, tree.context, "batch", sent, end, offset_ns, failed=True)
        for run, context in tree.batches:
            first = self._first_of_batch[run.id]
            linked = others.get(run.id, ()) if first is context else (first,)
            yield from self._batch_spans(tree, run, context, linked, offset_ns)

    def _batch_spans(
        self, tree: _Tree, run: BatchRun, context: SpanContext, linked: Iterable[SpanContext], offset_ns: int
    ) -> Iterable[ReadableSpan]:
        first, last = _nanoseconds(tree.request.received), _nanoseconds(tree.request.answered)
        start, end = max(_nanoseconds(run.sent), first), min(_nanoseconds(run.ended), last)
        attributes: Attributes = {
            "multitower.slot": run.slot,
            "multitower.device": run.device,
            "multitower.batch.id": run.id,
            "multitower.batch.requests": run.requests,
            "multitower.batch.rows": run.rows,
            "multitower.batch.executed_rows": run.size,
            "multitower.batch.assemble_seconds": run.assemble_ns / 1e9,
            "multitower.batch.slice_seconds": run.slice_ns / 1e9,
        }
        links = [Link(each) for each in linked]
        yield self._child(
            tree, tree.context, "batch", start, end, offset_ns, context=context, attributes=attributes, links=links
        )
        # How long it took is measured. When it began is not: what remains of the batch's time is divided evenly.
        rest = end - max(_nanoseconds(run.started), start) - run.assemble_ns - run.compute_ns - run.slice_ns
        ended = max(end - run.slice_ns - max(rest, 0) // 2, start)
        yield self._child(tree, context, "compute", max(ended - run.compute_ns, start), ended, offset_ns)

    def _child(
        self,
        tree: _Tree,
        parent: SpanContext,
        name: str,
        start: int,
        end: int,
        offset_ns: int,
        *,
        context: SpanContext | None = None,
        attributes: Attributes | None = None,
        links: Sequence[Link] = (),
        failed: bool = False,
    ) -> ReadableSpan:
        return ReadableSpan(
            name,
            context or tree.new_context(self._ids),
            parent,
            self._resource,
            attributes,
            links=links,
            status=_status(tree.request) if failed else Status(),
            start_time=start + offset_ns,
            end_time=end + offset_ns,
            instrumentation_scope=self._scope,
        )


class _Tree:
    """The spans of one request.

    Args:
        request: the request.
        ids: makes the identifiers.

    Attributes:
        request: as given.
        parent: the client's span; None in a new trace.
        context: of the request's own span.
        batches: the batches that the request was in, with the contexts of their spans.
    """

    def __init__(self, request: TracedRequest, ids: RandomIdGenerator) -> None:
        self.request = request
        trace = request.trace
        self.parent: SpanContext | None = None
        if trace is None:
            self._trace_id, self._state = ids.generate_trace_id(), TraceState()
        else:
            self._trace_id = trace.trace_id
            self._state = TraceState.from_header([trace.state]) if trace.state else TraceState()
            self.parent = SpanContext(trace.trace_id, trace.span_id, True, _SAMPLED, self._state)
        self.context = self.new_context(ids)
        self.batches = [(run, self.new_context(ids)) for run in request.runs]

    def new_context(self, ids: RandomIdGenerator) -> SpanContext:
        """The context of another span of this tree."""
        return SpanContext(self._trace_id, ids.generate_span_id(), False, _SAMPLED, self._state)


def _request_attributes(request: TracedRequest) -> Attributes:
    attributes: Attributes = {
        "rpc.system.name": "multitower",
        "rpc.method": "MT1:infer",
        "multitower.interface": request.interface,
        "multitower.request.id": _readable(request.id),
    }
    if request.model:
        attributes["multitower.model"] = request.model
    if request.version:
        attributes["multitower.version"] = request.version
    if request.rows:
        attributes["multitower.rows"] = request.rows
    if request.runs:
        run = request.runs[-1]
        attributes["multitower.slot"] = run.slot
        attributes["multitower.device"] = run.device
        attributes["multitower.batch.rows"] = run.rows
    if request.deaths:
        attributes["multitower.worker_deaths"] = request.deaths
    if request.reason:
        attributes["error.type"] = request.reason
        attributes["rpc.response.status_code"] = request.code
    return attributes


def _status(request: TracedRequest) -> Status:
    return Status(StatusCode.ERROR, request.reason) if request.code in _SERVER_ERRORS else Status()


def _readable(id: bytes) -> str:
    """The id of a request as text: as it is where that is printable ASCII, else in hexadecimal digits."""
    return id.decode() if id.isascii() and id.decode().isprintable() else id.hex()


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
