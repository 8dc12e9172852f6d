"""Which MetaGraph of a SavedModel is served, and which of its signatures can be: decided before anything is loaded.

A worker of one device calls a SavedModel's functions, a tower runs its graph in a session. TensorFlow's loaders for the
two accept different models. These rules hold for both, so that a model is served everywhere or nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import tensorflow as tf

from ..model_errors import LoadError

INTERNAL_SIGNATURE: Final = "__saved_model_init_op"
"""A signature of TensorFlow's own, which the graph's loader lists with the others."""

DENSE_ONLY: Final = "only dense tensors can be served: convert it inside the model"

_PLACEHOLDERS: Final = frozenset(("Placeholder", "PlaceholderV2"))
"""Operations without a value of their own. A PlaceholderWithDefault has one."""


def choose_meta_graph(saved_model: Any, tags: Sequence[str] = ()) -> Any:
    """Chooses the MetaGraph that is served.

    That is the one with the configured tags. Without these it is the one tagged `serve` alone, else the only one whose
    tags include `serve`, else the only one.

    Args:
        saved_model: a SavedModel message.
        tags: the configured tags; empty where none are configured.

    Returns:
        The MetaGraphDef.

    Raises:
        LoadError: no MetaGraph has the configured tags; or none are configured and none of the rules applies.
    """
    by_tags: dict[frozenset[str], Any] = {}
    for graph in saved_model.meta_graphs:
        by_tags.setdefault(frozenset(graph.meta_info_def.tags), graph)  # TensorFlow, too, takes the first of equal ones
    listed = ", ".join(_list_tags(each) for each in by_tags) or "none"
    if tags:
        if frozenset(tags) not in by_tags:
            raise LoadError(f"there is no MetaGraph with exactly the tags {_list_tags(tags)}; the model has: {listed}")
        return by_tags[frozenset(tags)]
    serving = frozenset((tf.saved_model.SERVING,))
    if serving in by_tags:
        return by_tags[serving]
    for choices in ([graph for each, graph in by_tags.items() if serving <= each], list(by_tags.values())):
        if len(choices) == 1:
            return choices[0]
    raise LoadError(f"set `tags` to those of one of the model's MetaGraphs: {listed}")


def _list_tags(tags: Sequence[str] | frozenset[str]) -> str:
    return f"[{', '.join(sorted(tags))}]"


def unusable_signatures(meta_graph: Any) -> dict[str, str]:
    """The signatures of a MetaGraph that no loader can serve: the reason for each, by name."""
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    problems = {name: _problem_of(signature, nodes) for name, signature in meta_graph.signature_def.items()}
    return {name: problem for name, problem in problems.items() if problem is not None}


def _problem_of(signature: Any, nodes: Mapping[str, Any]) -> str | None:
    """Why a signature cannot be served; None where nothing is known against it."""
    fed: dict[str, str] = {}
    for name, info in sorted(signature.inputs.items()):
        for part, tensor in tensors_of(name, info):
            other = fed.setdefault(tensor, part)
            if other != part:
                return f"the inputs {other!r} and {part!r} are the same tensor, {tensor!r}"
    for name, info in sorted(signature.outputs.items()):
        kind = composite_kind(info)
        if kind is not None:
            return f"{name!r} is a {kind}; {DENSE_ONLY}"
        if info.name in nodes:
            return f"{name!r} is the operation {info.name!r}, which is no tensor"
    named = {**{part: tensor for tensor, part in fed.items()}, **{k: v.name for k, v in signature.outputs.items()}}
    for name, tensor in named.items():
        if node_of(tensor) not in nodes:
            return f"{name!r} is the tensor {tensor!r}, and the graph has no such node"
    missing = _missing_value([info.name for info in signature.outputs.values()], fed, nodes)
    if missing is not None:
        return f"its outputs need a value for the placeholder {missing!r}, which is none of its inputs"
    return None


def _missing_value(outputs: Sequence[str], fed: Mapping[str, str], nodes: Mapping[str, Any]) -> str | None:
    """The name of a placeholder that outputs depend on and that is not fed; None where there is none."""
    waiting = list(outputs)
    seen: set[str] = set()
    while waiting:
        tensor = waiting.pop()
        name = node_of(tensor)
        # `x` is the first output of a node, `x:0`.
        if name in seen or (tensor if ":" in tensor else f"{tensor}:0") in fed:
            continue
        seen.add(name)
        node = nodes.get(name)
        if node is not None and node.op in _PLACEHOLDERS:
            if f"{name}:0" not in fed:  # else this is a control dependency on it, `^x`
                return name
        elif node is not None:
            waiting.extend(node.input)
    return None


def tensors_of(name: str, info: Any) -> Iterator[tuple[str, str]]:
    """The tensors of an input or output: those of its parts, where it is not dense.

    Args:
        name: its name in the signature.
        info: its TensorInfo.

    Yields:
        The name and the graph's tensor of each part. The names are those that TensorFlow gives to inputs of functions.
    """
    kind = info.WhichOneof("encoding")
    if kind == "coo_sparse":
        sparse = info.coo_sparse
        yield f"{name}_indices", sparse.indices_tensor_name
        yield f"{name}_values", sparse.values_tensor_name
        yield f"{name}_dense_shape", sparse.dense_shape_tensor_name
    elif kind == "composite_tensor":
        for index, part in enumerate(info.composite_tensor.components):
            yield f"{name}_component_{index}", part.name
    else:
        yield name, info.name


def composite_kind(info: Any) -> str | None:
    """What TensorFlow calls a tensor that is not dense, as in `RaggedTensor`; None for a dense one."""
    kind = info.WhichOneof("encoding")
    if kind == "coo_sparse":
        return "SparseTensor"
    if kind != "composite_tensor":
        return None
    spec = info.composite_tensor.type_spec
    name: str = spec.TypeSpecClass.Name(spec.type_spec_class)
    return "".join(map(str.capitalize, name.removesuffix("_SPEC").split("_")))


def node_of(tensor: str) -> str:
    """The name of the node of an input such as `^name` or `name:1`."""
    return tensor.removeprefix("^").partition(":")[0]
