"""Runs the selftest: starts the private daemon, checks its workers, then the daemon, then what is left of it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from multitower.client.threads import Client
from multitower.temporary_folder import temporary_folder
from multitower.tools.daemon import OwnDaemon
from multitower.tools.errors import ToolError
from multitower.tools.selftest.daemon_checks import Leftovers, measure_rate
from multitower.tools.selftest.device_checks import DeviceChecks
from multitower.tools.selftest.memory_readings import tolerance
from multitower.tools.selftest.results import Outcome, Report, Result
from multitower.tools.selftest.session import AT_ONCE, Session, make_config
from multitower.tools.selftest.targets import Target
from multitower.tools.selftest.tensorflow_check import check_tensorflow

READY_S: Final = 90.0
"""Seconds that the daemon may take until every slot is ready."""

_OVERRIDES: Final = "MULTITOWER_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to check, and how.

    Attributes:
        targets: the workers.
        missing: why some GPUs of the machine cannot be checked; None if all can.
        memory: bytes that the probe takes on each device.
        tensorflow: whether a TensorFlow model is served as well.
        log: the file for the daemon's log; None for a temporary one.
    """

    targets: Sequence[Target]
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
    with tempfile.TemporaryDirectory(prefix="mt-selftest-", dir=temporary_folder()) as name:
        folder = Path(name)
        _check_daemon(options, folder, report)
        if options.tensorflow:
            check_tensorflow(options.targets, options.memory, folder, make_environment(folder), report)
    report.seconds = time.monotonic() - started
    return report


def make_environment(folder: Path) -> Mapping[str, str]:
    """The environment of the private daemon: no overrides of its configuration, and temporary files in the folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OVERRIDES)}
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return {**inherited, "TMPDIR": str(temporary)}


def _check_daemon(options: Options, folder: Path, report: Report) -> None:
    config = folder / "selftest.yaml"
    config.write_text(make_config(options.targets))
    environment = make_environment(folder)
    leftovers = Leftovers(options.targets, folder / "tmp", tolerance(options.memory))
    daemon = OwnDaemon(config, log=options.log or folder / "daemon.log", ready_s=READY_S, environment=environment)
    started = time.monotonic()
    try:
        with daemon:
            count = len(options.targets)
            text = "one worker is ready" if count == 1 else f"{count} workers are ready"
            report.add(Result("start", None, Outcome.OK, time.monotonic() - started, text))
            _check_running(options, daemon, leftovers, report)
    except ToolError as error:
        report.add(Result("start", None, Outcome.FAILED, time.monotonic() - started, str(error)))
    report.run("processes left", None, lambda: leftovers.check_processes(daemon))
    report.run("files left", None, lambda: leftovers.check_files(daemon))
    if any(not target.on_cpu for target in options.targets):
        report.run("device memory left", None, leftovers.check_device_memory)


def _check_running(options: Options, daemon: OwnDaemon, leftovers: Leftovers, report: Report) -> None:
    with Client(daemon.endpoint, retries=0) as client, ThreadPoolExecutor(AT_ONCE, "selftest") as pool:
        session = Session(client, report.stop)
        try:
            leftovers.note_processes()
            leftovers.use_region(daemon.endpoint)
            checks = [DeviceChecks(session, target, options.memory, report) for target in options.targets]
            for done in [pool.submit(each.run) for each in checks]:
                done.result()
            report.run("router", None, lambda: measure_rate(client, report))
            report.run("regions", None, lambda: leftovers.check_regions(session))
            leftovers.note_processes()
        except BaseException:
            # The threads end at their next wait, and requests under way fail once the client is closed.
            report.stop.set()
            client.close()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
