"""Checks whether the protocol can carry a request to a model: the limits of names, counts and sizes."""

from __future__ import annotations

from collections.abc import Sequence

from multitower import tensors, wire
from multitower.spec import TensorReport

from .unrunnable import UnrunnableError


def check_limits(model: str, inputs: Sequence[TensorReport] | None, max_message_size: int | None = None) -> None:
    """Checks the smallest request that has no empty tensor: sizes that the model leaves open are 1.

    Args:
        model: the model's name.
        inputs: the inputs that a request must have; None where nothing is declared.
        max_message_size: bytes that a request may have; None if that is not to be checked.

    Raises:
        UnrunnableError: no such request would be accepted; the message names the limit.
    """
    if inputs is None:
        return
    if len(inputs) > wire.MAX_INPUTS:
        raise UnrunnableError(f"it has {len(inputs)} inputs; a request can have {wire.MAX_INPUTS}")
    smallest: list[wire.Tensor] = []
    for tensor in inputs:
        size = len(tensor.name.encode())
        if not tensor.name:
            raise UnrunnableError("it has an input with an empty name, which no request can give")
        if size > wire.MAX_NAME_BYTES:
            raise UnrunnableError(
                f"the name of its input {tensor.name[:40]!r}… has {size} bytes; a request can name "
                f"{wire.MAX_NAME_BYTES}"
            )
        shape = tuple(1 if length == -1 else length for length in tensor.shape or ())
        if len(shape) > wire.MAX_RANK:
            raise UnrunnableError(
                f"its input {tensor.name!r} has {len(shape)} dimensions; a tensor of a request can have {wire.MAX_RANK}"
            )
        smallest.append(wire.Tensor(tensor.name, tensor.datatype, shape))
    header = len(wire.infer_header(model, smallest))
    if header > wire.MAX_HEADER_BYTES:
        raise UnrunnableError(
            f"the names and shapes of its {len(smallest)} inputs make a header of {header} bytes; a request can have "
            f"{wire.MAX_HEADER_BYTES}"
        )
    message = header + sum(tensors.byte_size(tensor.datatype, tensor.shape) for tensor in smallest)
    if max_message_size is not None and message > max_message_size:
        raise UnrunnableError(
            f"a request with one row has at least {message} bytes, and max_message_size is {max_message_size}: raise "
            "it in the configuration"
        )
