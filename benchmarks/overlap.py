"""What it gains that a worker puts the next batch together while one computes.

    python benchmarks/overlap.py [--rounds 3] [--seconds 3] [--compute 5,20] [--rows 8,32]

One worker, whose handler sleeps as a batch on a device would take (`--compute`, ms), over ipc with the Python client:
requests of one row of 602,112 bytes (float32 [1, 224, 224, 3]), a number a row comes back, four batches outstanding.
The worker as it is and one that does everything in turn take turns. The figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import serving

from multitower import Client

HANDLERS = """

class Picture:
    def load(self, devices, parameters):
        self._seconds = parameters["seconds"]
        if parameters["in_turn"]:
            from multitower.worker import service

            service.WORTH_NS = 1 << 62

    def infer(self, inputs):
        time.sleep(self._seconds)
        return {"y": inputs["x"][:, 0, 0, 0]}
"""


def rate(endpoint: str, x: np.ndarray, outstanding: int, seconds: float) -> float:
    """Requests a second of one thread that keeps so many outstanding."""
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


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--compute", default="5,20", help="ms a batch")
    parser.add_argument("--rows", default="8,32", help="of a batch at the most")
    options = parser.parse_args()
    serving.HANDLERS += HANDLERS
    x = np.random.default_rng(1).normal(size=(1, 224, 224, 3)).astype(np.float32)
    print(f"{'ms':>6}{'rows':>6}{'in turn/s':>12}{'overlapping/s':>15}{'ratio':>8}{'ideal/s':>10}")
    for milliseconds in [float(each) for each in options.compute.split(",")]:
        for rows in [int(each) for each in options.rows.split(",")]:
            pairs = []
            with tempfile.TemporaryDirectory(prefix="mt-") as folder:
                for number in range(options.rounds):
                    figures = []
                    for in_turn in ("true", "false"):
                        models = {
                            "picture": f"handler: 'handlers:Picture', batching: {{max_batch_size: {rows}}}, "
                            f"parameters: {{seconds: {milliseconds / 1e3}, in_turn: {in_turn}}}"
                        }
                        with serving.daemon(Path(folder), f"{number}{in_turn}", workers=1, models=models) as daemon:
                            rate(daemon.endpoint, x, 4 * rows, 0.5)
                            figures.append(rate(daemon.endpoint, x, 4 * rows, options.seconds))
                    pairs.append(figures)
            in_turn_s, overlapping_s = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
            ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
            ideal = rows / milliseconds * 1e3
            print(f"{milliseconds:6.0f}{rows:6}{in_turn_s:12.0f}{overlapping_s:15.0f}{ratio:8.2f}{ideal:10.0f}")


if __name__ == "__main__":
    main()
