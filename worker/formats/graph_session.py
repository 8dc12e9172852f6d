"""Graphs in sessions of TensorFlow 1, as they are called: frozen ones, and those of towers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from multitower.spec import TowerReport

from . import tensorflow_setup as setup
from .model import Arrays
from .towers import TowerPlacement, nodes_of, where

log = logging.getLogger("multitower.worker")


def session_of(graph: Any, placement: TowerPlacement | None) -> Any:
    """A session for a graph.

    Args:
        graph: it.
        placement: where it is; None for one that takes what `tf.config` has been told.
    """
    if placement is None:
        return tf.compat.v1.Session(graph=graph)
    # What `tf.config` has been told, which has no public name as a whole.
    from tensorflow.python.eager import context

    config = context.context().config
    config.allow_soft_placement = True
    # Otherwise all sessions of the process share the threads that the first one asked for, and wait for each other.
    config.use_per_session_threads = True
    return tf.compat.v1.Session(graph=graph, config=config)


class GraphRun:
    """A way through a session's graph, from some tensors to others. Any number of threads may call it.

    Args:
        session: it.
        inputs: the tensors that are given, by name.
        outputs: those that are wanted.
        placement: where the graph is to be, which the first `try_out` checks; None where there is nothing to check.

    Attributes:
        tower: what was found; None without a site.
    """

    def __init__(
        self,
        session: Any,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        placement: TowerPlacement | None = None,
    ) -> None:
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._run = session.make_callable(list(outputs.values()), feed_list=list(inputs.values()))
        self._session = session
        self._placement = placement
        self.tower = TowerReport(device=placement.name) if placement is not None else None

    def __call__(self, arrays: Arrays) -> Arrays:
        """The outputs for these inputs."""
        return self._named(self._run(*(arrays[name] for name in self._inputs)))

    def try_out(self, arrays: Arrays) -> Arrays:
        """The outputs for these inputs; the first time that it is called, it also notes where each node was."""
        if self._placement is None or self.tower is None or self.tower.nodes is not None:
            return self(arrays)
        # Software alone: tracing the device itself needs libraries of its own, and would tell of kernels.
        options = tf.compat.v1.RunOptions(
            trace_level=tf.compat.v1.RunOptions.SOFTWARE_TRACE, output_partition_graphs=True
        )
        metadata = tf.compat.v1.RunMetadata()
        values = self._run(*(arrays[name] for name in self._inputs), options=options, run_metadata=metadata)
        nodes = nodes_of(metadata)
        self.tower = where(nodes, self._placement)
        if self._placement.log:
            # TensorFlow's own option tells of the outermost graph alone, not of the functions that it calls.
            for name, (operation, device) in sorted(nodes.items()):
                log.info("%s on %s: %s (%s): %s", self._placement.log, self._placement.name, name, operation, device)
        return self._named(values)

    @property
    def graph(self) -> Any:
        """What a call runs: a GraphDef, with the functions that it calls."""
        return self._session.graph.as_graph_def()

    def _named(self, values: list[Any]) -> Arrays:
        return {name: setup.plain(value) for name, value in zip(self._outputs, values, strict=True)}
