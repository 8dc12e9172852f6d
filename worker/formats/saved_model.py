"""SavedModels of TensorFlow 1 and 2, through one of their signatures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from multitower.spec import ModelSpec, TowerReport

from ..model_errors import LoadError
from . import tensorflow_setup as setup
from .function_call import FunctionCall
from .graph_session import GraphRun, session_of
from .model import Arrays, Model
from .towers import TowerPlacement, assign

log = logging.getLogger("multitower.worker")

SIGNATURES = ("serving_default", "serve")
"""Where none is configured: TensorFlow Serving's, then what Keras's `export` writes."""

INTERNAL = "__saved_model_init_op"
"""A signature of TensorFlow's own, listed by the graph's loader."""


class _Callable(Protocol):
    """A way to call a signature, and to find out how to."""

    def __call__(self, arrays: Arrays) -> Arrays: ...
    def try_out(self, arrays: Arrays) -> Arrays: ...


class _Signature(NamedTuple):
    """A loaded signature: what it takes and gives, by name, and how to call it."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    call: _Callable


_Signatures = dict[str, Callable[[], _Signature]]
"""What makes each signature of a model; it raises LoadError where that cannot be served."""


class SavedModel:
    """A SavedModel: its default signature, and `others`.

    Args:
        spec: its `path`, `version` and `signature`.
        placement: where it is to be, in a worker of several devices.

    Raises:
        LoadError: it has no such signature, or one that cannot be served.
        Exception: TensorFlow cannot load it.
    """

    platform = "tensorflow_savedmodel"
    volatile = False

    def __init__(self, spec: ModelSpec, placement: TowerPlacement | None = None) -> None:
        assert spec.path is not None  # `load` picked this format for that
        self.version = spec.version or "1"
        folder = str(Path(spec.path, spec.version) if spec.version is not None else Path(spec.path))
        signatures = _loaded(spec, folder) if placement is None else _from_graph(folder, placement)
        self.signature = _pick(signatures, spec.signature)
        self._served = Signature(self.version, signatures[self.signature]())
        self.inputs, self.outputs = self._served.inputs, self._served.outputs
        self.others: dict[str, Model | LoadError] = {}
        for name, loaded in sorted(signatures.items()):
            if name != self.signature:
                try:
                    self.others[name] = Signature(self.version, loaded())
                except LoadError as error:
                    self.others[name] = error

    def infer(self, inputs: Arrays) -> Arrays:
        """Calls the default signature."""
        return self._served.infer(inputs)

    def try_out(self, inputs: Arrays) -> Arrays:
        """Calls the default signature, and finds out whether it can be called in a quicker way."""
        return self._served.try_out(inputs)

    @property
    def tower(self) -> TowerReport | None:
        """Where its default signature is; None where that is not looked at."""
        return self._served.tower

    def close(self) -> None:
        """Only the process's end gives device memory back."""


class Signature:
    """One signature of a SavedModel, as a model.

    Args:
        version: the SavedModel's.
        signature: what was loaded.

    Raises:
        LoadError: an input or output cannot be served.
    """

    platform = SavedModel.platform
    volatile = False

    def __init__(self, version: str, signature: _Signature) -> None:
        self.version = version
        self._call = signature.call
        self.inputs = setup.reports(sorted(signature.inputs.items()))
        self.outputs = setup.reports(sorted(signature.outputs.items()))

    def infer(self, inputs: Arrays) -> Arrays:
        """Calls the signature."""
        return self._call(inputs)

    def try_out(self, inputs: Arrays) -> Arrays:
        """Calls the signature, and finds out whether it can be called in a quicker way."""
        return self._call.try_out(inputs)

    @property
    def tower(self) -> TowerReport | None:
        """Where it is; None where that is not looked at."""
        return self._call.tower if isinstance(self._call, GraphRun) else None

    def close(self) -> None:
        """Only the process's end gives device memory back."""


def _loaded(spec: ModelSpec, folder: str) -> _Signatures:
    try:
        return _from_objects(spec.name, folder, jit_compile=spec.jit_compile)
    except (AttributeError, ValueError) as error:
        # Optimizer state that this Keras cannot make again (tensorflow issue 52091). Inference needs none of it,
        # nor of the other Python objects: the graph is enough. `allow_partial_checkpoint` comes too late for it.
        if "add_slot" not in str(error):
            raise
        if spec.jit_compile:
            raise LoadError("jit_compile: a model whose optimizer cannot be made again has no functions") from error
        log.warning("%s: loaded as a graph, since its optimizer cannot be made again (%s)", spec.name, error)
        return _from_graph(folder, None)


def _from_objects(model: str, folder: str, *, jit_compile: bool) -> _Signatures:
    loaded = tf.saved_model.load(folder)
    made = partial(_compiled if jit_compile else _of_function, model, loaded)
    return {name: partial(made, loaded.signatures[name]) for name in loaded.signatures if name != INTERNAL}


def _compiled(model: str, loaded: Any, function: Any) -> _Signature:
    """The function as XLA compiles it, once for each shape that comes."""
    inputs = _specs(function.structured_input_signature[1])
    setup.reports(inputs.items())  # what XLA cannot compile may be what cannot be served either, and that is told
    compiled = tf.function(lambda **tensors: function(**tensors), jit_compile=True)
    return _of_function(model, loaded, compiled.get_concrete_function(**inputs))


def _of_function(model: str, loaded: Any, function: Any) -> _Signature:
    inputs = function.structured_input_signature[1]
    call = FunctionCall(model, function, inputs, lambda tensors: ((), tensors), lambda outputs: outputs)
    # The functions hold their model's variables only weakly.
    call.loaded = loaded  # type: ignore[attr-defined]
    return _Signature(_specs(inputs), _specs(function.structured_outputs), call)


def _from_graph(folder: str, placement: TowerPlacement | None) -> _Signatures:
    """The graph that a SavedModel of either TensorFlow has, with its variables, tables and assets, in a session."""
    # The public `load` leaves no way to the graph before it is imported.
    from tensorflow.core.function.polymorphism.function_type import sanitize_arg_name
    from tensorflow.python.saved_model.loader_impl import SavedModelLoader

    tags = [tf.saved_model.SERVING]
    loader = SavedModelLoader(folder)
    meta_graph = loader.get_meta_graph_def_from_tags(tags)
    if placement is not None and placement.device is not None:
        assign(meta_graph.graph_def, placement.device)
    graph = tf.Graph()
    session = session_of(graph, placement)
    saver, _ = loader.load_graph(graph, tags)
    loader.restore_variables(session, saver)
    loader.run_init_ops(session, tags)
    # Names of TensorFlow 2 are to be those of the functions, which one device has.
    renamed = sanitize_arg_name if meta_graph.HasField("object_graph_def") else str
    return {
        name: partial(_of_graph, graph, session, signature, placement, renamed)
        for name, signature in meta_graph.signature_def.items()
        if name != INTERNAL
    }


def _of_graph(
    graph: Any, session: Any, signature: Any, placement: TowerPlacement | None, renamed: Callable[[str], str]
) -> _Signature:
    inputs = {renamed(name): _tensor(graph, name, info) for name, info in sorted(signature.inputs.items())}
    outputs = {name: _tensor(graph, name, info) for name, info in sorted(signature.outputs.items())}
    return _Signature(_specs(inputs), _specs(outputs), GraphRun(session, inputs, outputs, placement))


def _specs(values: Mapping[str, Any]) -> dict[str, Any]:
    """Specs of what may be symbolic tensors: those of graphs, and of TensorFlow 1's models, are."""
    return {
        name: value if isinstance(value, tf.TypeSpec) else tf.type_spec_from_value(value)
        for name, value in values.items()
    }


def _tensor(graph: Any, name: str, info: Any) -> Any:
    if info.WhichOneof("encoding") != "name":
        raise LoadError(f"{name!r} is ragged or sparse; only dense tensors can be served: convert it inside the model")
    return graph.get_tensor_by_name(info.name)


def _pick(signatures: Iterable[str], wanted: str | None) -> str:
    known = sorted(signatures)
    listed = ", ".join(known) or "none"
    if wanted is not None:
        if wanted not in known:
            raise LoadError(f"there is no signature {wanted!r}; the model has: {listed}")
        return wanted
    for name in SIGNATURES:
        if name in known:
            return name
    if len(known) == 1:
        return known[0]
    raise LoadError(f"set `signature` to one of those that the model has: {listed}")
