"""Calls of graphs in sessions of TensorFlow 1: frozen graphs, and the SavedModels of towers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from multitower.spec import TowerReport

from ..records import log_event
from .model import Arrays
from .tensorflow_types import as_array
from .towers import TowerPlacement, count_nodes, traced_nodes


def open_session(graph: Any, placement: TowerPlacement | None) -> Any:
    """Opens a session for a graph.

    Args:
        graph: the graph.
        placement: its device, in a worker of several; None for a session with the settings of `tf.config`.
    """
    if placement is None:
        return tf.compat.v1.Session(graph=graph)
    # The settings of `tf.config`, for which there is no public name as a whole.
    from tensorflow.python.eager import context

    config = context.context().config
    config.allow_soft_placement = True
    # Otherwise all sessions of the process share the threads of the first one, and wait for each other.
    config.use_per_session_threads = True
    return tf.compat.v1.Session(graph=graph, config=config)


class GraphCall:
    """Runs a session's graph from some of its tensors to others. Any number of threads may call it.

    Args:
        session: the session.
        inputs: the tensors that are fed, by name.
        outputs: the tensors that are fetched, by name.
        placement: where the graph should be; the first `try_out` checks it. None for no check.

    Attributes:
        tower: what the check has found; None without a placement.
        fetched: see `ModelCall`.
    """

    def __init__(
        self,
        session: Any,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        placement: TowerPlacement | None = None,
    ) -> None:
        self._inputs, self._outputs = list(inputs), list(outputs)
        self.fetched = tuple(tensor.name for tensor in outputs.values())
        self._run = session.make_callable(list(outputs.values()), feed_list=list(inputs.values()))
        self._session = session
        self._placement = placement
        self.tower = TowerReport(device=placement.name) if placement is not None else None

    def __call__(self, arrays: Arrays) -> Arrays:
        """Returns the outputs for these inputs."""
        return self._by_name(self._run(*(arrays[name] for name in self._inputs)))

    def try_out(self, arrays: Arrays) -> Arrays:
        """Returns the outputs for these inputs. The first call also records on which device each node runs."""
        if self._placement is None or self.tower is None or self.tower.nodes is not None:
            return self(arrays)
        # Software alone: tracing the device needs libraries of its own, and shows kernels instead of nodes.
        options = tf.compat.v1.RunOptions(
            trace_level=tf.compat.v1.RunOptions.SOFTWARE_TRACE, output_partition_graphs=True
        )
        metadata = tf.compat.v1.RunMetadata()
        values = self._run(*(arrays[name] for name in self._inputs), options=options, run_metadata=metadata)
        nodes = traced_nodes(metadata)
        self.tower = count_nodes(nodes, self._placement)
        if self._placement.log:
            # TensorFlow's own option logs the outermost graph only, not the functions that it calls.
            for name, (operation, device) in sorted(nodes.items()):
                of = f"{self._placement.log} on {self._placement.name}"
                log_event(logging.INFO, f"{of}: {name} ({operation}): {device}")
        return self._by_name(values)

    @property
    def graph(self) -> Any:
        """What a call runs: a GraphDef, with the functions that it calls."""
        return self._session.graph.as_graph_def()

    def _by_name(self, values: list[Any]) -> Arrays:
        return {name: as_array(value) for name, value in zip(self._outputs, values, strict=True)}
