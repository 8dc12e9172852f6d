"""SavedModels of TensorFlow 1 and 2: the default signature, and the others beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import tensorflow as tf

from multitower.spec import ONLY_VERSION, ModelSpec

from ..model_errors import LoadError, is_out_of_memory, load_cause
from ..records import log_event
from .function_call import FunctionCall
from .graph_call import GraphCall, open_session
from .meta_graph import INTERNAL_SIGNATURE, choose_meta_graph, tensors_of, unusable_signatures
from .model import Array, CallableModel, Model, ModelCall
from .plain_paths import plain_folder
from .signature_defaults import argument_names, mark_optional, read_defaults
from .signature_definitions import mark_keys, read_keys, serialize_definitions
from .tensorflow_types import declare
from .towers import TowerPlacement, assign

DEFAULT_SIGNATURES: Final = ("serving_default", "serve")
"""The default signature where none is configured: TensorFlow Serving's, then the one that Keras's `export` writes."""


class _Signature(NamedTuple):
    """A loaded signature: its inputs and outputs, by name, its call, and the defaults of optional inputs."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    call: ModelCall
    defaults: Mapping[str, Array]


_Signatures = dict[str, Callable[[], _Signature]]
"""Functions that load the signatures, by name. Each raises where its signature cannot be served."""


class _Loaded(NamedTuple):
    """A loaded MetaGraph.

    Attributes:
        signatures: see `_Signatures`.
        keys: as `read_keys` returns them.
        definitions: as `serialize_definitions` returns them.
    """

    signatures: _Signatures
    keys: Mapping[str, Mapping[str, str]]
    definitions: bytes


def load(spec: ModelSpec, _devices: Sequence[str]) -> Model:
    """See `loader`."""
    return SavedModel(spec)


def load_towers(spec: ModelSpec, placements: Sequence[TowerPlacement]) -> list[Model]:
    """See `loader`."""
    return [SavedModel(spec, placement) for placement in placements]


class SavedModel(CallableModel):
    """A SavedModel, called by its default signature. A signature that cannot be served does not affect the others.

    Args:
        spec: its `path`, `version`, `tags` and `signature`.
        placement: its device, in a worker of several.

    Raises:
        LoadError: the default signature does not exist or cannot be served, or no MetaGraph can be chosen.
        Exception: TensorFlow cannot load the model.
    """

    def __init__(self, spec: ModelSpec, placement: TowerPlacement | None = None) -> None:
        assert spec.path is not None  # the loader chose this format because of it
        folder = plain_folder(str(Path(spec.path, spec.version) if spec.version is not None else Path(spec.path)))
        version = spec.version or ONLY_VERSION
        signatures, keys, definitions = (
            _load_functions(spec, folder) if placement is None else _load_graph(spec, folder, placement)
        )
        models = {name: _load_signature(signatures[name], keys.get(name, {}), version) for name in sorted(signatures)}
        failed = [name for name, model in models.items() if isinstance(model, LoadError)]
        name = choose_signature(sorted(models), failed, spec.signature)
        default = models.pop(name)
        if isinstance(default, LoadError):
            usable = ", ".join(other for other in models if other not in failed)
            remedy = f"; the model can be served by another one, with `signature`: {usable}" if usable else ""
            raise LoadError(f"the signature {name!r} cannot be served: {default}{remedy}") from default
        super().__init__(default.call, default.inputs, default.outputs, version)
        self.signature = name
        self.other_signatures = models
        self.defaults = default.defaults
        self.signature_definitions = definitions


def _load_signature(
    load_one: Callable[[], _Signature], keys: Mapping[str, str], version: str
) -> CallableModel | LoadError:
    """A signature as a model; or the reason why it cannot be served."""
    try:
        signature = load_one()
        inputs, outputs = declare(sorted(signature.inputs.items())), declare(sorted(signature.outputs.items()))
    except LoadError as error:
        return error
    except Exception as error:
        # A tensor that the graph does not have, what XLA cannot compile, ...
        if is_out_of_memory(error):
            raise
        return LoadError(load_cause(error))
    inputs = mark_keys(mark_optional(inputs, signature.defaults), keys)
    model = CallableModel(signature.call, inputs, outputs, version)
    model.defaults = {tensor.name: signature.defaults[tensor.name] for tensor in inputs if tensor.optional}
    return model


def _load_functions(spec: ModelSpec, folder: str) -> _Loaded:
    """The signatures as functions of TensorFlow 2; in a session, where the model's Python objects cannot be loaded."""
    try:
        return _load_objects(spec, folder)
    except LoadError:
        raise
    except Exception as error:
        # Optimizer state that this Keras cannot create again (tensorflow issue 52091), a signature that cannot become
        # a function, ... Inference needs no Python objects: the graph is enough, as for towers.
        if is_out_of_memory(error):
            raise
        cause = load_cause(error)
        if spec.jit_compile:
            raise LoadError(
                f"jit_compile: XLA compiles functions, and the model's cannot be loaded: {cause}"
            ) from error
        try:
            loaded = _load_graph(spec, folder, None)
        except Exception:  # noqa: BLE001  the model itself is broken; the first error is of the loader that users know
            raise error from None
        log_event(logging.WARNING, "loaded as a graph, since its functions cannot be loaded", cause=cause)
        return loaded


def _load_objects(spec: ModelSpec, folder: str) -> _Loaded:
    # The loader behind `tf.saved_model.load` for all models but those with one MetaGraph of TensorFlow 2. It fails if a
    # single signature cannot become a function, hence those are removed before.
    from tensorflow.python.saved_model.load_v1_in_v2 import _EagerSavedModelLoader

    loader = _EagerSavedModelLoader(folder)
    graphs = loader.saved_model.meta_graphs
    meta_graph = choose_meta_graph(loader.saved_model, spec.tags)
    unusable = unusable_signatures(meta_graph)
    defaults, keys, definitions = read_defaults(meta_graph), read_keys(meta_graph), serialize_definitions(meta_graph)
    if len(graphs) == 1 and meta_graph.HasField("object_graph_def"):
        del loader, graphs, meta_graph  # TensorFlow reads them again, and they may be large
        loaded = tf.saved_model.load(folder)
    else:
        for name in unusable:
            del meta_graph.signature_def[name]
        loaded = loader.load(list(meta_graph.meta_info_def.tags))
    load_one = partial(_compile_function if spec.jit_compile else _call_function, loaded)
    signatures: _Signatures = {
        name: partial(load_one, loaded.signatures[name], defaults.get(name, {}))
        for name in loaded.signatures
        if name != INTERNAL_SIGNATURE
    }
    return _Loaded(signatures | _refusals(unusable), keys, definitions)


def _refusals(unusable: Mapping[str, str]) -> _Signatures:
    """Signatures that are known not to be servable, with their reasons."""

    def refuse(reason: str) -> _Signature:
        raise LoadError(reason)

    return {name: partial(refuse, reason) for name, reason in unusable.items() if name != INTERNAL_SIGNATURE}


def _compile_function(loaded: Any, function: Any, defaults: Mapping[str, Array]) -> _Signature:
    """The function compiled by XLA, once for each shape of its inputs."""
    inputs = _as_specs(function.structured_input_signature[1])
    declare(inputs.items())  # what XLA cannot compile may be what cannot be served, and then this error is clearer
    compiled = tf.function(lambda **tensors: function(**tensors), jit_compile=True)
    return _call_function(loaded, compiled.get_concrete_function(**inputs), defaults)


def _call_function(loaded: Any, function: Any, defaults: Mapping[str, Array]) -> _Signature:
    inputs = function.structured_input_signature[1]
    # The functions reference their model's variables only weakly, hence `keep_alive`.
    call = FunctionCall(function, inputs, lambda tensors: ((), tensors), lambda outputs: outputs, keep_alive=loaded)
    return _Signature(_as_specs(inputs), _as_specs(function.structured_outputs), call, defaults)


def _load_graph(spec: ModelSpec, folder: str, placement: TowerPlacement | None) -> _Loaded:
    """The graph of a SavedModel of either TensorFlow, with its variables, tables and assets, in a session."""
    # The public `load` gives no access to the graph before it is imported.
    from tensorflow.python.saved_model.loader_impl import SavedModelLoader

    loader = SavedModelLoader(folder)
    meta_graph = choose_meta_graph(loader.saved_model, spec.tags)
    tags = list(meta_graph.meta_info_def.tags)
    unusable = unusable_signatures(meta_graph)
    definitions = serialize_definitions(meta_graph)
    if placement is not None and placement.device is not None:
        assign(meta_graph.graph_def, placement.device)
    graph = tf.Graph()
    session = open_session(graph, placement)
    saver, _ = loader.load_graph(graph, tags)
    loader.restore_variables(session, saver)
    loader.run_init_ops(session, tags)
    renamed = argument_names(meta_graph)
    defaults = read_defaults(meta_graph)
    signatures: _Signatures = {
        name: partial(_call_graph, graph, session, signature, placement, renamed, defaults.get(name, {}))
        for name, signature in meta_graph.signature_def.items()
        if name != INTERNAL_SIGNATURE
    }
    return _Loaded(signatures | _refusals(unusable), read_keys(meta_graph), definitions)


def _call_graph(
    graph: Any,
    session: Any,
    signature: Any,
    placement: TowerPlacement | None,
    renamed: Callable[[str], str],
    defaults: Mapping[str, Array],
) -> _Signature:
    inputs = {
        renamed(part): graph.get_tensor_by_name(tensor)
        for name, info in sorted(signature.inputs.items())
        for part, tensor in tensors_of(name, info)
    }
    outputs = {name: graph.get_tensor_by_name(info.name) for name, info in sorted(signature.outputs.items())}
    return _Signature(_as_specs(inputs), _as_specs(outputs), GraphCall(session, inputs, outputs, placement), defaults)


def _as_specs(values: Mapping[str, Any]) -> dict[str, Any]:
    """Specs of values that may be symbolic tensors, as in graphs and in models of TensorFlow 1."""
    return {
        name: value if isinstance(value, tf.TypeSpec) else tf.type_spec_from_value(value)
        for name, value in values.items()
    }


def choose_signature(names: Sequence[str], unusable: Sequence[str], configured: str | None) -> str:
    """Chooses the default signature.

    Args:
        names: all signatures of the model.
        unusable: those that cannot be served. One of them is chosen only if it is configured or has a usual name.
        configured: the name in the configuration, or None.

    Raises:
        LoadError: the configured one does not exist, or none is configured and several could be meant.
    """
    listed = ", ".join(sorted(names)) or "none"
    if configured is not None:
        if configured not in names:
            raise LoadError(f"there is no signature {configured!r}; the model has: {listed}")
        return configured
    for name in DEFAULT_SIGNATURES:
        if name in names:
            return name
    for choices in ([name for name in names if name not in unusable], names):
        if len(choices) == 1:
            return choices[0]
    raise LoadError(f"set `signature` to one of those that the model has: {listed}")
