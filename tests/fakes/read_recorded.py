"""Reads what `multitower record` has written as TensorFlow and a worker do.

Usage: read_recorded.py RECORDED INPUTS.npz MODEL. Compares two requests of RECORDED with the arrays `in/NAME` of
INPUTS, with all of their rows and with the first one. Then loads the SavedModel MODEL, and warms it up with its own
recorded requests.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from multitower.spec import ModelSpec
from multitower.worker.formats.saved_model import SavedModel
from multitower.worker.warmup.samples import load_samples
from multitower.worker.warmup.serving_warmup import read_requests
from multitower.worker.warmup.warmup import warm_up


def main(recorded: Path, inputs: Path, model_folder: Path) -> None:
    """Compares and warms up; prints what was found."""
    with np.load(inputs) as file:
        wanted = {name.removeprefix("in/"): file[name] for name in file if name.startswith("in/")}
    all_rows, one_row = read_requests(recorded)
    for request, rows in ((all_rows, None), (one_row, 1)):
        assert request.inputs.keys() == wanted.keys()
        for name, array in wanted.items():
            got = request.inputs[name]
            expected = array[:rows]
            assert got.shape == expected.shape, name
            if got.dtype == object:
                assert got.tolist() == expected.astype(object).tolist(), name
            else:
                assert got.tobytes() == expected.tobytes(), name
    sys.stdout.write(f"{len(wanted)} inputs are the same\n")
    spec = ModelSpec(name="dense", path=str(model_folder), max_batch_size=8)
    model = SavedModel(spec)
    samples = load_samples(model, spec)
    sys.stdout.write(f"{len(samples)} samples warm up the model: {warm_up(model, spec, samples)[:2]}\n")


main(*map(Path, sys.argv[1:]))
