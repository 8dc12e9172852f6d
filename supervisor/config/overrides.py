"""Overrides of a configuration file from the environment and from `--set`.

`MULTITOWER_RESTART__WINDOW=30s` and `--set restart.window=30s` both set the key `window` of `restart`. Values are
YAML. `--set` takes precedence over the environment, and the environment over the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from multitower.wire import CLIENT_VARIABLES

from .source import (
    ConfigError,
    KeyTree,
    Location,
    Node,
    Position,
    Problem,
    key_path,
    nearest,
)
from .units import short_repr
from .yaml_reader import Reader

PREFIX: Final = "MULTITOWER_"

# Variables that Kubernetes sets in every pod beside a service whose name begins with "multitower"; users cannot unset
# them: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINK: Final = re.compile(
    r"MULTITOWER(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)

# What setup.py reads. A shell in which multitower was built may start it, too.
_BUILD_VARIABLE: Final = "MULTITOWER_COMPILE"


def apply_overrides(
    root: Node, tree: KeyTree, environment: Mapping[str, str], overrides: Sequence[str]
) -> tuple[Node, list[Problem]]:
    """Applies all overrides to a configuration.

    Args:
        root: the file's mapping; not changed.
        tree: the keys that exist.
        environment: all variables of the process; others than multitower's are ignored.
        overrides: the arguments of `--set`, each `key.path=value`; the last one takes precedence.

    Returns:
        The configuration with the overrides, and the problems of the overrides themselves.
    """
    problems: list[Problem] = []
    for source, location, text in _collect(tree, environment, overrides, problems):
        reader = Reader(source, positions=False)
        try:
            value = reader.read(text, location)
            root = _replace(root, location, value)
        except ConfigError as error:
            problems.extend(error.problems)
        problems.extend(reader.problems)
    return root, problems


def _collect(
    tree: KeyTree, environment: Mapping[str, str], overrides: Sequence[str], problems: list[Problem]
) -> Iterator[tuple[str, Location, str]]:
    """Each override's source, location and YAML text: of variables outer keys first, then `--set` in its order."""
    known = dict(_paths(tree))
    variables = {PREFIX + "__".join(path).upper(): path for path in known}
    found: list[tuple[Location, str]] = []
    for name in environment:
        if not name.startswith(PREFIX) or name in CLIENT_VARIABLES or name == _BUILD_VARIABLE:
            continue
        if name in variables:
            found.append((variables[name], name))
        elif not _SERVICE_LINK.fullmatch(name):
            steps = name.removeprefix(PREFIX).lower().split("__")
            problem = _unknown_key(name, steps, known, nearest(name, list(variables)), f"{PREFIX}{{}}=[...]")
            problems.append(problem)
    for location, name in sorted(found, key=lambda entry: (len(entry[0]), entry)):
        yield name, location, environment[name]

    dotted = {".".join(path): path for path in known}
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        source = f"--set {name}"
        if not equals:
            problems.append(Problem(Position(source), (), "needs a value: --set KEY=VALUE"))
        elif name in dotted:
            yield source, dotted[name], text
        else:
            steps = [step for step in re.split(r"[.\[\]]", name) if step]
            problems.append(_unknown_key(source, steps, known, nearest(name, list(dotted)), "--set {}=[...]"))


def _paths(tree: KeyTree, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, below in tree.items():
        yield (*above, key), below
        if isinstance(below, Mapping):
            yield from _paths(below, (*above, key))


def _unknown_key(
    source: str, steps: Sequence[str], known: Mapping[tuple[str, ...], Any], suggestion: str | None, whole: str
) -> Problem:
    for length in range(len(steps) - 1, 0, -1):
        outer = tuple(steps[:length])
        if outer in known and (isinstance(known[outer], list) or steps[length].isdecimal()):
            example = whole.format("__".join(outer).upper() if whole.startswith(PREFIX) else ".".join(outer))
            message = f"the items of a list cannot be set one by one; set the whole list with {example}"
            return Problem(Position(source), outer, message)
    return Problem(Position(source), (), "there is no such key", suggestion)


def _replace(node: Node, location: Location, value: Node, above: Location = ()) -> Node:
    """A copy of `node` with `value` at `location`. Nodes are not changed, since YAML aliases may share them."""
    if node.value is None:
        node = Node(value.position, {})
    elif not isinstance(node.value, dict):
        message = f"is {short_repr(node.plain())} and has no keys below it; set {key_path(above)} as a whole"
        raise ConfigError([Problem(value.position, above, message)])
    key, *rest = location
    if rest:
        position, inner = node.value.get(key, (value.position, Node(value.position, None)))
        value = _replace(inner, tuple(rest), value, (*above, key))
    else:
        position = value.position
    return Node(node.position, {**node.value, key: (position, value)})
