"""A terminal that a command takes over: keys arrive one by one, and its mode and screen are restored at the end."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final, Self

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_HANDLED: Final = (*_ENDING, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)

_SEQUENCES: Final = {
    "[A": "up",
    "[B": "down",
    "[C": "right",
    "[D": "left",
    "[H": "home",
    "[F": "end",
    "[1~": "home",
    "[4~": "end",
    "[5~": "page up",
    "[6~": "page down",
    "[Z": "back tab",
}
_CHARACTERS: Final = {
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    "\x1b": "escape",
    "\x7f": "backspace",
    " ": "page down",
}


class Terminal:
    """The terminal of standard input and output. A context manager that restores it, whatever happens.

    SIGTERM, SIGHUP and SIGINT make `wait` return; Ctrl-Z suspends the process with the terminal restored.

    Attributes:
        ended_by: the signal that asked the process to end; None before.
    """

    def __init__(self) -> None:
        self.ended_by: signal.Signals | None = None
        self._input = sys.stdin.fileno()
        self._wake_lock = threading.Lock()
        self._former_handlers: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""

    def __enter__(self) -> Self:
        self._former_mode = termios.tcgetattr(self._input)
        self._signals, self._signals_in = os.pipe()
        self._wake, self._wake_in = os.pipe()
        for descriptor in (self._signals, self._signals_in, self._wake, self._wake_in):
            os.set_blocking(descriptor, False)
        self._former_wakeup = signal.set_wakeup_fd(self._signals_in, warn_on_full_buffer=False)
        for number in _HANDLED:
            self._former_handlers[number] = signal.signal(number, _noted)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._give_back()
        finally:
            signal.set_wakeup_fd(self._former_wakeup)
            for number, handler in self._former_handlers.items():
                signal.signal(number, handler)
            with self._wake_lock:
                # Its number may be that of another file from now on.
                wake_in, self._wake_in = self._wake_in, -1
            for descriptor in (self._signals, self._signals_in, self._wake, wake_in):
                os.close(descriptor)

    @property
    def size(self) -> os.terminal_size:
        """Its columns and rows; 80 times 24 where it does not know them."""
        size = os.get_terminal_size(sys.stdout.fileno())
        return os.terminal_size((size.columns or 80, size.lines or 24))

    def write(self, text: str) -> None:
        """Writes a text at once.

        Raises:
            OSError: the terminal is gone.
        """
        sys.stdout.write(text)
        sys.stdout.flush()

    def wake(self) -> None:
        """Makes `wait` return; may be called in any thread, also after the end."""
        with self._wake_lock, contextlib.suppress(OSError):
            os.write(self._wake_in, b".")

    def wait(self, timeout_s: float) -> list[str]:
        """Waits for keys, a signal, a change of the size, or `wake`.

        Args:
            timeout_s: seconds to wait at most.

        Returns:
            The keys that were pressed: characters, or names such as `up`, `enter` and `escape`.
        """
        readable, _, _ = select.select([self._input, self._signals, self._wake], [], [], max(timeout_s, 0.0))
        if self._wake in readable:
            os.read(self._wake, 4096)
        if self._signals in readable:
            self._handle(os.read(self._signals, 4096))
        if self._input not in readable:
            # What begins like a sequence is the key Escape if nothing follows.
            pending, self._pending = self._pending, ""
            return ["escape"] if pending == "\x1b" else []
        data = os.read(self._input, 4096)
        if not data:
            self.ended_by = self.ended_by or signal.SIGHUP
        keys, self._pending = parse_keys(self._pending + self._decoder.decode(data))
        return keys

    @property
    def waits_for_more(self) -> bool:
        """Whether a key may have arrived in part, so that `wait` is to be called with a short time."""
        return bool(self._pending)

    def _handle(self, numbers: bytes) -> None:
        for number in map(signal.Signals, numbers):
            if number in _ENDING:
                self.ended_by = self.ended_by or number
            elif number == signal.SIGTSTP:
                self._suspend()

    def _suspend(self) -> None:
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # it returns when the process is continued
        signal.signal(signal.SIGTSTP, _noted)
        self._take()

    def _take(self) -> None:
        tty.setcbreak(self._input, termios.TCSADRAIN)
        self.write(_ENTER)

    def _give_back(self) -> None:
        # The terminal may be gone, as when its window was closed.
        with contextlib.suppress(OSError):
            self.write(_LEAVE)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._former_mode)


def obstacle(environment: Mapping[str, str]) -> str | None:
    """Why this process has no terminal that it could take over; None if it has one."""
    if not sys.stdout.isatty():
        return "standard output is no terminal"
    if not sys.stdin.isatty():
        return "standard input is no terminal, so no keys can be read"
    if environment.get("TERM", "dumb") == "dumb":
        return "this terminal cannot move its cursor (TERM is missing or dumb)"
    return None


def shows_unicode(environment: Mapping[str, str]) -> bool:
    """Whether the locale is one of UTF-8, so that the terminal is expected to show block characters."""
    named = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := environment.get(name))), "")
    return "utf8" in named.lower().replace("-", "")


def end_by_signal(number: signal.Signals) -> None:
    """Ends this process by a signal that it has handled, so that its parent sees why it ended."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def parse_keys(text: str) -> tuple[list[str], str]:
    """Reads keys from what a terminal sends.

    Returns:
        The keys, and what may be the beginning of a further one.
    """
    keys: list[str] = []
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\x1b" and position + 1 < len(text) and text[position + 1] in "[O":
            end = _end_of_sequence(text, position + 2)
            if end is None:
                return keys, text[position:]
            # Application mode has O where normal mode has [.
            name = _SEQUENCES.get("[" + text[position + 2 : end])
            keys += [name] if name is not None else []
            position = end
            continue
        if character == "\x1b" and position + 1 == len(text):
            return keys, character
        keys += [_CHARACTERS.get(character, character)]
        position += 1
    return keys, ""


def _end_of_sequence(text: str, start: int) -> int | None:
    """Returns where a control sequence ends: behind its first character from @ to ~; None if it has no end yet."""
    for position in range(start, len(text)):
        if "@" <= text[position] <= "~":
            return position + 1
    return None


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The number is in the pipe of `signal.set_wakeup_fd`."""
