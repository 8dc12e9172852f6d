"""What the worker makes of exceptions that a model, a handler or their libraries raise.

User code may raise anything: a class whose constructor takes other arguments, whose `__str__` raises, whose message has
a gigabyte, or which is no `Exception` at all (`sys.exit`, `asyncio.CancelledError`). Nothing here raises, whatever the
exception is: one bad request must not cost a worker.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
import sysconfig
import threading
import traceback
from pathlib import Path
from typing import Any, Final

from multitower import wire
from multitower.errors import CODE_OF, Code, InvalidRequest, ModelError, MultitowerError, Reason, make

from .records import log_event

REPEAT_S: Final = 60.0
MAX_KINDS: Final = 50
MAX_MESSAGE: Final = 2000
MAX_CAUSE: Final = 1000
MAX_FRAMES: Final = 50
MAX_TRACEBACK: Final = 16 << 10
MAX_DETAILS_BYTES: Final = 16 << 10
MAX_DETAILS_DEPTH: Final = 32

_OTHER_KINDS: Final = ("exceptions of other kinds", "")

UNPRINTABLE: Final = "(its message cannot be shown)"

_REASONS_OF_MODELS: Final = frozenset(
    reason
    for reason, code in CODE_OF.items()
    if code in (Code.INVALID_ARGUMENT, Code.INTERNAL) and reason is not Reason.POISONED
)
"""Those that a model can know. Others say that a request has not run, or is not to be sent again."""

_OUT_OF_MEMORY_CLASSES: Final = frozenset(
    (
        "MemoryError",  # Python's and numpy's
        "ResourceExhaustedError",  # TensorFlow's
        "OutOfMemoryError",  # PyTorch's
    )
)
_TEMPORARY_ERRNOS: Final = frozenset(
    (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EAGAIN)
)
_TEMPORARY_CLASSES: Final = frozenset(("PermissionDeniedError", "UnavailableError", "DeadlineExceededError"))
"""TensorFlow's, of its file systems."""

_STATUSES: Final = {
    1: "CANCELLED",
    2: "UNKNOWN",
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    10: "ABORTED",
    11: "OUT_OF_RANGE",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    15: "DATA_LOSS",
    16: "UNAUTHENTICATED",
}
"""The names of gRPC's status codes, which TensorFlow's exceptions have as `error_code`."""

_OUT_OF_MEMORY_WORDS: Final = ("RESOURCE_EXHAUSTED", "CUDA_ERROR_OUT_OF_MEMORY", "CUDA out of memory")
"""In messages of XLA, JAX and others, whose classes are general."""

_LIBRARIES: Final = tuple(
    f"{folder}{os.sep}"
    for folder in {
        str(Path(wire.__file__).parent),
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    }
)
"""Folders whose code is not the user's own."""


class LoadError(Exception):
    """The model cannot be served; the message tells an operator why."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the exception says that memory was exhausted, on the host or on a device.

    Classes are known by name, so that no library is imported for it.
    """
    try:
        if any(kind.__name__ in _OUT_OF_MEMORY_CLASSES for kind in type(error).__mro__):
            return True
        message = error.args[0] if error.args else ""
        return isinstance(message, str) and any(word in message[:1000] for word in _OUT_OF_MEMORY_WORDS)
    except BaseException:  # noqa: BLE001  a class of the user's own may override all of that
        return False


def status_of(error: BaseException) -> str | None:
    """The name of the gRPC status that an exception stands for: that of TensorFlow's class, or exhausted memory.

    `INVALID_ARGUMENT` and `OUT_OF_RANGE` say that the request is wrong, and not the model or the server.

    Args:
        error: what a model raised.

    Returns:
        A name such as `INVALID_ARGUMENT`; None for exceptions that have no status.
    """
    if is_out_of_memory(error):
        return "RESOURCE_EXHAUSTED"
    try:
        kinds = type(error).__mro__
        if any(kind.__name__ == "OpError" and kind.__module__.startswith("tensorflow.") for kind in kinds):
            return _STATUSES.get(error.error_code)  # type: ignore[attr-defined]
        return None
    except BaseException:  # noqa: BLE001  a class of the user's own may override all of that
        return None


def may_pass(error: BaseException, path: str | None) -> bool:
    """Whether a model could not be loaded for a reason that may pass by itself: its files were missing or unreadable.

    Args:
        error: what was raised, also as the cause of another exception.
        path: the model's; None for a handler.
    """
    try:
        seen: list[BaseException] = []
        current: BaseException | None = error
        while current is not None and current not in seen:
            if isinstance(current, OSError) and current.errno in _TEMPORARY_ERRNOS:
                return True
            if any(kind.__name__ in _TEMPORARY_CLASSES for kind in type(current).__mro__):
                return True
            seen.append(current)
            current = current.__cause__ or current.__context__
        return path is not None and not os.access(path, os.R_OK)
    except BaseException:  # noqa: BLE001  a class of the user's own may override all of that
        return False


def one_line(error: BaseException, limit: int = 500) -> str:
    """The exception's class and message in one line, as in `ValueError: a negative number`.

    Args:
        error: any exception.
        limit: characters of the message.
    """
    return f"{_class_name(error)}: {' '.join(_text(error).split())[:limit]}"


def load_cause(error: BaseException) -> str:
    """Why a model cannot be served, in one line for `status` and the log.

    Exceptions of the user's own code are followed by the file and the line that raised them.
    """
    if issubclass(type(error), LoadError):
        return _text(error)
    location = _location(error)
    return one_line(error, MAX_CAUSE) + (f" ({location})" if location else "")


def log_traceback(message: str, error: BaseException, **fields: object) -> None:
    """Logs a warning with the exception and its traceback.

    Both are shortened: the daemon reads a worker's output at a bounded rate, and the worker waits meanwhile.

    Args:
        message: what happened, as in `model cannot be loaded`.
        error: any exception.
        fields: further fields of the entry.
    """
    try:
        text = "".join(traceback.format_exception(error, limit=-MAX_FRAMES)).rstrip()
        shown = text if len(text) <= MAX_TRACEBACK else f"{text[:MAX_TRACEBACK]} ..."
        log_event(logging.WARNING, message, **fields, cause=one_line(error), traceback=shown)
    except BaseException:  # noqa: BLE001  a log handler of the user's own may raise, and so may a traceback's formatting
        with contextlib.suppress(OSError):
            os.write(2, f"WARNING {message}; its traceback cannot be shown\n".encode("utf-8", "backslashreplace"))


class ExceptionLog:
    """Logs the exceptions of one model, each kind of them once in `interval_s`.

    A kind is a class and the line of the user's code that raised it. The first exception of a kind is logged with its
    traceback at once; how many follow within `interval_s` is logged at its end.

    Args:
        model: the model's name.
        version: its version.
        interval_s: seconds.
    """

    def __init__(self, model: str, version: str, interval_s: float = REPEAT_S) -> None:
        self._fields = {"model": model, "version": version}
        self._interval_s = interval_s
        self._lock = threading.Lock()  # towers run their batches in threads of their own
        self._repeated: dict[tuple[str, str], int] = {}

    def add(self, error: BaseException) -> None:
        """Logs an exception, or counts it."""
        kind = (_class_name(error), _location(error))
        with self._lock:
            if kind not in self._repeated and len(self._repeated) >= MAX_KINDS:
                kind = _OTHER_KINDS
            is_new = kind not in self._repeated
            self._repeated[kind] = 0 if is_new else self._repeated[kind] + 1
        if is_new:
            log_traceback("model raised an exception", error, **self._fields)
            timer = threading.Timer(self._interval_s, self._end_interval, (kind,))
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:  # no more threads
                self._end_interval(kind)

    def _end_interval(self, kind: tuple[str, str]) -> None:
        with self._lock:
            repeated = self._repeated.pop(kind, 0)
        if repeated:
            cause = " at ".join(filter(None, kind))
            log_event(logging.WARNING, "model raised exceptions again", **self._fields, cause=cause, repeated=repeated)

    def finish(self) -> None:
        """Logs how often exceptions have been raised again that were logged before."""
        for kind in tuple(self._repeated):
            self._end_interval(kind)


_exception_logs: dict[tuple[str, str], ExceptionLog] = {}


def finish_exception_logs() -> None:
    """Logs the exceptions of all models that have been counted and not yet logged; call it before the process ends."""
    for exceptions in tuple(_exception_logs.values()):
        exceptions.finish()


class ErrorTranslator:
    """Turns the exceptions of one model into replies.

    Args:
        model: the model's name.
        version: its version.
    """

    def __init__(self, model: str, version: str) -> None:
        self._model = model
        # Shared by its signatures and its towers.
        self._exceptions = _exception_logs.setdefault((model, version), ExceptionLog(model, version))

    def translate(self, error: BaseException) -> MultitowerError:
        """The error that a client gets whose request raised this exception.

        An `InvalidRequest` or `ModelError` of the handler's own keeps its reason, its message and those of its details
        that can be sent. Everything else becomes `model_error`, with the exception's `status` in the details if it has
        one, and is logged; see `ExceptionLog`.
        """
        refusal = _refusal(error)
        if refusal is not None:
            return refusal
        self._exceptions.add(error)
        message = f"{self._model!r} raised {_class_name(error)}: {_text(error)}"
        return make(Reason.MODEL_ERROR, message, status=status_of(error))


def _refusal(error: BaseException) -> MultitowerError | None:
    """A handler's own error, made anew of plain parts; None where it is not one that it may answer with."""
    try:
        if not isinstance(error, InvalidRequest | ModelError):
            return None
        reason = Reason(error.reason)
        message, details = error.message, error.details
    except BaseException:  # noqa: BLE001  a subclass that does not call its base's constructor, or an unknown reason
        return None
    if reason not in _REASONS_OF_MODELS:
        return None
    kind = InvalidRequest if CODE_OF[reason] == Code.INVALID_ARGUMENT else ModelError
    return kind(reason, _text(message), _sendable(details))


def _sendable(details: Any) -> dict[str, Any] | None:
    """The details as their reader will have them; None where JSON cannot hold them, or clients cannot read them."""
    try:
        text = wire.dump_json(details)
        plain = json.loads(text) if len(text) <= MAX_DETAILS_BYTES else None
    except BaseException:  # noqa: BLE001  too deep, a circle, bytes, a mapping of the user's own
        return None
    if not isinstance(plain, dict):
        return None
    level: list[Any] = [plain]
    for _ in range(MAX_DETAILS_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
    return None if level else plain


def _text(value: object) -> str:
    """At most `MAX_MESSAGE` characters of a message, which UTF-8 can encode."""
    try:
        text = str(value)
        shown = str.__getitem__(text, slice(MAX_MESSAGE))
        if str.__len__(text) > MAX_MESSAGE:
            shown += " ..."
        # Names of files may hold bytes that are no text, and JSON cannot carry them.
        return shown.encode("utf-8", "backslashreplace").decode()
    except BaseException:  # noqa: BLE001  `__str__` is the user's code as well
        return UNPRINTABLE


def _class_name(error: BaseException) -> str:
    try:
        return _text(type(error).__name__)
    except BaseException:  # noqa: BLE001  a metaclass may define it
        return "an exception"


def _location(error: BaseException) -> str:
    """`file.py:12`: the innermost line of the traceback that is the user's code; empty where there is none."""
    try:
        found = ""
        for frame, line in traceback.walk_tb(error.__traceback__):
            file = frame.f_code.co_filename
            if os.path.isabs(file) and not file.startswith(_LIBRARIES):
                found = f"{_shortened(file)}:{line}"
        return found
    except BaseException:  # noqa: BLE001  the attribute is the class's to define
        return ""


def _shortened(file: str) -> str:
    """The file's name as its module is imported: relative to its folder on the import path."""
    folders = [folder for folder in sys.path if folder and file.startswith(folder.rstrip(os.sep) + os.sep)]
    return os.path.relpath(file, max(folders, key=len)) if folders else file
