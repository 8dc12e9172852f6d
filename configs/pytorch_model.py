"""The handler of pytorch.yaml: serves a PyTorch program. docs/handlers.md explains handlers.

The file is created once, where the model was trained, with a dynamic dimension 0 so that requests can be batched:

    rows = torch.export.Dim("rows")
    program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: rows},))
    torch.export.save(program, "models/classifier.pt2")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export.passes import move_to_device_pass

from multitower import InvalidRequest, Reason

Arrays = dict[str, NDArray[Any]]


class Exported:
    """A program that `torch.export.save` wrote, on the worker's device."""

    def load(self, devices: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Called once, in the worker, before the first request.

        Args:
            devices: names of this worker's devices. The worker sees no other GPU, so its own is always cuda:0.
            parameters: `program`, the file; `inputs` and `outputs`, names for arguments and results, in order.
        """
        self._device = "cpu" if devices[0].startswith("cpu") else "cuda:0"
        program = torch.export.load(str(Path(__file__).parent / parameters["program"]))
        self._module = move_to_device_pass(program, self._device).module()
        self._inputs: list[str] = parameters["inputs"]
        self._outputs: list[str] = parameters["outputs"]

    def infer(self, inputs: Arrays) -> Arrays:
        """Called for each batch. An exception is the answer to the request that caused it.

        Args:
            inputs: arrays by name. They are read-only, which PyTorch cannot express: `torch.tensor` copies them.

        Returns:
            The outputs by name.
        """
        missing = [name for name in self._inputs if name not in inputs]
        if missing:
            raise InvalidRequest(Reason.INPUT_MISSING, f"the inputs {', '.join(missing)} are missing")
        with torch.inference_mode():
            given = [torch.tensor(inputs[name], device=self._device) for name in self._inputs]
            returned = self._module(*given)
        results = returned if isinstance(returned, tuple | list) else [returned]
        return {name: np.asarray(result.cpu().numpy()) for name, result in zip(self._outputs, results, strict=True)}
