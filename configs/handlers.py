"""The handler of handler.yaml: makes images smaller. docs/handlers.md explains handlers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Declarations = Sequence[Mapping[str, Any]]


class Thumbnailer:
    """Makes thumbnails of images: each pixel is the mean of the pixels that it replaces."""

    # Optional. With it, requests with other names, datatypes or ranks are refused by the router. -1 is any size.
    inputs: ClassVar[Declarations] = [{"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    outputs: ClassVar[Declarations] = [{"name": "thumbnails", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]

    def load(self, devices: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Called once, in the worker, before the first request.

        Args:
            devices: names of this worker's devices; numpy does not need them.
            parameters: `size`, the maximum height and width of a thumbnail; 64 by default.
        """
        size = parameters.get("size", 64)
        if size < 1:
            raise ValueError(f"size must be 1 or more, not {size}")
        self._size = size

    def infer(self, inputs: Mapping[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
        """Called for each batch. An exception is the answer to the request that caused it.

        Args:
            inputs: `images`, uint8 [n, height, width, 3]. All images of a batch have the same size.

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
