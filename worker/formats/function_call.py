"""Calls of TensorFlow's functions: the quick way, where it has shown to give what the plain one gives.

The plain way is Python: it binds arguments, packs results and enters TensorFlow by the function's name, which costs
more than many a small model. The quick one runs the same function as one `StatefulPartitionedCall`, the operation by
which graphs call functions. `benchmarks/tensorflow_calls.py` compares them. A model is called plainly unless everything
about it is known to be alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from . import tensorflow_setup as setup
from .model import Arrays

log = logging.getLogger("multitower.worker")

MAX_GRAPH_BYTES = 32 << 20
"""TensorFlow prepares a function once for each way, and so holds its graph's constants twice, on the device too."""

COMPILED = "_XlaMustCompile"
"""An attribute of functions of which the operation takes no notice."""

Tensors = dict[str, Any]


class NotPlain(Exception):
    """Something about a function that the quick way does not do; the message says what."""


class FunctionCall:
    """Calls a concrete function with arrays. Any number of threads may, once nothing is tried out any more.

    Args:
        model: the model's name, for the log.
        function: a concrete function. What it needs (its variables) has to be kept alive by others.
        specs: of the inputs, by name.
        arguments: the function's arguments, positional and by keyword, made of the inputs' tensors by name.
        named: the outputs by name, made of what the function returns.

    Attributes:
        quick: the quick way is taken.
        specs: as given.
    """

    def __init__(
        self,
        model: str,
        function: Any,
        specs: Mapping[str, Any],
        arguments: Callable[[Tensors], tuple[tuple[Any, ...], Mapping[str, Any]]],
        named: Callable[[Any], Tensors],
    ) -> None:
        self.quick = False
        self.specs = specs
        self._model = model
        self._function = function
        self._arguments = arguments
        self._named = named
        self._dtypes = {name: spec.dtype for name, spec in specs.items()}
        self._dims = {
            name: None if spec.shape.rank is None else tuple(spec.shape.as_list()) for name, spec in specs.items()
        }
        self._given_up = False
        self._operation: _Operation | None = None

    @property
    def graph(self) -> Any:
        """The function as a GraphDef, with those that it calls."""
        return self._function.graph.as_graph_def()

    def __call__(self, arrays: Arrays) -> Arrays:
        """The outputs for these inputs, in the quick way where it has been found to do.

        Raises:
            tf.errors.OpError: the function raised; of the same class in both ways.
            Exception: they are not the inputs' names, datatypes or shapes.
        """
        tensors = self._tensors(arrays)
        # The operation does not look at shapes: what does not fit gets the plain way's own error.
        if self.quick and self._operation is not None and self._fits(arrays):
            return {name: setup.to_array(value) for name, value in self._operation.run(tensors).items()}
        return self._plain(tensors)

    def try_out(self, arrays: Arrays) -> Arrays:
        """The outputs for these inputs, in the plain way; and whether the quick one gives the same, bit for bit.

        From the first time that it does it is taken; from the first that it does not, never again. Where the plain way
        raises, nothing has been shown.
        """
        tensors = self._tensors(arrays)
        expected = self._plain(tensors)
        if self._given_up:
            return expected
        try:
            if not self._fits(arrays):
                raise NotPlain("the made-up inputs do not have the declared shapes")
            if self._operation is None:
                self._operation = _Operation(self._function, tensors, self._arguments, self._named)
            found = {name: setup.to_array(value) for name, value in self._operation.run(tensors).items()}
            wrong = sorted(name for name in expected.keys() | found.keys() if not _same(expected, found, name))
            if wrong:
                raise NotPlain(f"it gives other values of {', '.join(map(repr, wrong))}")
        except Exception as error:  # noqa: BLE001  whatever it is, the plain way has just given an answer
            self._give_up(error)
        else:
            self.quick = True
        return expected

    def _give_up(self, error: Exception) -> None:
        self._given_up = True
        self.quick = False
        self._operation = None
        told = error if isinstance(error, NotPlain) else f"{type(error).__name__}: {error}"
        log.debug("%s: called in the plain way: %s", self._model, told)

    def _tensors(self, arrays: Arrays) -> Tensors:
        return {name: setup.to_tensor(array, self._dtypes[name]) for name, array in arrays.items()}

    def outputs(self, tensors: Tensors) -> Tensors:
        """The outputs' tensors for the inputs' tensors, in the plain way; also inside another function."""
        positional, keywords = self._arguments(tensors)
        return self._named(self._function(*positional, **keywords))

    def _plain(self, tensors: Tensors) -> Arrays:
        return {name: setup.to_array(value) for name, value in self.outputs(tensors).items()}

    def _fits(self, arrays: Arrays) -> bool:
        if len(arrays) != len(self._dims):
            return False
        for name, array in arrays.items():
            dims = self._dims[name]
            if dims is None:
                continue
            if len(dims) != array.ndim:
                return False
            for declared, size in zip(dims, array.shape, strict=True):
                if declared is not None and declared != size:
                    return False
        return True


class _Operation:
    """The function's own inference function as an operation, with its captures and the plain way's options.

    Raises:
        NotPlain: something about the function that is not known to be alike.
        Exception: something of TensorFlow's is not where it was in the version that this was written for.
    """

    def __init__(
        self,
        function: Any,
        tensors: Tensors,
        arguments: Callable[[Tensors], tuple[tuple[Any, ...], Mapping[str, Any]]],
        named: Callable[[Any], Tensors],
    ) -> None:
        # The plain way asks it as well; there is no public name for what it is told.
        from tensorflow.python.eager import context

        definition = function.inference_fn.definition
        if definition.attr[COMPILED].b:
            raise NotPlain("XLA compiles it")
        if function.graph.deferred_external_captures:
            raise NotPlain("something that it captures is made anew for each call")
        self._captures = list(function.captured_inputs)
        if not all(isinstance(capture, tf.Tensor) for capture in self._captures):
            raise NotPlain("something that it captures is not a tensor")
        size = function.graph.as_graph_def().ByteSize()
        if size > MAX_GRAPH_BYTES:
            raise NotPlain(f"its graph is {size >> 20} MiB, with constants that would be held twice")
        options = context.context().function_call_options.as_attrs()
        self._kind = function.function_type
        self._named = named
        self._outputs: list[tuple[str, int]] = []
        self._attributes = {
            "f": definition.signature.name,
            "Tout": [tf.as_dtype(output.type) for output in definition.signature.output_arg],
            "config_proto": options["config_proto"],
            "executor_type": options["executor_type"] or "",
        }
        # TensorFlow's own packing tells in what order the function takes and gives things.
        positional, keywords = arguments(tensors)
        self._inputs = _indices(tensors, self._kind.unpack_inputs(self._kind.bind(*positional, **keywords)))
        if len(definition.signature.input_arg) != len(self._inputs) + len(self._captures):
            raise NotPlain("its inputs are not dense tensors and captures alone")

    def run(self, tensors: Tensors) -> Tensors:
        """The outputs' tensors, by name."""
        values = [tensors[name] for name in self._inputs]
        flat: list[Any] = tf.raw_ops.StatefulPartitionedCall(args=values + self._captures, **self._attributes)
        if not self._outputs:
            indices = _indices(self._named(self._kind.pack_output(flat)), flat)
            self._outputs = [(name, index) for index, name in enumerate(indices)]
        return {name: flat[index] for name, index in self._outputs}


def _indices(named: Tensors, flat: list[Any]) -> list[str]:
    """The names of a flat list's tensors, each found by being the same object."""
    names = {id(tensor): name for name, tensor in named.items()}
    if len(names) != len(named) or sorted(names) != sorted(map(id, flat)):
        raise NotPlain("its inputs and outputs are not plain tensors, one for each name")
    return [names[id(tensor)] for tensor in flat]


def _same(left: Arrays, right: Arrays, name: str) -> bool:
    if name not in left or name not in right:
        return False
    one, other = left[name], right[name]
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.dtype == object:
        return bool(one.tolist() == other.tolist())
    # Bytes, since numbers that are none differ from themselves, and zeros of either sign do not from each other.
    return one.tobytes() == other.tobytes()
