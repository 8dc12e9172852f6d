"""Defaults of inputs in signatures of SavedModels (`SignatureDef.defaults`): requests may leave these inputs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import tensorflow as tf

from multitower import tensors
from multitower.spec import TensorReport

from .model import Array


def argument_names(meta_graph: Any) -> Callable[[str], str]:
    """How names of inputs in signatures become those that clients use: the arguments of TensorFlow's functions.

    Models of TensorFlow 1 keep the names of their signatures.
    """
    from tensorflow.core.function.polymorphism.function_type import sanitize_arg_name

    return sanitize_arg_name if meta_graph.HasField("object_graph_def") else str


def read_defaults(meta_graph: Any) -> dict[str, dict[str, Array]]:
    """The defaults of a MetaGraphDef: for each signature that has some, the values by the inputs' names."""
    renamed = argument_names(meta_graph)
    return {
        signature: {renamed(name): tf.make_ndarray(value) for name, value in definition.defaults.items()}
        for signature, definition in meta_graph.signature_def.items()
        if definition.defaults
    }


def mark_optional(inputs: tuple[TensorReport, ...], defaults: Mapping[str, Array]) -> tuple[TensorReport, ...]:
    """The declared inputs; those with a default that fits their declaration are optional."""
    return tuple(
        replace(tensor, optional=True, batched_without=_is_constant_in_batches(tensor, defaults[tensor.name]))
        if tensor.name in defaults and _fits(tensor, defaults[tensor.name])
        else tensor
        for tensor in inputs
    )


def _fits(tensor: TensorReport, value: Array) -> bool:
    return tensors.datatype_of(value) == tensor.datatype and (
        tensor.shape is None
        or (
            len(tensor.shape) == value.ndim
            and all(size in (-1, given) for size, given in zip(tensor.shape, value.shape, strict=True))
        )
    )


def _is_constant_in_batches(tensor: TensorReport, value: Array) -> bool:
    """Whether all rows of a batch get the same default: it has no batch dimension, or one row, which is repeated."""
    return not tensor.has_rows or len(value) == 1
