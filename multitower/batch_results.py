"""The result of a batch: its worker writes it, and the router cuts joined outputs into the rows of each request.

It is a RESULT message of `worker_wire`, joined or entry by entry; see there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from multitower.worker_wire import RESULT

# RESULT, batch id, entries, ns to assemble, compute, slice; the number of reply headers, 0 for entry by entry.
_RESULT_HEAD: Final = struct.Struct("<cQIQQQI")
# Entry by entry: u32 frames, one an entry.
# Joined: u32 rows, one an entry; u32 rows, one a header; u32 bytes, one a header; the headers.


class Timing:
    """Nanoseconds of a batch in its worker: for assembling inputs, for computing, and for slicing outputs."""

    __slots__ = ("assemble_ns", "compute_ns", "slice_ns")

    def __init__(self, assemble_ns: int, compute_ns: int, slice_ns: int) -> None:
        self.assemble_ns = assemble_ns
        self.compute_ns = compute_ns
        self.slice_ns = slice_ns


def result(batch_id: int, answers: Sequence[list[Any] | bytes], timing: Timing) -> list[Any]:
    """A RESULT message, entry by entry.

    Args:
        batch_id: the number of the batch.
        answers: one an entry, in order: a reply header and the outputs; or, for an error, the header of the
            `MT1:error` reply.
        timing: how long it took.
    """
    counts = [0 if isinstance(answer, bytes) else len(answer) for answer in answers]
    head = _RESULT_HEAD.pack(RESULT, batch_id, len(answers), timing.assemble_ns, timing.compute_ns, timing.slice_ns, 0)
    message: list[Any] = [head + struct.pack(f"<{len(counts)}I", *counts)]
    for answer in answers:
        if isinstance(answer, bytes):
            message.append(answer)
        else:
            message.extend(answer)
    return message


def joined_result(
    batch_id: int, headers: dict[int, bytes], rows: Sequence[int], outputs: Sequence[Any], timing: Timing
) -> list[Any]:
    """A RESULT message, joined. No entry has an error.

    Args:
        batch_id: the number of the batch.
        headers: the reply header for each number of rows that an entry has.
        rows: the number of rows of each entry.
        outputs: one frame an output, with the rows of all entries.
        timing: how long it took.
    """
    sizes = [len(header) for header in headers.values()]
    head = _RESULT_HEAD.pack(
        RESULT, batch_id, len(rows), timing.assemble_ns, timing.compute_ns, timing.slice_ns, len(headers)
    )
    layout = struct.pack(f"<{len(rows)}I{len(headers)}I{len(headers)}I", *rows, *headers, *sizes)
    return [b"".join((head, layout, *headers.values())), *outputs]


class Result:
    """A RESULT as the router reads it: for each entry a reply header and the outputs, or the header of an error."""

    __slots__ = ("answers", "batch_id", "timing")

    def __init__(self, batch_id: int, answers: list[list[Any] | bytes], timing: Timing) -> None:
        self.batch_id = batch_id
        self.answers = answers
        self.timing = timing


def read_result(message: Sequence[Any]) -> Result:
    """Reads what `result` or `joined_result` wrote.

    Raises:
        ValueError, struct.error, LookupError, ArithmeticError: it is malformed.
    """
    head = bytes(message[0])
    _, batch_id, count, assemble_ns, compute_ns, slice_ns, headers = _RESULT_HEAD.unpack_from(head)
    timing = Timing(assemble_ns, compute_ns, slice_ns)
    answers: list[list[Any] | bytes]
    if headers:
        numbers = struct.unpack_from(f"<{count + 2 * headers}I", head, _RESULT_HEAD.size)
        rows = numbers[:count]
        end = len(head)
        by_rows: dict[int, bytes] = {}
        # Backwards: the last header ends with the frame.
        for index in range(headers - 1, -1, -1):
            start = end - numbers[count + headers + index]
            by_rows[numbers[count + index]] = head[start:end]
            end = start
        answers = _split_outputs(by_rows, rows, message[1:])
    else:
        answers = []
        start = 1
        for frames in struct.unpack_from(f"<{count}I", head, _RESULT_HEAD.size):
            answers.append(list(message[start : start + frames]) if frames else bytes(message[start]))
            start += frames or 1
        if start != len(message):
            raise ValueError(f"a result of {len(message)} frames whose entries have {start}")
    return Result(batch_id, answers, timing)


def _split_outputs(headers: dict[int, bytes], rows: Sequence[int], outputs: Sequence[Any]) -> list[list[Any] | bytes]:
    """One answer an entry, from joined outputs."""
    if len(rows) == 1:
        return [[headers[rows[0]], *outputs]]
    total = sum(rows)
    answers: list[list[Any] | bytes] = [[headers[count]] for count in rows]
    for frame in outputs:
        # A large frame has memory of its own; its slices are copied when they are sent.
        data = frame if type(frame) is bytes else memoryview(frame)
        width, rest = divmod(len(data), total)
        if rest:
            raise ValueError(f"an output of {len(data)} bytes for {total} rows")
        start = 0
        for answer, count in zip(answers, rows, strict=True):
            end = start + count * width
            answer.append(data[start:end])  # type: ignore[union-attr]
            start = end
    return answers
