"""Calls a model: counts and times the calls, checks what they return, and splits what memory does not suffice for."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from multitower.errors import Reason, make
from multitower.worker_wire import KeySpec

from . import batch_inputs, replies
from .formats.model import Array, Arrays, Model
from .heartbeat import CallCounter
from .model_errors import is_out_of_memory, one_line
from .optional_inputs import fill_rows
from .records import log_event
from .replies import Output


class ModelCaller:
    """Calls one model, for one batch after the other.

    Args:
        name: the model's name.
        model: the model.
        allowed: sizes that batches are padded to, ascending; empty for no padding.
        safe_rows: rows that an earlier process found to fit into memory; 0 while that is unknown.
        counter: counts the calls.
        row_defaults: of inputs that a batch may lack: the value that each row gets.

    Attributes:
        safe_rows: as given, or fewer, once memory did not suffice for more.
        exhausted: calls in a row for which memory did not suffice though they could not be split any further.
        compute_ns: nanoseconds in the model for the current batch, or for the last one.
        assemble_ns: nanoseconds that joining inputs has taken for it.
        last_call: whether the next call is the last one of the batch, unless it raises. Outputs of a volatile model
            need not be copied then.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        allowed: Sequence[int],
        *,
        safe_rows: int,
        counter: CallCounter | None,
        row_defaults: Mapping[str, Array] | None = None,
    ) -> None:
        self._name = name
        self._model = model
        self._is_volatile = model.volatile
        self._datatypes = replies.declared_datatypes(model.outputs)
        self._allowed = tuple(allowed)
        self._counter = counter
        self._row_defaults = row_defaults
        self.safe_rows = safe_rows
        self.exhausted = 0
        self.compute_ns = 0
        self.assemble_ns = 0
        self.last_call = False

    def start_batch(self, assemble_ns: int, *, last_call: bool) -> None:
        """Sets the figures of a new batch.

        Args:
            assemble_ns: nanoseconds that preparing it took.
            last_call: as the attribute.
        """
        self.compute_ns = 0
        self.assemble_ns = assemble_ns
        self.last_call = last_call

    def call(self, key: KeySpec, inputs: Arrays) -> list[Output]:
        """Calls the model once.

        Args:
            key: of the batch; its outputs are selected.
            inputs: arrays by name.

        Raises:
            BaseException: whatever the model raises.
            MultitowerError: `output_invalid` or `output_unknown`: see `select_outputs`.
        """
        started = time.monotonic_ns()
        last_call, self.last_call = self.last_call, False
        if self._counter is not None:
            self._counter.calls += 1
        try:
            if self._row_defaults and key.batched:
                inputs = fill_rows(inputs, self._row_defaults)
            outputs = self._model.infer(inputs)
        except BaseException as error:
            self.exhausted = self.exhausted + 1 if is_out_of_memory(error) else 0
            raise
        finally:
            self.compute_ns += time.monotonic_ns() - started
        self.exhausted = 0
        selected = replies.select_outputs(outputs, key.outputs, self._datatypes)
        if self._is_volatile and not last_call:
            return [(name, array.copy(), datatype) for name, array, datatype in selected]
        return selected

    def call_joined(
        self, key: KeySpec, parts: Sequence[Arrays], size: int, inputs: Arrays | None, *, may_split: bool
    ) -> list[Output]:
        """Calls the model for several entries at once; in parts where memory does not suffice for all of them.

        Args:
            key: of the batch.
            parts: the entries' inputs.
            size: rows to pad them to.
            inputs: the entries' inputs, where they have been joined and padded already.
            may_split: whether parts of one entry may be run separately: no row depends on another.

        Returns:
            The outputs, of `size` rows if the model keeps its promise.

        Raises:
            BaseException: whatever the model raises.
            MultitowerError: `output_invalid` or `output_unknown`.
        """
        if inputs is None:
            inputs = self._join(parts, size)
        if self.fits(size):
            try:
                return self.call(key, inputs)
            except BaseException as error:
                fewer = self._largest_size(size // 2)
                if not (0 < fewer < size and is_out_of_memory(error) and may_split):
                    raise
                self.safe_rows = fewer
                message = "memory does not suffice for a batch: smaller ones from now on"
                log_event(logging.WARNING, message, rows=size, safe_rows=fewer, cause=one_line(error))
        self.last_call = False
        step = self._largest_size(self.safe_rows)  # the first part may find that these are too many as well
        outputs: list[list[Output]] = []
        for start in range(0, size, step):
            rows = min(step, size - start)
            padded = batch_inputs.padded_size(rows, self._allowed)
            part = [batch_inputs.slice_rows(inputs, start, rows)]
            found = self.call_joined(key, part, padded, None, may_split=may_split)
            if not replies.have_rows(found, padded):
                shapes = replies.describe_shapes(found)
                raise make(Reason.OUTPUT_INVALID, f"a part of {padded} rows gave outputs of the shapes {shapes}")
            outputs.append([(name, array[:rows], datatype) for name, array, datatype in found])
        return replies.concatenate_outputs(outputs)

    def fits(self, size: int) -> bool:
        """Whether memory is expected to suffice for one call with `size` rows."""
        return not self.safe_rows or size <= self._largest_size(self.safe_rows)

    def _join(self, parts: Sequence[Arrays], size: int) -> Arrays:
        started = time.monotonic_ns()
        joined = batch_inputs.join_inputs(parts, size)
        self.assemble_ns += time.monotonic_ns() - started
        return joined

    def _largest_size(self, rows: int) -> int:
        """The largest size that the model may be called with and that is at most `rows`.

        Where all allowed sizes are larger, the smallest of them.
        """
        if not self._allowed:
            return rows
        return max((size for size in self._allowed if size <= rows), default=self._allowed[0])
