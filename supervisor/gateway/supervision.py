"""Keeps a gateway process running: starts it, restarts it when it dies, replaces it for a reload, and drains it.

The gateway serves HTTP and gRPC and is a client of the daemon. If it dies, nothing of the daemon is lost: its listening
sockets stay bound, requests that it had accepted are answered to nobody, and clients of ZeroMQ notice nothing. If it
dies too often, the daemon serves on without it and refuses its clients, until an operator reloads the configuration or
restarts the gateway.

A process that is replaced answers what it has accepted, and ends. At most one does so at a time: while it does, another
replacement waits.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final

from multitower.durations import exact_duration

from ..loop.containment import ErrorLog
from ..loop.history import EventHistory, EventKind
from ..loop.log import event
from ..loop.reactor import Reactor
from ..routing.endpoints import Endpoints
from ..settings import ActiveSettings
from ..workers.exit_cause import ExitCause
from ..workers.launcher import Launcher
from ..workers.restart_budget import RestartBudget
from ..workers.shortage import FIRST_RETRY_S, MAX_RETRY_S, StartFailure, failure_of
from .listeners import GatewayListeners
from .process import GatewayProcess, advice_after
from .process_settings import DRAIN_SLACK_S, process_settings
from .program import own_version
from .records import RecordError
from .run import Counts, GatewayRun, GatewayState

log = logging.getLogger("multitower.daemon")

STALL_S: Final = 5.0
"""Seconds without a `tick` after which the loop was stalled, as on a suspended machine: that time does not count."""


class Gateway:
    """The gateway of a daemon. For the main thread.

    Args:
        program: the path of its program.
        settings: the settings in force; those that the daemon starts with have a section `gateway`.
        listeners: its listening sockets; the caller closes them after `close`.
        endpoints: the daemon's; they have the endpoint that the gateway connects to.
        launcher: has what reads the output of processes, and what tells them from those that workers start.
        reactor: the daemon's.
        history: gets what happens to the gateway.
        errors: gets what defects raise.

    Attributes:
        state: what it does.
        restarts: how often it was started again because a process had died, or could not be started.
        cause: why it is not ready; None if there is no particular cause.
    """

    def __init__(
        self,
        program: Path,
        settings: ActiveSettings,
        listeners: GatewayListeners,
        endpoints: Endpoints,
        launcher: Launcher,
        reactor: Reactor,
        history: EventHistory,
        errors: ErrorLog,
    ) -> None:
        self._program = program
        self._settings = settings
        self._listeners = listeners
        self._endpoints = endpoints
        self._output = launcher.output
        self._descendants = launcher.descendants
        self._reactor = reactor
        self._history = history
        self._errors = errors
        self._version = own_version()
        self._applied = settings.current
        self._listeners_seen = -1
        self._wanted: dict[str, Any] = {}  # the settings that a process started now would get
        self._replace_asked = False
        self._restarts_asked: list[tuple[Callable[[str | None], None], Callable[[], bool] | None]] = []
        self._budget = RestartBudget(settings.current.worker_settings.policy, random.Random())
        self._run: GatewayRun | None = None
        self._retiring: list[GatewayRun] = []
        self._ended = Counts()  # of the processes that have ended
        self._start_at = 0.0
        self._retry_s = FIRST_RETRY_S  # while a resource of the system is short
        self._ticked_at: float | None = None
        self._died_at: float | None = None
        self._away_since: float | None = None
        self.restarts = 0
        self.state = GatewayState.WAITING
        self._state_since = monotonic()
        self.cause: str | None = None

    # In each round.

    def tick(self, now: float) -> None:
        """Starts, replaces or kills the process, where it is time to; call it a few times a second.

        Args:
            now: monotonic seconds.
        """
        since_s = now - self._ticked_at if self._ticked_at is not None else 0.0
        self._ticked_at = now
        for run in self._runs():
            if since_s > STALL_S:
                run.excuse_stall(since_s, now)
            cause = run.overdue(now)
            if cause is not None:
                self._kill(run, cause)
        if self.state in (GatewayState.DRAINING, GatewayState.STOPPED):
            self._listeners.close()  # a while after SIGTERM: a process that accepts would meet an error
            return
        self._listeners.tick(now)
        self._update_wanted()
        if self._run is not None:
            if self._replace_asked or self._run.process.settings != self._wanted:
                self._replace_if_possible(self._run, now)
        elif self.state is not GatewayState.FAILED and now >= self._start_at:
            self._start(now)

    def _runs(self) -> list[GatewayRun]:
        return [*self._retiring, *([self._run] if self._run is not None else [])]

    def _update_wanted(self) -> None:
        """Makes the settings of a new process again, if what they consist of has changed."""
        settings = self._settings.current
        if settings is self._applied and self._listeners.changes == self._listeners_seen:
            return
        self._applied, self._listeners_seen = settings, self._listeners.changes
        self._budget.policy = settings.worker_settings.policy
        self._wanted = process_settings(self._version, settings, self._listeners, self._endpoints.runtime)

    def _replace_if_possible(self, run: GatewayRun, now: float) -> None:
        """Replaces the process, unless the one before it still answers requests.

        Where a listening socket has been bound again, clients cannot wait for that: the former process ends at once.
        """
        if self._retiring and run.process.settings["listeners"] == self._wanted["listeners"]:
            return
        self._drop_unwanted_restarts()
        if not self._replace_asked and run.process.settings == self._wanted:
            return
        for former in self._retiring:
            if former.killed_because is None:
                self._kill(former, "its successor is replaced as well")
        self._replace(run, now)

    # Orders of an operator.

    def resume(self, now: float) -> None:
        """Starts the gateway again, if it has failed: the operator is expected to have removed the cause.

        Args:
            now: monotonic seconds.
        """
        if self.state is GatewayState.FAILED:
            self._budget.reset()
            self._listeners.accept()
            self._start_at = now
            self._enter(GatewayState.BACKOFF, now, self.cause)

    def restart(self, now: float, done: Callable[[str | None], None], wanted: Callable[[], bool] | None = None) -> None:
        """Gives the gateway another process, also if it has failed; the present one answers what it has accepted.

        Args:
            now: monotonic seconds.
            done: called once: with None when the new process accepts connections, or with why there is none: the
                gateway has failed, or its process was killed before that.
            wanted: called before a process is replaced that serves: whether that is still to take place; None if it
                always is.
        """
        self._budget.reset()
        self.resume(now)
        self._restarts_asked.append((done, wanted))  # only now: where an earlier step raises, `done` is never called
        if self.state is GatewayState.READY:
            self._replace_asked = True
        elif self.state is GatewayState.BACKOFF:
            self._start_at = now
        elif self.state is not GatewayState.STARTING:
            self._end_restarts(self.cause or "the daemon is stopping")

    def _end_restarts(self, error: str | None) -> None:
        asked, self._restarts_asked = self._restarts_asked, []
        for done, _ in asked:
            done(error)

    def _drop_unwanted_restarts(self) -> None:
        dropped = [each for each in self._restarts_asked if each[1] is not None and not each[1]()]
        if dropped:
            self._restarts_asked = [each for each in self._restarts_asked if each not in dropped]
            self._replace_asked = self._replace_asked and bool(self._restarts_asked)
            for done, _ in dropped:
                done("it is not wanted any more")

    # Processes.

    def _start(self, now: float) -> None:
        if not self._listeners.complete:
            cause = "; ".join(self._listeners.missing.values())
            self._enter(GatewayState.WAITING, now, cause)
            return
        self._update_wanted()
        descriptors = [listener["fd"] for listener in self._wanted["listeners"]]
        try:
            process = GatewayProcess(self._program, self._wanted, descriptors, self._output, self._descendants)
        except OSError as error:
            self._handle_start_failure(failure_of(error), now, f"{self._program}: {error.strerror or error}")
            return
        self._retry_s = FIRST_RETRY_S
        run = GatewayRun(process, now)
        try:
            on_error = functools.partial(self._on_error, run)
            self._reactor.add(process.records, functools.partial(self._on_records, run), on_error)
            self._reactor.add(process.pidfd, functools.partial(self._on_exit, run), on_error)
        except BaseException:
            process.kill()
            process.close(expected=True)
            raise
        self._run, self._replace_asked = run, False
        self._enter(GatewayState.STARTING, now)
        event(log, logging.DEBUG, "gateway started", pid=process.pid)

    def _handle_start_failure(self, failure: StartFailure, now: float, cause: str) -> None:
        """Plans the next start. It spends no restart while only a resource of the system is short."""
        message = "gateway could not be started"
        if not failure.temporary:
            self._plan_start(message, now, None, cause=cause, check=failure.check)
            return
        if (self.state, self.cause) != (GatewayState.BACKOFF, cause):
            after = "it is tried again until it succeeds"
            self._note(logging.ERROR, message, cause=cause, check=failure.check, next=after)
        if self._away_since is None:
            self._away_since = now
        self._start_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)
        self._enter(GatewayState.BACKOFF, now, cause)

    def _replace(self, run: GatewayRun, now: float) -> None:
        """Starts another process with the present settings; the former one answers what it has accepted, and ends."""
        self._run = None
        self._retire(run, now)
        message = "gateway is replaced: its settings have changed"
        if self._replace_asked:
            message = "gateway is replaced: an operator asked for it"
        event(log, logging.INFO, message, pid=run.process.pid)
        self._start(now)

    def _retire(self, run: GatewayRun, now: float) -> None:
        run.retired_by = now + self._settings.current.config.drain_timeout + DRAIN_SLACK_S
        run.process.terminate()
        self._retiring.append(run)

    def _kill(self, run: GatewayRun, cause: str) -> None:
        run.killed_because = cause
        event(log, logging.WARNING, "killing the gateway", pid=run.process.pid, cause=cause)
        run.process.kill()

    # Events of the loop.

    def _on_error(self, run: GatewayRun, error: Exception) -> None:
        """After a defect while its records or its end were handled: this process ends, and another one is started."""
        self._errors.add("handling what the gateway reported", error, {"pid": run.process.pid})
        if run in self._runs():
            self._stop_reading(run)
            self._kill(run, "what it reported could not be handled")

    def _stop_reading(self, run: GatewayRun) -> None:
        if run.reading:
            run.reading = False
            self._reactor.remove(run.process.records)

    def _on_records(self, run: GatewayRun) -> None:
        now = monotonic()
        try:
            for record in run.process.read_records():
                run.handle_record(record, now)
                if run is self._run and run.ready_at is not None and self.state is GatewayState.STARTING:
                    self._became_ready(run, now)
        except EOFError:
            self._stop_reading(run)  # it is about to end, or will be found to be silent
        except RecordError as error:
            self._stop_reading(run)
            self._kill(run, f"it wrote what the daemon cannot read: {error}")

    def _became_ready(self, run: GatewayRun, now: float) -> None:
        self._enter(GatewayState.READY, now)
        http, grpc = ",".join(self._listeners.http) or None, ",".join(self._listeners.grpc) or None
        event(log, logging.INFO, "gateway ready", pid=run.process.pid, http=http, grpc=grpc)
        if self._away_since is not None:
            away_s = round(now - self._away_since, 3)
            pid = run.process.pid
            self._history.keep(logging.INFO, EventKind.GATEWAY, "gateway serves again", pid=pid, away_s=away_s)
            self._away_since = None
        self._end_restarts(None)

    def _on_exit(self, run: GatewayRun) -> None:
        self._reactor.interrupt()
        now = monotonic()
        retired = run.retired_by is not None
        if run.reading:
            self._on_records(run)  # the last counts
        if retired:
            self._retiring.remove(run)
        else:
            self._run = None
        cause = self._release(run, expected=retired)
        ended = str(cause) if run.killed_because is None else f"killed because {run.killed_because}"
        if retired:
            event(log, logging.INFO, "gateway ended", pid=run.process.pid, cause=ended)
            if self.state is GatewayState.DRAINING and self.ended:
                self._enter(GatewayState.STOPPED, now)
            return
        self._died_at = now
        check = None if run.killed_because is not None else advice_after(cause)
        ready_for_s = None if run.ready_at is None else now - run.ready_at
        self._plan_start("gateway died", now, ready_for_s, pid=run.process.pid, cause=ended, check=check)
        if run.killed_because is not None and run.ready_at is None:
            # The next one is likely to hang as well. Half a minute apart, such deaths hardly ever exceed the budget,
            # and an operator would wait for ever.
            self._end_restarts(ended)

    def _release(self, run: GatewayRun, *, expected: bool) -> ExitCause:
        self._stop_reading(run)
        self._reactor.remove(run.process.pidfd)
        self._ended.add_ended(run.counts)
        return run.process.close(expected=expected)

    def _plan_start(self, message: str, now: float, ready_for_s: float | None, *, cause: str, **fields: Any) -> None:
        """There is no process any more: plans the next start, or none if there have been too many.

        Args:
            message: what happened.
            now: monotonic seconds.
            ready_for_s: how long the process had accepted connections; None if it never did.
            cause: why it happened.
            fields: of the line in the log.
        """
        if self._away_since is None:
            self._away_since = now
        delay = self._budget.spend(now, ready_for_s=ready_for_s)
        if delay is None:
            after = "the daemon serves without it; `multitower restart gateway` or `multitower reload` starts it again"
            cause = f"{cause}; {self._budget.policy}"
            self._note(logging.ERROR, f"{message} too often: it has failed", cause=cause, next=after, **fields)
            self._listeners.refuse()
            self._enter(GatewayState.FAILED, now, cause)
            return
        self.restarts += 1
        after = "starting it again" if delay == 0 else f"starting it again in {exact_duration(round(delay, 1))}"
        self._note(logging.WARNING, message, cause=cause, next=after, **fields)
        self._start_at = now + delay
        self._enter(GatewayState.BACKOFF, now, cause)
        if delay == 0:
            self._start(now)

    def _note(self, level: int, message: str, **fields: Any) -> None:
        self._history.note(log, level, EventKind.GATEWAY, message, **fields)

    def _enter(self, state: GatewayState, now: float, cause: str | None = None) -> None:
        if state is not self.state:
            self.state, self._state_since = state, now
        self.cause = cause
        if state in (GatewayState.WAITING, GatewayState.FAILED, GatewayState.DRAINING, GatewayState.STOPPED):
            self._end_restarts(cause or "the daemon is stopping")

    # The end.

    def drain(self, now: float) -> None:
        """Accepts no more connections; what has been accepted is answered, and then the process ends.

        Args:
            now: monotonic seconds.
        """
        if self._run is not None:
            run, self._run = self._run, None
            self._retire(run, now)
        self._enter(GatewayState.STOPPED if self.ended else GatewayState.DRAINING, now)

    @property
    def ended(self) -> bool:
        """Whether no process is left."""
        return not self._runs()

    def close(self) -> None:
        """Ends all processes at once, and waits until they have ended."""
        for run in self._runs():
            run.process.kill()
            self._release(run, expected=True)
        self._run = None
        self._retiring.clear()

    # For the status.

    @property
    def pid(self) -> int | None:
        """The present process; None if there is none."""
        return self._run.process.pid if self._run is not None else None

    @property
    def pids(self) -> tuple[int, ...]:
        """All of its processes that run."""
        return tuple(run.process.pid for run in self._runs())

    @property
    def missing(self) -> Mapping[str, str]:
        """Why addresses cannot be bound yet, or not again, by address."""
        return self._listeners.missing

    def total_counts(self) -> Counts:
        """Returns what all processes since the daemon's start have counted; it is up to a second old."""
        total = Counts()
        total.add_ended(self._ended)
        for run in self._runs():
            total.add_ended(run.counts)
            total.connections += run.counts.connections
            total.outstanding += run.counts.outstanding
        if self._run is not None:
            total.certificate_not_after = self._run.counts.certificate_not_after
        return total

    def report(self, now: float) -> dict[str, Any]:
        """The gateway in the reply to `MT1:status`; docs/protocol.md describes every key.

        Args:
            now: monotonic seconds.
        """
        counts = self.total_counts()
        return {
            "state": self.state.value,
            "state_for_s": round(max(0.0, now - self._state_since), 3),
            "cause": self.cause,
            "pid": self.pid,
            "http": self._listeners.http,
            "grpc": self._listeners.grpc,
            "connections": counts.connections,
            "outstanding": counts.outstanding,
            "requests": counts.requests,
            "errors": counts.errors,
            "restarts": self.restarts,
            "last_death_age_s": None if self._died_at is None else round(max(0.0, now - self._died_at), 3),
        }
