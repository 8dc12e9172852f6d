"""Frozen GraphDefs: one file of nodes whose variables have become constants, as TensorFlow 1 was served from.

They run in a session of TensorFlow 1, whose callable takes a quarter of the time that a function of TensorFlow 2 does
for a small graph; control flow of either kind, function libraries and tables are its own business.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from multitower.spec import ModelSpec, TowerReport

from ..model_errors import LoadError
from . import tensorflow_setup as setup
from .graph_session import GraphRun, session_of
from .model import Arrays
from .towers import TowerPlacement, assign

MOST_NAMES = 8
"""So many nodes are named where a name is wrong."""

_TABLE_INITIALIZERS = (
    "InitializeTable",
    "InitializeTableV2",
    "InitializeTableFromTextFile",
    "InitializeTableFromTextFileV2",
    "LookupTableImport",
    "LookupTableImportV2",
)
_VARIABLES = ("Variable", "VariableV2", "VarHandleOp", "TemporaryVariable", "AutoReloadVariable")


class GraphModel:
    """A frozen graph.

    Args:
        spec: its `path`, `inputs` and `outputs`.
        placement: where it is to be, in a worker of several devices.

    Raises:
        LoadError: the file holds no graph, there is no such tensor, it cannot be served, or the outputs need something
            that nobody gives.
    """

    platform = "tensorflow_graphdef"
    volatile = False
    version = "1"

    def __init__(self, spec: ModelSpec, placement: TowerPlacement | None = None) -> None:
        assert spec.path is not None  # `load` picked this format for that
        graph = _imported(Path(spec.path), placement)
        inputs = {name: _tensor(graph, tensor, "inputs", name) for name, tensor in sorted(spec.inputs.items())}
        outputs = {name: _tensor(graph, tensor, "outputs", name) for name, tensor in sorted(spec.outputs.items())}
        _refuse_what_is_missing(inputs, outputs)
        self.inputs = setup.reports(inputs.items())
        self.outputs = setup.reports(outputs.items())
        session = session_of(graph, placement)
        # A GraphDef does not tell what is to be run first, but only these can be meant.
        session.run([node for node in graph.get_operations() if node.type in _TABLE_INITIALIZERS])
        self._run = GraphRun(session, inputs, outputs, placement)

    def infer(self, inputs: Arrays) -> Arrays:
        """Runs the graph as far as the outputs need it."""
        return self._run(inputs)

    def try_out(self, inputs: Arrays) -> Arrays:
        """As `infer`, and notes where the nodes are."""
        return self._run.try_out(inputs)

    @property
    def tower(self) -> TowerReport | None:
        """Where it is; None where that is not looked at."""
        return self._run.tower

    @property
    def graph(self) -> Any:
        """What a call runs: a GraphDef, with the functions that it calls."""
        return self._run.graph

    def close(self) -> None:
        """Only the process's end gives device memory back."""


def _imported(path: Path, placement: TowerPlacement | None) -> Any:
    definition = tf.compat.v1.GraphDef()
    data = path.read_bytes()
    try:
        if path.suffix == ".pbtxt":
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
            # An operation of somebody's own library, a node whose input is missing, ...
            raise LoadError(f"{path} cannot be imported: {' '.join(str(error).split())[:1000]}") from error
    return graph


def _tensor(graph: Any, wanted: str, side: str, name: str) -> Any:
    node, _, number = wanted.partition(":")
    field = f"{side}.{name}: {wanted!r}"
    try:
        found = graph.get_operation_by_name(node)
    except (KeyError, ValueError):
        raise LoadError(f"{field}: there is no node {node!r}; {_nodes_like(graph, node, side)}") from None
    if not found.outputs:
        raise LoadError(f"{field}: the node {node!r} ({found.type}) has no output")
    if not (number or "0").isdecimal() or int(number or "0") >= len(found.outputs):
        named = ", ".join(repr(tensor.name) for tensor in found.outputs[:MOST_NAMES])
        raise LoadError(f"{field}: the node {node!r} ({found.type}) has {named}")
    return found.outputs[int(number or "0")]


def _nodes_like(graph: Any, wanted: str, side: str) -> str:
    """What may have been meant: names that look like it, and those that the side is usually made of."""
    nodes = graph.get_operations()
    names = [node.name for node in nodes]
    alike = difflib.get_close_matches(wanted, names, MOST_NAMES)
    # Scopes in front are what people leave out.
    alike += [name for name in names if name not in alike and name.rpartition("/")[2] == wanted]
    if side == "inputs":
        kind, usual = "placeholders", [node.name for node in nodes if node.type.startswith("Placeholder")]
    else:
        kind = "nodes that no other uses"
        usual = [node.name for node in nodes if node.outputs and not any(each.consumers() for each in node.outputs)]
    told = f"the graph's {kind}: {_some(usual)}"
    return f"did you mean {_some(alike)}? {told}" if alike else told


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MOST_NAMES} more" if len(listed) > MOST_NAMES else ""
    return (", ".join(map(repr, listed[:MOST_NAMES])) or "none") + more


def _refuse_what_is_missing(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Looks at every node that the outputs need, back to the inputs: none may wait for a value from elsewhere.

    Raises:
        LoadError: one does; or an input is given twice, or has no influence on any output.
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
            _look_at(tensor.op, nodes, waiting)
    for name, tensor in inputs.items():
        if tensor.ref() not in seen:
            raise LoadError(f"inputs.{name}: {tensor.name!r} has no influence on any of the outputs; leave it out")


def _look_at(node: Any, nodes: set[Any], waiting: list[Any]) -> None:
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
        # What has to run before it, though none of its outputs is used.
        pending.extend(node.control_inputs)
