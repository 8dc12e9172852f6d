"""Signals as events of the loop."""

from __future__ import annotations

import os
import select
import signal
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from multitower.cli.serve import serve
from multitower.supervisor.loop.signals import SignalInbox

USER = (signal.SIGUSR1, signal.SIGUSR2)


def test_signals_are_read_in_the_order_of_their_arrival() -> None:
    with closing(SignalInbox(USER)) as inbox:
        assert inbox.read() == []
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        assert select.select([inbox.descriptor], [], [], 5)[0]
        assert inbox.read() == [signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2]
        assert inbox.read() == []
        assert not select.select([inbox.descriptor], [], [], 0)[0]


def test_other_signals_are_not_collected() -> None:
    former = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with closing(SignalInbox([signal.SIGUSR1])) as inbox:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert inbox.read() == []
    finally:
        signal.signal(signal.SIGUSR2, former)


def test_closing_restores_the_former_handlers() -> None:
    before = [signal.getsignal(number) for number in USER]
    inbox = SignalInbox(USER)
    assert [signal.getsignal(number) for number in USER] != before
    inbox.close()
    assert [signal.getsignal(number) for number in USER] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_sigusr1_is_ignored_before_and_after_the_inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multitower.process_title.set_title", lambda _: None)
    former = signal.getsignal(signal.SIGUSR1)
    try:
        assert CliRunner().invoke(serve, [str(tmp_path / "missing.yaml")]).exit_code
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        SignalInbox(USER).close()
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, former)
