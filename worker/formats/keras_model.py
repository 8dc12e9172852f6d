"""What models of either Keras have in common once they are read from their file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from multitower.spec import TensorReport

from .function_call import FunctionCall
from .model import CallableModel


class KerasModel(CallableModel):
    """A model that Keras has read from a file, called as one function.

    Args:
        model: Keras's own object. The function references its variables only weakly.
        function: the model as one function.
        inputs: the declared inputs.
        outputs: the declared outputs.

    Attributes:
        model: as given.
        function: as given.
    """

    def __init__(
        self,
        model: Any,
        function: FunctionCall,
        inputs: tuple[TensorReport, ...],
        outputs: tuple[TensorReport, ...],
    ) -> None:
        super().__init__(function, inputs, outputs)
        self.model = model
        self.function = function

    @abstractmethod
    def save(self, folder: str, serve: Callable[..., dict[str, Any]], inputs: list[Any]) -> None:
        """Writes a SavedModel of the model.

        Args:
            folder: where.
            serve: the function of its default signature; calls the model.
            inputs: a TensorSpec for each argument of `serve`.
        """
