"""Descriptions of how a worker ended, and advice."""

from __future__ import annotations

from typing import cast

import pytest

from multitower.spec import NO_SOCKET
from multitower.supervisor.workers.child_process import ChildProcess
from multitower.supervisor.workers.exit_cause import ExitCause, Fault, Verdict
from multitower.supervisor.workers.hang_detector import HangDetector
from multitower.supervisor.workers.slot import WorkerProcess


@pytest.mark.parametrize(
    ("code", "text", "advice"),
    [
        (0, "exited with code 0", "sys.exit"),
        (3, "exited with code 3", "last output"),
        (76, "exited with code 76", "a defect of multitower"),
        (-9, "killed by SIGKILL (9)", "out-of-memory"),
        (-11, "killed by SIGSEGV (11)", "native code"),
        (-6, "killed by SIGABRT (6)", "native code"),
        (-7, "killed by SIGBUS (7)", "/dev/shm"),
        (-15, "killed by SIGTERM (15)", "daemon's own process"),
        (-10, "killed by SIGUSR1 (10)", "who sends"),
        (-63, "killed by a signal (63)", "who sends"),
    ],
)
def test_an_exit_code_has_a_description_and_advice(code: int, text: str, advice: str) -> None:
    cause = ExitCause(code)
    assert str(cause) == text
    assert advice in cause.advice


def test_the_description_says_that_a_core_was_dumped() -> None:
    cause = ExitCause(-11, dumped=True)
    assert str(cause) == "killed by SIGSEGV (11), with a core dump"
    assert cause.crash


@pytest.mark.parametrize(
    ("state", "code", "verdict", "text", "advice"),
    [
        ("starting", NO_SOCKET, None, "code 73: it could not make its socket in runtime_dir", "out of inodes"),
        # A model may end its process with any code.
        ("ready", NO_SOCKET, None, "exited with code 73", "last output"),
        ("ready", -9, Verdict(Fault.HANGS, "it sleeps"), "killed because it hung: it sleeps", None),
        ("ready", -9, Verdict(Fault.DUMPS, "it dumped too long"), "killed because it dumped too long", None),
        ("ready", -9, Verdict(Fault.DEVICE_LOST, "its device is gone"), "killed because its device is gone", None),
    ],
)
def test_the_supervisors_verdict_and_the_first_report_change_the_description(
    state: str, code: int, verdict: Verdict | None, text: str, advice: str | None
) -> None:
    process = WorkerProcess(
        cast(ChildProcess, None), HangDetector(0.0, 1.0), state=state, verdict=verdict, exit_cause=ExitCause(code)
    )
    assert process.exit_description.endswith(text)
    if advice is None:
        assert process.exit_advice is None
    else:
        assert process.exit_advice is not None
        assert advice in process.exit_advice
