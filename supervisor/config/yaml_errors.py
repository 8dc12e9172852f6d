"""What is wrong with a text that is not YAML, in plain words: the parser's messages use the terms of its grammar."""

from __future__ import annotations

import re
from typing import Any, Final

from ruamel.yaml.error import MarkedYAMLError

_FOUND: Final = re.compile(r"(?:but found|but got) \(?'([^']*)'")
_STARTS: Final = re.compile(r"found character '(.*)' that cannot start any token")
_OPENED: Final = {"flow sequence": "[", "flow mapping": "{"}


def explain(error: MarkedYAMLError, *, positions: bool) -> str:
    """Says what is wrong at the position of the error, and what to check.

    Args:
        error: what the parser raised.
        positions: whether to name the line and column of other places, too.

    Returns:
        A part of a sentence, in one line.
    """
    context, problem = error.context or "", error.problem or ""
    found = match.group(1) if (match := _FOUND.search(problem)) else ""
    begin = _at(error.context_mark) if positions else ""
    for kind, bracket in _OPENED.items():
        if context.endswith(kind):
            what = _what_came(found)
            return f"the '{bracket}'{begin} is not closed by '{_closing(bracket)}' before {what}"
    if context.startswith("while parsing a block"):
        return _explain_block(error, context, found)
    if problem.startswith("mapping values are not allowed"):
        return (
            "a ':' follows what cannot be a key: is the line indented too far, is a ':' or the space behind it missing "
            "above, or does a value with ': ' lack quotes?"
        )
    if match := _STARTS.search(problem):
        if match.group(1) == r"\t":
            return "a tab begins the value; indent with spaces, not with tabs"
        return f"a value cannot begin with '{match.group(1)}': put it in quotes"
    if context.endswith("quoted scalar") and "unexpected end" in problem:
        return f"the text in quotes{begin} has no quote at its end"
    if "unknown escape character" in problem:
        return "a '\\' in double quotes begins no escape that YAML knows: write '\\\\', or use single quotes"
    if "<document start>" in problem:
        return "something follows the value: put the whole value in quotes"
    return _one_line(", ".join(part for part in (context, problem) if part))


def _explain_block(error: MarkedYAMLError, context: str, found: str) -> str:
    column = error.problem_mark.column if error.problem_mark is not None else 0
    if found in ("}", "]"):
        return f"a '{found}' closes nothing: put a value that begins with it in quotes"
    if found in ("<block mapping start>", "<block sequence start>") and column:
        return f"the indentation ({column} space{'' if column == 1 else 's'}) fits no line above it"
    if found == "<scalar>":
        return "something follows the value: put the whole value in quotes"
    if context.endswith("block collection"):
        return "a line of a list must begin with '- ' in the column of the lines above, or belong to an entry of it"
    return "the line fits none of the lines above it: is it indented wrongly?"


def _what_came(found: str) -> str:
    if found == "<stream end>":
        return "the end of the text"
    return f"this '{found}'" if found and not found.startswith("<") else "this"


def _closing(bracket: str) -> str:
    return "]" if bracket == "[" else "}"


def _at(mark: Any | None) -> str:
    return "" if mark is None else f" at {mark.line + 1}:{mark.column + 1}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
