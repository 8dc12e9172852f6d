"""One spawned process as the supervisor holds it: starts that fail leave nothing, and hostile ends are read."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import select
import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from descriptors import open_descriptors

from multitower.spec import ProcessSpec
from multitower.supervisor.workers.child_process import ChildProcess
from multitower.supervisor.workers.descendants import Descendants
from multitower.supervisor.workers.output import OutputReader

STEP_S = 60.0


@pytest.fixture
def output() -> Iterator[OutputReader]:
    with closing(OutputReader()) as reader:
        yield reader


@pytest.fixture(autouse=True)
def descendants() -> Iterator[Descendants]:
    with closing(Descendants()) as descendants:
        yield descendants


def start(output: OutputReader, descendants: Descendants, folder: Path) -> ChildProcess:
    """Starts a spare without TensorFlow."""
    spec = ProcessSpec(
        endpoint=f"ipc://{folder}/w.sock", parent_pid=os.getpid(), name="mt-test", import_tensorflow=False
    )
    return ChildProcess(spec, output, descendants, {})


def end(child: ChildProcess) -> None:
    child.kill()
    assert select.select([child.pidfd], [], [], STEP_S)[0]


@contextlib.contextmanager
def nothing_left_open() -> Iterator[OutputReader]:
    """A reader; at the end of the block, when it is closed, no descriptor and no process is left."""
    resource_tracker.ensure_running()
    before, processes = open_descriptors(), children()
    with closing(OutputReader()) as output:
        yield output
    assert open_descriptors() == before
    assert children() == processes


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


STEPS = [
    (multiprocessing, "Pipe", 0),
    (multiprocessing, "Pipe", 1),
    (multiprocessing, "Pipe", 2),
    (os, "set_blocking", 0),
    (os, "memfd_create", 0),
    (os, "truncate", 0),
    (os, "pidfd_open", 0),
    (os, "dup", 0),
    (os, "set_blocking", 1),
]


@pytest.mark.parametrize(("module", "name", "successes"), STEPS, ids=[f"{name}-{n}" for _, name, n in STEPS])
def test_a_start_that_fails_at_any_step_leaves_no_descriptor_and_no_process(
    descendants: Descendants,
    short_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    successes: int,
) -> None:
    with nothing_left_open() as output:
        original, calls = getattr(module, name), []

        def fail_later(*arguments: Any, **more: Any) -> Any:
            calls.append(name)
            if len(calls) > successes:
                raise OSError(24, "Too many open files")
            return original(*arguments, **more)

        monkeypatch.setattr(module, name, fail_later)
        # The traceback keeps all that the start referred to: what is freed with the last reference does not count.
        with pytest.raises(OSError, match="Too many open files") as caught:
            start(output, descendants, short_folder)
        monkeypatch.undo()
    assert caught.value.__traceback__ is not None


def test_a_start_without_descriptors_leaves_none_open(descendants: Descendants, short_folder: Path) -> None:
    with nothing_left_open() as output, contextlib.ExitStack() as fillers:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        while (descriptor := os.open("/dev/null", os.O_RDONLY)) < highest:
            fillers.callback(os.close, descriptor)
        os.close(descriptor)
        failures = 0
        while True:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + failures, hard))
            try:
                child = start(output, descendants, short_folder)
            except OSError:
                failures += 1
                continue
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            break
        end(child)
        child.reap()
        child.close()
        assert failures > 10


def test_a_title_that_is_not_utf8_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    title = Path("/proc/self/comm")
    former = title.read_bytes()
    child = ChildProcess.__new__(ChildProcess)
    child.pid = os.getpid()
    try:
        title.write_bytes(b"m) R \xe2\x82")
        stat = child.read_stat()
    finally:
        title.write_bytes(former)
    assert stat is not None
    assert stat.state in "RS"
    assert stat.cpu_s > 0


def test_a_process_that_has_ended_has_no_state() -> None:
    child = ChildProcess.__new__(ChildProcess)
    child.pid = 2**22 + 1  # beyond what any kernel gives
    assert child.read_stat() is None


@pytest.mark.parametrize("size", [0, 4, 13])
def test_a_memory_file_that_the_process_truncated_is_read_as_far_as_it_goes(
    output: OutputReader, descendants: Descendants, short_folder: Path, size: int
) -> None:
    child = start(output, descendants, short_folder)
    end(child)
    os.truncate(child._begun.fileno(), size)
    assert child.reap().code == -signal.SIGKILL
    assert child.begun == (0,) * (size // 8)
    child.close()


def test_an_exit_code_that_the_system_did_not_report_is_unknown(
    output: OutputReader, descendants: Descendants, short_folder: Path
) -> None:
    child = start(output, descendants, short_folder)
    end(child)
    os.waitpid(child.pid, 0)  # as a library may, or the system where SIGCHLD is ignored
    cause = child.reap()
    assert cause.code is None
    assert not cause.crash
    assert "unknown" in str(cause)
    assert "did not report" in cause.advice
    child.close()


def test_a_process_that_has_ended_keeps_its_number_until_it_is_reaped(
    output: OutputReader, descendants: Descendants, short_folder: Path
) -> None:
    ended = start(output, descendants, short_folder)
    end(ended)
    # The start of another process makes `multiprocessing` look for processes that have ended.
    with tempfile.TemporaryDirectory(prefix="mt-") as another:
        other = start(output, descendants, Path(another))
    assert os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    for child in (ended, other):
        child.kill()
        assert child.reap().code == -signal.SIGKILL
        child.close()


def test_heartbeats_that_are_none_are_ignored_and_a_closed_pipe_is_noticed(
    output: OutputReader,
    descendants: Descendants,
    short_folder: Path,
) -> None:
    child = start(output, descendants, short_folder)
    read_out, into = os.pipe()
    os.dup2(read_out, child.heartbeat_descriptor)
    os.set_blocking(child.heartbeat_descriptor, False)
    os.close(read_out)
    assert child.read_heartbeat() is None
    os.write(into, b"\xff")
    assert child.read_heartbeat() is None
    os.write(into, b"\xff\xff" + b"garbage")
    assert child.read_heartbeat() is None
    assert not child.heartbeats_closed
    os.close(into)
    assert child.read_heartbeat() is None
    assert child.heartbeats_closed
    end(child)
    child.reap()
    child.close()


def test_the_thread_of_the_output_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors()
    OutputReader().close()
    assert open_descriptors() == before
    monkeypatch.setattr("threading.Thread.start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start")))
    with pytest.raises(RuntimeError, match="can't start"):
        OutputReader()
    assert open_descriptors() == before
