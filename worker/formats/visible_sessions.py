"""Sessions with a `visible_device_list` each, in one process: `python -m multitower.worker.formats.visible_sessions N`.

`multitower compare` runs it to show what becomes of that way. A JSON list goes to stdout, with an entry for each
session: what was asked for, the device that computed a product of matrices, and which piece of hardware TensorFlow says
that is.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import tensorflow as tf

SIZE = 256


def main() -> None:
    """Reads the number of GPUs from the command line, writes stdout."""
    with os.fdopen(os.dup(1), "w") as answer:
        # Whatever libraries print must not come between.
        os.dup2(2, 1)
        kept: list[Any] = []
        json.dump([_one(number, kept) for number in range(int(sys.argv[1]))], answer)


def _one(number: int, kept: list[Any]) -> dict[str, Any]:
    """Opens a session for a GPU, and leaves it open, as a server would."""
    from tensorflow.python.client import device_lib

    v1 = tf.compat.v1
    config = v1.ConfigProto()
    config.gpu_options.visible_device_list = str(number)
    config.gpu_options.allow_growth = True
    found: dict[str, Any] = {"asked": str(number), "device": None, "physical": None, "error": None}
    try:
        with tf.Graph().as_default() as graph, tf.device("/device:GPU:0"):
            product = tf.matmul(tf.random.uniform([SIZE, SIZE]), tf.random.uniform([SIZE, SIZE]), name="product")
        session = v1.Session(graph=graph, config=config)
        kept.append(session)
        options = v1.RunOptions(output_partition_graphs=True)
        metadata = v1.RunMetadata()
        session.run(product.op, options=options, run_metadata=metadata)
        nodes = {node.name: node.device for each in metadata.partition_graphs for node in each.node}
        found["device"] = nodes.get("product")
        gpus = [device for device in device_lib.list_local_devices(config) if device.device_type == "GPU"]
        found["physical"] = gpus[0].physical_device_desc if gpus else None
    except Exception as error:  # noqa: BLE001  whatever it is, it is what becomes of this way
        text = str(error)
        # What a graph's error begins with is where in this file its node was made.
        reason = text.partition("\nNode: ")[2].partition("\n")[2] or text
        found["error"] = f"{type(error).__name__}: {' '.join(reason.split())[:300]}"
    return found


if __name__ == "__main__":
    main()
