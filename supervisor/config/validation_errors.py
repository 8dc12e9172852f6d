"""Translates pydantic's errors to `Problem`s, with positions in the file, plain messages and suggestions."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from .source import KeyTree, Location, Node, Problem, nearest
from .units import short_repr

_MISSING_ONE: Final = "missing_one_of"
_REFUSED: Final = "refused"


class ValueProblems:
    """Collects the problems of one value, so that a validator reports all of them, each at its own position."""

    def __init__(self) -> None:
        self._details: list[InitErrorDetails] = []

    def add(self, message: str, *location: str | int) -> None:
        """Adds a problem of the part at `location` within the value."""
        # As a context value, since pydantic treats braces in the message itself as placeholders.
        kind = PydanticCustomError(_REFUSED, "{message}", {"message": message})
        self._details.append(InitErrorDetails(type=kind, loc=location, input=None))

    def raise_any(self) -> None:
        """Raises all problems. No-op if there are none.

        Raises:
            ValidationError: pydantic's.
        """
        if self._details:
            raise ValidationError.from_exception_data("value", self._details)


def raise_missing_key(*keys: str) -> NoReturn:
    """Reports that the mapping has none of `keys`; called by the validator of one of them.

    Raises:
        PydanticCustomError: always.
    """
    raise PydanticCustomError(_MISSING_ONE, "needs one of its keys", {"keys": keys})


def key_tree(model: type[BaseModel]) -> KeyTree:
    """The keys of `model` and of the sections in it."""
    return {name: _below(info.annotation) for name, info in model.model_fields.items()}


def _below(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return key_tree(annotation)
    inner = [tree for tree in map(_below, typing.get_args(annotation)) if tree is not None]
    if not inner:
        return None
    return inner[:1] if typing.get_origin(annotation) is tuple else inner[0]


def drop_empty_keys(node: Node, tree: Any, location: Location = ()) -> tuple[Any, list[Problem]]:
    """The data of `node` without keys that have no value, and a problem for each of those.

    Pydantic would report them as wrong types, or accept them as the default.
    """
    problems: list[Problem] = []
    if isinstance(node.value, dict) and isinstance(tree, Mapping):
        data = {}
        for key, (position, child) in node.value.items():
            if child.value is None and key in tree:
                message = "has no value; leave the key out to take its default"
                problems.append(Problem(position, (*location, key), message))
            else:
                data[key], inner = drop_empty_keys(child, tree.get(key), (*location, key))
                problems += inner
        return data, problems
    if isinstance(node.value, list) and isinstance(tree, list):
        pairs = [drop_empty_keys(child, tree[0], (*location, index)) for index, child in enumerate(node.value)]
        return [data for data, _ in pairs], [problem for _, inner in pairs for problem in inner]
    return node.plain(), problems


def to_problems(error: ValidationError, root: Node, tree: KeyTree, known: set[Location]) -> list[Problem]:
    """The problems of a validation error.

    Args:
        error: raised by validating the data of `root`.
        root: the whole configuration.
        tree: the keys that exist, for suggestions.
        known: locations that have a problem already: nothing is reported as missing there.
    """
    details = error.errors(include_url=False)
    problems: list[Problem] = []
    known = set(known)
    for detail in details:
        location = detail["loc"]
        if detail["type"] == "extra_forbidden":
            message, suggestion = _describe_unknown(str(location[-1]), tree, location[:-1])
            if location[:-1] == ("devices",):
                known.add(("devices", "cpu"))  # a user who wrote `gpu: 2` does not need `cpu`
            elif suggestion is not None:
                known.add((*location[:-1], suggestion))
            problems.append(Problem(root.find(location, key=True), location, message, suggestion))
    for detail in details:
        location = detail["loc"]
        if detail["type"] == "extra_forbidden":
            continue
        if detail["type"] in ("missing", _MISSING_ONE):
            above = location[:-1]
            keys = detail["ctx"]["keys"] if detail["type"] == _MISSING_ONE else (location[-1],)
            if not known.intersection((*above, key) for key in keys):
                what = " or ".join(f"'{key}'" for key in keys)
                problems.append(Problem(root.find(above), above, f"the key {what} is missing"))
        else:
            problems.append(Problem(root.find(location), location, _message(detail)))
    return problems


def _describe_unknown(name: str, tree: KeyTree, above: Location) -> tuple[str, str | None]:
    """The message about an unknown key, and the name that was probably meant."""
    if above == ("devices",):
        return "unknown key; GPUs are all of them (devices: all) or listed (devices: [0, 1])", None
    home = next(_sections_with(name, tree), None)
    if home is not None:
        return f"unknown key here; it belongs {f'in {home}' if home else 'at the top of the file'}", None
    inner: Any = tree
    for step in above:
        inner = inner[0] if isinstance(inner, list) else inner[step]
    return "unknown key", nearest(name, list(inner))


def _sections_with(name: str, tree: Any, above: str = "") -> Iterator[str]:
    """The sections that have a key with this name."""
    if isinstance(tree, list):
        yield from _sections_with(name, tree[0], f"{above}[]")
    elif isinstance(tree, Mapping):
        if name in tree:
            yield above
        for key, below in tree.items():
            yield from _sections_with(name, below, f"{above}.{key}" if above else key)


def _message(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == _REFUSED:
        return str(context["message"])
    if detail["type"] == "value_error":
        return str(context["error"])
    value = short_repr(detail["input"])
    message = _MESSAGES.get(detail["type"])
    return message(context, value) if message is not None else f"{detail['msg']}, not {value}"


def _no_list(value: str) -> str:
    """The message about a value that is no list. A mapping is mostly one entry of a list, without its dash."""
    form = "of which each entry begins with '- '" if value.startswith("{") else "as in [a, b]"
    return f"must be a list, {form}, not {value}"


_MESSAGES: Final[Mapping[str, Callable[[Mapping[str, Any], str], str]]] = {
    "int_type": lambda context, value: f"must be a whole number, not {value}",
    "bool_type": lambda context, value: f"must be true or false, not {value}",
    "string_type": lambda context, value: f"must be text, not {value}; put it in quotes if it is meant as text",
    "tuple_type": lambda context, value: _no_list(value),
    "model_type": lambda context, value: f"must be a mapping of keys to values, not {value}",
    "model_attributes_type": lambda context, value: f"must be a mapping of keys to values, not {value}",
    "literal_error": lambda context, value: f"must be one of {context['expected']}, not {value}",
    "greater_than_equal": lambda context, value: f"must be at least {context['ge']}, not {value}",
    "less_than_equal": lambda context, value: f"must be at most {context['le']}, not {value}",
}
