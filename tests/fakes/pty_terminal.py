"""A terminal for programs that draw on it: a pty, and what stands on its screen, as far as multitower draws."""

from __future__ import annotations

import os
import pty
import re
import select
import termios
import time
from collections.abc import Callable

WITHIN_S = 60.0

_SEQUENCE = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])")


class PtyTerminal:
    """A terminal. Close it after use.

    Args:
        columns: of its screen.
        rows: of its screen.

    Attributes:
        ours, theirs: the ends of the pty; a program gets `theirs`.
        text: all that has been written.
        styles: the codes of colours and other styles that were used.
        alternate: the program has switched to the alternate screen.
        cursor_shown: the cursor is visible.
    """

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.ours, self.theirs = pty.openpty()
        self.text = ""
        self.styles: set[str] = set()
        self.alternate, self.cursor_shown = False, True
        self._pending = ""
        self._row = self._column = 0
        self._rows: dict[int, str] = {}
        self.resize(columns, rows)
        self.mode = termios.tcgetattr(self.theirs)

    def resize(self, columns: int, rows: int) -> None:
        """Changes the size, of which the program in the foreground is told by SIGWINCH if this is its terminal."""
        termios.tcsetwinsize(self.ours, (rows, columns))

    def press(self, keys: str) -> None:
        """Sends what keys send."""
        os.write(self.ours, keys.encode())

    @property
    def screen(self) -> list[str]:
        """The lines on the screen."""
        return [self._rows.get(row, "") for row in range(max(self._rows, default=-1) + 1)]

    def wait_for(self, condition: str | Callable[[list[str]], bool]) -> list[str]:
        """Waits until a text stands on the screen, or a condition holds for its lines; returns the lines."""
        until = time.monotonic() + WITHIN_S
        holds = condition if callable(condition) else lambda lines: condition in "\n".join(lines)
        while not holds(self.screen):
            assert time.monotonic() < until, "\n".join([f"{condition!r} is not on the screen:", *self.screen])
            self.read(0.2)
        return self.screen

    def read(self, wait_s: float = 0.0) -> None:
        """Reads what has been written, and waits for something if nothing has."""
        while select.select([self.ours], [], [], wait_s)[0]:
            data = os.read(self.ours, 65536).decode(errors="replace")
            self.text += data
            self._draw(data)
            wait_s = 0.0

    def close(self) -> None:
        """Closes both ends."""
        os.close(self.ours)
        os.close(self.theirs)

    def _draw(self, data: str) -> None:
        text, position = self._pending + data, 0
        while position < len(text):
            if text[position] != "\x1b":
                self._put(text[position])
                position += 1
                continue
            found = _SEQUENCE.match(text, position)
            if found is None:
                break  # the rest of it is still to come
            self._obey(found[1], found[2])
            position = found.end()
        self._pending = text[position:]

    def _put(self, character: str) -> None:
        if character == "\n":
            self._row += 1
        elif character == "\r":
            self._column = 0
        else:
            line = self._rows.get(self._row, "").ljust(self._column)
            self._rows[self._row] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1

    def _obey(self, argument: str, command: str) -> None:
        if command == "H":
            self._row = self._column = 0
        elif command == "K":
            self._rows[self._row] = self._rows.get(self._row, "")[: self._column]
        elif command == "J":
            kept = {} if argument == "2" else {row: line for row, line in self._rows.items() if row < self._row}
            self._rows = kept
        elif command == "m":
            self.styles.add(argument)
        elif argument == "?1049":
            self.alternate = command == "h"
        elif argument == "?25":
            self.cursor_shown = command == "h"
        else:
            raise AssertionError(f"unknown sequence: {argument}{command}")
