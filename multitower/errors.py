"""All errors that an application can get, each with a stable code and reason.

Both clients raise them; the router and the workers send them. The codes are gRPC's status names
(https://grpc.io/docs/guides/status-codes/). The reasons are multitower's own and say exactly what happened.
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
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    INTERNAL = "INTERNAL"


class Reason(StrEnum):
    """What exactly went wrong. Stable: programs may rely on it."""

    MALFORMED = "malformed"  # frames or JSON that cannot be parsed
    TOO_LARGE = "too_large"  # over max_message_size, or a header over MAX_HEADER_BYTES
    KIND_UNKNOWN = "kind_unknown"  # a kind of request or protocol version that this daemon does not support
    MODEL_UNKNOWN = "model_unknown"
    VERSION_UNKNOWN = "version_unknown"
    SIGNATURE_UNKNOWN = "signature_unknown"
    INPUT_UNKNOWN = "input_unknown"
    INPUT_MISSING = "input_missing"
    OUTPUT_UNKNOWN = "output_unknown"
    DATATYPE_MISMATCH = "datatype_mismatch"
    SHAPE_INVALID = "shape_invalid"
    SIZE_MISMATCH = "size_mismatch"  # the bytes of a tensor do not match its shape
    QUEUE_FULL = "queue_full"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    DRAINING = "draining"  # the daemon is stopping and accepts no new requests
    NO_WORKER = "no_worker"  # no worker serves this model now
    WORKER_DIED = "worker_died"
    POISONED = "poisoned"  # more workers died while executing the request than `retry` allows
    MODEL_ERROR = "model_error"  # the model raised an exception
    OUTPUT_INVALID = "output_invalid"  # the model's outputs differ from its declaration
    REPLY_DROPPED = "reply_dropped"  # the client left too much unread, and read nothing for `unread_timeout`
    INTERNAL_ERROR = "internal_error"  # a defect of multitower
    UNAUTHENTICATED = "unauthenticated"  # the daemon does not know who asks: no key, or none that it admits
    FORBIDDEN = "forbidden"  # the daemon knows who asks, and does not allow them this operation, or this model
    # Of orders to the control endpoint.
    RELOAD_IN_PROGRESS = "reload_in_progress"  # another reload follows the one that is under way
    TOO_MANY_ORDERS = "too_many_orders"  # as many orders wait as the daemon keeps
    CONFIG_REFUSED = "config_refused"  # the configuration is wrong, or cannot be applied to a running daemon
    SLOT_UNKNOWN = "slot_unknown"
    SLOT_EMPTY = "slot_empty"  # the slot has no model, and so no worker to restart
    ORDER_FAILED = "order_failed"  # the order was begun and could not be carried out
    # Raised by the clients only, never sent.
    NOT_LISTENING = "not_listening"  # no daemon listens at the endpoint
    CONNECTION_LOST = "connection_lost"  # the connection ended while requests were outstanding
    CLOSED = "closed"  # the client was closed, or is used in a forked child process


CONNECT_ERROR = "connect_error"
"""The key of a `ConnectError` in the details of an error."""


class ConnectError(StrEnum):
    """Why there is no connection: `connect_error` in the details of an error. Stable, like reasons.

    The reason of the error is `not_listening`, or `unauthenticated` if it is the keys that prevent the connection.
    """

    NO_SUCH_FILE = "no_such_file"  # ipc: the socket, or its folder, does not exist
    NOT_A_SOCKET = "not_a_socket"  # ipc: the path is another kind of file, or of socket
    PERMISSION_DENIED = "permission_denied"  # the socket or a folder of its path admits other users only
    CONNECTION_REFUSED = "connection_refused"  # no process listens there
    NO_SOCKET = "no_socket"  # this process can open no socket: too many open files, or no memory
    NAME_NOT_RESOLVED = "name_not_resolved"  # tcp: the host's name has no address, or DNS does not answer
    UNREACHABLE = "unreachable"  # tcp: no route leads to the host, or another error of the network
    TIMED_OUT = "timed_out"  # neither a connection nor a refusal in time; or a daemon there has just started
    NO_ANSWER = "no_answer"  # the connection opens, but what listens does not answer as a daemon
    ENDPOINT_MALFORMED = "endpoint_malformed"  # the endpoint is not ipc://PATH or tcp://HOST:PORT
    # Of `unauthenticated`.
    KEY_REFUSED = "key_refused"  # the daemon does not admit this client's key
    KEY_NEEDED = "key_needed"  # the daemon has `security`, and this client has no key
    NO_CURVE = "no_curve"  # this client has a key, and what listens there does not use CURVE
    SERVER_KEY_WRONG = "server_key_wrong"  # the daemon has another key than this client was told
    KEY_MALFORMED = "key_malformed"  # a key that the client was given cannot be used


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
    Reason.REPLY_DROPPED: Code.RESOURCE_EXHAUSTED,
    Reason.INTERNAL_ERROR: Code.INTERNAL,
    Reason.UNAUTHENTICATED: Code.UNAUTHENTICATED,
    Reason.FORBIDDEN: Code.PERMISSION_DENIED,
    Reason.RELOAD_IN_PROGRESS: Code.UNAVAILABLE,
    Reason.TOO_MANY_ORDERS: Code.RESOURCE_EXHAUSTED,
    Reason.CONFIG_REFUSED: Code.INVALID_ARGUMENT,
    Reason.SLOT_UNKNOWN: Code.NOT_FOUND,
    Reason.SLOT_EMPTY: Code.INVALID_ARGUMENT,
    Reason.ORDER_FAILED: Code.INTERNAL,
    Reason.NOT_LISTENING: Code.UNAVAILABLE,
    Reason.CONNECTION_LOST: Code.UNAVAILABLE,
    Reason.CLOSED: Code.UNAVAILABLE,
}


class MultitowerError(Exception):
    """The base class of all errors that multitower raises to an application.

    Args:
        reason: what exactly happened; the code follows from it.
        message: one sentence for people, which names the field at fault.
        details: values for programs, such as `field`, `queue_depth` or `retry_after_ms`.

    Attributes:
        code: a gRPC status name, see `Code`.
        reason: what exactly happened, see `Reason`.
        message: one sentence for people.
        details: values for programs; may be empty.
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
        # For process pools: the default would call the class with the message as its only argument.
        return (from_wire, (self.to_wire(),))

    def to_wire(self) -> dict[str, Any]:
        """The header of an `MT1:error` reply: `{"error": {"code", "reason", "message", "details"}}`."""
        error: dict[str, Any] = {"code": self.code, "reason": self.reason, "message": self.message}
        if self.details:
            error["details"] = self.details
        return {"error": error}


class InvalidRequest(MultitowerError):
    """The request is wrong; sending it again cannot help."""


class NotFound(MultitowerError):
    """There is no such model, version or signature."""


class Unavailable(MultitowerError):
    """Nothing can serve the request: no daemon, no worker, or a daemon that is stopping."""


class InvalidEndpoint(Unavailable, ValueError):
    """The endpoint that a client was given is malformed: neither `ipc://PATH` nor `tcp://HOST:PORT`.

    Args:
        message: what is wrong with it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(
            Reason.NOT_LISTENING, message, {"field": "endpoint", CONNECT_ERROR: ConnectError.ENDPOINT_MALFORMED.value}
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (InvalidEndpoint, (self.message,))


class Overloaded(MultitowerError):
    """The daemon has no room: `queue_full`, with `retry_after_ms` in `details`, or `reply_dropped`."""


class DeadlineExceeded(MultitowerError, TimeoutError):
    """There was no answer within the request's time."""


class Cancelled(MultitowerError):
    """The client cancelled the request."""


class Poisoned(MultitowerError):
    """Too many workers died while executing the request: do not send it again."""


class ModelError(MultitowerError):
    """The model raised an exception, or returned outputs that differ from its declaration."""


class Unauthenticated(MultitowerError):
    """The daemon does not know who asks: no key or token, or none that it admits (any more)."""


class InvalidKey(Unauthenticated, ValueError):
    """A key that a client was given cannot be used.

    Args:
        argument: the client's argument, `key` or `server_key`.
        message: what is wrong with it; it does not repeat a secret key.
    """

    def __init__(self, argument: str, message: str) -> None:
        details = {"field": argument, CONNECT_ERROR: ConnectError.KEY_MALFORMED.value}
        super().__init__(Reason.UNAUTHENTICATED, message, details)

    def __reduce__(self) -> tuple[Any, ...]:
        return (InvalidKey, (self.details["field"], self.message))


class Forbidden(MultitowerError):
    """The daemon knows who asks, and does not allow them this operation, or this model."""


class InternalError(MultitowerError):
    """A defect of the daemon; its log has the traceback. Other requests are not concerned."""


_CLASS_OF_REASON: Mapping[str, type[MultitowerError]] = {
    Reason.POISONED: Poisoned,
    Reason.INTERNAL_ERROR: InternalError,
}
_CLASS_OF_CODE: Mapping[str, type[MultitowerError]] = {
    Code.INVALID_ARGUMENT: InvalidRequest,
    Code.NOT_FOUND: NotFound,
    Code.UNIMPLEMENTED: InvalidRequest,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.CANCELLED: Cancelled,
    Code.UNAVAILABLE: Unavailable,
    Code.INTERNAL: ModelError,
    Code.PERMISSION_DENIED: Forbidden,
    Code.UNAUTHENTICATED: Unauthenticated,
}


def make(reason: Reason, message: str, **details: Any) -> MultitowerError:
    """The error for `reason`, of the matching class. Details that are None are left out."""
    kind = _CLASS_OF_REASON.get(reason) or _CLASS_OF_CODE[CODE_OF[reason]]
    return kind(reason, message, {key: value for key, value in details.items() if value is not None})


def from_wire(header: Mapping[str, Any]) -> MultitowerError:
    """The typed error of an `MT1:error` header.

    An unknown code or reason, of a newer daemon, is kept as it is; the class is the nearest one.
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
