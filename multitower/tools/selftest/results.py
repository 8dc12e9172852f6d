"""The outcome of each check, and the report of all."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from multitower.errors import MultitowerError
from multitower.tools.errors import ToolError
from multitower.tools.selftest.targets import Target


class Outcome(StrEnum):
    """How a check ended."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


class CheckFailed(Exception):
    """What the check expects is not so. The message says what was found instead."""


class Interrupted(Exception):
    """The selftest ends early, and checks in all threads with it."""


class CheckSkipped(Exception):
    """The check cannot be made here. The message says why."""


def describe_exception(error: Exception) -> str:
    """The class of an exception, its message, and the file and line that raised it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one check.

    Attributes:
        check: its name, stable for programs.
        target: the worker that was checked; None for a check of the daemon.
        outcome: how it ended.
        seconds: how long it took.
        detail: what was found, for people.
    """

    check: str
    target: Target | None
    outcome: Outcome
    seconds: float
    detail: str

    def to_json(self) -> dict[str, Any]:
        """The result for programs."""
        return {
            "check": self.check,
            "device": ",".join(self.target.names) if self.target is not None else None,
            "outcome": self.outcome.value,
            "seconds": round(self.seconds, 3),
            "detail": self.detail,
        }


@dataclass(slots=True)
class Report:
    """Everything that a selftest found.

    Args:
        progress: is called with each result, in any thread, one at a time.

    Attributes:
        stop: set when the selftest ends early; from then on nothing is recorded.
        results: the results, in the order in which the checks ended.
        seconds: how long the selftest took.
        requests_per_s: requests without work that the daemon answered per second; None if that was not measured.
    """

    progress: Callable[[Result], None]
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    requests_per_s: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, check: str, target: Target | None, function: Callable[[], str]) -> None:
        """Runs a check and records its outcome.

        Args:
            check: its name.
            target: the worker that it is about; None for the daemon.
            function: makes the check and returns what it found. `CheckSkipped` is no failure. Every other exception
                is one, so that an error which nobody expected does not lose the results of the other checks.

        Raises:
            Interrupted: the selftest ends early.
        """
        started = time.monotonic()
        try:
            detail, outcome = function(), Outcome.OK
        except CheckSkipped as skipped:
            detail, outcome = str(skipped), Outcome.SKIPPED
        except (CheckFailed, MultitowerError, ToolError, OSError) as error:
            detail, outcome = str(error), Outcome.FAILED
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 a mistake in one check must not hide what the others found
            detail, outcome = f"unexpected {describe_exception(error)}", Outcome.FAILED
        if self.stop.is_set():
            raise Interrupted  # the daemon is ending, which is why the check failed
        self.add(Result(check, target, outcome, time.monotonic() - started, detail))

    def add(self, result: Result) -> None:
        """Records a result."""
        with self._lock:
            self.results.append(result)
            self.progress(result)

    def sorted(self) -> list[Result]:
        """The results by worker, those of the daemon last; each in the order of the checks."""
        last = len(self.results)
        return sorted(self.results, key=lambda result: last if result.target is None else result.target.number)

    def counts(self) -> dict[str, int]:
        """How many checks ended in each way."""
        return {outcome.value: sum(result.outcome is outcome for result in self.results) for outcome in Outcome}
