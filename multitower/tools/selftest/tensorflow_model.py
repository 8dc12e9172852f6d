"""Writes a small SavedModel to the folder that is its argument; `tensorflow_check` runs it.

It runs as a process of its own on the CPU, since the command must not import TensorFlow.
"""

from __future__ import annotations

import sys

import tensorflow as tf

from multitower.tools.selftest.tensorflow_check import COLUMNS


class Sum(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    """Computes `y = 3 * x @ ones + 1`. Small integers are exact in every precision that a GPU may compute in."""

    @tf.function(input_signature=[tf.TensorSpec([None, COLUMNS], tf.float32, "x")])  # type: ignore[untyped-decorator]
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `y`."""
        return {"y": 3.0 * tf.linalg.matmul(x, tf.ones([COLUMNS, 1])) + 1.0}


if __name__ == "__main__":
    module = Sum()
    tf.saved_model.save(module, sys.argv[1], signatures=module.serve)
