"""Control characters in texts of models and workers do not reach the terminal in which `multitower` runs."""

from __future__ import annotations

import pytest

from multitower.cli.connection import error_line
from multitower.cli.doctor import _wrapped
from multitower.cli.tables import print_table
from multitower.errors import Reason, make

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e"


def is_harmless(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_an_error_of_a_model_is_escaped() -> None:
    line = error_line(make(Reason.MODEL_ERROR, f"'m' raised ValueError: {HOSTILE}"))
    assert is_harmless(line), ascii(line)
    assert "\\x1b[2J" in line


def test_cells_of_tables_are_escaped_and_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["slot", "last error"], [[0, f"{HOSTILE}\nsecond line"]])
    text = capsys.readouterr().out
    assert is_harmless(text), ascii(text)
    assert "second line" in text
    assert "\\n" not in text


def test_a_workers_output_in_a_finding_is_escaped() -> None:
    text = _wrapped(f"m cannot be loaded: {HOSTILE}", "  problem  ", 100)
    assert is_harmless(text), ascii(text)
