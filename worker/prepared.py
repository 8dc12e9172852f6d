"""A batch between its message and its run: decoded, and put together where that is sure to be needed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from multitower.errors import MultitowerError

from ..worker_wire import KeySpec
from . import batch
from .formats.model import Arrays

Answer = list[Any] | MultitowerError


class Entry(NamedTuple):
    """One request of a batch.

    Attributes:
        number: its index in the batch.
        rows: how many it has.
        source: the inputs that hold them.
        start: its first row there; None: all of the source is its own.
    """

    number: int
    rows: int
    source: Arrays
    start: int | None = None

    @property
    def arrays(self) -> Arrays:
        """Its inputs."""
        return self.source if self.start is None else batch.rows_of(self.source, self.start, self.rows)


class Prepared(NamedTuple):
    """A batch that can be run.

    Attributes:
        key: what its entries have in common.
        rows: of each entry.
        answers: of each entry; None for those that can be run.
        whole: the inputs of all entries, where they came joined; perhaps padded.
        entries: those that can be run, where they did not.
        ready: the inputs of all of these, put together and padded, as the model will be called with them; None where
            only the run shows whether it will.
        assemble_ns: what that took.
    """

    key: KeySpec
    rows: Sequence[int]
    answers: list[Answer | None]
    whole: Arrays | None
    entries: list[Entry]
    ready: Arrays | None
    assemble_ns: int


def entries_of(whole: Arrays, rows: Sequence[int]) -> list[Entry]:
    """The entries of what came joined."""
    starts = itertools.accumulate(rows[:-1], initial=0)
    return [Entry(index, count, whole, start) for index, (count, start) in enumerate(zip(rows, starts, strict=True))]
