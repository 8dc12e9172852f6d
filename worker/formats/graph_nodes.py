"""Which nodes of a graph its outputs need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from .meta_graph import node_of

COMPILED: Final = "_XlaMustCompile"
"""An attribute of functions that XLA compiles."""

_BRANCHES: Final = frozenset(("If", "StatelessIf", "Case", "StatelessCase"))
"""Operations that run one of the functions that they name."""

_SWITCHES: Final = frozenset(("Switch", "RefSwitch"))
_MERGES: Final = frozenset(("Merge", "RefMerge"))
_LOOPS: Final = frozenset(("Enter", "RefEnter", "NextIteration", "RefNextIteration"))
"""What a loop's Merge has as its inputs; another Merge has the ends of branches."""


def needed_nodes(graph: Any, outputs: Iterable[str]) -> Iterator[Any]:
    """The nodes that some call may run: those that the outputs need, and all nodes of the functions that these call.

    Args:
        graph: a GraphDef.
        outputs: names of its tensors or nodes.
    """
    library = {function.signature.name: function for function in graph.library.function}
    waiting = list(_reached({node.name: node for node in graph.node}, outputs))
    called: set[str] = set()
    while waiting:
        node = waiting.pop()
        yield node
        for name in _functions_of(node):
            if name in library and name not in called:
                called.add(name)
                waiting += library[name].node_def


def certain_nodes(graph: Any, outputs: Iterable[str]) -> Iterator[Any]:
    """The nodes that nearly every call runs: those that the outputs need, without the branches of conditions.

    The bodies of loops count, although a loop may have no turn. Functions that XLA compiles are left out, since their
    operations need other kernels.

    Args:
        graph: a GraphDef.
        outputs: names of its tensors or nodes.
    """
    library = {function.signature.name: function for function in graph.library.function}
    waiting = list(_reached({node.name: node for node in graph.node}, outputs, skip_branches=True))
    called: set[str] = set()
    while waiting:
        node = waiting.pop()
        yield node
        if node.op in _BRANCHES or _is_compiled(node):
            continue
        for name in _functions_of(node):
            function = library.get(name)
            if function is None or name in called or _is_compiled(function):
                continue
            called.add(name)
            nodes = {inner.name: inner for inner in function.node_def}
            waiting += _reached(nodes, [*function.ret.values(), *function.control_ret.values()], skip_branches=True)


def all_operations(graph: Any) -> Iterator[str]:
    """The operations of all nodes of a GraphDef and of its function library, except calls of these functions."""
    library = {function.signature.name for function in graph.library.function}
    yield from (node.op for node in graph.node if node.op not in library)
    for function in graph.library.function:
        yield from (node.op for node in function.node_def if node.op not in library)


def _reached(nodes: Mapping[str, Any], outputs: Iterable[str], *, skip_branches: bool = False) -> Iterator[Any]:
    """The nodes that the outputs need.

    Args:
        nodes: of a graph or of a function, by name.
        outputs: names of tensors or nodes.
        skip_branches: whether to leave out what TensorFlow 1 runs under a condition: what is between a Merge and its
            Switch. The condition itself and the values that enter the branches are not left out.
    """
    # The second number is the count of Merge nodes whose Switch has not been reached yet.
    waiting = [(node_of(name), 0) for name in outputs]
    least: dict[str, int] = {}
    while waiting:
        name, depth = waiting.pop()
        node = nodes.get(name)
        if node is None or least.get(name, depth + 1) <= depth:
            continue
        if depth == 0:
            yield node
        least[name] = depth
        if skip_branches and node.op in _SWITCHES:
            depth = max(0, depth - 1)
        for tensor in node.input:
            source = nodes.get(node_of(tensor))
            if source is not None:
                in_branch = skip_branches and node.op in _MERGES and source.op not in _LOOPS
                waiting.append((source.name, depth + in_branch))


def _is_compiled(definition: Any) -> bool:
    """Whether XLA compiles a function, or what a node calls."""
    return COMPILED in definition.attr and bool(definition.attr[COMPILED].b)


def _functions_of(node: Any) -> Iterator[str]:
    yield node.op
    for attribute in node.attr.values():
        if attribute.HasField("func"):
            yield attribute.func.name
        for function in attribute.list.func:
            yield function.name
