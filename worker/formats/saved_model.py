"""SavedModels of TensorFlow 1 and 2: the default signature, and the others beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import tensorflow as tf

from multitower.spec import ONLY_VERSION, ModelSpec

from ..model_errors import LoadError
from .function_call import FunctionCall
from .graph_call import GraphCall, open_session
from .model import CallableModel, Model, ModelCall
from .tensorflow_types import declare
from .towers import TowerPlacement, assign

log = logging.getLogger("multitower.worker")

DEFAULT_SIGNATURES: Final = ("serving_default", "serve")
"""The default signature where none is configured: TensorFlow Serving's, then the one that Keras's `export` writes."""

INTERNAL_SIGNATURE: Final = "__saved_model_init_op"
"""A signature of TensorFlow's own, which the graph's loader lists with the others."""


class _Signature(NamedTuple):
    """A loaded signature: its inputs and outputs, by name, and its call."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    call: ModelCall


_Signatures = dict[str, Callable[[], _Signature]]
"""Functions that load the signatures, by name; they raise LoadError where one cannot be served."""


def load(spec: ModelSpec, _devices: Sequence[str]) -> Model:
    """See `loader`."""
    return SavedModel(spec)


def load_towers(spec: ModelSpec, placements: Sequence[TowerPlacement]) -> list[Model]:
    """See `loader`."""
    return [SavedModel(spec, placement) for placement in placements]


class SavedModel(CallableModel):
    """A SavedModel, called by its default signature.

    Args:
        spec: its `path`, `version` and `signature`.
        placement: its device, in a worker of several.

    Raises:
        LoadError: the signature does not exist or cannot be served.
        Exception: TensorFlow cannot load the model.
    """

    def __init__(self, spec: ModelSpec, placement: TowerPlacement | None = None) -> None:
        assert spec.path is not None  # the loader chose this format because of it
        folder = str(Path(spec.path, spec.version) if spec.version is not None else Path(spec.path))
        signatures = _load_functions(spec, folder) if placement is None else _load_graph(folder, placement)
        default = _choose_default(signatures, spec.signature)
        version = spec.version or ONLY_VERSION
        served = _as_model(signatures[default](), version)
        super().__init__(served.call, served.inputs, served.outputs, version)
        self.signature = default
        others: dict[str, Model | LoadError] = {}
        for name, load_signature in sorted(signatures.items()):
            if name != default:
                try:
                    others[name] = _as_model(load_signature(), version)
                except LoadError as error:
                    others[name] = error
        self.other_signatures = others


def _as_model(signature: _Signature, version: str) -> CallableModel:
    """A signature as a model.

    Raises:
        LoadError: an input or output cannot be served.
    """
    inputs, outputs = declare(sorted(signature.inputs.items())), declare(sorted(signature.outputs.items()))
    return CallableModel(signature.call, inputs, outputs, version)


def _load_functions(spec: ModelSpec, folder: str) -> _Signatures:
    """The signatures as functions of TensorFlow 2; in a session, where the model's Python objects cannot be loaded."""
    try:
        return _load_objects(spec.name, folder, jit_compile=spec.jit_compile)
    except (AttributeError, ValueError) as error:
        # Optimizer state that this Keras cannot create again (tensorflow issue 52091). Inference needs neither that
        # nor the other Python objects: the graph is enough. `allow_partial_checkpoint` comes too late for it.
        if "add_slot" not in str(error):
            raise
        if spec.jit_compile:
            raise LoadError("jit_compile: a model whose optimizer cannot be made again has no functions") from error
        log.warning("%s: loaded as a graph, since its optimizer cannot be made again (%s)", spec.name, error)
        return _load_graph(folder, None)


def _load_objects(model: str, folder: str, *, jit_compile: bool) -> _Signatures:
    loaded = tf.saved_model.load(folder)
    load_signature = partial(_compile_function if jit_compile else _call_function, model, loaded)
    return {
        name: partial(load_signature, loaded.signatures[name])
        for name in loaded.signatures
        if name != INTERNAL_SIGNATURE
    }


def _compile_function(model: str, loaded: Any, function: Any) -> _Signature:
    """The function compiled by XLA, once for each shape of its inputs."""
    inputs = _as_specs(function.structured_input_signature[1])
    declare(inputs.items())  # what XLA cannot compile may be what cannot be served, and then this error is clearer
    compiled = tf.function(lambda **tensors: function(**tensors), jit_compile=True)
    return _call_function(model, loaded, compiled.get_concrete_function(**inputs))


def _call_function(model: str, loaded: Any, function: Any) -> _Signature:
    inputs = function.structured_input_signature[1]
    # The functions reference their model's variables only weakly, hence `keep_alive`.
    call = FunctionCall(
        model, function, inputs, lambda tensors: ((), tensors), lambda outputs: outputs, keep_alive=loaded
    )
    return _Signature(_as_specs(inputs), _as_specs(function.structured_outputs), call)


def _load_graph(folder: str, placement: TowerPlacement | None) -> _Signatures:
    """The graph of a SavedModel of either TensorFlow, with its variables, tables and assets, in a session."""
    # The public `load` gives no access to the graph before it is imported.
    from tensorflow.core.function.polymorphism.function_type import sanitize_arg_name
    from tensorflow.python.saved_model.loader_impl import SavedModelLoader

    tags = [tf.saved_model.SERVING]
    loader = SavedModelLoader(folder)
    meta_graph = loader.get_meta_graph_def_from_tags(tags)
    if placement is not None and placement.device is not None:
        assign(meta_graph.graph_def, placement.device)
    graph = tf.Graph()
    session = open_session(graph, placement)
    saver, _ = loader.load_graph(graph, tags)
    loader.restore_variables(session, saver)
    loader.run_init_ops(session, tags)
    # Models of TensorFlow 2 keep the names that their functions have on one device.
    renamed = sanitize_arg_name if meta_graph.HasField("object_graph_def") else str
    return {
        name: partial(_call_graph, graph, session, signature, placement, renamed)
        for name, signature in meta_graph.signature_def.items()
        if name != INTERNAL_SIGNATURE
    }


def _call_graph(
    graph: Any, session: Any, signature: Any, placement: TowerPlacement | None, renamed: Callable[[str], str]
) -> _Signature:
    inputs = {renamed(name): _find_tensor(graph, name, info) for name, info in sorted(signature.inputs.items())}
    outputs = {name: _find_tensor(graph, name, info) for name, info in sorted(signature.outputs.items())}
    return _Signature(_as_specs(inputs), _as_specs(outputs), GraphCall(session, inputs, outputs, placement))


def _as_specs(values: Mapping[str, Any]) -> dict[str, Any]:
    """Specs of values that may be symbolic tensors, as in graphs and in models of TensorFlow 1."""
    return {
        name: value if isinstance(value, tf.TypeSpec) else tf.type_spec_from_value(value)
        for name, value in values.items()
    }


def _find_tensor(graph: Any, name: str, info: Any) -> Any:
    if info.WhichOneof("encoding") != "name":
        raise LoadError(f"{name!r} is ragged or sparse; only dense tensors can be served: convert it inside the model")
    return graph.get_tensor_by_name(info.name)


def _choose_default(signatures: Iterable[str], configured: str | None) -> str:
    known = sorted(signatures)
    listed = ", ".join(known) or "none"
    if configured is not None:
        if configured not in known:
            raise LoadError(f"there is no signature {configured!r}; the model has: {listed}")
        return configured
    for name in DEFAULT_SIGNATURES:
        if name in known:
            return name
    if len(known) == 1:
        return known[0]
    raise LoadError(f"set `signature` to one of those that the model has: {listed}")
