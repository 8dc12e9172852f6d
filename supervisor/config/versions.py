"""The keys `versions` and `version_labels` of a model, with TensorFlow Serving's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import PlainValidator, ValidationInfo, WithJsonSchema

from multitower.format_registry import SAVED_MODEL
from multitower.wire import MAX_NAME_BYTES

from .section_types import MAX_INT, context_of, format_of
from .units import printable, short_repr
from .validation_errors import ValueProblems
from .version_folders import Policy, is_saved_model

MAX_VERSION: Final = 2**63 - 1  # TensorFlow Serving's are int64
_FORMS: Final = "latest, all, {latest: N} or {specific: [N, …]}"
_NUMBERS: Final = {"type": "integer", "minimum": 0, "maximum": MAX_VERSION}


def _refuse_other_paths(info: ValidationInfo) -> None:
    path = info.data.get("path")
    if path is None:
        if "path" in info.data:
            raise ValueError("is allowed with a path only")
    elif path not in context_of(info).unanswered and (format_of(info) is not SAVED_MODEL or is_saved_model(path)):
        raise ValueError(f"is allowed with a folder of numbered versions only; {printable(path)} is one model")


def _policy(value: object, info: ValidationInfo) -> Policy:
    if value == "latest":
        return Policy()  # the default, valid also for models without versions
    _refuse_other_paths(info)
    if value == "all":
        return Policy("all")
    if not isinstance(value, dict) or len(value) != 1 or not {"latest", "specific"}.issuperset(value):
        raise ValueError(f"must be {_FORMS}, not {short_repr(value)}")
    if "latest" in value:
        count = value["latest"]
        if type(count) is not int or not 1 <= count <= MAX_INT:
            raise ValueError(f"latest is how many versions: a whole number from 1, not {short_repr(count)}")
        return Policy("latest", count)
    listed = value["specific"]
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"specific is a list of versions, as in {{specific: [1, 3]}}, not {short_repr(listed)}")
    problems = ValueProblems()
    for index, number in enumerate(listed):
        if not _is_version(number):
            problems.add(f"must be the number of a version, not {short_repr(number)}", "specific", index)
        elif number in listed[:index]:
            problems.add(f"{number} is listed twice", "specific", index)
    problems.raise_any()
    return Policy("specific", listed=tuple(listed))


def _labels(value: object, info: ValidationInfo) -> Mapping[str, int]:
    if value is None:
        return {}
    _refuse_other_paths(info)
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping of labels to versions, as in {{stable: 1}}, not {short_repr(value)}")
    policy = info.data.get("versions")
    problems = ValueProblems()
    for label, number in value.items():
        if not isinstance(label, str) or not label or len(label.encode()) > MAX_NAME_BYTES:
            problems.add(f"must be a label of 1 to {MAX_NAME_BYTES} bytes, not {short_repr(label)}", label)
        elif not _is_version(number):
            problems.add(f"must be the number of a version, not {short_repr(number)}", label)
        elif policy is not None and policy.kind == "specific" and number not in policy.listed:
            served = ", ".join(map(str, policy.listed))
            problems.add(f"names version {number}, which `versions` does not list, only {served}", label)
    problems.raise_any()
    return value


def _is_version(number: object) -> bool:
    return type(number) is int and 0 <= number <= MAX_VERSION


def _one_key(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}


_LATEST: Final = {"type": "integer", "minimum": 1, "maximum": MAX_INT, "description": "How many, from the highest on."}
_SPECIFIC: Final = {
    "type": "array",
    "minItems": 1,
    "uniqueItems": True,
    "items": _NUMBERS,
    "description": "Which, by their numbers.",
}
VersionPolicy = Annotated[
    Policy,
    PlainValidator(_policy),
    WithJsonSchema(
        {"oneOf": [{"enum": ["latest", "all"]}, _one_key("latest", _LATEST), _one_key("specific", _SPECIFIC)]}
    ),
]
VersionLabels = Annotated[
    Mapping[str, int],
    PlainValidator(_labels),
    WithJsonSchema({"type": "object", "additionalProperties": _NUMBERS}),
]
