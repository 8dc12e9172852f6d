"""Sessions with a `visible_device_list` each, in one process: `python -m multitower.worker.formats.visible_sessions N`.

`multitower compare` runs this program to show what happens with this way of using several GPUs. It writes a JSON list
to stdout, with an entry for each session: the GPU that was asked for, the device that computed a product of matrices,
and the hardware that TensorFlow reports for that device.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import tensorflow as tf

SIZE = 256


def main() -> None:
    """Reads the number of GPUs from the command line; writes stdout."""
    with os.fdopen(os.dup(1), "w") as answer:
        # Output of libraries must not get into the answer.
        os.dup2(2, 1)
        kept: list[Any] = []
        json.dump([_run_session(number, kept) for number in range(int(sys.argv[1]))], answer)


def _run_session(number: int, kept: list[Any]) -> dict[str, Any]:
    """Runs a product in a session for a GPU, and keeps the session open, as a server would."""
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
    except Exception as error:  # noqa: BLE001  whatever it is, it is the result
        text = str(error)
        # An error of a graph begins with the line of this file that made its node.
        reason = text.partition("\nNode: ")[2].partition("\n")[2] or text
        found["error"] = f"{type(error).__name__}: {' '.join(reason.split())[:300]}"
    return found


if __name__ == "__main__":
    main()
