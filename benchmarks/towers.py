"""Host memory of a model with large variables: a process for each device, compared with towers in one process.

A SavedModel with one large variable and a frozen graph with one large constant are served on logical CPU devices, whose
memory is the host's. Pages that several processes share count once (PSS). On GPUs, variables are in device memory, once
for each tower or process; host memory is then what is measured here without them.

    python benchmarks/towers.py --mib 256 --devices 1 2 4
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from multitower import Client
from multitower.tools.daemon import OwnDaemon

WIDTH = 1024

MAKE = """
import sys
from pathlib import Path
import tensorflow as tf
rows, width, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
spec = tf.TensorSpec([None], tf.int32, name="x")
module = tf.Module()
module.table = tf.Variable(tf.random.uniform([rows, width], seed=1))
serve = tf.function(lambda x: {"y": tf.gather(module.table, x)}, input_signature=[spec])
tf.saved_model.save(module, str(folder / "variable"), signatures=serve.get_concrete_function())
values = module.table.numpy()
with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.int32, [None], name="x")
    tf.gather(tf.constant(values), x, name="y")
(folder / "constant.pb").write_bytes(graph.as_graph_def().SerializeToString())
"""


def memory(model: dict[str, Any], devices: list[Any], folder: Path) -> tuple[int, int]:
    """Bytes of all worker processes after some requests, and the number of processes."""
    config = folder / "config.yaml"
    config.write_text(json.dumps({"devices": devices, "spares": 0, "models": [{"name": "m", **model}]}))
    with OwnDaemon(config) as daemon, Client(daemon.endpoint) as client:
        for _ in range(20):
            client.infer("m", {"x": np.zeros(4, np.int32)})
        pids = [slot["pid"] for slot in client.status()["slots"]]
        return sum(psutil.Process(pid).memory_full_info().pss for pid in pids), len(pids)


def main() -> None:
    """Measures, and prints a line for each model and number of devices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=256, help="size of the variable")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mt-towers-") as name:
        folder = Path(name)
        rows = str(arguments.mib * (1 << 20) // (4 * WIDTH))
        subprocess.run([sys.executable, "-c", MAKE, rows, str(WIDTH), name], check=True, capture_output=True)
        models: dict[str, dict[str, Any]] = {
            "SavedModel, variable": {"path": str(folder / "variable")},
            "frozen graph, constant": {
                "path": str(folder / "constant.pb"),
                "inputs": {"x": "x:0"},
                "outputs": {"y": "y:0"},
            },
        }
        print(f"{arguments.mib} MiB of weights; memory of all worker processes, MiB (PSS)")
        print(f"{'':24}{'devices':>8}  {'a process each':>15}  {'towers in one':>14}")
        for title, model in models.items():
            for count in arguments.devices:
                cpus = [f"cpu:{number}" for number in range(count)]
                apart, processes = memory(model, list(cpus), folder)
                together, one = memory(model, [cpus], folder)
                assert (processes, one) == (count, 1)
                print(f"{title:24}{count:>8}  {apart >> 20:>15,}  {together >> 20:>14,}", flush=True)


if __name__ == "__main__":
    main()
