"""The glossary of docs/architecture.md holds: neither identifiers nor texts contain the words of its last column."""

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

PLACES = "here it is a verb: deciding which worker runs on which device"
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("place", "place_workers"): PLACES,
    ("place", "place_workers_on"): PLACES,
    ("place", "_place_slots"): PLACES,
    ("alone", "alone"): "a suspect is executed alone: without other requests in its process, batched or not",
}
"""Identifiers that may contain a word, by word and identifier, with the reason: it has another meaning there."""


ORDINARY = {"place", "site", "member", "alone", "piece", "contract", "hope", "segment", "succession", "mate", "pulse"}
"""Words that a comment, a docstring or a message may contain, since English needs them for other things as well."""

TEXTS: dict[tuple[str, str], str] = {
    ("renew", "renewed"): "a key of the reply to a reload, which other programs read",
}
"""Texts that may contain a word, by word and by the word as it stands there, with the reason."""


class Word(NamedTuple):
    """A word that is not to be used, and the one to use."""

    wrong: str
    right: str


def words() -> list[Word]:
    section = PAGE.read_text().partition("\n## Glossary\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[0] == ["word", "meaning", "not"]
    return [Word(wrong.strip(), row[0]) for row in rows[2:] for wrong in row[2].split(",") if wrong.strip()]


@cache
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
def tokens() -> tuple[tuple[Path, int, int, str], ...]:
    """Path, line, type and text of each name, comment and string of the code."""
    return tuple(_tokens())


def _tokens() -> Iterator[tuple[Path, int, int, str]]:
    kinds = {tokenize.NAME, tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                with path.open("rb") as file:
                    for token in tokenize.tokenize(file.readline):
                        if token.type in kinds:
                            yield path, token.start[0], token.type, token.string


@cache
def identifiers() -> dict[str, list[tuple[Path, int]]]:
    """The paths and lines of each identifier. Most occur many times, and are looked at once for each word."""
    found: dict[str, list[tuple[Path, int]]] = {}
    for path, line, kind, text in tokens():
        if kind == tokenize.NAME:
            found.setdefault(text, []).append((path, line))
    return found


@pytest.mark.parametrize("word", words(), ids=lambda word: word.wrong)
def test_no_identifier_has_a_word_that_the_glossary_replaces(word: Word) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}: say '{word.right}', not '{word.wrong}'"
        for name, places in identifiers().items()
        if contains(name, word.wrong) and (word.wrong, name) not in EXCEPTIONS
        for path, line in places
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("word", [word for word in words() if word.wrong not in ORDINARY], ids=lambda word: word.wrong)
def test_no_text_has_a_word_that_the_glossary_replaces(word: Word) -> None:
    pattern = re.compile(rf"\b{word.wrong}(s|ed|d|ing)?\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{line + text.count(chr(10), 0, match.start())}: say '{word.right}', not '{match[0]}'"
        for path, line, kind, text in tokens()
        if kind != tokenize.NAME
        for match in pattern.finditer(text)
        if (word.wrong, match[0]) not in TEXTS
    ]
    assert not found, "\n".join(found)


def test_identifiers_are_split_into_words() -> None:
    assert contains("_kept_away", "kept away")
    assert contains("WorkerMembers", "member")
    assert contains("MEMBER_COUNT", "member")
    assert not contains("remember", "member")
    assert not contains("placement", "place")
    assert not contains("keep_away", "kept away")


def test_exceptions_are_needed() -> None:
    names = identifiers().keys()
    assert {name for _, name in EXCEPTIONS} <= names
    assert len(names) > 1_000
