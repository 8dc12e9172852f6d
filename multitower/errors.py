"""Every error an application can meet, with its stable code and reason.

Raised by both clients, put on the wire by the router and the workers. The codes are gRPC's status names
(https://grpc.io/docs/guides/status-codes/), the reasons are multitower's own and say precisely what happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Code(StrEnum):
    """The gRPC status names that multitower uses."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class Reason(StrEnum):
    """What exactly went wrong; stable, and meant for programs."""

    MALFORMED = "malformed"  # frames or JSON that cannot be read
    TOO_LARGE = "too_large"  # over max_message_size, or a header over its own limit
    KIND_UNKNOWN = "kind_unknown"  # a kind or protocol version this daemon does not speak
    MODEL_UNKNOWN = "model_unknown"
    VERSION_UNKNOWN = "version_unknown"
    SIGNATURE_UNKNOWN = "signature_unknown"
    INPUT_UNKNOWN = "input_unknown"
    INPUT_MISSING = "input_missing"
    OUTPUT_UNKNOWN = "output_unknown"
    DATATYPE_MISMATCH = "datatype_mismatch"
    SHAPE_INVALID = "shape_invalid"
    SIZE_MISMATCH = "size_mismatch"  # the bytes of a tensor do not fit its shape
    QUEUE_FULL = "queue_full"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    DRAINING = "draining"  # the daemon is stopping and takes no new work
    NO_WORKER = "no_worker"  # nothing serves this model now
    WORKER_DIED = "worker_died"
    POISONED = "poisoned"  # it was being executed at more workers' deaths than `retry` allows
    MODEL_ERROR = "model_error"  # the model itself raised
    OUTPUT_INVALID = "output_invalid"  # the model returned what it did not declare
    # The client's own: these never travel.
    NOT_LISTENING = "not_listening"  # no daemon at the endpoint
    CONNECTION_LOST = "connection_lost"  # the daemon went away with requests outstanding
    CLOSED = "closed"  # the client was closed, or is used in a forked child


CODE_OF: Mapping[Reason, Code] = {
    Reason.MALFORMED: Code.INVALID_ARGUMENT,
    Reason.TOO_LARGE: Code.INVALID_ARGUMENT,
    Reason.KIND_UNKNOWN: Code.UNIMPLEMENTED,
    Reason.MODEL_UNKNOWN: Code.NOT_FOUND,
    Reason.VERSION_UNKNOWN: Code.NOT_FOUND,
    Reason.SIGNATURE_UNKNOWN: Code.NOT_FOUND,
    Reason.INPUT_UNKNOWN: Code.INVALID_ARGUMENT,
    Reason.INPUT_MISSING: Code.INVALID_ARGUMENT,
    Reason.OUTPUT_UNKNOWN: Code.INVALID_ARGUMENT,
    Reason.DATATYPE_MISMATCH: Code.INVALID_ARGUMENT,
    Reason.SHAPE_INVALID: Code.INVALID_ARGUMENT,
    Reason.SIZE_MISMATCH: Code.INVALID_ARGUMENT,
    Reason.QUEUE_FULL: Code.RESOURCE_EXHAUSTED,
    Reason.DEADLINE: Code.DEADLINE_EXCEEDED,
    Reason.CANCELLED: Code.CANCELLED,
    Reason.DRAINING: Code.UNAVAILABLE,
    Reason.NO_WORKER: Code.UNAVAILABLE,
    Reason.WORKER_DIED: Code.UNAVAILABLE,
    Reason.POISONED: Code.INTERNAL,
    Reason.MODEL_ERROR: Code.INTERNAL,
    Reason.OUTPUT_INVALID: Code.INTERNAL,
    Reason.NOT_LISTENING: Code.UNAVAILABLE,
    Reason.CONNECTION_LOST: Code.UNAVAILABLE,
    Reason.CLOSED: Code.UNAVAILABLE,
}


class MultitowerError(Exception):
    """The base of every error that multitower raises to an application.

    Attributes:
        code: a gRPC status name, see `Code`.
        reason: what exactly happened, see `Reason`.
        message: one sentence for people; it names the offending field.
        details: what helps to act on it, where there is any: `field`, `queue_depth`, `retry_after_ms`, ...
    """

    def __init__(self, reason: Reason, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.reason: str = reason
        self.code: str = CODE_OF[reason]
        self.message = message
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        return f"{self.code}/{self.reason}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process pools; without this they come back with their arguments in the wrong places.
        return (from_wire, (self.to_wire(),))

    def to_wire(self) -> dict[str, Any]:
        """The `{"error": ...}` object of an `MT1:error` reply."""
        error: dict[str, Any] = {"code": self.code, "reason": self.reason, "message": self.message}
        if self.details:
            error["details"] = self.details
        return {"error": error}


class InvalidRequest(MultitowerError):
    """The request is wrong in itself; sending it again cannot help."""


class NotFound(MultitowerError):
    """There is no such model, or not in that version."""


class Unavailable(MultitowerError):
    """Nothing could take the request: no daemon, no worker, a daemon that is stopping."""


class Overloaded(MultitowerError):
    """The model's queue is full; `details` hold `queue_depth` and `retry_after_ms`."""


class DeadlineExceeded(MultitowerError, TimeoutError):
    """No answer within the request's time."""


class Cancelled(MultitowerError):
    """The request was cancelled by its sender."""


class Poisoned(MultitowerError):
    """The request was being executed when too many workers died: never send it again."""


class ModelError(MultitowerError):
    """The model raised an exception, or returned what it did not declare."""


_CLASS_OF_REASON: Mapping[str, type[MultitowerError]] = {Reason.POISONED: Poisoned}
_CLASS_OF_CODE: Mapping[str, type[MultitowerError]] = {
    Code.INVALID_ARGUMENT: InvalidRequest,
    Code.NOT_FOUND: NotFound,
    Code.UNIMPLEMENTED: InvalidRequest,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.CANCELLED: Cancelled,
    Code.UNAVAILABLE: Unavailable,
    Code.INTERNAL: ModelError,
}


def make(reason: Reason, message: str, **details: Any) -> MultitowerError:
    """The error of the class that belongs to `reason`; `details` that are None are left out."""
    kind = _CLASS_OF_REASON.get(reason) or _CLASS_OF_CODE[CODE_OF[reason]]
    return kind(reason, message, {key: value for key, value in details.items() if value is not None})


def from_wire(header: Mapping[str, Any]) -> MultitowerError:
    """The typed error of an `MT1:error` header.

    A code or reason of a later release becomes the nearest class with its own words kept, so that an older
    client never fails on the answer of a newer daemon.
    """
    body = header.get("error")
    body = body if isinstance(body, Mapping) else {}
    code, reason = str(body.get("code", Code.INTERNAL)), str(body.get("reason", Reason.MODEL_ERROR))
    kind = _CLASS_OF_REASON.get(reason) or _CLASS_OF_CODE.get(code, MultitowerError)
    details = body.get("details")
    error = kind(
        Reason.MODEL_ERROR,
        str(body.get("message", "the daemon gave no message")),
        details if isinstance(details, Mapping) else None,
    )
    error.code, error.reason = code, reason
    return error
