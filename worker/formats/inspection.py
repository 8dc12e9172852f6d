"""Finds operations that TensorFlow cannot run, or not everywhere: `python -m multitower.worker.formats.inspection`.

`multitower doctor` runs this program in a process of its own. It reads a JSON list of `ModelSpec`s from stdin, and
writes a JSON object to stdout, with `build` and an entry in `models` for each model. SavedModels are read but not
loaded; files are loaded as a worker loads them. It uses no device: its caller hides them.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from multitower.spec import ModelSpec

from ..model_errors import one_line
from ..unrunnable import UnrunnableError, classify, unregistered
from .custom_ops import load_libraries
from .graph_nodes import all_operations, certain_nodes, needed_nodes
from .kernels import is_cpu_only
from .loader import load
from .meta_graph import INTERNAL_SIGNATURE, choose_meta_graph, tensors_of, unusable_signatures
from .runnable import check_nodes
from .saved_model import choose_signature


class _Graph(NamedTuple):
    """A graph, and the names of the tensors and nodes that a request computes."""

    definition: Any
    fetched: Iterable[str]


def main() -> None:
    """Reads stdin, writes stdout."""
    specs = [ModelSpec.from_dict(data) for data in json.load(sys.stdin)]
    with os.fdopen(os.dup(1), "w") as answer:
        # Output of models and libraries must not get into the answer.
        os.dup2(2, 1)
        # Libraries stay in the process: models that name none must not find the operations of others.
        ordered = sorted(specs, key=lambda spec: bool(spec.custom_ops))
        json.dump({"build": _build(), "models": {spec.name: _inspect(spec) for spec in ordered}}, answer)


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
    """The report on a model: the numbers of its operations; or why it can never run; or why it cannot be inspected."""
    try:
        load_libraries(spec.custom_ops)
        graph = _read_graph(spec)
        _check_registered(graph)
        nodes = certain_nodes(graph.definition, graph.fetched)
        check_nodes(nodes, {"CPU"}, runs_model_code=spec.format.runs_model_code, compiled=spec.jit_compile)
    except Exception as error:  # noqa: BLE001  a model may be broken in any way; the others are inspected
        obstacle = error if isinstance(error, UnrunnableError) else classify(error)
        if obstacle is None:
            return {"error": one_line(error)}
        return {"obstacle": str(obstacle), "needs_gpu": obstacle.needs_gpu}
    counts: Counter[str] = Counter()
    cpu_only: Counter[str] = Counter()
    for node in needed_nodes(graph.definition, graph.fetched):
        counts[node.op] += 1
        cpu_only[node.op] += is_cpu_only(node)
    return {
        "operations": counts.total(),
        "cpu_only": {name: count for name, count in sorted(cpu_only.items()) if count},
    }


def _check_registered(graph: _Graph) -> None:
    """Checks that TensorFlow knows all operations of a graph, also those that no request runs: it loads all of them.

    Raises:
        UnrunnableError: it does not.
    """
    unknown = sorted({name for name in all_operations(graph.definition) if op_def_registry.get(name) is None})
    if unknown:
        raise unregistered(*unknown)


def _read_graph(spec: ModelSpec) -> _Graph:
    assert spec.path is not None  # the caller leaves handlers out
    path = Path(spec.path, spec.version) if spec.version is not None else Path(spec.path)
    if path.is_dir():
        return _read_saved_model(path, spec)
    model: Any = load(spec, ["cpu:0"])
    definition = model.graph
    return _Graph(definition, list(spec.outputs.values()) or [node.name for node in definition.node])


def _read_saved_model(folder: Path, spec: ModelSpec) -> _Graph:
    from tensorflow.python.saved_model import loader_impl

    graph = choose_meta_graph(loader_impl.parse_saved_model(str(folder)), spec.tags)
    names = sorted(name for name in graph.signature_def if name != INTERNAL_SIGNATURE)
    name = choose_signature(names, list(unusable_signatures(graph)), spec.signature)
    outputs = graph.signature_def[name].outputs
    return _Graph(graph.graph_def, [tensor for each, info in outputs.items() for _, tensor in tensors_of(each, info)])


if __name__ == "__main__":
    main()
