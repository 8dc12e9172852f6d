"""A terminal that a command has taken over and given back."""

from __future__ import annotations

import os
import sys
from contextlib import closing

import pytest
from pty_terminal import PtyTerminal

from multitower.cli.terminal import Terminal


def test_a_late_wake_writes_to_no_other_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        closing(PtyTerminal()) as pty,
        open(pty.theirs, closefd=False) as keys,
        open(pty.theirs, "w", closefd=False) as screen,
    ):
        monkeypatch.setattr(sys, "stdin", keys)
        monkeypatch.setattr(sys, "stdout", screen)
        with Terminal() as terminal:
            terminal.wake()
            assert terminal.wait(60.0) == []
        # They get the numbers that the terminal's pipes had.
        pipes = [os.pipe() for _ in range(4)]
        terminal.wake()
        for reading, writing in pipes:
            os.close(writing)
            assert os.read(reading, 1) == b""
            os.close(reading)
