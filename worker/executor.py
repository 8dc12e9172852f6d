"""Runs batches on a model, such that no entry ever gets another's rows, nor pays for another's error."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from multitower.errors import MultitowerError, Reason, make
from multitower.worker import batch
from multitower.worker.model import Array, Arrays, Model
from multitower.worker_wire import KeySpec, Timing

log = logging.getLogger("multitower.worker")

Answer = list[Any] | MultitowerError

TRACEBACK_EVERY_S = 1.0
MAX_MESSAGE = 2000


class Executor:
    """One model of this worker.

    Args:
        name: the model's name.
        model: it.
        allowed: sizes that batches are padded to, ascending; empty for no padding.
        singly: run each request alone and unpadded, since outputs do not have the batch's dimension.
    """

    def __init__(self, name: str, model: Model, allowed: Sequence[int], *, singly: bool = False) -> None:
        self._name = name
        self._model = model
        self._allowed = tuple(allowed)
        self._singly = singly
        self._answers = batch.Answers(name, model.version)
        self._last_traceback = float("-inf")
        self._assemble = self._compute = self._slice = 0

    def run(self, key: KeySpec, rows: Sequence[int], frames: Sequence[Any]) -> tuple[list[Answer], Timing]:
        """Runs one batch.

        Args:
            key: what its entries have in common.
            rows: of each entry.
            frames: entry by entry, one an input.

        Returns:
            An answer for each entry, header and outputs or an error; and where the time went.
        """
        self._assemble = self._compute = self._slice = 0
        begun = time.perf_counter_ns()
        answers: list[Answer | None] = [None] * len(rows)
        entries: list[tuple[int, int, Arrays]] = []
        width = len(key.inputs)
        for index, count in enumerate(rows):
            try:
                arrays = batch.decode(key, count, frames[index * width : (index + 1) * width])
                entries.append((index, count, arrays))
            except MultitowerError as error:
                answers[index] = error
        self._assemble += time.perf_counter_ns() - begun
        if not key.batched or self._singly:
            for entry in entries:
                self._run_alone(key, entry, answers)
        elif entries:
            self._run_joined(key, entries, answers)
        return answers, Timing(self._assemble, self._compute, self._slice)  # type: ignore[return-value]

    def _run_alone(self, key: KeySpec, entry: tuple[int, int, Arrays], answers: list[Answer | None]) -> None:
        index, _, arrays = entry
        try:
            outputs = self._infer(key, arrays)
            answers[index] = self._reply(outputs, None)
        except Exception as error:  # noqa: BLE001  a model may raise anything; it is this request's answer
            answers[index] = self._to_error(error)

    def _run_joined(self, key: KeySpec, entries: list[tuple[int, int, Arrays]], answers: list[Answer | None]) -> None:
        rows = sum(count for _, count, _ in entries)
        size = batch.padded(rows, self._allowed)
        begun = time.perf_counter_ns()
        joined = batch.join([arrays for _, _, arrays in entries], size)
        self._assemble += time.perf_counter_ns() - begun
        try:
            outputs = self._infer(key, joined)
        except Exception as error:  # noqa: BLE001  a model may raise anything; it is narrowed down to whose it is
            if len(entries) == 1:
                answers[entries[0][0]] = self._to_error(error)
                return
            middle = len(entries) // 2
            for half in (entries[:middle], entries[middle:]):
                self._run_joined(key, half, answers)
            return
        if any(array.ndim == 0 or len(array) != size for _, array, _ in outputs):
            if not self._singly:
                self._singly = True
                log.warning("%s: its outputs do not have the batch's dimension: requests run singly", self._name)
            # Neither these outputs nor padded ones are any entry's own.
            for entry in entries:
                self._run_alone(key, entry, answers)
            return
        start = 0
        for index, count, _ in entries:
            try:
                answers[index] = self._reply(outputs, slice(start, start + count))
            except MultitowerError as error:
                answers[index] = error
            start += count

    def _infer(self, key: KeySpec, arrays: Arrays) -> list[tuple[str, Array, str]]:
        begun = time.perf_counter_ns()
        try:
            outputs = self._model.infer(arrays)
        finally:
            self._compute += time.perf_counter_ns() - begun
        return batch.check(outputs, key.outputs, self._model.outputs)

    def _reply(self, outputs: Sequence[tuple[str, Array, str]], rows: slice | None) -> list[Any]:
        begun = time.perf_counter_ns()
        frames = self._answers.make(outputs, rows)
        self._slice += time.perf_counter_ns() - begun
        return frames

    def _to_error(self, error: Exception) -> MultitowerError:
        if isinstance(error, MultitowerError):
            return error
        now = time.monotonic()
        if now - self._last_traceback >= TRACEBACK_EVERY_S:
            self._last_traceback = now
            log.warning("%s raised", self._name, exc_info=error)
        text = str(error)
        shown = text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + " ..."
        return make(Reason.MODEL_ERROR, f"{self._name!r} raised {type(error).__name__}: {shown}")
