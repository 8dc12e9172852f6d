"""What sections of a configuration consist of: their base class, the types of their values, and the context.

`config.py` and `models.py` define sections with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)

from multitower.format_registry import ModelFormat, expected_format, recognize

from .source import Problem
from .units import DURATION_PATTERN, SIZE_PATTERN, parse_duration, parse_size, short_repr
from .validation_errors import ValueProblems
from .value_syntax import FileSystems

if TYPE_CHECKING:
    from .principals import Principals

MAX_INT: Final = 2**31 - 1  # the largest count that TensorFlow and libzmq accept
_MAX_THREADS: Final = 1024
_MAX_CONNECTIONS: Final = 1_000_000


@dataclass(slots=True)
class Context:
    """What validators need besides the value: the file's folder, and earlier items of a list.

    Attributes:
        folder: where relative paths start.
        strict: whether it is a problem that a file or folder is not there yet.
        find_handlers: whether it is a problem that the class of a handler does not exist.
        not_yet: what is not there yet, the first of each key, by the model's name and the key; filled unless `strict`.
        insecure: whether addresses that other machines can reach are allowed; None if that setting is wrong itself.
        security: whether there is a section `security`; None if it is wrong itself.
        curve: whether it has `curve`; None if that is wrong itself.
        curve_public_key: the daemon's own, in Z85; empty without `curve`, or if its file is wrong.
        tls: whether the gateway has `tls`; None if that is wrong itself.
        principals: those that `security.principals` names; None without, or if they are wrong.
        problems_elsewhere: of other files that the configuration names.
        endpoints: the endpoints above.
        names: the names of the models above.
        files: waits for file systems for a limited time.
        unanswered: paths whose file system does not answer; they must not be read.
    """

    folder: Path
    strict: bool = True
    find_handlers: bool = False
    not_yet: dict[tuple[str, str], str] = field(default_factory=dict)
    insecure: bool | None = None
    security: bool | None = False
    curve: bool | None = False
    curve_public_key: str = ""
    tls: bool | None = False
    principals: Principals | None = None
    problems_elsewhere: list[Problem] = field(default_factory=list)
    endpoints: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    unanswered: set[Path] = field(default_factory=set)
    files: FileSystems = field(init=False)

    def __post_init__(self) -> None:
        self.files = FileSystems(self.folder)


def context_of(info: ValidationInfo) -> Context:
    """The context that `load` passes to validators."""
    assert isinstance(info.context, Context)
    return info.context


def format_of(info: ValidationInfo) -> ModelFormat:
    """The format of the model whose keys are validated; by its name alone where its file system does not answer."""
    path = info.data.get("path")
    return expected_format(path) if path in context_of(info).unanswered else recognize(path)


class Section(BaseModel):
    """A mapping of known keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, validate_default=True)


def key(default: Any, description: str) -> Any:
    """A key with its default, written as in a file, and its description."""
    return Field(default, description=description)


def _positive(seconds: float) -> float:
    if seconds == 0:
        raise ValueError("must be longer than 0")
    return seconds


def _optional_positive_seconds(value: object) -> float | None:
    return None if value is None else _positive(parse_duration(value))


def _seconds_or_off(value: object) -> float:
    return 0.0 if value == 0 and type(value) is int else parse_duration(value)


def _positive_bytes(size: int) -> int:
    if size == 0:
        raise ValueError("must be more than 0")
    return size


def _optional_positive_bytes(value: object) -> int | None:
    return None if value is None else _positive_bytes(parse_size(value))


def _auto_or_count(maximum: int, value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
        raise ValueError(f"must be auto or a whole number from 1 to {maximum}, not {short_repr(value)}")
    return value


def one_or_more(value: object, parse: Callable[[object], str], if_empty: str) -> tuple[str, ...]:
    """Parses one value, or each item of a list.

    Args:
        value: from YAML.
        parse: parses one of them; raises a ValueError whose message is for the user.
        if_empty: the message about an empty list.

    Raises:
        ValueError: the list is empty.
        ValidationError: values are wrong; each problem has its own location.
    """
    if isinstance(value, list) and not value:
        raise ValueError(if_empty)
    items = [((index,), item) for index, item in enumerate(value)] if isinstance(value, list) else [((), value)]
    problems = ValueProblems()
    parsed = []
    for location, item in items:
        try:
            parsed.append(parse(item))
        except ValueError as error:
            problems.add(str(error), *location)
    problems.raise_any()
    return tuple(parsed)


def one_or_more_schema(item: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of what `one_or_more` parses, from the one of an item."""
    return {"oneOf": [item, {"type": "array", "items": item, "minItems": 1}]}


def _not_empty(value: object) -> object:
    if isinstance(value, list) and not value:
        raise ValueError("must not be empty")
    return value


# For lists, which become tuples. Pydantic's own min_length counts valid items only, and would call others empty.
NOT_EMPTY: Final = (Field(strict=False, json_schema_extra={"minItems": 1}), BeforeValidator(_not_empty))
Seconds = Annotated[
    float, PlainValidator(parse_duration), WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN})
]
# A plain 0 means off.
SecondsOrOff = Annotated[
    float,
    PlainValidator(_seconds_or_off),
    WithJsonSchema({"oneOf": [{"const": 0}, {"type": "string", "pattern": DURATION_PATTERN}]}),
]
PositiveSeconds = Annotated[Seconds, AfterValidator(_positive)]
OptionalPositiveSeconds = Annotated[
    float | None,
    PlainValidator(_optional_positive_seconds),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
]
Bytes = Annotated[int, PlainValidator(parse_size), WithJsonSchema({"type": "string", "pattern": SIZE_PATTERN})]
PositiveBytes = Annotated[Bytes, AfterValidator(_positive_bytes)]
OptionalPositiveBytes = Annotated[
    int | None,
    PlainValidator(_optional_positive_bytes),
    WithJsonSchema({"type": "string", "pattern": SIZE_PATTERN}),
]
Count = Annotated[int, Field(ge=1, le=MAX_INT)]
CountFromZero = Annotated[int, Field(ge=0, le=MAX_INT)]
# Each is a process with TensorFlow: a larger number is a mistake that would exhaust the machine.
Processes = Annotated[int, Field(ge=1, le=256)]
ProcessesFromZero = Annotated[int, Field(ge=0, le=256)]
AutoOrCount = Annotated[
    int | Literal["auto"],
    PlainValidator(partial(_auto_or_count, _MAX_THREADS)),
    WithJsonSchema({"oneOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": _MAX_THREADS}]}),
]
AutoOrConnections = Annotated[
    int | Literal["auto"],
    PlainValidator(partial(_auto_or_count, _MAX_CONNECTIONS)),
    WithJsonSchema({"oneOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": _MAX_CONNECTIONS}]}),
]
