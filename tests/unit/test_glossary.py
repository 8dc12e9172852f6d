"""The glossary of docs/architecture.md holds: no identifier contains a word of its last column."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from pages import ROOT

PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("supervisor", "worker", "multitower")

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Identifiers that may contain a word, by word and identifier, with the reason: it has another meaning there."""

OPEN: frozenset[str] = frozenset({"place", "recycle", "staff", "crew", "pulse", "segment", "errand", "alone", "ending"})
"""Words that the code still has; each leaves this list with its last identifier."""


class Word(NamedTuple):
    """A word that is not to be used, and the one to use."""

    wrong: str
    right: str


def words() -> list[Word]:
    section = PAGE.read_text().partition("\n## Glossary\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[0] == ["word", "meaning", "not"]
    return [Word(wrong.strip(), row[0]) for row in rows[2:] for wrong in row[2].split(",") if wrong.strip()]


def parts(name: str) -> tuple[str, ...]:
    """The words of an identifier, in lower case: `_kept_away` and `KeptAway` are both kept, away."""
    return tuple(part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name))


def contains(name: str, wrong: str) -> bool:
    """Whether an identifier has these words one after the other, the last of them perhaps in the plural."""
    have, wanted = parts(name), wrong.split()
    starts = range(len(have) - len(wanted) + 1)
    plural = [*wanted[:-1], wanted[-1] + "s"]
    return any(list(have[start : start + len(wanted)]) in (wanted, plural) for start in starts)


@cache
def identifiers() -> tuple[tuple[Path, int, str], ...]:
    return tuple(_identifiers())


def _identifiers() -> Iterator[tuple[Path, int, str]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                with path.open("rb") as file:
                    for token in tokenize.tokenize(file.readline):
                        if token.type == tokenize.NAME:
                            yield path, token.start[0], token.string


@pytest.mark.parametrize("word", words(), ids=lambda word: word.wrong)
def test_no_identifier_has_a_word_that_the_glossary_replaces(word: Word) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}: say '{word.right}', not '{word.wrong}'"
        for path, line, name in identifiers()
        if contains(name, word.wrong) and (word.wrong, name) not in EXCEPTIONS
    ]
    assert not found or word.wrong in OPEN, "\n".join(found)


def test_identifiers_are_split_into_words() -> None:
    assert contains("_kept_away", "kept away")
    assert contains("WorkerMembers", "member")
    assert contains("MEMBER_COUNT", "member")
    assert not contains("remember", "member")
    assert not contains("placement", "place")
    assert not contains("keep_away", "kept away")


def test_exceptions_are_needed() -> None:
    names = {name for _, _, name in identifiers()}
    assert {name for _, name in EXCEPTIONS} <= names
    assert len(identifiers()) > 10_000
