"""Requests larger than a batch: parts are cut off as workers become free, and their answers are joined.

A part is made only when a batch has room for it, so a large request takes one place in its queue, whatever its size.
One that cannot be done in its time is refused rather than run in part.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from multitower import tensors, wire
from multitower.errors import MultitowerError, Reason, make

from .deadlines import describe_limit, limit_details
from .request import Frame, Plan, Request, SharedRequest, Split
from .shared_memory_areas import OpenArea

SURE_FACTOR: Final = 1.25
"""A request is refused if its rows take this many times the time that is left: estimates are not exact."""


def late_error(plan: Plan, rows: int, least_s: float, left_s: float) -> MultitowerError | None:
    """The error for a request that cannot be answered in its time; None if it may be.

    Args:
        plan: the request's.
        rows: of it, that have not run.
        least_s: seconds that these take at least; 0.0 if that is not known.
        left_s: seconds until its deadline.
    """
    if least_s <= SURE_FACTOR * max(left_s, 0.0):
        return None
    return make(
        Reason.DEADLINE,
        f"{rows} rows of the request have not run and take {least_s:.1f} s at least, but only {left_s:.1f} s are left "
        f"of its time ({describe_limit(plan)}); send fewer rows per request, or allow it more time",
        rows=rows,
        estimated_ms=round(least_s * 1000),
        **limit_details(plan),
    )


def cut_part(whole: Request, split: Split, rows: int) -> Request:
    """Makes the next part of a request.

    Args:
        whole: the request.
        split: its state.
        rows: of the part; at most `split.rows_left`.

    Returns:
        The part. Its frames are views of the request's.

    Raises:
        InvalidRequest: `size_mismatch` if a BYTES frame has too few or too many bytes.
    """
    frames: list[Frame] = []
    last = rows == split.rows_left
    for index, (_, datatype, dims) in enumerate(whole.plan.key.spec.inputs):
        frame, start = whole.frames[index], split.offsets[index]
        count = rows * tensors.element_count(dims)
        if datatype == tensors.BYTES:
            end = tensors.skip_bytes(_view(frame), start, count)
        else:
            end = start + count * tensors.ITEM_SIZE[datatype]
        if last and end != len(frame):
            # Frames of all other datatypes were checked when the request arrived.
            raise make(Reason.SIZE_MISMATCH, "a BYTES input has more bytes than its shape has elements")
        frames.append(frame[start:end] if type(frame) is OpenArea else _view(frame)[start:end])
        split.offsets[index] = end
    size = sum(map(len, frames))
    if whole.shared:
        # The outputs of parts come in frames, since they are joined here.
        part: Request = SharedRequest(whole.sender, whole.id, whole.plan, frames, size, whole.received, {})
    else:
        part = Request(whole.sender, whole.id, whole.plan, frames, size, whole.received)
    part.rows = rows
    part.deadline = whole.deadline
    part.parent = whole
    part.start = whole.rows - split.rows_left
    part.deaths, part.avoid = whole.deaths, whole.avoid
    split.rows_left -= rows
    split.parts.append(part)
    return part


def add_answer(whole: Request, split: Split, part: Request, frames: Sequence[Frame]) -> bool:
    """Stores the answer of a part, its header and outputs; returns whether all parts are answered."""
    split.answers[part.start] = part.rows, frames
    return not split.rows_left and sum(rows for rows, _ in split.answers.values()) == whole.rows


def join_answers(whole: Request, split: Split) -> list[Frame]:
    """The answer of a request whose parts are all answered: its header and outputs.

    Raises:
        ModelError: `output_invalid` if the parts' outputs do not fit together.
    """
    answers = [split.answers[start] for start in sorted(split.answers)]
    headers = [json.loads(bytes(_view(frames[0]))) for _, frames in answers]
    outputs: list[wire.Tensor] = []
    joined: list[Frame] = []
    described = [[(output["name"], output["datatype"]) for output in header["outputs"]] for header in headers]
    for names in described:
        if names != described[0]:
            raise make(
                Reason.OUTPUT_INVALID,
                f"the request was split, and its parts returned the outputs {described[0]} and {names}; send fewer "
                "rows per request",
            )
    for index, first in enumerate(headers[0]["outputs"]):
        dims = first["shape"][1:]
        for (rows, _), header in zip(answers, headers, strict=True):
            output: dict[str, Any] = header["outputs"][index]
            if output["shape"] != [rows, *dims]:
                raise make(
                    Reason.OUTPUT_INVALID,
                    f"the request was split, and for {rows} of its rows the output {first['name']!r} has the shape "
                    f"{output['shape']}; send fewer rows per request",
                    field=first["name"],
                )
        outputs.append(wire.Tensor(first["name"], first["datatype"], (whole.rows, *dims)))
        joined.append(b"".join(_view(frames[1 + index]) for _, frames in answers))
    header = wire.reply_header(headers[0]["model_name"], headers[0]["model_version"], outputs)
    return [header, *joined]


def _view(frame: Frame) -> memoryview:
    """A frame's bytes, not copied."""
    assert type(frame) is not OpenArea  # BYTES inputs and answers come in frames
    return memoryview(frame)
