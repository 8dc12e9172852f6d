"""One daemon with models of every kind, for several files: to make, import and load all of it takes half a minute.

The fixtures are in tests/conftest.py. Where the gateway is built, the models are behind it, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import foreign
import ml_dtypes
import numpy as np
import real_models
from running import START_S, Running

FAKES = Path(__file__).parent
DATATYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "string"),
)
FORMATS = ["datatypes", *(f"datatypes-{format}" for format in ("v1", "frozen", "keras", "h5", "handler"))]

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
threads: {intra_op: 1, inter_op: 1}  # as made_models.py has it: their number changes the order of sums
{GATEWAY}
models:
  - {name: dense, path: dense, batching: {max_batch_size: 8}}
  - {name: padded, path: dense, batching: {max_batch_size: 8, allowed_batch_sizes: [4, 8]}}
  - {name: twice, path: dense, signature: twice}
  - {name: no-signature, path: dense, signature: nosuch}
  - {name: words, path: words}
  - {name: datatypes, path: datatypes}
  - {name: datatypes-v1, path: datatypes-v1}
  - {name: datatypes-frozen, path: datatypes.pb, inputs: {INPUTS}, outputs: {OUTPUTS}}
  - {name: datatypes-keras, path: datatypes.keras}
  - {name: datatypes-h5, path: datatypes.h5}
  - {name: datatypes-handler, handler: handlers:Reversed, batching: {}}
  - {name: frozen, path: frozen.pb, inputs: {x: "in/x:0", turns: "in/turns:0"}, outputs: {scores: "out/softmax:0"}}
  - {name: frozen-1, path: frozen-1.pb, inputs: {x: "in/x:0", turns: "in/turns:0"}, outputs: {scores: "out/softmax:0"}}
  - {name: vocabulary, path: vocabulary}
  - {name: vocabulary-1, path: vocabulary-1}
  - {name: ragged, path: ragged}
  - {name: sparse, path: sparse}
  - {name: legacy, path: legacy.h5}
  - {name: legacy-keras, path: legacy.keras}
  - {name: mean, path: mean}
  - {name: sneaky, path: sneaky}
  - {name: scalar, path: scalar}
  - {name: fixed, path: fixed}
  - {name: picky, path: picky}
  - {name: masked, path: masked, batching: {max_batch_size: 16, pad_variable_length_inputs: true}}
  - {name: exact, path: masked, batching: {max_batch_size: 16, allowed_batch_sizes: [4, 16]}}
  - {name: compiled, path: dense, jit_compile: true, batching: {max_batch_size: 8, allowed_batch_sizes: [4, 8]}}
  - {name: warmed, path: picky, warmup: good.npz}
  - {name: cold, path: picky, warmup: words.npz}
  - {name: unbatched, path: dense, batching: {max_batch_size: 0}}
  - {name: keras, path: keras.keras}
  - {name: keras-h5, path: keras.h5}
  - {name: guesslang, path: guesslang}
  - {name: basic-pitch, path: basic-pitch, batching: {max_batch_size: 4}}
  - {name: line, path: line, versions: all, version_labels: {stable: 1, canary: 2}, batching: {max_batch_size: 8}}
  - {name: texts, path: texts}
  - {name: kinds, path: kinds}
  - {name: defaults, path: defaults}
  - {name: lookup, path: lookup, batching: {max_batch_size: 8}}
"""
GATEWAY = "" if foreign.gateway_missing() else 'gateway: {http: "127.0.0.1:*", grpc: "127.0.0.1:*"}'
CONFIG = CONFIG.replace("{GATEWAY}", GATEWAY)
CONFIG = CONFIG.replace("{INPUTS}", json.dumps({name: f"{name}:0" for name in DATATYPES}))
CONFIG = CONFIG.replace("{OUTPUTS}", json.dumps({f"{name}_out": f"{name}_out:0" for name in DATATYPES}))

# The order of oneDNN's sums depends on the number of threads: results differ by more than 1e-5 on some CPUs.
SAME_ARITHMETIC = {"TF_ENABLE_ONEDNN_OPTS": "0"}


def make(folder: Path) -> None:
    """Writes all models into a folder, with what TensorFlow answers when it is called directly.

    That is `NAME.npz` for models of `made_models.py` and real ones, see `Direct`, and `expected.json` for those of
    `served_models.py`.
    """
    real = [f"{name}={path}" for name, path in real_models.unpack(folder).items()]
    # The script imports its neighbour, which Python in safe-path mode does not look for.
    path = os.pathsep.join(filter(None, (str(FAKES), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, FAKES / "made_models.py", folder, *real],
        env={**os.environ, **SAME_ARITHMETIC, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.savez(folder / "good.npz", x=np.ones((1, 1)))


@contextmanager
def running(folder: Path) -> Iterator[Running]:
    """A daemon that serves all of them."""
    with Running(folder, CONFIG, environment=SAME_ARITHMETIC) as daemon:
        yield daemon.wait_ready()
        assert daemon.end() == 0, daemon.text()


class Direct:
    """Inputs of a model, and the outputs that TensorFlow gives."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.inputs = {name[3:]: restored(name[3:], file[name]) for name in file if name.startswith("in/")}
            self.outputs = {name[4:]: restored(name[4:], file[name]) for name in file if name.startswith("out/")}


def restored(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "S":
        return array.astype(object)
    # An .npz file has no bfloat16.
    return array.view(ml_dtypes.bfloat16) if name.startswith("bfloat16") else array
