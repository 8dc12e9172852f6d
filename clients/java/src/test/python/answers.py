"""What the Python client gets for the digits held back from training: rows of FP32, for the Java tests to compare with.

    answers.py ENDPOINT HELD_OUT.npz FOLDER

writes FOLDER/images.bin and FOLDER/answers.bin: the images, and the probabilities of each, asked for one by one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from multitower import Client


def main() -> None:
    """Asks and writes."""
    endpoint, held_out, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with np.load(held_out) as arrays:
        images = arrays["x"]
    with Client(endpoint) as client:
        answers = [client.infer("digits", {"x": image[None]})["probabilities"] for image in images]
    (folder / "images.bin").write_bytes(images.astype("<f4").tobytes())
    (folder / "answers.bin").write_bytes(np.concatenate(answers).astype("<f4").tobytes())


if __name__ == "__main__":
    main()
