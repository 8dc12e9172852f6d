"""What handlers start ends with its worker and with the daemon, however these end and wherever it has gone."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from running import STEP_S, Running, copy_handlers, multitower, outliving
from small_disk import new_mounts, why_not
from started_helpers import start_helper

from multitower import Client
from multitower.supervisor.workers import guardian as guardian_module
from multitower.supervisor.workers import guardian_process
from multitower.supervisor.workers.guardian_process import kill, kill_rest, read_process

WAYS = ("child", "group", "session", "bare group", "bare", "daemon", "bare daemon", "forked")
"""See `starting_handlers.Starter`."""

FOUND_BY_THE_GUARDIAN = ("child", "group", "session", "daemon", "forked")
"""The others leave neither their process group nor their environment to be recognized by."""


MARK = f"MULTITOWER_TEST_{os.getpid()}=1"
"""An entry of the environment that no other process has: a guardian kills whatever has it."""


def config(workers: int = 1, more: str = "") -> str:
    return f"""
listen: ["{{endpoint}}"]
devices: {{cpu: {workers}}}
spares: 0
restart: {{max_restarts: 1000, window: 1s, backoff: {{first: 10ms, max: 100ms}}}}
{more}
models:
  - {{name: m, handler: "starting_handlers:Starter"}}
"""


def start_helpers(client: Client, ways: tuple[str, ...] = WAYS) -> list[psutil.Process]:
    return [start_helper(client, way)[0] for way in ways]


def guardians(daemon: Running) -> list[int]:
    """The process ids of the guardians: one at most."""
    return [child.pid for child in daemon.children("mt-guardian")]


def slot_is_served_by_another(daemon: Running, pid: int) -> bool:
    slots = daemon.status()["slots"]
    return all(slot["state"] == "ready" and slot["pid"] != pid for slot in slots)


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("one"), config()) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("two"), config(workers=2)) as daemon:
        yield daemon.wait_ready()


@pytest.mark.parametrize("way", WAYS)
def test_a_helper_ends_with_its_worker_and_not_with_another(two_workers: Running, way: str) -> None:
    daemon = two_workers
    with daemon.client() as client:
        helper, worker = start_helper(client, way)
        if way == "bare daemon":
            daemon.wait_line("a process has left its worker", pid=helper.pid)
        other = next(slot["pid"] for slot in client.status()["slots"] if slot["pid"] != worker)
        os.kill(other, signal.SIGKILL)
        daemon.wait(lambda: slot_is_served_by_another(daemon, other))
        assert helper.is_running()
        os.kill(worker, signal.SIGKILL)
        assert not outliving([helper], STEP_S)
        daemon.wait(lambda: slot_is_served_by_another(daemon, worker))


def test_helpers_end_with_a_worker_that_is_told_to_end(one_worker: Running) -> None:
    with one_worker.client() as client:
        helpers = start_helpers(client)
        assert multitower("restart", "0", daemon=one_worker).returncode == 0
        assert not outliving(helpers, STEP_S)
        assert one_worker.slot()["restarts"] == 0


def test_orphans_that_end_are_reaped(one_worker: Running) -> None:
    with one_worker.client() as client:
        helpers = start_helpers(client, ("daemon", "bare daemon", "forked"))
        for helper in helpers:
            helper.kill()
        one_worker.wait(lambda: not any(psutil.pid_exists(helper.pid) for helper in helpers))
        assert one_worker.slot()["restarts"] == 0


def test_helpers_have_ended_when_the_daemon_has(tmp_path: Path) -> None:
    with Running(tmp_path, config()) as daemon, daemon.wait_ready().client() as client:
        helpers = start_helpers(client)
        assert daemon.end() == 0
        assert not outliving(helpers, 0)


def test_helpers_end_with_a_daemon_that_is_killed(tmp_path: Path) -> None:
    with Running(tmp_path, config(workers=2)) as daemon, daemon.wait_ready().client() as client:
        helpers = start_helpers(client, FOUND_BY_THE_GUARDIAN)
        everything = [*helpers, *daemon.remember()]
        daemon.signal(signal.SIGKILL)
        assert not outliving(everything, STEP_S)


def test_a_guardian_that_ends_or_stops_is_replaced(tmp_path: Path) -> None:
    with Running(tmp_path, config()) as daemon, daemon.wait_ready().client() as client:
        helpers = start_helpers(client, FOUND_BY_THE_GUARDIAN)
        for number in (signal.SIGKILL, signal.SIGSTOP):
            (first,) = guardians(daemon)
            os.kill(first, number)
            daemon.wait(lambda first=first: guardians(daemon) not in ([], [first]))
        assert daemon.wait_line("the guardian has ended")["code"] == -signal.SIGKILL
        everything = [*helpers, *daemon.remember()]
        daemon.signal(signal.SIGKILL)
        assert not outliving(everything, STEP_S)


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_the_guardian_runs_where_proc_is_read_only() -> None:
    name, _, value = MARK.partition("=")
    mount = 'mount -o remount,bind,ro /proc && exec "$@"'
    command = [*new_mounts(), "sh", "-c", mount, "sh", sys.executable, "-I", "-S", guardian_process.__file__, MARK]
    with subprocess.Popen(["sleep", "1000"], env={**os.environ, name: value}) as helper:
        try:
            done = subprocess.run(command, input=b"", capture_output=True, timeout=STEP_S, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
            assert helper.wait(STEP_S) == -signal.SIGKILL
        finally:
            helper.kill()


def test_a_guardian_that_ends_at_once_is_started_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts, program = tmp_path / "starts", tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho >> {starts}\nexit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    now = 1000.0
    monkeypatch.setattr(guardian_module, "monotonic", lambda: now)
    guard = guardian_module.Guardian(MARK)
    try:
        for _ in range(40):  # ten seconds
            if guard.pid is not None:
                os.waitid(os.P_PID, guard.pid, os.WEXITED | os.WNOWAIT)
            now += 0.25
            guard.tick()
        assert len(starts.read_text()) == 6, "after 0, 0.25, 0.75, 1.75, 3.75 and 7.75 s"
        assert caplog.text.count("the guardian has ended") == 1, "once for each cause"
        monkeypatch.undo()
        now += guardian_module.MAX_RETRY_S
        guard.tick()
        assert guard.pid is not None
        assert psutil.Process(guard.pid).is_running()
    finally:
        guard.close()


def test_a_guardian_that_cannot_be_started_is_tried_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[float] = []
    now = 0.0

    def refuse(*_: object, **__: object) -> None:
        tries.append(now)
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(guardian_module, "monotonic", lambda: now)
    guard = guardian_module.Guardian(MARK)
    for _ in range(1200):
        now += 0.25
        guard.tick()
    assert tries == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75, 123.75, 183.75, 243.75]
    assert caplog.text.count("the guardian could not be started") == 1
    guard.close()


def test_what_a_handler_starts_while_doctor_loads_it_ends_with_doctor(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    copy_handlers(tmp_path)
    text = config().replace("{endpoint}", f"ipc://{tmp_path}/f")
    text = text.replace('Starter"', f'StartingLoader", parameters: {{ways: {list(WAYS)}, file: {file}}}')
    (tmp_path / "config.yaml").write_text(text)
    command = [sys.executable, "-m", "multitower", "doctor", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    pids = list(map(int, file.read_text().split()))
    assert len(pids) == len(WAYS), done.stdout
    assert not any(map(psutil.pid_exists, pids))


def test_a_process_that_was_there_before_the_daemon_is_left_alone(tmp_path: Path) -> None:
    """As where a shell starts a program beside the daemon, and then becomes the daemon."""
    # They must not hold the daemon's stderr open, which is read to its end.
    shell = ("sh", "-c", 'setsid sleep 1000 2>&- & sleep 1000 2>&- & exec "$@"', "sh")
    with Running(tmp_path, config(), inside=shell) as daemon, daemon.wait_ready().client() as client:
        beside = daemon.children("sleep")
        assert len(beside) == 2
        helper, worker = start_helper(client, "session")
        os.kill(worker, signal.SIGKILL)
        assert not outliving([helper], STEP_S)
        assert daemon.end() == 0
        assert len(outliving(beside, 0)) == 2
        for process in beside:
            process.kill()


OWN = """
    import subprocess, sys, time
    from multitower.supervisor.workers import descendants
    descendants.UNCLAIMED_S = float(sys.argv[1])
    found = descendants.Descendants()
    own = subprocess.Popen(["sh", "-c", "exit 3"])
    while descendants.read_process(own.pid).state != "Z":
        time.sleep(0.01)
    found.tick(); found.tick()
    print(own.wait(), end=" ")
    found.close()
"""


def test_a_process_that_other_code_waits_for_is_not_reaped_before_it() -> None:
    run = [sys.executable, "-c", textwrap.dedent(OWN)]
    assert subprocess.check_output([*run, "10"], text=True) == "3 "
    # The opposite, as a check of the test: the exit code is lost.
    assert subprocess.check_output([*run, "0"], text=True) == "0 "


def test_another_process_with_the_same_number_is_not_killed() -> None:
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            seen = read_process(other.pid)
            assert seen is not None
            seen.started -= 1
            assert not kill(seen)
            seen.started += 1
            assert kill(seen)
        finally:
            other.kill()


def test_a_group_whose_number_was_given_away_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "1000"], process_group=0) as process:
        try:
            seen = read_process(process.pid)
            assert seen is not None
            kill_rest(b"_NO_SUCH_ENTRY=1", {process.pid}, ended_at=seen.started - 1)
            assert process.poll() is None
            kill_rest(b"_NO_SUCH_ENTRY=1", {process.pid}, ended_at=seen.started)
            assert process.wait(STEP_S) == -signal.SIGKILL
        finally:
            process.kill()
