"""The section `request_log` of a configuration: the file that gets a line for each sampled request."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema, field_validator

from .section_types import PositiveBytes, Section, context_of, key
from .units import format_size, short_repr

_MIN_SIZE: Final = 64 << 10


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be the path of a file, not {short_repr(value)}")
    path = Path(os.path.normpath(context_of(info).folder / value))
    if value.endswith("/") or not path.name:
        raise ValueError(f"must be the path of a file, not the folder {short_repr(value)}")
    return path


class RequestLogConfig(Section):
    """A file with one line of JSON for each sampled request."""

    path: Annotated[Path, PlainValidator(_path), WithJsonSchema({"type": "string", "minLength": 1})] = Field(
        description="The file; relative paths start at the folder of the configuration. It is made with mode 0600."
    )
    sample: Annotated[float, Field(gt=0, le=1)] = key(1.0, "The share of requests that are logged, from above 0 to 1.")
    tensors: bool = key(
        False, "Whether lines have the first values of inputs and outputs: the file has clients' data then."
    )
    max_size: PositiveBytes = key(
        "100MiB", "The size from which on the file is renamed to PATH.1, and another one is begun; at least 64KiB."
    )
    keep: Annotated[int, Field(ge=1, le=1000)] = key(5, "How many renamed files are kept.")

    @field_validator("max_size")
    @classmethod
    def _not_too_small(cls, value: int) -> int:
        if value < _MIN_SIZE:
            raise ValueError(f"{format_size(value)} is less than {format_size(_MIN_SIZE)}, the least")
        return value
