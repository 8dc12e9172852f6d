"""The file of principals: who may do what, on which models. `security.principals` in the configuration names it.

It is read with the configuration, by `multitower check` and by a reload, and is refused whole where any of it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, PlainValidator, ValidationError, field_validator

from multitower.bearer_tokens import NAME, TokenHash

from .secret_files import check_key, read_list
from .section_types import Count, Section, key, one_or_more
from .source import MAX_PROBLEMS, ConfigError, Problem
from .units import short_repr
from .validation_errors import ValueProblems, drop_empty_keys, key_tree, to_problems
from .yaml_reader import Reader

ANONYMOUS: Final = "anonymous"
RESERVED: Final = ("gateway", ANONYMOUS)
"""Names that no principal may have: they stand for something else in what the daemon writes."""

MAX_RATE: Final = 1_000_000.0
MAX_KEYS: Final = 4
"""Public keys, and hashes of tokens, that one principal may have at a time."""

PATTERN_PATTERN: Final = r"^[A-Za-z0-9_.*?\[\]!-]{1,128}$"


class Role(StrEnum):
    """What a principal may do; `security/operation_table.py` has the operations of each role."""

    INFER = "infer"
    OBSERVE = "observe"
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, once authenticated.

    Attributes:
        name: unique in the file.
        roles: what it may do.
        models: names of models, or patterns of fnmatch, on which it may; None for all.
        public_keys: CURVE keys in Z85.
        token_hashes: of bearer tokens.
        max_outstanding: requests without a reply that it may have at a time; None for no limit of its own.
        rate: requests per second; None for no limit of its own.
    """

    name: str
    roles: frozenset[Role]
    models: tuple[str, ...] | None = None
    public_keys: tuple[str, ...] = ()
    token_hashes: tuple[TokenHash, ...] = ()
    max_outstanding: int | None = None
    rate: float | None = None


class Principals:
    """All principals of a file.

    Args:
        principals: with different names and keys.

    Attributes:
        by_name: by their names.
        by_key: by each of their public keys.
    """

    def __init__(self, principals: Iterable[Principal] = ()) -> None:
        self.by_name: Mapping[str, Principal] = {principal.name: principal for principal in principals}
        self.by_key: Mapping[str, Principal] = {
            public_key: principal for principal in self.by_name.values() for public_key in principal.public_keys
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Principals) and self.by_name == other.by_name

    __hash__ = None  # type: ignore[assignment]  # it holds mappings


def without_fingerprint(principals: Principals) -> list[str]:
    """Returns the names of principals with a token's hash that has no fingerprint.

    While there is one, no fingerprint is looked at: wrong tokens of one client can make others at its address wait.
    """
    return [
        name
        for name, each in principals.by_name.items()
        if any(hashed.fingerprint is None for hashed in each.token_hashes)
    ]


def unmatched(principals: Principals, models: Iterable[str]) -> dict[str, list[str]]:
    """Returns the names and patterns that match no model, by principal: most are mistakes of writing.

    Args:
        principals: whose `models` are looked at.
        models: the names of all that are configured.
    """
    known = tuple(models)
    found = {
        name: [pattern for pattern in each.models or () if not any(fnmatchcase(model, pattern) for model in known)]
        for name, each in principals.by_name.items()
    }
    return {name: patterns for name, patterns in found.items() if patterns}


def parse_token_hash(value: object) -> TokenHash:
    """Parses the hash of a token, as `multitower keys new --token` prints it.

    Raises:
        ValueError: it is no such hash, or one that is too weak, or takes too much memory or time to compare.
    """
    # Messages do not repeat the value: a token may have been written in its place.
    return TokenHash.parse(value if isinstance(value, str) else "")


def _name(value: object) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(f"{short_repr(value)} is not a name: 1 to 64 letters, digits, '_' and '-'")
    if value in RESERVED:
        raise ValueError(f"{value} is reserved: no principal may have this name")
    return value


def _public_key(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a CURVE public key in Z85, in quotes, not {short_repr(value)}")
    try:
        check_key(value)
    except ValueError as error:
        raise ValueError(f"a public key {error}; `multitower keys show FILE` prints it") from None
    return value


def _several(value: object, parse: Any, what: str) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, list) and len(value) > MAX_KEYS:
        raise ValueError(f"has {len(value)} {what}; at most {MAX_KEYS} are allowed")
    return one_or_more(value, parse, "must not be empty; leave the key out if there is none")


def _public_keys(value: object) -> tuple[str, ...]:
    return _several(value, _public_key, "keys")


def _token_hashes(value: object) -> tuple[TokenHash, ...]:
    return _several(value, parse_token_hash, "hashes")


def _roles(value: object) -> frozenset[Role]:
    known = ", ".join(Role)

    def parse(item: object) -> str:
        if not isinstance(item, str) or item not in tuple(Role):
            raise ValueError(f"{short_repr(item)} is not a role; roles are {known}")
        return item

    if not isinstance(value, list):
        raise ValueError(f"must be a list of roles, which are {known}")
    parsed = one_or_more(value, parse, f"must not be empty; roles are {known}")
    if len(set(parsed)) < len(parsed):
        raise ValueError("lists a role twice")
    return frozenset(map(Role, parsed))


def _models(value: object) -> tuple[str, ...] | None:
    def parse(item: object) -> str:
        if not isinstance(item, str) or not re.fullmatch(PATTERN_PATTERN, item):
            raise ValueError(f"{short_repr(item)} is neither a model's name nor a pattern such as 'resnet-*'")
        return item

    if value is None:
        return None
    return one_or_more(value, parse, "must not be empty; leave the key out for all models")


def _rate(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_RATE:
        raise ValueError(
            f"must be a number of requests per second, above 0 and up to {MAX_RATE:.0f}, not {short_repr(value)}"
        )
    return float(value)


class _Entry(Section):
    """One principal, as the file has it."""

    name: Annotated[str, PlainValidator(_name)]
    public_key: Annotated[tuple[str, ...], PlainValidator(_public_keys)] = key(
        None, "Its CURVE public key in Z85, or a list while keys rotate."
    )
    token_hash: Annotated[tuple[TokenHash, ...], PlainValidator(_token_hashes)] = key(
        None, "The scrypt hash of its bearer token, or a list while tokens rotate."
    )
    roles: Annotated[frozenset[Role], PlainValidator(_roles)]
    models: Annotated[tuple[str, ...] | None, PlainValidator(_models)] = key(
        None, "The models that it may use: names, or patterns such as resnet-*; by default all."
    )
    max_outstanding: Count | None = key(None, "Requests without a reply that it may have at a time.")
    rate: Annotated[float | None, PlainValidator(_rate)] = key(None, "Requests per second.")

    def to_principal(self) -> Principal:
        return Principal(
            name=self.name,
            roles=self.roles,
            models=self.models,
            public_keys=self.public_key,
            token_hashes=self.token_hash,
            max_outstanding=self.max_outstanding,
            rate=self.rate,
        )


class _File(Section):
    principals: Annotated[tuple[_Entry, ...], Field(strict=False)]

    @field_validator("principals")
    @classmethod
    def _unique(cls, value: tuple[_Entry, ...]) -> tuple[_Entry, ...]:
        problems = ValueProblems()
        names: set[str] = set()
        keys: set[str] = set()
        for number, entry in enumerate(value):
            if entry.name in names:
                problems.add(f"the name {entry.name} is given twice", number, "name")
            names.add(entry.name)
            for public_key in entry.public_key:
                if public_key in keys:
                    problems.add("the public key is given twice: it tells principals apart", number, "public_key")
                keys.add(public_key)
        problems.raise_any()
        return value


_TREE: Final = key_tree(_File)

_REQUIRED: Final = {"principals": "a list of principals, or [] for none", "name": "a name", "roles": "a list of roles"}


def _without_default(problem: Problem) -> Problem:
    """The problem of a setting without a value, in words that suit one that has no default."""
    wanted = _REQUIRED.get(str(problem.location[-1]))
    return problem if wanted is None else replace(problem, message=f"has no value; it must have {wanted}")


def read_principals(path: Path) -> Principals:
    """Reads a file of principals. It may block.

    Args:
        path: the file.

    Raises:
        GuardedFileError: it cannot be read, or others may write it.
        ConfigError: its contents are wrong; the error holds all problems, with lines and columns.
    """
    reader = Reader(str(path))
    root = reader.read(read_list(path, "the principals", "multitower keys add NAME --principals FILE"))
    if not isinstance(root.value, dict):
        message = "must be a mapping with the key principals, a list"
        if isinstance(root.value, list):
            message = "the entries belong below a line `principals:`"
        raise ConfigError([Problem(root.position, (), message), *reader.problems])
    data, problems = drop_empty_keys(root, _TREE)
    problems = [*reader.problems, *map(_without_default, problems)]
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        problems += to_problems(error, root, _TREE, {problem.location for problem in problems})
    if problems:
        problems.sort(key=lambda problem: (problem.position.line, problem.position.column))
        raise ConfigError(problems[:MAX_PROBLEMS])
    return Principals(entry.to_principal() for entry in file.principals)
