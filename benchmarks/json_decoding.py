"""JSON of TensorFlow Serving's interface: one image as rows, decoded by the gateway compared with json + numpy.

    python benchmarks/json_decoding.py [--rounds 9] [--calls 20]

The text is `{"instances": [IMAGE]}` for an image of 224x224x3 pixels, float32, as Python's `json.dumps` writes it.
Decoding makes a float32 tensor of it: in Python `np.asarray(json.loads(text)["instances"], np.float32)`, with orjson
likewise where that is installed, and in the gateway its own decoder, which reads the value of `instances`. Writing
makes the text again, in Python `json.dumps(array.tolist())`. Each round measures all in turn. Figures are medians of
the rounds' medians, in milliseconds, and in brackets the median of each round's ratio to the gateway. The sum of the
decoded values must be the same.

The gateway's decoder is built by cargo, from its sources, into build/json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
CRATE = ROOT / "benchmarks" / "json"
TARGET = ROOT / "build" / "json"

Array = np.ndarray[Any, Any]


def build() -> Path:
    """Builds the gateway's decoder and returns the program."""
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET)}
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=CRATE, env=environment, check=True)
    return TARGET / "release" / "json-decoding"


def times_ms(call: Callable[[], object], calls: int) -> float:
    """The median time of a call, in milliseconds."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def python_decoders(text: bytes) -> dict[str, Callable[[], Array]]:
    """The ways to decode in Python."""
    decoders: dict[str, Callable[[], Array]] = {
        "json + numpy": lambda: np.asarray(json.loads(text)["instances"], np.float32)
    }
    try:
        orjson = importlib.import_module("orjson")
    except ImportError:
        return decoders
    decoders["orjson + numpy"] = lambda: np.asarray(orjson.loads(text)["instances"], np.float32)
    return decoders


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=20, help="of each way, in each round")
    arguments = parser.parse_args()
    program = build()
    image = np.random.default_rng(7).random((224, 224, 3), np.float32)
    # As clients write float32: the shortest text for each.
    rows = [[[float(str(value)) for value in pixel] for pixel in line] for line in image]
    text = json.dumps({"instances": [rows]}).encode()
    decoders = python_decoders(text)
    expected = image.astype(np.float64).sum()
    figures: dict[str, list[float]] = {}
    with tempfile.NamedTemporaryFile() as file:
        file.write(json.dumps([rows]).encode())
        file.flush()
        command = [str(program), file.name, str(arguments.calls)]
        for _ in range(arguments.rounds):
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            ours = json.loads(output)
            assert abs(ours["checksum"] - expected) < 1e-6 * expected, "the gateway decodes other values"
            figures.setdefault("gateway", []).append(statistics.median(ours["decoding_ms"]))
            figures.setdefault("writing: gateway", []).append(statistics.median(ours["writing_ms"]))
            for name, decode in decoders.items():
                assert np.array_equal(decode()[0], image), name
                figures.setdefault(name, []).append(times_ms(decode, arguments.calls))
            batch = image[None]
            dump = times_ms(lambda: json.dumps(batch.tolist()).encode(), arguments.calls)  # noqa: B023  called at once
            figures.setdefault("writing: json + numpy", []).append(dump)
    print(f"one image of 224x224x3, float32: {len(text):,} bytes of JSON, {arguments.rounds} rounds")
    for name, times in figures.items():
        base = figures["writing: gateway" if name.startswith("writing") else "gateway"]
        ratio = statistics.median(time / ours for time, ours in zip(times, base, strict=True))
        print(f"{name:24}{statistics.median(times):8.2f} ms  ({ratio:.1f})")


if __name__ == "__main__":
    main()
