"""`multitower demo`: trains a model, serves it on two CPU workers, and kills one under load.

`steps` are the parts that `cli.demo` runs and prints; `model` is the program that trains the model.
"""

from __future__ import annotations

from typing import Final

MODEL: Final = "digits"
OUTPUT: Final = "probabilities"
HELD_OUT_FILE: Final = "held_out.npz"
