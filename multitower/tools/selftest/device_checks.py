"""The checks of one worker and its devices, in their order. The docstring of each check says what it shows."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final

import psutil

from multitower.durations import exact_duration
from multitower.errors import MultitowerError, Reason
from multitower.tools.selftest import CRASH, EXHAUST, GIVE_BACK, IDENTIFY, TAKE
from multitower.tools.selftest.memory_readings import (
    Reading,
    mebibytes,
    memory_left,
    meter_of,
    tolerance,
)
from multitower.tools.selftest.results import CheckFailed, CheckSkipped, Report
from multitower.tools.selftest.session import HANG_LIMIT_S, Session
from multitower.tools.selftest.targets import Target

SETTLE_S: Final = 10.0
"""Seconds that memory may take to appear in `status` and at NVML, or to be free again."""

ANSWERED_S: Final = 10.0
"""Seconds after the end of a worker within which its request must be answered."""

_ATTEMPTS: Final = 3
_NO_GPU: Final = "-1"
_EXHAUSTED: Final = ("OutOfMemoryError", "MemoryError", "_ArrayMemoryError")


class DeviceChecks:
    """Checks one worker.

    Args:
        session: the connection to the daemon.
        target: the worker.
        memory: bytes that the probe takes on each device.
        report: gets the results.
    """

    def __init__(self, session: Session, target: Target, memory: int, report: Report) -> None:
        self._session = session
        self._target = target
        self._memory = memory
        self._report = report
        self._allowed = tolerance(memory)
        self._meter = meter_of(target)
        self._before: Reading | None = None  # before the memory was taken
        self._pid = 0  # of the worker that took it
        self._listed = False
        self._killed_at = 0.0

    def run(self) -> None:
        """Runs all checks."""
        try:
            for name, check in (
                ("device", self._is_pinned),
                ("memory", self._memory_is_shown),
                ("spare", self._is_replaced_by_a_spare),
                ("memory freed", self._memory_is_freed),
                ("out of memory", self._survives_exhaustion),
                ("hang", self._recovers_from_a_hang),
                ("crash", self._recovers_from_a_crash),
            ):
                self._report.run(name, self._target, check)
        finally:
            self._meter.close()

    def _serving_pid(self) -> int:
        """The pid of the worker, once it serves: an earlier check may have failed and ended it."""
        pid: int = self._session.wait_serving(self._target, 0)["pid"]
        return pid

    def _is_pinned(self) -> str:
        """The worker sees exactly its devices: the driver's UUIDs are those of NVML, in their order."""
        report = self._session.ask(self._target, IDENTIFY)
        return self._check_devices(report)

    def _check_devices(self, report: dict[str, Any]) -> str:
        target = self._target
        visible, names = report["visible_devices"], list(target.names)
        if report["names"] != names:
            raise CheckFailed(f"the handler got the devices {report['names']}, not {names}")
        if target.on_cpu:
            if visible != _NO_GPU:
                raise CheckFailed(f"CUDA_VISIBLE_DEVICES is {visible!r} in the worker, not {_NO_GPU!r}")
            return f"sees {', '.join(names)}, and CUDA_VISIBLE_DEVICES={_NO_GPU}"
        shown = self._session.slot(target)["visible_devices"]
        if shown != ",".join(names) or shown != visible:
            raise CheckFailed(f"CUDA_VISIBLE_DEVICES is {visible!r} in the worker; status shows {shown!r}")
        wanted = [name.partition("-")[2].lower() for name in names]
        if target.devices[0].kind == "mig" and not report["knows_slices"]:
            raise CheckSkipped("this driver, from before R470, does not tell a process the UUID of its MIG slice")
        if report["uuids"] != wanted:
            seen = ", ".join(report["uuids"]) or "no device"
            raise CheckFailed(f"the driver shows the worker {seen}; it should see {', '.join(wanted)} and nothing else")
        count = "one device" if len(wanted) == 1 else f"{len(wanted)} devices"
        return f"sees {count}, with the UUID that NVML reports"

    def _memory_is_shown(self) -> str:
        """Memory that the probe takes appears at NVML and in `status`. It stays taken."""
        for _ in range(_ATTEMPTS):
            problem = self._take_memory()
            if problem is None:
                assert self._before is not None
                whose = "the process" if self._listed or self._target.on_cpu else "the device"
                return f"status shows {mebibytes(self._expected)} more for {whose}"
            self._session.ask(self._target, GIVE_BACK)
        raise CheckFailed(f"{problem}{self._whose}")

    @property
    def _whose(self) -> str:
        """What to add to a problem with figures of the whole device."""
        if self._listed or self._target.on_cpu:
            return ""
        return "; NVML lists no process of the worker, so if other programs use the device, it may be theirs"

    @property
    def _expected(self) -> int:
        return self._memory * (1 if self._target.on_cpu else len(self._target.devices))

    def _take_memory(self) -> str | None:
        """Takes memory, and says what is wrong with the figures that follow; None if nothing is."""
        session, pid = self._session, self._serving_pid()
        if not session.wait(lambda: self._status_agrees(pid), SETTLE_S):
            return self._describe("before memory is taken", pid)
        before = self._read_before(pid)
        if before.free is not None and before.free < 2 * self._memory:
            raise CheckSkipped(f"only {mebibytes(before.free)} are free, as others use the device")
        if before.known is None:
            raise CheckSkipped("NVML does not tell how much memory of this device is in use")
        self._take(pid)
        least = before.known + self._expected - self._allowed

        def is_shown() -> bool:
            now = self._meter.read(pid).known
            return now is not None and now >= least and self._status_agrees(pid)

        if not session.wait(is_shown, SETTLE_S):
            grown = f"after {mebibytes(self._expected)} were taken (before: {mebibytes(before.known)})"
            return self._describe(grown, pid)
        now = self._meter.read(pid)
        taken = now.own - before.own if now.own is not None and before.own is not None else 0
        if taken > self._expected + self._allowed:
            return f"{mebibytes(taken)} were taken instead of {mebibytes(self._expected)}"
        self._pid, self._before = pid, before
        self._listed = now.own is not None and not self._target.on_cpu
        return None

    def _take(self, pid: int) -> None:
        """Takes memory in the process whose memory was read before."""
        taker = self._session.ask(self._target, TAKE, self._memory)["pid"]
        if taker != pid:
            raise CheckFailed(f"process {taker} took the memory, which replaced process {pid} meanwhile")

    def _read_before(self, pid: int) -> Reading:
        before = self._meter.read(pid)
        if not before.answered:
            raise CheckFailed("NVML does not answer for the device")
        return before

    def _status_agrees(self, pid: int) -> bool:
        shown, reading = self._shown(), self._meter.read(pid).known
        if reading is None:
            return shown is None
        return shown is not None and abs(shown - reading) <= self._allowed

    def _shown(self) -> int | None:
        slot = self._session.slot(self._target)
        size: int | None = slot["rss_bytes"] if self._target.on_cpu else slot["device_memory_bytes"]
        return size

    def _describe(self, when: str, pid: int) -> str:
        shown, read = self._shown(), self._meter.read(pid).known
        where = "the system" if self._target.on_cpu else "NVML"
        return f"status shows {_size(shown)}, {where} reports {_size(read)}, {when}"

    def _is_replaced_by_a_spare(self) -> str:
        """After SIGKILL a spare takes the slot, is pinned only then, and sees exactly the same devices."""
        spares = self._session.wait_for_spares()
        former = self._serving_pid()
        started = time.monotonic()
        _kill(former)
        slot = self._session.wait_serving(self._target, former)
        away_s = time.monotonic() - started
        self._killed_at = started
        report = self._session.ask(self._target, IDENTIFY)
        if slot["pid"] not in spares:
            raise CheckFailed(f"worker {slot['pid']} took the slot, which was none of the spares {sorted(spares)}")
        self._check_devices(report)
        return f"served {away_s:.2f} s after SIGKILL, and sees the same"

    def _memory_is_freed(self) -> str:
        """What the killed worker held is free at NVML, or in the system, within `SETTLE_S`."""
        if self._before is None:
            raise CheckSkipped("no memory was taken")
        attempts = 1 if self._listed or self._target.on_cpu else _ATTEMPTS
        for attempt in range(attempts):
            if attempt:
                # Other programs may have taken memory meanwhile, so the figures are compared again.
                self._kill_with_memory()
            problem = self._wait_until_freed()
            if problem is None:
                seconds = time.monotonic() - self._killed_at
                return f"{mebibytes(self._expected)} free again {seconds:.2f} s after SIGKILL"
        raise CheckFailed(f"{problem}, {exact_duration(SETTLE_S)} after SIGKILL{self._whose}")

    def _kill_with_memory(self) -> None:
        self._pid = self._serving_pid()
        self._before = self._read_before(self._pid)
        self._take(self._pid)
        self._killed_at = time.monotonic()
        _kill(self._pid)
        self._session.wait_serving(self._target, self._pid)

    def _wait_until_freed(self) -> str | None:
        problem: str | None = None

        def is_free() -> bool:
            nonlocal problem
            assert self._before is not None
            after = self._meter.read(self._pid)
            problem = memory_left(self._before, after, listed=self._listed, allowed=self._allowed)
            return problem is None

        self._session.wait(is_free, SETTLE_S)
        return problem

    def _survives_exhaustion(self) -> str:
        """A request for more memory than the device has gets an error, and the same worker serves on."""
        former = self._serving_pid()
        try:
            self._session.ask(self._target, EXHAUST)
        except MultitowerError as error:
            if error.reason != Reason.MODEL_ERROR:
                raise CheckFailed(
                    f"the request was answered {error.reason}, not {Reason.MODEL_ERROR}: {error}"
                ) from None
            text = error.message.partition(" raised ")[2].rstrip(": ")
            if not text.startswith(_EXHAUSTED):
                raise CheckFailed(f"the error is not about exhausted memory: {error.message}") from None
        else:
            raise CheckSkipped("the driver grants twice the memory of the device, so that it cannot be exhausted")
        served = self._session.ask(self._target, IDENTIFY)["pid"]
        if served != former:
            raise CheckFailed(f"worker {former} did not serve on: worker {served} answered")
        return f"an error of that request alone: {text}"

    def _recovers_from_a_hang(self) -> str:
        """A request that does not return is answered soon after its limit, and the slot serves again."""
        what, cause = f"a call over {exact_duration(HANG_LIMIT_S)}", "max_execution_time"
        return self._recover(lambda: self._session.hang(self._target), what, cause, HANG_LIMIT_S)

    def _recovers_from_a_crash(self) -> str:
        """A request whose worker crashes gets an error, and the slot serves again."""
        what, cause = "a segmentation fault", signal.SIGSEGV.name
        return self._recover(lambda: self._session.ask(self._target, CRASH), what, cause, 0.0)

    def _recover(self, request: Callable[[], object], what: str, cause: str, least_s: float) -> str:
        """Ends the worker by a request, and waits until the slot serves again.

        Args:
            request: ends the worker.
            what: how, for people.
            cause: what the daemon's error must name, so that another death does not pass for this one.
            least_s: seconds after which the worker is to end; the answer must follow within `ANSWERED_S`.
        """
        former = self._serving_pid()
        started = time.monotonic()
        try:
            request()
        except MultitowerError as error:
            if error.reason != Reason.WORKER_DIED:
                raise CheckFailed(
                    f"the request was answered {error.reason}, not {Reason.WORKER_DIED}: {error}"
                ) from None
            if cause not in str(error):
                raise CheckFailed(f"the worker did not die of {what}: {error}") from None
        else:
            raise CheckFailed(f"the request was answered although it should have been ended: {what}")
        answered_s = time.monotonic() - started
        if not least_s <= answered_s <= least_s + ANSWERED_S:
            wanted = f"{least_s:g} s to {least_s + ANSWERED_S:g} s"
            raise CheckFailed(f"the request that ends in {what} was answered after {answered_s:.2f} s, not {wanted}")
        self._session.wait_serving(self._target, former)
        self._check_devices(self._session.ask(self._target, IDENTIFY))
        away_s = time.monotonic() - started
        return f"answered after {answered_s:.2f} s, serving after {away_s:.2f} s"


def _kill(pid: int) -> None:
    """Kills a worker of the private daemon, by a descriptor: the number may become that of another process meanwhile.

    Raises:
        CheckFailed: the process is none that the selftest started.
        OSError: it has ended.
    """
    descriptor = os.pidfd_open(pid)
    try:
        if pid not in {child.pid for child in psutil.Process().children(recursive=True)}:
            raise CheckFailed(f"process {pid} is not one of the private daemon, and was not killed")
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)


def _size(size: int | None) -> str:
    return "nothing" if size is None else mebibytes(size)
