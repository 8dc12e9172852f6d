"""What models of either Keras have in common once they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from multitower.spec import TensorReport

from .function_call import FunctionCall
from .model import Arrays


class KerasBase(ABC):
    """A model that Keras has read from a file, called as one function; those derived from it make that.

    Attributes:
        inputs: what it takes.
        outputs: what it gives.
        model: Keras's own object. The function holds its variables only weakly.
        call: the function.
    """

    platform: ClassVar[str] = "keras"
    volatile: ClassVar[bool] = False
    version: ClassVar[str] = "1"

    inputs: tuple[TensorReport, ...]
    outputs: tuple[TensorReport, ...]
    model: Any
    call: FunctionCall

    def infer(self, inputs: Arrays) -> Arrays:
        """Calls the model."""
        return self.call(inputs)

    def try_out(self, inputs: Arrays) -> Arrays:
        """Calls the model, and finds out whether it can be called in a quicker way."""
        return self.call.try_out(inputs)

    @abstractmethod
    def save(self, folder: str, serve: Callable[..., dict[str, Any]], inputs: list[Any]) -> None:
        """Writes a SavedModel whose signature is this function, made of the model, for these TensorSpecs."""

    @property
    def graph(self) -> Any:
        """What a call runs: a GraphDef, with the functions that it calls."""
        return self.call.graph

    def close(self) -> None:  # noqa: B027  there is nothing to do
        """Only the process's end gives device memory back."""
