"""The handler of handler.yaml: makes images smaller. docs/handlers.md tells all that a handler may do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Declarations = Sequence[Mapping[str, Any]]


class Thumbnailer:
    """Images to thumbnails: each pixel is the mean of the pixels that it stands for."""

    # Optional. With it, a request of other names, datatypes or ranks is refused before it gets here. -1 is any size.
    inputs: ClassVar[Declarations] = [{"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    outputs: ClassVar[Declarations] = [{"name": "thumbnails", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]

    def load(self, devices: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Called once, in the worker, before the first request.

        Args:
            devices: names of this worker's devices; numpy has no use for them.
            parameters: `size`, the most rows and columns of a thumbnail; 64 without it.
        """
        size = parameters.get("size", 64)
        if size < 1:
            raise ValueError(f"size must be 1 or more, not {size}")
        self._size = size

    def infer(self, inputs: Mapping[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
        """Called for each batch; an exception is the answer to the request that caused it, and ends nothing.

        Args:
            inputs: `images`, uint8 [n, height, width, 3]. All of a batch have one height and width.

        Returns:
            `thumbnails`, uint8 [n, min(height, size), min(width, size), 3].
        """
        images = inputs["images"]
        if 0 in images.shape[1:3]:
            raise ValueError("an image without pixels has no thumbnail")
        means = images.astype(np.float32)
        for axis in (1, 2):
            length = images.shape[axis]
            starts = np.arange(min(length, self._size)) * length // min(length, self._size)
            shape = [1, 1, 1, 1]
            shape[axis] = len(starts)
            counts = np.diff(starts, append=length).reshape(shape)
            means = np.add.reduceat(means, starts, axis=axis) / counts
        return {"thumbnails": means.round().astype(np.uint8)}
