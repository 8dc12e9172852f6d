"""What a client is told when a model raises, and what the log is."""

from __future__ import annotations

import logging
import time

from multitower import wire
from multitower.errors import Code, InvalidRequest, ModelError, MultitowerError, Reason, make

log = logging.getLogger("multitower.worker")

TRACEBACK_EVERY_S = 1.0
MAX_MESSAGE = 2000


class ModelErrors:
    """The errors of one model.

    Args:
        name: the model's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._last_traceback = float("-inf")

    def of(self, error: Exception) -> MultitowerError:
        """What a request is answered whose run raised this; the log gets a traceback now and then."""
        # Of the reasons that say what a model can know: others tell clients that the request has not run.
        if isinstance(error, InvalidRequest | ModelError) and error.code in (Code.INVALID_ARGUMENT, Code.INTERNAL):
            return _sendable(error)
        now = time.monotonic()
        if now - self._last_traceback >= TRACEBACK_EVERY_S:
            self._last_traceback = now
            log.warning("%s raised", self._name, exc_info=error)
        return make(Reason.MODEL_ERROR, f"{self._name!r} raised {type(error).__name__}: {_text_of(error)}")


def _sendable(error: MultitowerError) -> MultitowerError:
    """A handler may have put anything into it."""
    text = _text_of(error.message)
    try:
        wire.dump_json(error.details)
    except (TypeError, ValueError):
        return type(error)(Reason(error.reason), text)
    return error if text == error.message else type(error)(Reason(error.reason), text, error.details)


def _text_of(error: object) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  a class of the model's own, and its answer is still due
        return "(its message cannot be shown)"
    shown = text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + " ..."
    # Names of files may hold bytes that are no text, and JSON cannot carry them.
    return shown.encode("utf-8", "backslashreplace").decode()
