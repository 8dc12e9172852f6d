"""How a worker process ended, in words that tell an operator what to look at."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from multitower.spec import UNREADABLE_MESSAGE

_ADVICE = {
    signal.SIGKILL: "perhaps the out-of-memory killer (see `journalctl -k` or `dmesg`), or somebody's kill -9",
    signal.SIGTERM: "somebody ended this worker alone; end the daemon's own process instead",
    signal.SIGSEGV: "native code crashed (the model, a custom operation or a driver); its output is in this log",
    signal.SIGABRT: "native code gave up (an assertion, or memory was exhausted); its output is in this log",
    signal.SIGBUS: "native code met memory that was gone: a full /dev/shm, a truncated file or a hardware fault",
    signal.SIGILL: "an instruction that this CPU lacks: is this TensorFlow build meant for it?",
    signal.SIGFPE: "native code divided by zero",
}


_CRASHES = frozenset((signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE))


@dataclass(frozen=True, slots=True)
class ExitCause:
    """The end of a process.

    Attributes:
        code: the exit code, or minus the signal's number, as `multiprocessing.Process.exitcode` has it.
    """

    code: int

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exited with code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = "a signal"
        return f"killed by {name} ({-self.code})"

    @property
    def crash(self) -> bool:
        """It came from within: an exit, or a signal that native code causes. SIGKILL may have come from anywhere."""
        return (self.code >= 0 and self.code != UNREADABLE_MESSAGE) or -self.code in _CRASHES

    @property
    def advice(self) -> str:
        """What to check."""
        if self.code == 0:
            return "the worker ended by itself: does the model call sys.exit or os._exit?"
        if self.code == UNREADABLE_MESSAGE:
            return "it could not read a message of this daemon, which is a defect of multitower: please report it"
        if self.code > 0:
            return "its last output is in this log; an exit code usually means an error at start-up"
        try:
            return _ADVICE.get(signal.Signals(-self.code), "see who sends this signal")
        except ValueError:
            return "see who sends this signal"
