"""How a worker process ended, and why the supervisor kills one, in words that tell an operator what to check."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from multitower.spec import UNREADABLE_MESSAGE

_ADVICE = {
    signal.SIGKILL: "perhaps the out-of-memory killer (see `journalctl -k` or `dmesg`), or somebody's kill -9",
    signal.SIGTERM: "somebody ended this worker alone; end the daemon's own process instead",
    signal.SIGSEGV: "native code crashed (the model, a custom operation or a driver); its output is in this log",
    signal.SIGABRT: "native code aborted (a failed assertion, or out of memory); its output is in this log",
    signal.SIGBUS: "native code used memory that was gone: a full /dev/shm, a truncated file or a hardware fault",
    signal.SIGILL: "an instruction that this CPU lacks: is this TensorFlow build meant for it?",
    signal.SIGFPE: "native code divided by zero",
}

_CRASHES = frozenset((signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE))


@dataclass(frozen=True, slots=True)
class ExitCause:
    """How a process ended.

    Attributes:
        code: the exit code, or minus the signal's number, as in `multiprocessing.Process.exitcode`; None when the
            system did not report it.
        dumped: the kernel has written a core dump.
    """

    code: int | None
    dumped: bool = False

    def __str__(self) -> str:
        if self.code is None:
            return "exited with an unknown code"
        if self.code >= 0:
            return f"exited with code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = "a signal"
        return f"killed by {name} ({-self.code}){', with a core dump' if self.dumped else ''}"

    @property
    def crash(self) -> bool:
        """Whether its own code ended it: by an exit or a signal of native code. SIGKILL may come from anybody."""
        if self.code is None or self.code == UNREADABLE_MESSAGE:
            return False
        return self.code >= 0 or -self.code in _CRASHES

    @property
    def advice(self) -> str:
        """What to check."""
        if self.code is None:
            return "the system did not report how it ended; its last output is in this log"
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


class Fault(Enum):
    """Why the supervisor kills a worker process that nobody told to end."""

    HANGS = auto()  # it makes no progress
    STOPPED = auto()  # likewise, and a signal (SIGSTOP, SIGTSTP) suspended it: it cannot handle other signals
    OVERRUN = auto()  # a call of a model takes longer than `max_execution_time`
    LOAD_TIMEOUT = auto()  # it takes longer than `load_timeout` to start, or to load a model
    DUMPS = auto()  # it has crashed, and the dump of its core does not end
    DEVICE_LOST = auto()  # its device is gone
    FILES_CHANGED = auto()  # the files of its models changed while it loaded them
    OTHERS_LEFT = auto()  # none of its models can be loaded, and others that were left out are tried again
    DEFECT = auto()  # what it sent, or what is known of it, could not be handled


class DeathKind(StrEnum):
    """How worker processes end that nobody told to end; in metrics. Stable: programs may rely on it."""

    CRASHED = auto()  # native code ended it by a signal, such as SIGSEGV
    KILLED = auto()  # SIGKILL that the supervisor did not send, as the kernel does if memory is short
    SIGNALLED = auto()  # another signal that the supervisor did not send
    EXITED = auto()  # its own code exited
    HUNG = auto()  # it made no progress, or a call took longer than `max_execution_time`
    LOAD_TIMEOUT = auto()
    DEVICE_LOST = auto()
    FILES_CHANGED = auto()  # files of its models changed while it loaded them
    NOTHING_LOADED = auto()  # none of its models could be loaded, and others were left out
    DEFECT = auto()  # of multitower
    NOT_STARTED = auto()  # the process could not be started
    UNKNOWN = auto()


_KIND_OF_FAULT = {
    Fault.HANGS: DeathKind.HUNG,
    Fault.STOPPED: DeathKind.HUNG,
    Fault.OVERRUN: DeathKind.HUNG,
    Fault.LOAD_TIMEOUT: DeathKind.LOAD_TIMEOUT,
    Fault.DUMPS: DeathKind.CRASHED,
    Fault.DEVICE_LOST: DeathKind.DEVICE_LOST,
    Fault.FILES_CHANGED: DeathKind.FILES_CHANGED,
    Fault.OTHERS_LEFT: DeathKind.NOTHING_LOADED,
    Fault.DEFECT: DeathKind.DEFECT,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision to kill a worker process.

    Attributes:
        fault: the kind of reason.
        cause: the reason, for people.
        limit_s: `max_execution_time` in seconds, where a call took longer; else None.
    """

    fault: Fault
    cause: str
    limit_s: float | None = None

    def __str__(self) -> str:
        return f"killed because it hung: {self.cause}" if self.hung else f"killed because {self.cause}"

    @property
    def hung(self) -> bool:
        """Whether the process made no progress."""
        return self.fault in (Fault.HANGS, Fault.STOPPED, Fault.OVERRUN)

    @property
    def wants_stacks(self) -> bool:
        """Whether to ask the process for a stack dump before killing it: it can still handle signals."""
        return self.fault in (Fault.HANGS, Fault.OVERRUN, Fault.LOAD_TIMEOUT)


def kind_of_death(cause: ExitCause | None, verdict: Verdict | None) -> DeathKind:
    """Classifies the end of a worker process that nobody told to end.

    Args:
        cause: how the process ended; None if unknown.
        verdict: why the supervisor killed it; None if it did not.
    """
    if verdict is not None:
        return _KIND_OF_FAULT[verdict.fault]
    if cause is None or cause.code is None:
        return DeathKind.UNKNOWN
    if cause.code == UNREADABLE_MESSAGE:
        return DeathKind.DEFECT
    if cause.code >= 0:
        return DeathKind.EXITED
    if -cause.code in _CRASHES:
        return DeathKind.CRASHED
    return DeathKind.KILLED if cause.code == -signal.SIGKILL else DeathKind.SIGNALLED
