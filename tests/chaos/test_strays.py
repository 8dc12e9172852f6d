"""Random kills of workers, of the guardian and at last of the daemon: nothing that a handler started is left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from amount import amount
from running import STEP_S, Running, look_at_each, outliving

from multitower import Client

ROUNDS = amount("MULTITOWER_CHAOS_KILLS", 20)
SEED = amount("MULTITOWER_CHAOS_SEED", 3)
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV)
WAYS = ("child", "group", "session", "bare group", "bare", "daemon", "forked")
"""See `starting_handlers.Starter`. A `bare daemon` is not told from those of the other workers that run."""

FOUND_BY_THE_GUARDIAN = ("child", "group", "session", "daemon", "forked")

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 3}
spares: 1
heartbeat: 200ms
restart: {max_restarts: 1000, window: 1s, backoff: {first: 10ms, max: 100ms}}
models:
  - {name: m, handler: "starting_handlers:Starter"}
"""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300 + 10 * ROUNDS)]


class Helper(NamedTuple):
    """A process that a worker has started, and how."""

    process: psutil.Process
    way: str
    worker: int


def start_helpers(client: Client, ways: Sequence[str]) -> list[Helper]:
    answers = [client.infer("m", {"way": np.array([way])}) for way in ways]
    return [
        Helper(psutil.Process(int(answer["pid"][0])), way, int(answer["worker"][0]))
        for way, answer in zip(ways, answers, strict=True)
    ]


def guardian(daemon: Running) -> psutil.Process | None:
    return next(iter(daemon.children("mt-guardian")), None)


def has_running_guardian(daemon: Running) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        found = guardian(daemon)
        return found is not None and found.status() == psutil.STATUS_SLEEPING
    return False


def has_zombies(daemon: Running) -> bool:
    """Whether the daemon has a child that has ended; those of a handler are its own."""
    children = psutil.Process(daemon.process.pid).children()
    return psutil.STATUS_ZOMBIE in look_at_each(children, psutil.Process.status).values()


def test_random_kills_leave_no_process(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        for number in range(ROUNDS):
            helpers = start_helpers(client, rng.choices(WAYS, k=6))
            worker = rng.choice(helpers).worker
            if number % 4 == 3:
                daemon.wait(lambda: has_running_guardian(daemon))
                killed = guardian(daemon)
                assert killed is not None
                killed.send_signal(rng.choice(SIGNALS))
                os.kill(worker, signal.SIGKILL)
            else:
                os.kill(worker, rng.choice(SIGNALS))
            assert not outliving([helper.process for helper in helpers if helper.worker == worker], STEP_S)
            daemon.wait_ready()
            others = [helper for helper in helpers if helper.worker != worker]
            assert all(helper.process.is_running() for helper in others)
            for helper in others:
                with contextlib.suppress(psutil.NoSuchProcess):
                    helper.process.kill()
            daemon.wait(lambda: not has_zombies(daemon))
        daemon.wait(lambda: has_running_guardian(daemon))
        last = start_helpers(client, FOUND_BY_THE_GUARDIAN * 2)
        everything = [*(helper.process for helper in last), *daemon.remember()]
        daemon.signal(signal.SIGKILL)
        assert not outliving(everything, STEP_S)
