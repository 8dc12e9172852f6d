"""Reads a configuration file, or the section of one model, with its overrides, and checks it.

The daemon, `multitower check` and a reload call `load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from .config import Config
from .overrides import apply_overrides
from .section_types import Context
from .source import MAX_PROBLEMS, ConfigError, Node, Position, Problem, read_file
from .units import short_repr
from .validation_errors import drop_empty_keys, key_tree, to_problems
from .yaml_reader import Reader

_TREE: Final = key_tree(Config)


class UnknownModelError(LookupError):
    """A configuration file names no such model."""


def load(
    path: str | os.PathLike[str],
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Sequence[str] = (),
    strict: bool = True,
    find_handlers: bool = False,
    text: str | None = None,
) -> Config:
    """Reads the configuration file at `path`, with overrides from the environment and from `--set`.

    Args:
        path: a YAML file.
        environment: variables; those that begin with `MULTITOWER_` are overrides.
        overrides: the arguments of `--set`, each `key.path=value`.
        strict: whether it is a problem that a model's files are not there yet; otherwise `Config.not_yet` has them.
        find_handlers: whether it is a problem that the class of a handler does not exist, as far as that can be known
            without importing it.
        text: YAML in place of the file's; problems then have no lines. None to read the file.

    Raises:
        ConfigError: the file cannot be read, or the configuration is wrong; it holds all problems.
    """
    path = Path(path)
    root, problems = _read(path, environment, overrides, text)
    return _check(root, problems, path.absolute(), strict=strict, find_handlers=find_handlers)


def load_model(
    path: str | os.PathLike[str],
    name: str,
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Sequence[str] = (),
    strict: bool = True,
    text: str | None = None,
) -> Config:
    """Reads the section of one model. What is wrong elsewhere in the file does not matter, as long as it is YAML.

    Args:
        path: see `load`.
        name: the model's name.
        environment: see `load`.
        overrides: see `load`.
        strict: see `load`.
        text: see `load`.

    Returns:
        A configuration with that model only; all other keys have their defaults.

    Raises:
        UnknownModelError: no section has this name.
        ConfigError: the file cannot be read, or the section is wrong; it holds all problems of the section.
    """
    path = Path(path)
    root, problems = _read(path, environment, overrides, text)
    key_position, models = root.value.get("models", (root.position, Node(root.position, None)))
    sections = models.value if isinstance(models.value, list) else []
    names = [_name_in(section) for section in sections]
    if name not in names:
        known = ", ".join(map(str, filter(None, names)))
        raise UnknownModelError(f"the configuration names no model {name[:128]!r}, only {known}")
    kept = [index for index, other in enumerate(names) if other == name]
    only = Node(root.position, {"models": (key_position, Node(models.position, [sections[index] for index in kept]))})
    own = [
        _moved(problem, {old: new for new, old in enumerate(kept)})
        for problem in problems
        if _model_of(problem) in kept
    ]
    try:
        return _check(only, own, path.absolute(), strict=strict)
    except ConfigError as error:
        raise ConfigError([_moved(problem, dict(enumerate(kept))) for problem in error.problems]) from None


def _model_of(problem: Problem) -> str | int | None:
    """The index of the model whose section has the problem; None if it is elsewhere."""
    return problem.location[1] if problem.location[:1] == ("models",) and len(problem.location) > 1 else None


def _moved(problem: Problem, new_index: Mapping[str | int, int]) -> Problem:
    """The problem with another index of its model."""
    model = _model_of(problem)
    if model is None:
        return problem
    return replace(problem, location=("models", new_index[model], *problem.location[2:]))


def _name_in(section: Node) -> object:
    """The name of a model in its section, whatever else is wrong there; None where it has none."""
    return section.value["name"][1].value if isinstance(section.value, dict) and "name" in section.value else None


def _read(
    path: Path, environment: Mapping[str, str], overrides: Sequence[str], text: str | None
) -> tuple[Node, list[Problem]]:
    """The file's mapping with all overrides, and the problems of both; see `load`.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds no mapping.
    """
    reader = Reader(str(path), positions=text is None)
    root = reader.read(read_file(path) if text is None else text)
    if not isinstance(root.value, dict):
        what = "is empty" if root.value is None else f"holds {_kind(root)}, not a mapping of keys to values"
        raise ConfigError([Problem(root.position, (), f"the file {what}"), *reader.problems])
    root, override_problems = apply_overrides(root, _TREE, environment, overrides)
    return root, [*reader.problems, *override_problems]


def _paths_of_models(data: Any) -> Iterator[str]:
    """The paths in the section `models` of a configuration that has not been checked."""
    models = data.get("models") if isinstance(data, dict) else None
    for model in models if isinstance(models, list) else ():
        if isinstance(model, dict):
            libraries = model.get("custom_ops")
            values = (model.get("path"), model.get("warmup"), *(libraries if isinstance(libraries, list) else ()))
            yield from (value for value in values if isinstance(value, str) and value)


def _check(root: Node, problems: list[Problem], path: Path, *, strict: bool, find_handlers: bool = False) -> Config:
    """Checks the file's keys and values.

    Args:
        root: the file's mapping.
        problems: what is wrong already; not changed.
        path: the file's absolute path.
        strict: see `load`.
        find_handlers: see `load`.

    Raises:
        ConfigError: something is wrong.
    """
    data, empty = drop_empty_keys(root, _TREE)
    problems = [*problems, *empty]
    config = None
    context = Context(path.parent, strict, find_handlers)
    context.files.look_at(_paths_of_models(data))
    try:
        config = Config.model_validate(data, context=context)
    except ValidationError as error:
        problems += to_problems(error, root, _TREE, {problem.location for problem in problems})
    if config is None or problems or context.problems_elsewhere:
        raise ConfigError([*_in_file_order(problems), *context.problems_elsewhere])
    not_yet: dict[str, Problem] = {}
    for index, model in enumerate(config.models):
        for key_name in ("path", "warmup", "custom_ops"):
            message = context.not_yet.get((model.name, key_name))
            if message is not None:
                location = ("models", index, key_name)
                not_yet.setdefault(model.name, Problem(root.find(location), location, message))
    config.record_source(path, not_yet, context.principals)
    return config


def _kind(root: Node) -> str:
    return "a list" if isinstance(root.value, list) else short_repr(root.value)


def _in_file_order(problems: list[Problem]) -> list[Problem]:
    """The file's problems by line, then those of overrides; at most `MAX_PROBLEMS`."""
    ordered = sorted(
        problems, key=lambda problem: (not problem.position.line, problem.position.line, problem.position.column)
    )
    if len(ordered) > MAX_PROBLEMS:
        rest = len(ordered) - MAX_PROBLEMS
        ordered = [
            *ordered[:MAX_PROBLEMS],
            Problem(Position(ordered[0].position.source), (), f"and {rest} more problems"),
        ]
    return ordered
