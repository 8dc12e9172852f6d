"""Finds operations of models that TensorFlow can run on the CPU only: `python -m multitower.worker.formats.kernels`.

`multitower doctor` runs this program in a process of its own. It reads a JSON list of `ModelSpec`s from stdin, and
writes a JSON object to stdout, with `build` and an entry in `models` for each model. SavedModels are read but not
loaded; files are loaded as a worker loads them. It uses no device: its caller hides them.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import kernels

from multitower.spec import ModelSpec

from ..model_errors import one_line
from .loader import load
from .meta_graph import INTERNAL_SIGNATURE, choose_meta_graph, node_of, tensors_of, unusable_signatures
from .saved_model import choose_signature

_ON_GPU = frozenset(("GPU", "DEFAULT"))
"""The device types of kernels that GPUs can run; kernels of DEFAULT run on any device."""


def main() -> None:
    """Reads stdin, writes stdout."""
    specs = [ModelSpec.from_dict(data) for data in json.load(sys.stdin)]
    with os.fdopen(os.dup(1), "w") as answer:
        # Output of models and libraries must not get into the answer.
        os.dup2(2, 1)
        json.dump({"build": _build(), "models": {spec.name: _inspect(spec) for spec in specs}}, answer)


def _build() -> dict[str, Any]:
    """How TensorFlow was built: for CUDA, and for which versions."""
    info = tf.sysconfig.get_build_info()
    return {
        "version": tf.__version__,
        "gpu": bool(tf.test.is_built_with_gpu_support()),
        "cuda": bool(info.get("is_cuda_build")),
        "cuda_version": info.get("cuda_version"),
        "cudnn_version": info.get("cudnn_version"),
    }


def _inspect(spec: ModelSpec) -> dict[str, Any]:
    try:
        nodes = _needed_nodes(spec)
    except Exception as error:  # noqa: BLE001  a model may be broken in any way; the others are inspected
        return {"error": one_line(error)}
    counts: Counter[str] = Counter()
    cpu_only: Counter[str] = Counter()
    for node in nodes:
        counts[node.op] += 1
        cpu_only[node.op] += is_cpu_only(node)
    return {
        "operations": counts.total(),
        "cpu_only": {name: count for name, count in sorted(cpu_only.items()) if count},
    }


def is_cpu_only(node: Any) -> bool:
    """Whether TensorFlow has a kernel for a node, with its types, on the CPU and none on a GPU.

    Args:
        node: a NodeDef. One without kernels, such as a call of a function, does not run by itself.
    """
    devices = {
        kernel.device_type
        for kernel in kernels.get_registered_kernels_for_op(node.op).kernel
        if not kernel.label and _accepts(kernel, node)
    }
    return "CPU" in devices and not devices & _ON_GPU


def _accepts(kernel: Any, node: Any) -> bool:
    """Whether the node's types are among the kernel's. A type that the node does not state counts as accepted."""
    for constraint in kernel.constraint:
        attribute = node.attr.get(constraint.name)
        if attribute is None:
            continue
        kind = attribute.WhichOneof("value")
        types = [attribute.type] if kind == "type" else attribute.list.type if kind == "list" else []
        if not set(types) <= set(constraint.allowed_values.list.type):
            return False
    return True


def _needed_nodes(spec: ModelSpec) -> Iterator[Any]:
    """The nodes that a request runs."""
    assert spec.path is not None  # the caller leaves handlers out
    path = Path(spec.path, spec.version) if spec.version is not None else Path(spec.path)
    if path.is_dir():
        return _saved_model_nodes(path, spec)
    model: Any = load(spec, ["cpu:0"])
    graph = model.graph
    return _reached(graph, spec.outputs.values() or [node.name for node in graph.node])


def _saved_model_nodes(folder: Path, spec: ModelSpec) -> Iterator[Any]:
    from tensorflow.python.saved_model import loader_impl

    graph = choose_meta_graph(loader_impl.parse_saved_model(str(folder)), spec.tags)
    names = sorted(name for name in graph.signature_def if name != INTERNAL_SIGNATURE)
    name = choose_signature(names, list(unusable_signatures(graph)), spec.signature)
    outputs = graph.signature_def[name].outputs
    return _reached(graph.graph_def, [tensor for each, info in outputs.items() for _, tensor in tensors_of(each, info)])


def _reached(graph: Any, outputs: Iterable[str]) -> Iterator[Any]:
    """The nodes that the outputs need, and the nodes of the functions that these call."""
    nodes = {node.name: node for node in graph.node}
    waiting = [node_of(name) for name in outputs]
    needed: dict[str, Any] = {}
    while waiting:
        name = waiting.pop()
        if name in nodes and name not in needed:
            needed[name] = nodes[name]
            waiting += map(node_of, nodes[name].input)
    library = {function.signature.name: function for function in graph.library.function}
    yield from _with_functions(needed.values(), library)


def _with_functions(nodes: Iterable[Any], library: Mapping[str, Any]) -> Iterator[Any]:
    waiting = list(nodes)
    called: set[str] = set()
    while waiting:
        node = waiting.pop()
        yield node
        for name in _functions_of(node):
            if name in library and name not in called:
                called.add(name)
                waiting += library[name].node_def


def _functions_of(node: Any) -> Iterator[str]:
    yield node.op
    for attribute in node.attr.values():
        if attribute.HasField("func"):
            yield attribute.func.name
        for function in attribute.list.func:
            yield function.name


if __name__ == "__main__":
    main()
