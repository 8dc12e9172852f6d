"""Frozen GraphDefs: one file with a graph whose variables have become constants, as TensorFlow 1 was served from.

They run in a session of TensorFlow 1: calling a small graph takes a quarter of the time that a function of TensorFlow 2
takes, and the session handles control flow of either kind, function libraries and tables.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from multitower.file_contents import is_text_graph
from multitower.spec import ModelSpec

from ..model_errors import MAX_CAUSE, LoadError, one_line
from .graph_call import GraphCall, open_session
from .model import CallableModel, Model
from .tensorflow_types import declare
from .towers import TowerPlacement, assign

MAX_NAMES = 8
"""How many nodes an error lists where a name is wrong."""

_TABLE_INITIALIZERS = (
    "InitializeTable",
    "InitializeTableV2",
    "InitializeTableFromTextFile",
    "InitializeTableFromTextFileV2",
    "LookupTableImport",
    "LookupTableImportV2",
)
_VARIABLES = ("Variable", "VariableV2", "VarHandleOp", "TemporaryVariable", "AutoReloadVariable")


def load(spec: ModelSpec, _devices: Sequence[str]) -> Model:
    """See `loader`."""
    return FrozenGraph(spec)


def load_towers(spec: ModelSpec, placements: Sequence[TowerPlacement]) -> list[Model]:
    """See `loader`."""
    return [FrozenGraph(spec, placement) for placement in placements]


class FrozenGraph(CallableModel):
    """A frozen graph.

    Args:
        spec: its `path`, `inputs` and `outputs`.
        placement: its device, in a worker of several.

    Raises:
        LoadError: the file contains no graph; a tensor does not exist or cannot be served; or the outputs need a value
            that no input gives.
    """

    def __init__(self, spec: ModelSpec, placement: TowerPlacement | None = None) -> None:
        assert spec.path is not None  # the loader chose this format because of it
        graph = _import_graph(Path(spec.path), placement)
        inputs = {name: _find_tensor(graph, tensor, "inputs", name) for name, tensor in sorted(spec.inputs.items())}
        outputs = {name: _find_tensor(graph, tensor, "outputs", name) for name, tensor in sorted(spec.outputs.items())}
        _check_dependencies(inputs, outputs)
        declared = declare(inputs.items()), declare(outputs.items())
        session = open_session(graph, placement)
        # A GraphDef does not say what must run first; table initialisers are the only such operations.
        session.run([node for node in graph.get_operations() if node.type in _TABLE_INITIALIZERS])
        super().__init__(GraphCall(session, inputs, outputs, placement), *declared)


def _import_graph(path: Path, placement: TowerPlacement | None) -> Any:
    definition = tf.compat.v1.GraphDef()
    data = path.read_bytes()
    try:
        if is_text_graph(path):
            text_format.Parse(data, definition)
        else:
            definition.ParseFromString(data)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} is no GraphDef: {error}") from None
    if not definition.node:
        raise LoadError(f"{path} is no GraphDef: no node can be read from it; for a SavedModel name its folder")
    if placement is not None and placement.device is not None:
        assign(definition, placement.device)
    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.graph_util.import_graph_def(definition, name="")
        except (ValueError, tf.errors.OpError) as error:
            # An operation of a library that is not loaded, a node whose input is missing, ...
            raise LoadError(f"{path} cannot be imported: {one_line(error, MAX_CAUSE)}") from error
    return graph


def _find_tensor(graph: Any, wanted: str, side: str, name: str) -> Any:
    """The tensor `node:number`, or the first output of `node`, that the configuration names."""
    node, _, number = wanted.partition(":")
    field = f"{side}.{name}: {wanted!r}"
    try:
        found = graph.get_operation_by_name(node)
    except (KeyError, ValueError):
        raise LoadError(f"{field}: there is no node {node!r}; {_suggest_nodes(graph, node, side)}") from None
    if not found.outputs:
        raise LoadError(f"{field}: the node {node!r} ({found.type}) has no output")
    if not (number or "0").isdecimal() or int(number or "0") >= len(found.outputs):
        existing = ", ".join(repr(tensor.name) for tensor in found.outputs[:MAX_NAMES])
        raise LoadError(f"{field}: the node {node!r} ({found.type}) has {existing}")
    return found.outputs[int(number or "0")]


def _suggest_nodes(graph: Any, wanted: str, side: str) -> str:
    """Nodes that may have been meant: those with similar names, and those that this side usually consists of."""
    nodes = graph.get_operations()
    names = [node.name for node in nodes]
    similar = difflib.get_close_matches(wanted, names, MAX_NAMES)
    # People often leave out the scopes in front.
    similar += [name for name in names if name not in similar and name.rpartition("/")[2] == wanted]
    if side == "inputs":
        kind, usual = "placeholders", [node.name for node in nodes if node.type.startswith("Placeholder")]
    else:
        kind = "nodes that no other uses"
        usual = [node.name for node in nodes if node.outputs and not any(each.consumers() for each in node.outputs)]
    listed = f"the graph's {kind}: {_list_names(usual)}"
    return f"did you mean {_list_names(similar)}? {listed}" if similar else listed


def _list_names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MAX_NAMES} more" if len(listed) > MAX_NAMES else ""
    return (", ".join(map(repr, listed[:MAX_NAMES])) or "none") + more


def _check_dependencies(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Checks every node that the outputs depend on, back to the inputs.

    Raises:
        LoadError: one needs a value that no input gives; or an input is named twice, or influences no output.
    """
    given: dict[Any, str] = {}
    for name, tensor in inputs.items():
        other = given.setdefault(tensor.ref(), name)
        if other != name:
            raise LoadError(f"inputs.{name} and inputs.{other} are the same tensor, {tensor.name!r}")
    waiting = list(outputs.values())
    seen: set[Any] = set()
    nodes: set[Any] = set()
    while waiting:
        tensor = waiting.pop()
        if tensor.ref() in seen:
            continue
        seen.add(tensor.ref())
        if tensor.ref() not in given:
            _visit(tensor.op, nodes, waiting)
    for name, tensor in inputs.items():
        if tensor.ref() not in seen:
            raise LoadError(f"inputs.{name}: {tensor.name!r} has no influence on any of the outputs; leave it out")


def _visit(node: Any, nodes: set[Any], waiting: list[Any]) -> None:
    """Checks a node that is not visited yet, and those that must run before it; their inputs are visited next."""
    pending = [node]
    while pending:
        node = pending.pop()
        if node in nodes:
            continue
        nodes.add(node)
        if node.type == "Placeholder":
            raise LoadError(f"the outputs need a value for the placeholder {node.name!r}; name it under inputs")
        if node.type in _VARIABLES:
            raise LoadError(f"the graph is not frozen: the variable {node.name!r} has no value in it")
        waiting.extend(node.inputs)
        pending.extend(node.control_inputs)  # they must run although none of their outputs is used
