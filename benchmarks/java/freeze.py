"""Converts the weights of the demo's model to constants, as in a frozen graph: `freeze.py SAVED_MODEL FROZEN`.

A session of TensorFlow for Java cannot restore the variables that Keras 3 saves. Constants need no restoring.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Loads the model, freezes it, and saves it."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    source, target = sys.argv[1:]
    loaded = tf.saved_model.load(source)  # keeps its variables alive
    frozen = convert_variables_to_constants_v2(loaded.signatures["serving_default"])
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, name="x")])
    def classify(x: object) -> dict[str, object]:
        return {"probabilities": frozen(x)[0]}

    tf.saved_model.save(module, target, signatures=classify)


if __name__ == "__main__":
    main()
