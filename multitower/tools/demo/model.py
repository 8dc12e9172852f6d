"""The demo's model, trained on scikit-learn's images of digits and written as a SavedModel. A separate program.

`python -m multitower.tools.demo.model FOLDER` writes `FOLDER/models/digits/1` and `FOLDER/held_out.npz`: images that
the training did not see, their labels, and the probabilities that TensorFlow gives for them when called directly. The
demo itself, like any application, does not import TensorFlow.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from multitower.tools.demo import HELD_OUT_FILE, MODEL, OUTPUT

SEED = 7
EPOCHS = 40
BATCH = 32
HELD_OUT = 360
"""Images of 1797 that the training does not see."""


def main(folder: Path) -> None:
    """Trains and saves the model and writes the held-out images; takes a few seconds."""
    import tensorflow as tf
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.data))
    images = (digits.data[order] / 16.0).astype(np.float32)
    labels = digits.target[order].astype(np.int64)
    network = _train(images[:-HELD_OUT], labels[:-HELD_OUT])

    # The names here become those of the model's input and output.
    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, name="x")])  # type: ignore[untyped-decorator]
    def classify(x: object) -> dict[str, object]:
        return {OUTPUT: network(x, training=False)}

    module = tf.Module()
    module.network = network
    path = folder / "models" / MODEL / "1"
    tf.saved_model.save(module, str(path), signatures=classify)
    direct = tf.saved_model.load(str(path)).signatures["serving_default"]
    probabilities = direct(x=tf.constant(images[-HELD_OUT:]))[OUTPUT].numpy()
    temporary = folder / "held_out.part.npz"
    np.savez(temporary, x=images[-HELD_OUT:], labels=labels[-HELD_OUT:], direct=probabilities)
    # Written last and atomically: a folder with this file is complete.
    os.replace(temporary, folder / HELD_OUT_FILE)


def _train(images: np.ndarray, labels: np.ndarray) -> Any:
    import keras

    keras.utils.set_random_seed(SEED)
    network = keras.Sequential(
        [
            keras.layers.Input((64,)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    network.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    network.fit(images, labels, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return network


if __name__ == "__main__":
    main(Path(sys.argv[1]))
