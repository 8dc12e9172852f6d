"""Runs the batches of a model, such that no request ever gets another's rows, or pays for another's error."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from multitower.batch_results import Timing
from multitower.worker_wire import MAX_KEYS, KeySpec

from . import batch_inputs, replies
from .batch_comparison import Comparison, Verdict, compare_batch
from .batch_inputs import Entry, PreparedBatch
from .formats.model import Array, Arrays, Model
from .heartbeat import CallCounter
from .model_caller import ModelCaller
from .model_errors import ErrorTranslator, is_out_of_memory, one_line
from .records import current, log_event
from .replies import Answer, JoinedReplies, Output, ReplyBuilder
from .row_comparison import VARYING

MAX_VARIANTS: Final = 64
"""Choices of inputs and outputs whose values are compared; clients may make any number of them."""

Variant = tuple[tuple[str, ...] | None, tuple[str, ...]]
"""The names of the wanted outputs of a request, None for all, and those of its inputs."""


class Executor:
    """Runs the batches of one model, or of one of its signatures.

    Args:
        name: the model's name.
        model: the model.
        allowed: sizes that batches are padded to, ascending; empty for no padding.
        unbatched: whether each request is run by itself and unpadded, since outputs do not have the batch's dimension.
        proven: whether batches of two sizes have shown that outputs do have it. Otherwise the first batch of several
            entries shows it for its key: an output of a constant 4 rows looks right in a batch of 4.
        unverified_because: why the warm-up could not compare values of rows in different batches, or None.
        comparisons: how many of the first batches of several rows may be used to compare them, for each choice of
            inputs and outputs: a comparison shows nothing of an output that it does not have.
        safe_rows: rows that an earlier process found to fit into memory; 0 while that is unknown.
        counter: counts the calls of the model.
        row_defaults: of inputs that a batch may lack: the value that each row gets.

    Attributes:
        name: the model's name.
        version: its version.
        volatile: whether the next call of `run` may change what this one has returned.
        unbatched_because: why requests are not joined any more though they were to be; None while they are.
        unverified_because: why no comparison of values has shown that requests may be joined; None once the first
            one has.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        allowed: Sequence[int],
        *,
        unbatched: bool = False,
        proven: bool = False,
        unverified_because: str | None = None,
        comparisons: int = 0,
        safe_rows: int = 0,
        counter: CallCounter | None = None,
        row_defaults: Mapping[str, Array] | None = None,
    ) -> None:
        self.name = name
        self.version = model.version
        self.volatile = model.volatile
        self.unbatched_because: str | None = None
        self.unverified_because = unverified_because
        self._caller = ModelCaller(
            name, model, allowed, safe_rows=safe_rows, counter=counter, row_defaults=row_defaults
        )
        self._allowed = tuple(allowed)
        self._unbatched = unbatched
        self._proven = proven
        self._proven_keys: set[KeySpec] = set()
        self._comparisons = comparisons
        self._comparisons_left: dict[Variant, int] = {}
        self._compared_key: KeySpec | None = None  # the last one whose batches are not compared any more
        # By their declaration, the rows of a request may be run in parts.
        self._divisible = model.outputs is not None and all(
            output.shape and output.shape[0] == -1 for output in model.outputs
        )
        self._replies = ReplyBuilder(name, model.version)
        self._errors = ErrorTranslator(name, model.version)
        self._model_key = (name, model.version)
        self._slice_ns = 0

    @property
    def safe_rows(self) -> int:
        """Rows that fit into memory; 0 while that is unknown."""
        return self._caller.safe_rows

    @property
    def exhausted(self) -> int:
        """Calls in a row for which memory did not suffice though they could not be split any further."""
        return self._caller.exhausted

    @property
    def compute_ns(self) -> int:
        """Nanoseconds that the model took for the last batch; 0 before the first."""
        return self._caller.compute_ns

    def padded_size(self, rows: int) -> int:
        """The number of rows that the model is called with for a batch of `rows` rows."""
        return batch_inputs.padded_size(rows, self._allowed)

    def prepare(
        self,
        key: KeySpec,
        rows: Sequence[int],
        frames: Sequence[Any],
        *,
        joined: bool = False,
        padded: bool = False,
    ) -> PreparedBatch:
        """Decodes a batch, and joins its inputs where they will be needed joined. Calls no model.

        Another thread may be in `run` meanwhile, with another batch.

        Args:
            key: what the entries have in common.
            rows: the number of rows of each entry.
            frames: one an input, entry by entry; or, joined, one an input with the rows of all entries.
            joined: which of the two.
            padded: whether joined frames have been padded to `padded_size`.
        """
        started = time.monotonic_ns()
        answers: list[Answer | None] = [None] * len(rows)
        whole: Arrays | None = None
        entries: list[Entry] = []
        if joined:
            whole = self._decode_joined(key, self.padded_size(sum(rows)) if padded else sum(rows), frames, answers)
        else:
            entries = self._decode_entries(key, rows, frames, answers)
        model_inputs: Arrays | None = None
        if key.batched and not self._unbatched and (len(rows) == 1 or self._is_proven(key)):
            if whole is not None and (padded or not self._allowed):
                model_inputs = whole
            elif whole is not None or entries:
                parts = [entry.arrays for entry in entries] if whole is None else [whole]
                total = sum(rows) if whole is not None else sum(entry.rows for entry in entries)
                # What this raises is raised again when the batch is run, and the entry that causes it is found there.
                with contextlib.suppress(Exception):
                    model_inputs = batch_inputs.join_inputs(parts, self.padded_size(total))
        return PreparedBatch(key, rows, answers, whole, entries, model_inputs, time.monotonic_ns() - started)

    def run(self, prepared: PreparedBatch) -> tuple[Sequence[Answer], Timing]:
        """Runs a batch.

        Returns:
            An answer for each entry, and where the time went.
        """
        key, rows, answers, joined = prepared.key, prepared.rows, prepared.answers, prepared.joined
        entries, model_inputs = prepared.entries, prepared.model_inputs
        self._slice_ns = 0
        current.model = self._model_key
        at_once = joined is not None and not self._unbatched and (len(rows) == 1 or self._is_proven(key))
        # Padding of other dimensions changes what outputs look like.
        comparing = (
            self._comparisons > 0
            and key is not self._compared_key
            and key.batched
            and not key.padded
            and sum(rows) > 1
            and self._may_compare(key, self.padded_size(sum(rows)))
        )
        if comparing:
            at_once = False
        self._caller.start_batch(prepared.assemble_ns, last_call=at_once or (len(rows) == 1 and not comparing))
        if joined is not None and at_once:
            shared = self._run_whole(key, rows, joined, answers, model_inputs)
            if shared is not None:
                return shared, self._timing()
        else:
            if joined is not None:
                entries = batch_inputs.split_entries(joined, rows)
            if not key.batched or self._unbatched:
                self._run_each(key, entries, answers)
            elif comparing and entries:
                self._run_compared(key, entries, answers)
            elif len(entries) > 1 and not self._is_proven(key):
                self._run_unproven(key, entries, answers)
            elif entries:
                self._run_joined(key, entries, answers, model_inputs=model_inputs)
        # Each of the ways above answers every entry that it is given.
        return answers, self._timing()  # type: ignore[return-value]

    def _timing(self) -> Timing:
        return Timing(self._caller.assemble_ns, self._caller.compute_ns, self._slice_ns)

    # Decoding.

    def _decode_entries(
        self, key: KeySpec, rows: Sequence[int], frames: Sequence[Any], answers: list[Answer | None]
    ) -> list[Entry]:
        """The entries that can be decoded. The others get their errors as answers."""
        entries: list[Entry] = []
        width = len(key.inputs)
        for index, count in enumerate(rows):
            try:
                arrays = batch_inputs.decode_inputs(key, count, frames[index * width : (index + 1) * width])
                entries.append(Entry(index, count, arrays))
            except Exception as error:  # noqa: BLE001  malformed, or no memory for it
                answers[index] = self._errors.translate(error)
        return entries

    def _decode_joined(
        self, key: KeySpec, rows: int, frames: Sequence[Any], answers: list[Answer | None]
    ) -> Arrays | None:
        """One array an input for all entries; None where all of them got an error as their answer."""
        try:
            return batch_inputs.decode_inputs(key, rows, frames)
        except Exception as error:  # noqa: BLE001  numbers that numpy does not know, or no memory for them
            answers[:] = [self._errors.translate(error)] * len(answers)
            return None

    # Ways to run a batch.

    def _run_whole(
        self,
        key: KeySpec,
        rows: Sequence[int],
        joined: Arrays,
        answers: list[Answer | None],
        model_inputs: Arrays | None,
    ) -> JoinedReplies | None:
        """The way of nearly all batches: the inputs came joined, one call runs them, and the outputs leave joined.

        Returns:
            All answers; or None where they are in `answers`.
        """
        size = self.padded_size(sum(rows))
        raised: list[BaseException] = []
        try:
            outputs = self._call(key, [joined], size, model_inputs)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
            raised.append(error)
        if raised:
            self._run_smaller(key, batch_inputs.split_entries(joined, rows), answers, raised.pop())
            return None
        if not replies.have_rows(outputs, size):
            self._stop_joining(key, batch_inputs.split_entries(joined, rows), answers, outputs, size)
            return None
        if not replies.travel_joined(outputs):
            self._answer_entries(batch_inputs.split_entries(joined, rows), outputs, answers)
            return None
        started = time.monotonic_ns()
        shared = JoinedReplies(self._replies, outputs, rows)
        self._slice_ns += time.monotonic_ns() - started
        return shared

    def _run_joined(
        self,
        key: KeySpec,
        entries: list[Entry],
        answers: list[Answer | None],
        size: int | None = None,
        model_inputs: Arrays | None = None,
    ) -> bool:
        """Answers entries by one call, or by several where one does not do.

        Args:
            key: of the batch.
            entries: which.
            answers: of all entries of the batch.
            size: rows to pad them to; None for the next allowed size.
            model_inputs: the entries' inputs, where they have been joined and padded already.

        Returns:
            Whether one call did, and each output had as many rows as the call.
        """
        if self._unbatched:
            self._run_each(key, entries, answers)
            return False
        size = size or self.padded_size(sum(entry.rows for entry in entries))
        raised: list[BaseException] = []
        try:
            outputs = self._call(key, [entry.arrays for entry in entries], size, model_inputs)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
            raised.append(error)
        if raised:
            self._run_smaller(key, entries, answers, raised.pop())
            return False
        if not replies.have_rows(outputs, size):
            self._stop_joining(key, entries, answers, outputs, size)
            return False
        self._answer_entries(entries, outputs, answers)
        return True

    def _run_unproven(self, key: KeySpec, entries: list[Entry], answers: list[Answer | None]) -> None:
        """Runs the first batch of a key: one entry, then the others, so that two sizes show what outputs are like."""
        waiting = deque(entries)
        largest = max(self.padded_size(sum(entry.rows for entry in entries)), *self._allowed, 0)
        while waiting:
            first = waiting.popleft()
            first_size = self.padded_size(first.rows)
            succeeded = self._run_joined(key, [first], answers)
            size = self.padded_size(sum(entry.rows for entry in waiting))
            if size == first_size:
                size = self.padded_size(size + 1)
            # An entry that raised has shown nothing, nor can two calls of one size.
            if succeeded and waiting and size <= largest:
                if self._run_joined(key, list(waiting), answers, size):
                    self._remember_proven(key)
                elif self._unbatched and first_size != first.rows:
                    # Its outputs looked right, but were made of the padding as well.
                    self._run_each(key, [first], answers)
                return

    def _run_compared(self, key: KeySpec, entries: list[Entry], answers: list[Answer | None]) -> None:
        """Runs a batch, and compares its outputs with those of some of its entries in other batches."""
        variant = _variant_of(key)
        self._comparisons_left[variant] = self._comparisons_left.get(variant, self._comparisons) - 1
        size = self.padded_size(sum(entry.rows for entry in entries))
        raised: list[BaseException] = []
        try:
            outputs = self._call(key, [entry.arrays for entry in entries], size, None)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
            raised.append(error)
        if raised:
            self._run_smaller(key, entries, answers, raised.pop())
            return
        if not replies.have_rows(outputs, size):
            self._stop_joining(key, entries, answers, outputs, size)
            return
        found: Comparison | None = None
        try:
            # The rows of a request that is by itself may influence each other, too: parts of a large one are.
            units = (
                entries if len(entries) > 1 else batch_inputs.split_entries(entries[0].arrays, [1] * entries[0].rows)
            )
            # Further calls would be too large as well, where memory has just turned out not to suffice for this one.
            if self._caller.fits(size):
                found = compare_batch(self._caller.call, key, units, size, outputs)
        except BaseException as error:  # noqa: BLE001  it concerns no request: the batch has its outputs
            log_event(logging.DEBUG, "values of a batch could not be compared", cause=one_line(error))
        if found is not None and found.verdict is Verdict.DEPENDENT:
            self._mark_unbatched(found.because)
            self._run_each(key, entries, answers)
            return
        if found is None and len(entries) > 1 and not self._is_proven(key):
            self._run_unproven(key, entries, answers)
            return
        if found is not None:
            self._remember_proven(key)
            if found.verdict is not Verdict.UNKNOWN:
                self._comparisons_left[variant] = 0
                if found.verdict is Verdict.VARYING:
                    self.unverified_because = VARYING
                elif self.unverified_because != VARYING:
                    self.unverified_because = None
        self._answer_entries(entries, outputs, answers)

    def _run_each(self, key: KeySpec, entries: Sequence[Entry], answers: list[Answer | None]) -> None:
        """Calls the model for each entry by itself, unpadded."""
        for entry in entries:
            try:
                answers[entry.number] = self._reply(self._caller.call(key, entry.arrays), None)
            except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
                answers[entry.number] = self._errors.translate(error)

    def _run_smaller(
        self, key: KeySpec, entries: list[Entry], answers: list[Answer | None], error: BaseException
    ) -> None:
        """After a call for these entries raised: calls for fewer of them, until the entry that raises is by itself.

        It is called when the error is not being handled any more: an error that a smaller call raises would have it as
        its context otherwise, and the log would have the tracebacks of both. Callers keep no reference to the error,
        since its traceback refers to their frames.
        """
        self._caller.last_call = False  # it is still set where joining the inputs raised, not the model
        if len(entries) == 1:
            answers[entries[0].number] = self._errors.translate(error)
            return
        halve = self._is_proven(key) or is_out_of_memory(error)
        step = (len(entries) + 1) // 2 if halve else 1
        for start in range(0, len(entries), step):
            self._run_joined(key, entries[start : start + step], answers)

    def _stop_joining(
        self, key: KeySpec, entries: list[Entry], answers: list[Answer | None], outputs: Sequence[Output], size: int
    ) -> None:
        """After outputs did not have the rows of the call: joins no requests any more, and answers these entries."""
        self._mark_unbatched(f"{size} rows gave outputs of the shapes {replies.describe_shapes(outputs)}")
        if len(entries) == 1 and size == entries[0].rows:
            answers[entries[0].number] = self._answer(outputs, None)
            return
        # Neither these outputs nor padded ones belong to any one entry.
        self._run_each(key, entries, answers)

    def _mark_unbatched(self, because: str) -> None:
        self._unbatched = True
        self._comparisons = 0
        self.unbatched_because, self.unverified_because = because, None
        log_event(logging.WARNING, "requests run unbatched from now on", cause=because)

    def _call(self, key: KeySpec, parts: Sequence[Arrays], size: int, model_inputs: Arrays | None) -> list[Output]:
        may_split = self._divisible or self._proven or key in self._proven_keys
        return self._caller.call_joined(key, parts, size, model_inputs, may_split=may_split)

    # What is known of a key.

    def _may_compare(self, key: KeySpec, size: int) -> bool:
        """Whether a batch of `size` rows may be compared: its variant has not been, and memory suffices."""
        left = self._comparisons_left.get(_variant_of(key))
        if left is None:
            left = self._comparisons if len(self._comparisons_left) < MAX_VARIANTS else 0
        if left <= 0:
            self._compared_key = key
            return False
        return self._caller.fits(size)

    def _is_proven(self, key: KeySpec) -> bool:
        return self._proven or key in self._proven_keys

    def _remember_proven(self, key: KeySpec) -> None:
        if len(self._proven_keys) >= MAX_KEYS:
            self._proven_keys.clear()
        self._proven_keys.add(key)

    # Answers.

    def _answer_entries(
        self, entries: Sequence[Entry], outputs: Sequence[Output], answers: list[Answer | None]
    ) -> None:
        """Gives each entry its rows of the outputs."""
        start = 0
        for entry in entries:
            answers[entry.number] = self._answer(outputs, slice(start, start + entry.rows))
            start += entry.rows

    def _answer(self, outputs: Sequence[Output], rows: slice | None) -> Answer:
        try:
            return self._reply(outputs, rows)
        except Exception as error:  # noqa: BLE001  elements that cannot be sent, or no memory for them
            return self._errors.translate(error)

    def _reply(self, outputs: Sequence[Output], rows: slice | None) -> list[Any]:
        started = time.monotonic_ns()
        frames = self._replies.build(outputs, rows)
        self._slice_ns += time.monotonic_ns() - started
        return frames


def _variant_of(key: KeySpec) -> Variant:
    return key.outputs, tuple([name for name, _, _ in key.inputs])


Executors = Mapping[str, Executor]
"""What runs the batches of one version of a model, by signature; the default signature has the name ""."""
