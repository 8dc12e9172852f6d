"""What a worker is about to do while it loads, as it tells the supervisor before it does it.

It is in memory that both share, so that it is known even if the process ends in the same moment.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import time
from dataclasses import dataclass, field
from typing import Final, Self

from multitower.worker_wire import BEGUN_BYTES

STEP_BYTES: Final = 4096
"""The size of the memory for a step, behind the ids of batches."""

_SIZE: Final = struct.Struct("<H")
_MAX_TEXT: Final = 256


@dataclass(frozen=True, slots=True)
class LoadStep:
    """A step of loading a model.

    Attributes:
        model: the model's name.
        version: its version.
        signature: the signature that is warmed up; "" for the default one.
        rows: the rows that the model is about to be run with; 0 while it is read.
        fewer_rows: the next smaller number of rows of its warm-up; 0 if there is none.
        began_at: when it began, in monotonic seconds, which all processes of a machine share; set by `write`.
    """

    model: str
    version: str
    signature: str = ""
    rows: int = 0
    fewer_rows: int = 0
    began_at: float | None = field(default=None, compare=False)

    def __str__(self) -> str:
        name = f"{self.model} version {self.version}"
        if self.signature:
            name = f"{name} ({self.signature})"
        if not self.rows:
            return f"loading {name}"
        return f"warming up {name} with {self.rows} row{'' if self.rows == 1 else 's'}"

    @property
    def key(self) -> tuple[str, str]:
        """The model's name and version."""
        return self.model, self.version

    def write(self, descriptor: int) -> None:
        """Writes the step into shared memory; one that was written before is replaced."""
        short = dataclasses.replace(self, signature=self.signature[:_MAX_TEXT], began_at=time.monotonic())
        text = json.dumps(dataclasses.asdict(short)).encode()
        os.pwrite(descriptor, _SIZE.pack(len(text)) + text, BEGUN_BYTES)

    @classmethod
    def read(cls, descriptor: int) -> Self | None:
        """Reads the step that was written last; None if there is none, or if it cannot be read."""
        page = os.pread(descriptor, STEP_BYTES, BEGUN_BYTES)
        if len(page) < _SIZE.size:
            return None  # the process has truncated the memory
        (size,) = _SIZE.unpack_from(page)
        try:
            step = cls(**json.loads(page[_SIZE.size : _SIZE.size + size])) if size else None
        except (TypeError, ValueError):
            return None
        return step if step is None or isinstance(step.began_at, int | float | None) else None


def clear_step(descriptor: int) -> None:
    """Removes the step from shared memory: nothing is being loaded any more."""
    os.pwrite(descriptor, _SIZE.pack(0), BEGUN_BYTES)
