"""Runs the selftest: starts the private daemon, checks its workers, then the daemon, then what is left of it."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from multitower.client.threads import Client
from multitower.errors import MultitowerError
from multitower.temporary_folder import temporary_folder
from multitower.tools.daemon import OwnDaemon
from multitower.tools.errors import ToolError
from multitower.tools.selftest.daemon_checks import Leftovers, measure_rate
from multitower.tools.selftest.device_checks import DeviceChecks
from multitower.tools.selftest.memory_readings import tolerance
from multitower.tools.selftest.occupancy import MPS_VARIABLE
from multitower.tools.selftest.results import Outcome, Report, Result
from multitower.tools.selftest.session import AT_ONCE, Session, make_config
from multitower.tools.selftest.targets import Target
from multitower.tools.selftest.tensorflow_check import TensorFlowCheck

READY_S: Final = 90.0
"""Seconds that the daemon may take until every slot is ready."""

_OVERRIDES: Final = "MULTITOWER_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to check, and how.

    Attributes:
        targets: the workers; without any, no daemon is started.
        occupied: the workers that must not start, with the reason.
        missing: why some GPUs of the machine cannot be checked; None if all can.
        memory: bytes that the probe takes on each device.
        tensorflow: whether a TensorFlow model is served as well.
        log: the file for the daemon's log; None for a temporary one.
    """

    targets: Sequence[Target]
    occupied: Mapping[Target, str] = field(default_factory=dict)
    missing: str | None = None
    memory: int
    tensorflow: bool = False
    log: Path | None = None


def run(options: Options, progress: Callable[[Result], None]) -> Report:
    """Runs all checks. Whatever ends it, also an exception raised by a signal handler, the daemon is ended first.

    Args:
        options: what to check.
        progress: is called with each result as it is known, in any thread, one at a time.
    """
    report = Report(progress)
    started = time.monotonic()
    if options.missing is not None:
        report.add(Result("discovery", None, Outcome.FAILED, 0.0, options.missing))
    for target, reason in options.occupied.items():
        report.add(Result("device", target, Outcome.SKIPPED, 0.0, reason))
    if options.targets:
        with tempfile.TemporaryDirectory(prefix="mt-selftest-", dir=temporary_folder()) as name:
            _check_all(options, Path(name), report)
    report.seconds = time.monotonic() - started
    return report


def make_environment(folder: Path) -> Mapping[str, str]:
    """The environment of the private daemon.

    It has no overrides of the daemon's configuration, temporary files in the folder, and no MPS: there the processes of
    several users share a server, which the death of one of its clients may harm.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OVERRIDES)}
    temporary, without_mps = folder / "tmp", folder / "no-mps"
    for each in (temporary, without_mps):
        each.mkdir(exist_ok=True)
    return {**inherited, "TMPDIR": str(temporary), MPS_VARIABLE: str(without_mps)}


def _check_all(options: Options, folder: Path, report: Report) -> None:
    """Checks the daemon with the probe, then the one with TensorFlow, then what is left of both."""
    config = folder / "selftest.yaml"
    config.write_text(make_config(options.targets))
    environment = make_environment(folder)
    with closing(Leftovers(options.targets, folder / "tmp", tolerance(options.memory))) as leftovers:
        daemon = OwnDaemon(config, log=options.log or folder / "daemon.log", ready_s=READY_S, environment=environment)
        started = time.monotonic()
        try:
            with daemon:
                count = len(options.targets)
                text = "one worker is ready" if count == 1 else f"{count} workers are ready"
                report.add(Result("start", None, Outcome.OK, time.monotonic() - started, text))
                _check_running(options, daemon, leftovers, report)
        except (ToolError, MultitowerError, OSError) as error:
            report.add(Result("start", None, Outcome.FAILED, time.monotonic() - started, str(error)))
        daemons = [daemon]
        if options.tensorflow:
            check = TensorFlowCheck(options.targets, options.memory, folder, environment, options.log)
            daemons += check.run(report, leftovers.note_processes)
        report.run("processes left", None, lambda: leftovers.check_processes(daemons))
        report.run("files left", None, lambda: leftovers.check_files(daemons))
        if any(not target.on_cpu for target in options.targets):
            report.run("device memory left", None, leftovers.check_device_memory)


def _check_running(options: Options, daemon: OwnDaemon, leftovers: Leftovers, report: Report) -> None:
    with Client(daemon.endpoint, retries=0) as client:
        session = Session(client, report.stop)
        try:
            leftovers.note_processes()
            _run_at_once([DeviceChecks(session, target, options.memory, report) for target in options.targets])
            leftovers.use_region(daemon.endpoint)
            report.run("router", None, lambda: measure_rate(client, report))
            report.run("regions", None, lambda: leftovers.check_regions(session))
            leftovers.note_processes()
        except BaseException:
            # The threads end at their next wait, and requests under way fail once the client is closed.
            report.stop.set()
            client.close()
            raise


def _run_at_once(checks: Sequence[DeviceChecks]) -> None:
    """Runs the checks of several workers at a time, and returns when all have ended.

    An exception, as of a signal handler, ends this at once; one in a thread is raised when the others have ended. A
    thread may be in a call of the driver that does not return. Nothing waits for it then: the threads are daemon
    threads.
    """
    waiting: queue.SimpleQueue[DeviceChecks | None] = queue.SimpleQueue()
    for each in [*checks, *[None] * AT_ONCE]:
        waiting.put(each)

    problems: list[Exception] = []

    def work() -> None:
        try:
            while (check := waiting.get()) is not None:
                check.run()
        except Exception as error:  # noqa: BLE001 raised again in the thread that waits
            problems.append(error)

    threads = [threading.Thread(target=work, name="selftest", daemon=True) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
