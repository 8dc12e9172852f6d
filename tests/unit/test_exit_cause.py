"""How a worker ended, in words."""

from __future__ import annotations

import pytest

from multitower.supervisor.exit_cause import ExitCause


@pytest.mark.parametrize(
    ("code", "text", "advice"),
    [
        (0, "exited with code 0", "sys.exit"),
        (3, "exited with code 3", "last output"),
        (-9, "killed by SIGKILL (9)", "out-of-memory"),
        (-11, "killed by SIGSEGV (11)", "native code"),
        (-6, "killed by SIGABRT (6)", "native code"),
        (-7, "killed by SIGBUS (7)", "/dev/shm"),
        (-15, "killed by SIGTERM (15)", "daemon's own process"),
        (-10, "killed by SIGUSR1 (10)", "who sends"),
        (-63, "killed by a signal (63)", "who sends"),
    ],
)
def test_words_and_what_to_check(code: int, text: str, advice: str) -> None:
    cause = ExitCause(code)
    assert str(cause) == text
    assert advice in cause.advice
