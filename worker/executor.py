"""Runs batches on a model, such that no entry ever gets another's rows, nor pays for another's error."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from multitower.errors import Reason, make

from ..worker_wire import MAX_KEYS, KeySpec, Timing
from . import batch
from .formats.model import Array, Arrays, Model
from .heartbeat import CallCounter
from .model_errors import ErrorTranslator, is_out_of_memory, one_line
from .prepared import Answer, Entry, Prepared, entries_of

log = logging.getLogger("multitower.worker")


class Executor:
    """One model of this worker.

    Args:
        name: the model's name.
        model: it.
        allowed: sizes that batches are padded to, ascending; empty for no padding.
        unbatched: run each request alone and unpadded, since outputs do not have the batch's dimension.
        proven: batches of two sizes have shown that outputs do have it. Otherwise that is found out for each key
            with its first batch of several entries: an output of a constant 4 rows looks right in a batch of 4.
        safe_rows: rows that an earlier process found to fit into the device's memory; 0 while that is unknown.
        counter: counts the calls of the model.

    Attributes:
        name: the model's name.
        version: its version.
        safe_rows: as given, or less, once memory did not suffice for more.
        volatile: what `run` returns may change at its next call.
        exhausted: calls in a row for which memory did not suffice, though they could not be split further.
        unbatched_because: why requests are not joined any more, though they were to be; None while they are.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        allowed: Sequence[int],
        *,
        unbatched: bool = False,
        proven: bool = False,
        safe_rows: int = 0,
        counter: CallCounter | None = None,
    ) -> None:
        self.name = name
        self.version = model.version
        self.safe_rows = safe_rows
        self.exhausted = 0
        self.unbatched_because: str | None = None
        self._counter = counter
        self._model = model
        self.volatile = model.volatile
        self._sole = False  # no call of the model in this batch follows the one to come, unless that raises
        self._allowed = tuple(allowed)
        self._unbatched = unbatched
        self._proven = proven
        self._proven_keys: set[KeySpec] = set()
        self._answers = batch.Answers(name, model.version)
        self._errors = ErrorTranslator(name)
        self._assemble = self._compute = self._slice = 0

    def padded(self, rows: int) -> int:
        """The rows that the model is called with for a batch of so many."""
        return batch.padded(rows, self._allowed)

    def prepare(
        self,
        key: KeySpec,
        rows: Sequence[int],
        frames: Sequence[Any],
        *,
        joined: bool = False,
        padded: bool = False,
    ) -> Prepared:
        """Decodes a batch, and puts its inputs together where they will be needed so; calls no model.

        Another thread may be in `run` meanwhile, with another batch.

        Args:
            key: what its entries have in common.
            rows: of each entry.
            frames: entry by entry, one an input; or joined: one an input, of all rows.
            joined: which of the two.
            padded: the joined ones have been padded, to `padded` rows.
        """
        begun = time.monotonic_ns()
        answers: list[Answer | None] = [None] * len(rows)
        whole: Arrays | None = None
        entries: list[Entry] = []
        if joined:
            whole = self._decode_whole(key, self.padded(sum(rows)) if padded else sum(rows), frames, answers)
        else:
            entries = self._decode(key, rows, frames, answers)
        ready: Arrays | None = None
        if key.batched and not self._unbatched and (len(rows) == 1 or self._is_proven(key)):
            if whole is not None and (padded or not self._allowed):
                ready = whole
            elif whole is not None or entries:
                parts = [entry.arrays for entry in entries] if whole is None else [whole]
                total = sum(rows) if whole is not None else sum(entry.rows for entry in entries)
                # What it raises it raises again when the batch is run, and there it is found out whose error it is.
                with contextlib.suppress(Exception):
                    ready = batch.join(parts, batch.padded(total, self._allowed))
        return Prepared(key, rows, answers, whole, entries, ready, time.monotonic_ns() - begun)

    def run(self, prepared: Prepared) -> tuple[Sequence[Answer], Timing]:
        """Runs a batch.

        Returns:
            An answer for each entry, header and outputs or an error; and where the time went.
        """
        key, rows, answers, whole, entries, ready, self._assemble = prepared
        self._compute = self._slice = 0
        simple = whole is not None and not self._unbatched and (len(rows) == 1 or self._is_proven(key))
        self._sole = simple or len(rows) == 1
        if whole is not None and simple:
            shared = self._run_whole(key, rows, whole, answers, ready)
            if shared is not None:
                return shared, self._timing()
        else:
            if whole is not None:
                entries = entries_of(whole, rows)
            if not key.batched or self._unbatched:
                for entry in entries:
                    self._run_alone(key, entry, answers)
            elif len(entries) > 1 and not self._is_proven(key):
                self._run_first(key, entries, answers)
            elif entries:
                self._run_joined(key, entries, answers, ready=ready)
        # Each of the ways above answers every entry that it is given.
        return answers, self._timing()  # type: ignore[return-value]

    @property
    def compute_ns(self) -> int:
        """What the model itself took for the last batch; 0 before the first."""
        return self._compute

    def _timing(self) -> Timing:
        return Timing(self._assemble, self._compute, self._slice)

    def _decode(
        self, key: KeySpec, rows: Sequence[int], frames: Sequence[Any], answers: list[Answer | None]
    ) -> list[Entry]:
        entries: list[Entry] = []
        width = len(key.inputs)
        for index, count in enumerate(rows):
            try:
                arrays = batch.decode(key, count, frames[index * width : (index + 1) * width])
                entries.append(Entry(index, count, arrays))
            except Exception as error:  # noqa: BLE001  also no memory for it; it is this entry's answer
                answers[index] = self._errors.translate(error)
        return entries

    def _decode_whole(
        self, key: KeySpec, rows: int, frames: Sequence[Any], answers: list[Answer | None]
    ) -> Arrays | None:
        """One array an input for all entries; None when they have got an error."""
        try:
            return batch.decode(key, rows, frames)
        except Exception as error:  # noqa: BLE001  numbers that numpy does not know: nobody's alone
            answers[:] = [self._errors.translate(error)] * len(answers)
            return None

    def _run_whole(
        self, key: KeySpec, rows: Sequence[int], whole: Arrays, answers: list[Answer | None], ready: Arrays | None
    ) -> batch.Joined | None:
        """The way of nearly all batches: what came joined is run at once, and leaves joined if it can.

        Returns:
            All answers; or None when they are in `answers`.
        """
        total = sum(rows)
        size = batch.padded(total, self._allowed)
        try:
            outputs = self._infer_joined(key, [whole], size, ready)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
            self._narrow_down(key, entries_of(whole, rows), answers, error)
            return None
        if not _has_rows(outputs, size):
            self._run_apart(key, entries_of(whole, rows), answers, outputs, size)
            return None
        if not batch.joinable(outputs):
            self._hand_out(outputs, rows, answers)
            return None
        begun = time.monotonic_ns()
        shared = batch.Joined(self._answers, outputs, rows)
        self._slice += time.monotonic_ns() - begun
        return shared

    def _is_proven(self, key: KeySpec) -> bool:
        return self._proven or key in self._proven_keys

    def _may_split(self, key: KeySpec) -> bool:
        """Parts of one request may be run by themselves, and their outputs joined: each row is computed alone."""
        declared = self._model.outputs
        return self._is_proven(key) or (
            declared is not None and all(output.shape and output.shape[0] == -1 for output in declared)
        )

    def _run_alone(self, key: KeySpec, entry: Entry, answers: list[Answer | None]) -> None:
        try:
            answers[entry.number] = self._reply(self._infer(key, entry.arrays), None)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
            answers[entry.number] = self._errors.translate(error)

    def _run_first(self, key: KeySpec, entries: list[Entry], answers: list[Answer | None]) -> None:
        """The first batch of a key: one entry, then the others, such that two sizes show what outputs are like."""
        waiting = deque(entries)
        most = max(batch.padded(sum(entry.rows for entry in entries), self._allowed), *self._allowed, 0)
        while waiting:
            first = waiting.popleft()
            alone = batch.padded(first.rows, self._allowed)
            right = self._run_joined(key, [first], answers)
            rows = sum(entry.rows for entry in waiting)
            size = batch.padded(rows, self._allowed)
            if size == alone:
                size = batch.padded(size + 1, self._allowed)
            # An entry that raised has shown nothing, nor can two runs of one size.
            if right and waiting and size <= most:
                if self._run_joined(key, list(waiting), answers, size):
                    self._prove(key)
                elif self._unbatched and alone != first.rows:
                    # It looked right, but was made of the padding as well.
                    self._run_alone(key, first, answers)
                return

    def _prove(self, key: KeySpec) -> None:
        if len(self._proven_keys) >= MAX_KEYS:
            self._proven_keys.clear()
        self._proven_keys.add(key)

    def _run_joined(
        self,
        key: KeySpec,
        entries: list[Entry],
        answers: list[Answer | None],
        size: int | None = None,
        ready: Arrays | None = None,
    ) -> bool:
        """Answers these entries from one run; where that does not do, from several.

        Args:
            key: the batch's.
            entries: which.
            answers: of all entries of the batch.
            size: rows to pad them to; None for what is allowed.
            ready: their inputs, where these have been put together and padded already.

        Returns:
            One run did, and each output had a row for each of the batch's.
        """
        if self._unbatched:
            for entry in entries:
                self._run_alone(key, entry, answers)
            return False
        size = size or batch.padded(sum(entry.rows for entry in entries), self._allowed)
        try:
            outputs = self._infer_joined(key, [entry.arrays for entry in entries], size, ready)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
            self._narrow_down(key, entries, answers, error)
            return False
        if not _has_rows(outputs, size):
            self._run_apart(key, entries, answers, outputs, size)
            return False
        indices = [entry.number for entry in entries]
        self._hand_out(outputs, [entry.rows for entry in entries], answers, indices)
        return True

    def _hand_out(
        self,
        outputs: list[tuple[str, Array, str]],
        rows: Sequence[int],
        answers: list[Answer | None],
        indices: Sequence[int] | None = None,
    ) -> None:
        start = 0
        for index, count in zip(range(len(rows)) if indices is None else indices, rows, strict=True):
            answers[index] = self._answer(outputs, slice(start, start + count))
            start += count

    def _infer_joined(
        self, key: KeySpec, parts: Sequence[Arrays], size: int, ready: Arrays | None = None
    ) -> list[tuple[str, Array, str]]:
        if ready is None:
            begun = time.monotonic_ns()
            ready = batch.join(parts, size)
            self._assemble += time.monotonic_ns() - begun
        return self._infer_within_memory(key, ready, size)

    def _narrow_down(
        self, key: KeySpec, entries: list[Entry], answers: list[Answer | None], error: BaseException
    ) -> None:
        """A run of these entries raised: runs fewer at a time, until whose error it is gets it alone."""
        self._sole = False  # still set where it was not the model that raised, but the joining of its inputs
        if len(entries) == 1:
            answers[entries[0].number] = self._errors.translate(error)
            return
        halve = self._is_proven(key) or is_out_of_memory(error)
        step = (len(entries) + 1) // 2 if halve else 1
        for start in range(0, len(entries), step):
            self._run_joined(key, entries[start : start + step], answers)

    def _run_apart(
        self,
        key: KeySpec,
        entries: list[Entry],
        answers: list[Answer | None],
        outputs: list[tuple[str, Array, str]],
        size: int,
    ) -> None:
        """A run of these entries gave outputs that do not have the batch's rows: no entries are joined any more."""
        self._give_up_joining(outputs, size)
        if len(entries) == 1 and size == entries[0].rows:
            answers[entries[0].number] = self._answer(outputs, None)
            return
        # Neither these outputs nor padded ones are any entry's own.
        for entry in entries:
            self._run_alone(key, entry, answers)

    def _give_up_joining(self, outputs: Sequence[tuple[str, Array, str]], size: int) -> None:
        self._unbatched = True
        self.unbatched_because = f"{size} rows gave outputs of the shapes {_shapes(outputs)}"
        log.warning("%s: %s: requests run singly now", self.name, self.unbatched_because)

    def _infer_within_memory(self, key: KeySpec, arrays: Arrays, size: int) -> list[tuple[str, Array, str]]:
        """Runs a batch, in parts where the device's memory does not suffice for all of it."""
        if not self.safe_rows or size <= self._size_within(self.safe_rows):
            try:
                return self._infer(key, arrays)
            except BaseException as error:
                fewer = self._size_within(size // 2)
                if not (0 < fewer < size and is_out_of_memory(error) and self._may_split(key)):
                    raise
                self.safe_rows = fewer
                log.warning("%s: no memory for %d rows, %d from now on: %s", self.name, size, fewer, one_line(error))
        self._sole = False
        step = self._size_within(self.safe_rows)  # which the first part may find to be too many
        parts = []
        for start in range(0, size, step):
            rows = min(step, size - start)
            padded = batch.padded(rows, self._allowed)
            outputs = self._infer_joined(key, [batch.rows_of(arrays, start, rows)], padded)
            if not _has_rows(outputs, padded):
                raise make(
                    Reason.OUTPUT_INVALID, f"a part of {padded} rows gave outputs of the shapes {_shapes(outputs)}"
                )
            parts.append([(name, array[:rows], datatype) for name, array, datatype in outputs])
        return batch.joined_outputs(parts)

    def _size_within(self, rows: int) -> int:
        """The largest size that the model may be called with and that does not exceed `rows`.

        Where all that are allowed do, the smallest of them.
        """
        if not self._allowed:
            return rows
        return max((size for size in self._allowed if size <= rows), default=self._allowed[0])

    def _infer(self, key: KeySpec, arrays: Arrays) -> list[tuple[str, Array, str]]:
        begun = time.monotonic_ns()
        sole, self._sole = self._sole, False
        if self._counter is not None:
            self._counter.calls += 1
        try:
            outputs = self._model.infer(arrays)
        except BaseException as error:
            self.exhausted = self.exhausted + 1 if is_out_of_memory(error) else 0
            raise
        finally:
            self._compute += time.monotonic_ns() - begun
        self.exhausted = 0
        checked = batch.check(outputs, key.outputs, self._model.outputs)
        if self.volatile and not sole:
            return [(name, array.copy(), datatype) for name, array, datatype in checked]
        return checked

    def _answer(self, outputs: Sequence[tuple[str, Array, str]], rows: slice | None) -> Answer:
        try:
            return self._reply(outputs, rows)
        except Exception as error:  # noqa: BLE001  elements that cannot be sent, or no memory for them
            return self._errors.translate(error)

    def _reply(self, outputs: Sequence[tuple[str, Array, str]], rows: slice | None) -> list[Any]:
        begun = time.monotonic_ns()
        frames = self._answers.make(outputs, rows)
        self._slice += time.monotonic_ns() - begun
        return frames


def _has_rows(outputs: Sequence[tuple[str, Array, str]], size: int) -> bool:
    """Each output has a row for each of the batch's."""
    return all(array.ndim and len(array) == size for _, array, _ in outputs)


def _shapes(outputs: Sequence[tuple[str, Array, str]]) -> str:
    return ", ".join(f"{name!r} {list(array.shape)}" for name, array, _ in outputs)


Executors = Mapping[str, Executor]
"""What runs the batches of one version of a model, by signature; the default signature has the name ""."""
