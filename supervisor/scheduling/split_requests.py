"""Requests larger than a batch: rows are peeled off as workers come free, and the answers are joined again.

Pure. The parts of a request are made one at a time when a batch has room for them, so that a large request costs
one place in the queue, whatever its size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from multitower import tensors, wire
from multitower.errors import Reason, make

from .areas import OpenArea
from .request import Frame, Request, SharedRequest


class Join:
    """The parts of one request: which rows are still to be given out, and the answers so far.

    Args:
        request: the whole.
        generation: of the model, that all parts must run on; see `serving.Served`.

    Attributes:
        next_row: the first row that no part has yet.
        generation: as given.
        parts: those made so far.
    """

    def __init__(self, request: Request, generation: int = 0) -> None:
        self.next_row = 0
        self.generation = generation
        self.parts: list[Request] = []
        self._request = request
        # Where the next row begins in each frame; only BYTES needs it, whose elements differ in length.
        self._offsets = [0] * len(request.frames)
        self._answers: dict[int, tuple[int, Sequence[Frame]]] = {}

    @property
    def rows_left(self) -> int:
        """The rows that no part has yet."""
        return self._request.rows - self.next_row

    def peel(self, rows: int) -> Request:
        """The next part, of `rows` rows, views of the request's frames.

        Raises:
            InvalidRequest: `size_mismatch` when a BYTES frame ends early.
        """
        whole = self._request
        frames: list[Frame] = []
        for index, (_, datatype, dims) in enumerate(whole.plan.key.spec.inputs):
            data, start = _sliceable(whole.frames[index]), self._offsets[index]
            count = rows * tensors.element_count(dims)
            if datatype == tensors.BYTES:
                end = tensors.skip_bytes(data, start, count)
            else:
                end = start + count * tensors.ITEM_SIZE[datatype]
            frames.append(data[start:end])
            self._offsets[index] = end
        if rows == self.rows_left and any(
            end != len(_sliceable(frame)) for end, frame in zip(self._offsets, whole.frames, strict=True)
        ):
            # Only BYTES can come here: all other sizes were checked on receipt.
            raise make(Reason.SIZE_MISMATCH, "a BYTES input has more bytes than its shape has elements")
        size = sum(map(len, frames))
        if whole.shared:
            # Outputs of parts come in frames: they are joined here.
            part: Request = SharedRequest(whole.sender, whole.id, whole.plan, frames, size, whole.received, {})
        else:
            part = Request(whole.sender, whole.id, whole.plan, frames, size, whole.received)
        part.rows = rows
        part.deadline = whole.deadline
        part.parent = whole
        part.start = self.next_row
        part.deaths, part.avoid = whole.deaths, whole.avoid
        self.next_row += rows
        self.parts.append(part)
        return part

    def add(self, part: Request, frames: Sequence[Frame]) -> bool:
        """Takes the answer of a part, a header and its outputs; True when it was the last one."""
        self._answers[part.start] = (part.rows, frames)
        return not self.rows_left and sum(rows for rows, _ in self._answers.values()) == self._request.rows

    def joined(self) -> list[Frame]:
        """The header and outputs of the whole request.

        Raises:
            ModelError: `output_invalid` when the parts' outputs do not fit together.
        """
        answers = [self._answers[start] for start in sorted(self._answers)]
        headers = [json.loads(bytes(_view(frames[0]))) for _, frames in answers]
        outputs: list[wire.Tensor] = []
        frames: list[Frame] = []
        described = [[(output["name"], output["datatype"]) for output in header["outputs"]] for header in headers]
        for names in described:
            if names != described[0]:
                raise make(
                    Reason.OUTPUT_INVALID,
                    f"the request was split, and its parts gave the outputs {described[0]} and {names}; send fewer "
                    "rows a request",
                )
        for index, first in enumerate(headers[0]["outputs"]):
            dims = first["shape"][1:]
            for (rows, _), header in zip(answers, headers, strict=True):
                here: dict[str, Any] = header["outputs"][index]
                if here["shape"] != [rows, *dims]:
                    raise make(
                        Reason.OUTPUT_INVALID,
                        f"the request was split, and {rows} of its rows gave the output {first['name']!r} the "
                        f"shape {here['shape']}; send fewer rows a request",
                        field=first["name"],
                    )
            outputs.append(wire.Tensor(first["name"], first["datatype"], (self._request.rows, *dims)))
            frames.append(b"".join(_view(part[1 + index]) for _, part in answers))
        header = wire.reply_header(headers[0]["model_name"], headers[0]["model_version"], outputs)
        return [header, *frames]


def _sliceable(frame: Frame) -> Any:
    """A frame whose parts are no copies."""
    return frame if type(frame) is OpenArea else _view(frame)


def _view(frame: Frame) -> memoryview:
    """A frame's bytes without a copy; `zmq.Frame` offers the buffer protocol as `bytes` does."""
    return memoryview(frame)
