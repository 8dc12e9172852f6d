"""The trace that a request belongs to, as W3C Trace Context writes it: `traceparent` and `tracestate`.

In `MT1:infer` they are parameters of the header. Clients write them at its end (`add_to_header`), so that the router
finds the plan for the rest of the header in its cache (`split_header`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

MAX_TRACESTATE: Final = 512
"""Characters of a `tracestate` that are passed on; a longer one is left out. W3C requires 512."""

# A later version may have more fields. Nothing in them may end a string of JSON.
_TRACEPARENT: Final = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!#-\[\]-~]*)?",
    re.ASCII,
)
_KNOWN_LENGTH: Final = 55
"""Characters of a `traceparent` of version 00. All versions begin with its fields."""

_TRACESTATE: Final = re.compile(rf"[ -~]{{0,{MAX_TRACESTATE}}}", re.ASCII)
# The last keys of the last object in a header. Text with an escape sequence is left to the JSON parser.
_PARAMETER: Final = b',"traceparent":"'
_END: Final = re.compile(
    rb',"traceparent":"([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})"'
    rb'(?:,"tracestate":"([ !#-\[\]-~]{0,512})")?\}\}'
)
_AFTER_A_VALUE: Final = b'"}]0123456789el'
"""The last bytes of JSON values. Behind them another key of the object may follow."""


class TraceContext:
    """The trace that a request belongs to.

    Attributes:
        trace_id: of the trace, above 0.
        span_id: of the span in which the request was sent, above 0.
        sampled: whether that span is recorded.
        state: the `tracestate`, or "".
    """

    __slots__ = ("sampled", "span_id", "state", "trace_id")

    def __init__(self, trace_id: int, span_id: int, sampled: bool, state: str = "") -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.sampled = sampled
        self.state = state


def read_traceparent(text: str, state: str = "") -> TraceContext | None:
    """Reads a `traceparent`; None if it is invalid, and then the receiver starts a trace of its own.

    Args:
        text: the traceparent.
        state: the tracestate beside it; left out if it is too long or not printable ASCII.
    """
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    context = TraceContext(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & 1))
    if not context.trace_id or not context.span_id:
        return None
    if _TRACESTATE.fullmatch(state) is not None:
        context.state = state
    return context


def read_parameters(parameters: Mapping[str, Any]) -> TraceContext | None:
    """Reads the trace context among the parameters of a header; None if there is none, or an invalid one."""
    text, state = parameters.get(TRACEPARENT), parameters.get(TRACESTATE, "")
    return read_traceparent(text, state if isinstance(state, str) else "") if isinstance(text, str) else None


def split_header(header: bytes) -> tuple[bytes, TraceContext | None]:
    """Removes the trace context from a header that ends with it, as `add_to_header` writes it.

    The rest is valid exactly if the header is, and asks for the same.

    Returns:
        The rest of the header, and the context. The header itself, and None, where it does not end with a valid one.
    """
    start = header.rfind(_PARAMETER)
    if start <= 0 or header[start - 1] not in _AFTER_A_VALUE:
        return header, None
    found = _END.fullmatch(header, start)
    # The key twice makes a header invalid. The parser finds that out.
    if found is None or header.count(b'"traceparent"') > 1 or header.count(b'"tracestate"') > 1:
        return header, None
    text, state = found.groups()
    context = read_traceparent(text.decode(), (state or b"").decode())
    return (header, None) if context is None else (header[:start] + b"}}", context)


def add_to_header(header: bytes, traceparent: str, tracestate: str = "") -> bytes:
    """Adds a trace context to a header that ends with an object of parameters which is not empty.

    Args:
        header: compact JSON.
        traceparent: a valid one; only the fields of version 00 are passed on.
        tracestate: of the same trace; left out if it is too long or not printable ASCII.
    """
    added = f',"{TRACEPARENT}":"{traceparent[:_KNOWN_LENGTH]}"'
    if tracestate and _TRACESTATE.fullmatch(tracestate) is not None:
        added += f',"{TRACESTATE}":{json.dumps(tracestate)}'
    return header[:-2] + added.encode() + b"}}"
