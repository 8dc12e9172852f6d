"""The trace that a request of the application belongs to: as it is passed, or OpenTelemetry's current span."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from multitower.trace_context import TRACEPARENT, TRACESTATE, read_traceparent


class TraceHeaders(NamedTuple):
    """A sampled trace: `traceparent`, which is valid, and `tracestate` or ""."""

    traceparent: str
    tracestate: str


def sampled_trace(given: Mapping[str, str] | None) -> TraceHeaders | None:
    """The trace of a request; None if it belongs to none that is sampled.

    A trace that is not sampled is left out: each such header is different, so the daemon cannot take its plan from the
    cache.

    Args:
        given: what the application passes: headers of W3C Trace Context. None for OpenTelemetry's current span, where
            the application has imported OpenTelemetry.
    """
    if given is None:
        return _current_trace()
    # A program that has no trace may pass None for a header.
    traceparent, tracestate = given.get(TRACEPARENT) or "", given.get(TRACESTATE) or ""
    context = read_traceparent(traceparent)
    return TraceHeaders(traceparent, tracestate) if context is not None and context.sampled else None


def _current_trace() -> TraceHeaders | None:
    # It may be missing in a module that another thread is importing just now.
    get_current_span: Any = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if get_current_span is None:
        return None
    context = get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return TraceHeaders(traceparent, context.trace_state.to_header())
