"""What an operator can order of a running daemon: a reload of its configuration, a new worker for a slot."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Mapping
from typing import Any

from multitower.errors import MultitowerError, Reason, make

from ..config.config import Config
from ..config.source import ConfigError
from ..loop.background import BackgroundJobs
from ..loop.log import event
from ..machine import devices
from ..routing.router import Router
from ..settings import Settings, build_settings
from ..workers.manager import WorkerManager
from .control import Done
from .reload import Reload, why_not
from .status import StatusReporter

log = logging.getLogger("multitower.daemon")


class Orders:
    """Carries out orders; what changes the settings, one after the other.

    Args:
        worker_settings, router, reporter: the daemon's.
        background: runs what would keep the loop waiting.
        settings: what the daemon was started with.
        read_config: reads the configuration anew.
        begun: called when a reload begins.
        ended: called when it has ended, whatever came of it.

    Attributes:
        settings: what applies now.
        reloading: a reload is under way, or waits for its turn.
    """

    def __init__(
        self,
        manager: WorkerManager,
        router: Router,
        reporter: StatusReporter,
        background: BackgroundJobs,
        settings: Settings,
        read_config: Callable[[], Config],
        begun: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self._manager = manager
        self._router = router
        self._reporter = reporter
        self._background = background
        self.settings = settings
        self._read_config = read_config
        self._begun = begun
        self._ended = ended
        self.reloading = False
        self._reload_again = False
        self._turns: collections.deque[Callable[[], None]] = collections.deque()

    def in_turn(self, job: Callable[[], None]) -> None:
        """Begins a job that changes the settings when those before it have ended; it ends with `turn_over`."""
        self._turns.append(job)
        if len(self._turns) == 1:
            job()

    @property
    def changing(self) -> bool:
        """Something that changes the settings is under way."""
        return bool(self._turns)

    def turn_over(self) -> None:
        """The job whose turn it was has ended."""
        self._turns.popleft()
        if self._turns:
            self._turns[0]()

    def reload(self, done: Done) -> None:
        """Reads and checks the configuration in a thread, then applies it."""
        if self._reporter.state != "running":
            done(make(Reason.DRAINING, "the daemon is stopping"))
            return
        if self.reloading:
            # Whoever asks again has changed the file again.
            self._reload_again = True
            done(make(Reason.DRAINING, "a reload is under way; another one follows it", retry_after_ms=1000))
            return
        self.reloading = True
        self.in_turn(lambda: self._read(done))

    def _read(self, done: Done) -> None:
        self._begun()
        event(log, logging.INFO, "reloading", config=self.settings.config.path)
        self._background.run(lambda: build_settings(self._read_config()), lambda outcome: self._apply(outcome, done))

    def _apply(self, outcome: Settings | Exception, done: Done) -> None:
        if isinstance(outcome, Settings):
            # The daemon may have been told to end meanwhile.
            outcome = outcome.keeping_loaded({spec.name for spec in self.settings.worker_settings.models})
            running = self._reporter.state == "running"
            refusal = why_not(self.settings, outcome) if running else "the daemon is stopping"
            if refusal is None:
                Reload(
                    self._manager,
                    self._router,
                    self._reporter,
                    self.settings,
                    outcome,
                    lambda changed, error: self._reloaded(outcome, changed, error, done),
                ).start()
                return
        else:
            refusal = why_refused(outcome)
        self.reloading = False
        event(log, logging.ERROR, "not reloaded: nothing has changed", cause=refusal)
        done(refused(refusal))
        self._after()

    def _reloaded(self, new: Settings, changed: dict[str, Any], error: str | None, done: Done) -> None:
        self.reloading = False
        if error is None:
            self.settings = new
            done(changed)
        else:
            done(make(Reason.MODEL_ERROR, f"the reload ended early: {error}", **changed))
        self._after()

    def serve_versions(self, name: str, versions: Mapping[str, str], ended: Callable[[str | None], None]) -> None:
        """Has the workers serve other versions of one model; to be called while nothing is `changing`.

        Where they cannot be loaded, the slots that have them already get the former ones back.

        Args:
            name: the model's.
            versions: which, each with its fingerprint.
            ended: is told of the end: None, or why they are not served.
        """
        self.in_turn(lambda: self._serve_versions(name, versions, ended))

    def _serve_versions(self, name: str, versions: Mapping[str, str], ended: Callable[[str | None], None]) -> None:
        old, new = self.settings, self.settings.with_versions(name, versions)
        self._begun()

        def over(_: dict[str, Any], __: str | None) -> None:
            self._ended()
            self.turn_over()

        def done(changed: dict[str, Any], error: str | None) -> None:
            ended(error)
            if error is None:
                self.settings = new
                over(changed, None)
            else:
                back = "back to the former versions"
                Reload(self._manager, self._router, self._reporter, new, old, over, back, tolerant=True).start()

        Reload(self._manager, self._router, self._reporter, old, new, done, "other versions", tolerant=True).start()

    def _after(self) -> None:
        self._ended()
        self.turn_over()
        if self._reload_again:
            self._reload_again = False
            self.reload(lambda _: None)

    def restart(self, number: int, done: Done) -> None:
        """Gives a slot a new worker; `done` is told when that serves, or why it does not."""
        slot = next((slot for slot in self._manager.slots if slot.number == number), None)
        if self._reporter.state != "running":
            done(make(Reason.DRAINING, "the daemon is stopping"))
        elif slot is None:
            known = ", ".join(str(slot.number) for slot in self._manager.slots)
            done(make(Reason.MALFORMED, f"there is no slot {number}, only {known}", field="slot"))
        elif not slot.specs:
            done(make(Reason.MALFORMED, f"slot {number} has no model to load", field="slot"))
        else:

            def ended(error: str | None) -> None:
                told = {"slot": number, "pid": slot.process.child.pid if slot.process is not None else None}
                done(told if error is None else make(Reason.NO_WORKER, f"slot {number}: {error}"))

            self._manager.restart(slot, ended)


def why_refused(error: Exception) -> str:
    """Why settings could not be made of a configuration."""
    if not isinstance(error, ConfigError | devices.DeviceError | OSError):
        log.error("the configuration could not be read", exc_info=error)
    return str(error)


def refused(why: str) -> MultitowerError:
    """The answer to an order that has changed nothing."""
    return make(Reason.MALFORMED, f"the configuration is refused, and nothing has changed: {why}")
