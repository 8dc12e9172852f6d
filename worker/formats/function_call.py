"""Calls of TensorFlow's functions: by one operation, where that has shown to give what Python's way gives.

Calling a function from Python binds arguments, packs results and enters TensorFlow by the function's name, which costs
more than many small models do. The fast way runs the same function as one `StatefulPartitionedCall`, the operation by
which graphs call functions. `benchmarks/tensorflow_calls.py` compares the two. A model is called in Python's way unless
everything about its function is known to be equivalent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import tensorflow as tf

from ..model_errors import one_line
from ..records import log_event
from .graph_nodes import COMPILED
from .model import Arrays
from .tensorflow_types import to_array, to_tensor

MAX_GRAPH_BYTES: Final = 32 << 20
"""TensorFlow prepares a function once for each way, and holds the constants of its graph twice, also on the device."""

Tensors = dict[str, Any]


class NotEquivalentError(Exception):
    """The fast way does something differently for this function; the message says what."""


class FunctionCall:
    """Calls a concrete function with arrays. After the last `try_out`, any number of threads may call it.

    Args:
        function: a concrete function. It references its variables only weakly.
        specs: TensorSpecs of the inputs, by name.
        arguments: makes the function's positional and keyword arguments out of the inputs' tensors.
        by_name: makes a dict of the outputs, by name, out of what the function returns.
        keep_alive: what holds the function's variables, where the caller does not keep it.

    Attributes:
        fast: whether the fast way is used.
        specs: as given.
        tower: None: a function is not placed by the worker.
    """

    tower = None

    def __init__(
        self,
        function: Any,
        specs: Mapping[str, Any],
        arguments: Callable[[Tensors], tuple[tuple[Any, ...], Mapping[str, Any]]],
        by_name: Callable[[Any], Tensors],
        *,
        keep_alive: object = None,
    ) -> None:
        self.fast = False
        self.specs = specs
        self._function = function
        self._arguments = arguments
        self._by_name = by_name
        self._keep_alive = keep_alive
        self._dtypes = {name: spec.dtype for name, spec in specs.items()}
        self._dims = {
            name: None if spec.shape.rank is None else tuple(spec.shape.as_list()) for name, spec in specs.items()
        }
        self._refused = False
        self._operation: _Operation | None = None

    @property
    def graph(self) -> Any:
        """The function as a GraphDef, with the functions that it calls."""
        return self._function.graph.as_graph_def()

    @property
    def fetched(self) -> tuple[str, ...]:
        """See `ModelCall`."""
        graph = self._function.graph
        return (*(tensor.name for tensor in graph.outputs), *(node.name for node in graph.control_outputs))

    def __call__(self, arrays: Arrays) -> Arrays:
        """Returns the outputs for these inputs.

        Raises:
            tf.errors.OpError: the function raised; of the same class in both ways.
            Exception: the inputs have other names, datatypes or shapes.
        """
        tensors = self._to_tensors(arrays)
        # The operation does not check shapes: inputs that do not fit get the error of Python's way.
        if self.fast and self._operation is not None and self._fits(arrays):
            return _to_arrays(self._operation.run(tensors))
        return self._call_from_python(tensors)

    def try_out(self, arrays: Arrays) -> Arrays:
        """Returns the outputs of Python's way, and finds out whether the fast way gives the same, bit for bit.

        The fast way is used from the first time that it does, and never again after the first time that it does not.
        Where Python's way raises, nothing has been shown.
        """
        tensors = self._to_tensors(arrays)
        expected = self._call_from_python(tensors)
        if self._refused:
            return expected
        try:
            if not self._fits(arrays):
                raise NotEquivalentError("the made-up inputs do not have the declared shapes")
            if self._operation is None:
                self._operation = _Operation(self._function, tensors, self._arguments, self._by_name)
            found = _to_arrays(self._operation.run(tensors))
            wrong = sorted(name for name in expected.keys() | found.keys() if not _equal(expected, found, name))
            if wrong:
                raise NotEquivalentError(f"it gives other values of {', '.join(map(repr, wrong))}")
        except Exception as error:  # noqa: BLE001  whatever it is, Python's way has just given an answer
            self._refuse(error)
        else:
            self.fast = True
        return expected

    def _refuse(self, error: Exception) -> None:
        self._refused = True
        self.fast = False
        self._operation = None
        reason = str(error) if isinstance(error, NotEquivalentError) else one_line(error)
        log_event(logging.DEBUG, "model is called through TensorFlow's usual path, which is slower", cause=reason)

    def output_tensors(self, tensors: Tensors) -> Tensors:
        """The outputs' tensors for the inputs' tensors, in Python's way; also inside another function."""
        positional, keywords = self._arguments(tensors)
        return self._by_name(self._function(*positional, **keywords))

    def _call_from_python(self, tensors: Tensors) -> Arrays:
        return _to_arrays(self.output_tensors(tensors))

    def _to_tensors(self, arrays: Arrays) -> Tensors:
        return {name: to_tensor(array, self._dtypes[name]) for name, array in arrays.items()}

    def _fits(self, arrays: Arrays) -> bool:
        """Whether the inputs have the declared names and shapes."""
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
    """A function as one operation, with its captures and the options of Python's way.

    Raises:
        NotEquivalentError: something about the function is not known to be equivalent.
        Exception: something in TensorFlow is not where it was in the version that this was written for.
    """

    def __init__(
        self,
        function: Any,
        tensors: Tensors,
        arguments: Callable[[Tensors], tuple[tuple[Any, ...], Mapping[str, Any]]],
        by_name: Callable[[Any], Tensors],
    ) -> None:
        # Python's way reads it as well; there is no public name for the options.
        from tensorflow.python.eager import context

        definition = function.inference_fn.definition
        if definition.attr[COMPILED].b:  # the operation would ignore it
            raise NotEquivalentError("XLA compiles it")
        if function.graph.deferred_external_captures:
            raise NotEquivalentError("something that it captures is made anew for each call")
        self._captures = list(function.captured_inputs)
        if not all(isinstance(capture, tf.Tensor) for capture in self._captures):
            raise NotEquivalentError("something that it captures is not a tensor")
        size = function.graph.as_graph_def().ByteSize()
        if size > MAX_GRAPH_BYTES:
            raise NotEquivalentError(f"its graph is {size >> 20} MiB, with constants that would be held twice")
        options = context.context().function_call_options.as_attrs()
        self._type = function.function_type
        self._by_name = by_name
        self._outputs: list[tuple[str, int]] = []
        self._attributes = {
            "f": definition.signature.name,
            "Tout": [tf.as_dtype(output.type) for output in definition.signature.output_arg],
            "config_proto": options["config_proto"],
            "executor_type": options["executor_type"] or "",
        }
        # TensorFlow's own packing shows the order of the function's inputs and outputs.
        positional, keywords = arguments(tensors)
        self._inputs = _names_in_order(tensors, self._type.unpack_inputs(self._type.bind(*positional, **keywords)))
        if len(definition.signature.input_arg) != len(self._inputs) + len(self._captures):
            raise NotEquivalentError("its inputs are not dense tensors and captures alone")

    def run(self, tensors: Tensors) -> Tensors:
        """The outputs' tensors, by name."""
        values = [tensors[name] for name in self._inputs]
        flat: list[Any] = tf.raw_ops.StatefulPartitionedCall(args=values + self._captures, **self._attributes)
        if not self._outputs:
            names = _names_in_order(self._by_name(self._type.pack_output(flat)), flat)
            self._outputs = [(name, index) for index, name in enumerate(names)]
        return {name: flat[index] for name, index in self._outputs}


def _names_in_order(named: Tensors, flat: list[Any]) -> list[str]:
    """The names of the tensors of a flat list; each is recognised by being the same object."""
    names = {id(tensor): name for name, tensor in named.items()}
    if len(names) != len(named) or sorted(names) != sorted(map(id, flat)):
        raise NotEquivalentError("its inputs and outputs are not plain tensors, one for each name")
    return [names[id(tensor)] for tensor in flat]


def _to_arrays(tensors: Tensors) -> Arrays:
    return {name: to_array(tensor) for name, tensor in tensors.items()}


def _equal(left: Arrays, right: Arrays, name: str) -> bool:
    if name not in left or name not in right:
        return False
    one, other = left[name], right[name]
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.dtype == object:
        return bool(one.tolist() == other.tolist())
    # By bytes: NaN differs from itself, and zeros of either sign do not differ from each other.
    return one.tobytes() == other.tobytes()
