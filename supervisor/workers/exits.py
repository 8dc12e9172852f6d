"""Processes that end: told to, killed for a fault, or dead; each is kept until it can be released.

What a dead process has sent has arrived, and is read before the process is released.
"""

from __future__ import annotations

import logging

from multitower import worker_wire

from ..loop.log import event
from ..scheduling.scheduler import Scheduler
from .exit_cause import ExitCause, Fault, Verdict
from .hang_detector import MAX_DUMP_S
from .process_watcher import ProcessWatcher
from .slot import PastOutput, WorkerProcess

log = logging.getLogger("multitower.manager")

STOP_S = 5.0
"""Seconds that a worker has to end after it was told to; then it is killed."""

STACKS_S = 0.5
"""Seconds that a worker that hangs or takes too long to load has to write its Python stacks before it is killed."""

DUMP_CHECK_S = 1.0
"""Seconds from one look at a process whose core is being dumped to the next."""

_MESSAGES = {
    Fault.LOAD_TIMEOUT: "worker takes too long to load",
    Fault.DUMPS: "killing worker whose core dump does not end",
    Fault.DEVICE_LOST: "worker lost its device",
    Fault.FILES_CHANGED: "files of models changed while a worker loaded them",
    Fault.OTHERS_LEFT: "worker could load no model: those that it left out are tried again",
    Fault.DEFECT: "killing worker after an internal error",
}


class Exits:
    """Ends processes, and keeps them until they can be released.

    Args:
        scheduler: sends no more batches to processes that end.
        watcher: watches the processes.

    Attributes:
        processes: those that were told to end, are to be killed, or have ended and are not yet released.
    """

    def __init__(self, scheduler: Scheduler, watcher: ProcessWatcher) -> None:
        self.processes: list[WorkerProcess] = []
        self._scheduler = scheduler
        self._watcher = watcher

    def end_process(self, process: WorkerProcess, now: float) -> None:
        """Tells a process to end, and kills it after `STOP_S`; at once if it is not able to answer.

        It executes the batches that it has, and gets no more.
        """
        if not process.usable:
            return
        process.told_to_end = True
        self._add(process)
        if process.state in ("ready", "failed", "idle"):
            process.kill_at = now + STOP_S
            if process.route is not None:
                # It does not read batches behind STOP: their requests would count as having died with it.
                self._scheduler.retire(process.route.worker)
            process.child.connection.send([worker_wire.STOP])
        elif not self._waits_for_dump(process, now):
            process.child.kill()

    def condemn_process(self, process: WorkerProcess, verdict: Verdict, now: float) -> None:
        """Kills a process for a fault, after it has had the time to write its stacks; it gets no more batches."""
        if process.exit_cause is not None or process.verdict is not None:
            return
        process.verdict = verdict
        if verdict.wants_stacks:
            # Now: the signal for the stacks may end a call that waits, so that it goes on to something else.
            timed_out = verdict.fault is Fault.LOAD_TIMEOUT
            process.exit_step = process.load_timer.step if timed_out else process.child.read_step()
        process.exit_model = process.model_fields()
        fields = {**process.child.fields, **process.exit_model}
        message = _MESSAGES.get(verdict.fault, "worker hangs")
        event(log, logging.ERROR, message, **fields, cause=verdict.cause)
        process.kill_at = now + STACKS_S if verdict.wants_stacks else now
        self._add(process)
        if process.route is not None:
            self._scheduler.retire(process.route.worker)
        if verdict.wants_stacks:
            process.child.dump_stacks()

    def handle_death(self, process: WorkerProcess, now: float) -> None:
        """Records the end of a process; answers of it may still have to be read."""
        process.exit_cause = ExitCause(None)
        self._add(process)
        if process.route is not None:
            # A request that it got from now on would count as having died with it.
            self._scheduler.stop_dispatch(process.route.worker)
        if process.verdict is None or not process.verdict.wants_stacks:
            process.exit_step = process.child.read_step()
        process.exit_model = process.exit_model or process.model_fields()
        process.exit_cause = process.child.reap()

    def _add(self, process: WorkerProcess) -> None:
        process.ending = True
        if process not in self.processes:
            self.processes.append(process)

    def kill_if_due(self, process: WorkerProcess, now: float) -> None:
        """Kills a process whose time to end is over."""
        if process.exit_cause is not None or process.kill_at is None or now < process.kill_at:
            return
        if self._waits_for_dump(process, now):
            return
        process.kill_at = None
        if process.verdict is None:
            event(log, logging.WARNING, "worker does not end: killed", **process.child.fields)
        process.child.kill()

    def _waits_for_dump(self, process: WorkerProcess, now: float) -> bool:
        """Whether a process that is to be killed ends anyway, as `is_dumping` shows: it is looked at again later."""
        if not process.child.is_dumping():
            return False
        self.notice_dump(process, now)
        if process.dumping_since is None or now - process.dumping_since > MAX_DUMP_S:
            return False
        process.kill_at = now + DUMP_CHECK_S
        return True

    def notice_dump(self, process: WorkerProcess, now: float) -> None:
        """Records that a process is ending, as `is_dumping` shows: it gets no more batches."""
        if process.dumping_since is not None:
            return
        process.dumping_since = now
        message = "worker is ending: the kernel dumps its core or frees its memory"
        event(log, logging.WARNING, message, **process.child.fields)
        if process.route is not None:
            self._scheduler.stop_dispatch(process.route.worker)

    def notice_closed_socket(self, process: WorkerProcess) -> None:
        """Records that a process cannot answer any more: it gets no more batches."""
        if process.exit_cause is None and process.route is not None:
            self._scheduler.stop_dispatch(process.route.worker)

    def next_wakes(self) -> list[float]:
        """When processes must be killed, in monotonic seconds."""
        times = (each.kill_at for each in self.processes if each.exit_cause is None)
        return [time for time in times if time is not None]

    def release_process(self, process: WorkerProcess) -> None:
        """Releases a process that has ended and whose messages have been read."""
        self.processes.remove(process)
        try:
            try:
                self._watcher.remove_process(process)
            finally:
                process.child.close(process.unexpected_end)
                if process.slot is not None and (process.unexpected_end is not None or process.state == "failed"):
                    ended = PastOutput(process.child.pid, process.exit_description, process.child.output)
                    process.slot.past_output = ended
        except Exception:
            # What is lost are a few descriptors; what follows from its end must not be.
            log.exception("worker could not be released", extra={"fields": dict(process.child.fields)})
