"""The gain of a worker that assembles the next batch while one is computed.

    python benchmarks/overlap.py [--rounds 3] [--seconds 3] [--compute 5,20] [--rows 8,32] [--strides 32]

The Python client sends one worker requests of one row of 602,112 bytes (float32 [1, 224, 224, 3]) over ipc, with four
batches outstanding; a few numbers come back for each row. An ordinary worker and one that overlaps nothing are measured
in turn. The models are

- a handler that sleeps as long as a device would take for a batch (`--compute`, ms);
- a SavedModel on the CPU: a convolution with 64 filters of 7 by 7 at every n-th point (`--strides`; a smaller one takes
  longer), with one thread, so that a second core is free for the worker's other thread, the daemon and the client.

Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import serving

from multitower import Client

HANDLERS = '''

def set_turns(in_turn):
    if in_turn:
        from multitower.worker import service

        service.MIN_OVERLAP_NS = 1 << 62


class Picture:
    def load(self, devices, parameters):
        self._seconds = parameters["seconds"]
        set_turns(parameters["in_turn"])

    def infer(self, inputs):
        time.sleep(self._seconds)
        return {"y": inputs["x"][:, 0, 0, 0]}


class Turns(Echo):
    """Served beside a SavedModel to set whether its worker overlaps."""

    def load(self, devices, parameters):
        set_turns(parameters["in_turn"])
'''

MODEL = """
import sys

import tensorflow as tf


class Convolution(tf.Module):
    def __init__(self, strides):
        self.strides = strides
        self.filters = tf.Variable(tf.random.normal([7, 7, 3, 64]))

    @tf.function(input_signature=[tf.TensorSpec([None, 224, 224, 3], tf.float32, name="x")])
    def __call__(self, x):
        return {"y": tf.reduce_mean(tf.nn.conv2d(x, self.filters, self.strides, "VALID"), [1, 2])}


tf.saved_model.save(Convolution(int(sys.argv[2])), sys.argv[1])
"""


def rate(endpoint: str, outstanding: int, seconds: float) -> float:
    """Requests a second of one thread that keeps `outstanding` requests outstanding."""
    x = np.random.default_rng(1).normal(size=(1, 224, 224, 3)).astype(np.float32)
    done = 0
    with Client(endpoint) as client:
        client.live()
        inputs = [client.empty(x.shape, x.dtype) for _ in range(outstanding)]
        for each in inputs:
            each[:] = x
        waiting = [client.submit("picture", {"x": each}) for each in inputs]
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            waiting.pop(0).result()
            waiting.append(client.submit("picture", {"x": inputs[done % outstanding]}))
            done += 1
        took = time.monotonic() - begun
        for future in waiting:
            future.result()
    return done / took


def model_ms(endpoint: str) -> float:
    """Milliseconds that the model took for a batch, by the daemon's statistics."""
    with Client(endpoint) as client:
        (answer,) = client.statistics("picture")["model_stats"]
    return float(answer["inference_stats"]["compute_infer"]["ns"]) / answer["execution_count"] / 1e6


def compare(name: str, rows: int, options: argparse.Namespace, model: str, also: str = "") -> None:
    """Measures a model both ways and prints a line; `{in_turn}` in the models' YAML is replaced."""
    pairs, took = [], []
    with tempfile.TemporaryDirectory(prefix="mt-") as folder:
        for number in range(options.rounds):
            figures = []
            for in_turn in ("true", "false"):
                batching = f", batching: {{max_batch_size: {rows}}}"
                models = {"picture": model.replace("{in_turn}", in_turn) + batching}
                if also:
                    models["turns"] = also.replace("{in_turn}", in_turn)
                more = "spares: 0\nthreads: {intra_op: 1, inter_op: 1}"
                with serving.daemon(Path(folder), f"{number}{in_turn}", workers=1, models=models, more=more) as daemon:
                    rate(daemon.endpoint, 4 * rows, 0.5)
                    figures.append(rate(daemon.endpoint, 4 * rows, options.seconds))
                    took.append(model_ms(daemon.endpoint))
            pairs.append(figures)
    in_turn_s, overlapping_s = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
    milliseconds = statistics.median(took)
    ideal = rows / milliseconds * 1e3
    print(
        f"{name:>18}{milliseconds:8.1f}{rows:6}{in_turn_s:12.0f}{overlapping_s:15.0f}{ratio:8.2f}{ideal:10.0f}",
        flush=True,
    )


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--compute", default="5,20", help="ms for a batch of the handler that sleeps")
    parser.add_argument("--strides", default="32", help="strides of the SavedModel's convolution")
    parser.add_argument("--rows", default="8,32", help="the most rows of a batch")
    options = parser.parse_args()
    serving.HANDLERS += HANDLERS
    sizes = [int(each) for each in options.rows.split(",")]
    print(f"{'':>18}{'ms':>8}{'rows':>6}{'in turn/s':>12}{'overlapping/s':>15}{'ratio':>8}{'ideal/s':>10}")
    for milliseconds in [float(each) for each in options.compute.split(",") if each]:
        model = f"handler: 'handlers:Picture', parameters: {{seconds: {milliseconds / 1e3}, in_turn: {{in_turn}}}}"
        for rows in sizes:
            compare("sleep", rows, options, model)
    for strides in [each for each in options.strides.split(",") if each]:
        with tempfile.TemporaryDirectory(prefix="mt-") as folder:
            saved = f"{folder}/model/1"
            subprocess.run([sys.executable, "-c", MODEL, saved, strides], check=True, stderr=subprocess.DEVNULL)
            for rows in sizes:
                also = "handler: 'handlers:Turns', parameters: {in_turn: {in_turn}}"
                compare(f"TensorFlow, {strides}", rows, options, f"path: {folder}/model", also)


if __name__ == "__main__":
    main()
