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
import time
import traceback
from pathlib import Path
from typing import Any, Final

from multitower import wire
from multitower.errors import CODE_OF, Code, InvalidRequest, ModelError, MultitowerError, Reason, make

log = logging.getLogger("multitower.worker")

TRACEBACK_EVERY_S: Final = 1.0
MAX_MESSAGE: Final = 2000
MAX_CAUSE: Final = 1000
MAX_FRAMES: Final = 50
MAX_TRACEBACK: Final = 16 << 10
MAX_DETAILS_BYTES: Final = 16 << 10
MAX_DETAILS_DEPTH: Final = 32

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
_PASSING_ERRNOS: Final = frozenset(
    (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EAGAIN)
)
_PASSING_CLASSES: Final = frozenset(("PermissionDeniedError", "UnavailableError", "DeadlineExceededError"))
"""TensorFlow's, of its file systems."""

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
            if isinstance(current, OSError) and current.errno in _PASSING_ERRNOS:
                return True
            if any(kind.__name__ in _PASSING_CLASSES for kind in type(current).__mro__):
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


def log_traceback(message: str, error: BaseException) -> None:
    """Logs a warning with the exception and its traceback.

    Both are shortened: the daemon reads a worker's output at a bounded rate, and the worker waits meanwhile.

    Args:
        message: what happened, as in `digits raised`.
        error: any exception.
    """
    try:
        text = "".join(traceback.format_exception(error, limit=-MAX_FRAMES)).rstrip()
        shown = text if len(text) <= MAX_TRACEBACK else f"{text[:MAX_TRACEBACK]} ..."
        log.warning("%s: %s\n%s", message, one_line(error), shown)
    except BaseException:  # noqa: BLE001  a log handler of the user's own may raise, and so may a traceback's formatting
        with contextlib.suppress(OSError):
            os.write(2, f"WARNING {message}; its traceback cannot be shown\n".encode("utf-8", "backslashreplace"))


class ErrorTranslator:
    """Turns the exceptions of one model into replies.

    Args:
        model: the model's name.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._last_traceback = float("-inf")

    def translate(self, error: BaseException) -> MultitowerError:
        """The error that a client gets whose request raised this exception.

        An `InvalidRequest` or `ModelError` of the handler's own keeps its reason, its message and those of its details
        that can be sent. Everything else becomes `model_error`, and its traceback is logged, once a second at most.
        """
        refusal = _refusal(error)
        if refusal is not None:
            return refusal
        now = time.monotonic()
        if now - self._last_traceback >= TRACEBACK_EVERY_S:
            self._last_traceback = now
            log_traceback(f"{self._model} raised", error)
        return make(Reason.MODEL_ERROR, f"{self._model!r} raised {_class_name(error)}: {_text(error)}")


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
