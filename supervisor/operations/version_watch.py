"""Scans the files of models while the daemon runs, and has the workers serve what changes there.

Each model is scanned by a background job, since file systems can be slow; one that does not answer delays no other
model. Where a scan finds a change, that model alone is reloaded: slot by slot a new worker loads the versions and takes
over. Where they cannot be loaded, the slots go back to the former ones.
A version whose files were only touched or copied is not reloaded: contents are compared first, in another job.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from math import inf

from multitower.spec import ONLY_VERSION, ModelSpec

from ..config.config import Config, ModelConfig
from ..loop.history import EventKind
from ..loop.log import event
from ..workers.planned_replacement_queue import Replacement
from .content_comparison import ContentComparison
from .memory_growth import has_grown
from .model_orders import ModelOrders
from .model_scan import FolderScan, Target, scan_model
from .order_queue import OrderContext
from .readiness import Readiness
from .version_settling import VersionSettling

log = logging.getLogger("multitower.daemon")


class VersionWatch:
    """Follows the files of all models: numbered versions, single models, and handlers beside the configuration.

    Args:
        context: the parts of the daemon.
        readiness: knows which versions could not be loaded.
        orders: has the workers serve other versions.

    Attributes:
        due: when `tick` must be called, in monotonic seconds.
    """

    def __init__(self, context: OrderContext, readiness: Readiness, orders: ModelOrders) -> None:
        self._lifecycle = context.lifecycle
        self._settings = context.settings
        self._queue = context.queue
        self._manager = context.manager
        self._background = context.background
        self._history = context.history
        self._known = context.manager.known_contents
        self._comparison = ContentComparison(context)
        self._readiness = readiness
        self._orders = orders
        self._models: dict[str, VersionSettling] = {}
        self._problems: dict[str, str] = {}
        self._lacked_memory: dict[str, int] = {}  # what was available when loading versions of the model was killed
        self._unreadable: dict[str, Mapping[str, str]] = {}
        self._config = context.settings.current.config
        self._scanning: set[tuple[str, str | None]] = set()  # names and paths of models whose scan has not ended
        self.due = 0.0

    def tick(self, now: float) -> None:
        """Begins to scan models, if it is time to.

        Args:
            now: monotonic seconds.
        """
        config = self._settings.current.config
        if config is not self._config:
            self._config_changed(config)
        elif now < self.due:
            return
        self.due = now + config.watch.interval if config.watch.interval else inf
        if self.due == inf or not self._lifecycle.running:
            return
        for model in config.models:
            target = self._target(model)
            if target is not None and target.key not in self._scanning:
                self._scanning.add(target.key)
                job = functools.partial(scan_model, target)
                self._background.run(job, functools.partial(self._scan_ended, target))

    def refused_versions(self) -> dict[tuple[str, str], str]:
        """Returns why versions in the folders are not served, by model and version."""
        unreadable = {
            (name, version): cause
            for name, versions in self._unreadable.items()
            for version, cause in versions.items()
            if version not in self._served(name)
        }
        return unreadable | {
            (name, version): refused.cause
            for name, settling in self._models.items()
            for version, refused in settling.refused.items()
        }

    def _target(self, model: ModelConfig) -> Target | None:
        """Returns what to scan of a model; None if it is not served."""
        specs = self._specs(model.name)
        if not specs:
            return None
        return Target(
            model.name,
            replace(specs[0], version=None, fingerprint=""),
            model.versions,
            frozenset(self._served(model.name)),
            frozenset(self._settling(model.name).refused),
            numbered=any(spec.version is not None for spec in specs),
        )

    def _config_changed(self, config: Config) -> None:
        """Forgets models that are gone, and tries refused versions of models that were read again."""
        before = {id(model) for model in self._config.models}
        self._config = config
        names = {model.name for model in config.models}
        self._models = {name: settling for name, settling in self._models.items() if name in names}
        self._problems = {name: problem for name, problem in self._problems.items() if name in names}
        self._unreadable = {name: versions for name, versions in self._unreadable.items() if name in names}
        for model in config.models:
            # `multitower load` reads one model again; the others are the same objects as before.
            if id(model) not in before:
                self._settling(model.name).retry_refused()

    def _settling(self, name: str) -> VersionSettling:
        return self._models.setdefault(name, VersionSettling())

    def _specs(self, name: str) -> list[ModelSpec]:
        """Returns the specifications of the model's versions in force, with the fingerprints that scans give them."""
        specs = [spec for spec in self._settings.current.worker_settings.models if spec.name == name]
        first = [self._known.first(spec.fingerprint) for spec in specs]
        # Once a second for each model: a copy is made only where something differs.
        return [
            spec if spec.fingerprint == fingerprint else replace(spec, fingerprint=fingerprint)
            for spec, fingerprint in zip(specs, first, strict=True)
        ]

    def _served(self, name: str) -> dict[str, str]:
        """Returns the fingerprints of the versions that are served or may yet be, by version."""
        refused = self._settling(name).refused
        return {
            spec.version or ONLY_VERSION: spec.fingerprint
            for spec in self._specs(name)
            if (known := refused.get(spec.key[1])) is None or known.fingerprint != spec.fingerprint
        }

    def _scan_ended(self, target: Target, outcome: FolderScan | Exception | None) -> None:
        name = target.name
        self._scanning.discard(target.key)
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
            log.error("the files of model %s could not be scanned", name, exc_info=outcome)
            return
        settings = self._settings.current
        model = next((model for model in settings.config.models if model.name == name), None)
        # If it changed meanwhile, it may have versions that were not scanned.
        if outcome is None or model is None or self._target(model) != target:
            return
        problem = self._scan_problem(name, outcome)
        self._log_problem(name, problem)
        if problem or isinstance(outcome, OSError):
            return
        now = time.monotonic()
        settling = self._settling(name)
        self._log_unreadable(name, outcome.unreadable)
        served = self._served(name)
        prints = {version: self._known.first(found) for version, found in outcome.prints.items()}
        # A version that is served, and cannot be read just now, stays as it is.
        prints |= {version: served[version] for version in outcome.unreadable if version in served}
        settling.record_scan(prints, now)
        if self._queue.busy or not self._lifecycle.running:
            return
        self._refuse_failed_versions(name, now)
        self._retry_with_more_memory(name)
        served = self._served(name)
        change = settling.wanted_change(model.versions, served, settings.config.watch.settle, now)
        if change is None:
            self._retry_waiting_slots(name, now)
        elif self._comparison.differs(self._specs(name), change):
            self._change(name, change, served)

    def _scan_problem(self, name: str, scan: FolderScan | OSError) -> str:
        """Returns why a scan cannot be followed, or ""; what is served stays as it is then."""
        if isinstance(scan, OSError):
            return f"{scan.strerror or scan}: {scan.filename}"
        if not scan.prints and not scan.unreadable and any(self._served(name).values()):
            numbered = any(spec.version is not None for spec in self._specs(name))
            return "its folder holds no version any more" if numbered else "its files are gone"
        return ""

    def _log_problem(self, name: str, problem: str) -> None:
        """Logs a problem with a folder once, until it changes or ends."""
        if problem != self._problems.get(name, ""):
            self._problems[name] = problem
            if problem:
                event(log, logging.WARNING, "model versions cannot be followed", model=name, cause=problem)

    def _retry_waiting_slots(self, name: str, now: float) -> None:
        """Gives new workers to slots that do not serve the model since its files changed, where they are as before."""
        settling, settle_s = self._settling(name), self._settings.current.config.watch.settle
        for slot in self._manager.slots:
            waiting = {model.key for model in slot.models if model.files_changed and model.name == name}
            if not self._manager.replacing and any(
                spec.key in waiting
                and settling.has_settled(spec.key[1], self._known.first(spec.fingerprint), settle_s, now)
                for spec in slot.specs
            ):
                self._manager.request_replacement(Replacement(slot, "files of a model are as before again"))

    def _log_unreadable(self, name: str, unreadable: Mapping[str, str]) -> None:
        """Logs versions that cannot be read once, until they can be."""
        before = self._unreadable.get(name, {})
        for version, cause in unreadable.items():
            if version not in before:
                event(log, logging.WARNING, "model version is left out", model=name, version=version, cause=cause)
        self._unreadable[name] = unreadable

    def _refuse_failed_versions(self, name: str, now: float) -> None:
        """Refuses versions that no worker could load since the start or a reload, so that others are chosen."""
        waiting = {model.key for slot in self._manager.slots for model in slot.models if model.files_changed}
        for spec in self._specs(name):
            if spec.key in waiting:
                continue
            cause = self._readiness.load_failure(*spec.key)
            if cause is not None:
                temporary = spec.key in self._temporary_failures(name)
                self._settling(name).refuse(spec.key[1], spec.fingerprint, cause, now if temporary else None)
            elif self._readiness.ready_slots(*spec.key) or self._readiness.is_loading(*spec.key):
                self._settling(name).accept(spec.key[1], spec.fingerprint)

    def _retry_with_more_memory(self, name: str) -> None:
        """Tries versions again whose loading was killed, once clearly more memory is available than there was then."""
        available = self._lacked_memory.get(name)
        if available is not None and has_grown(available, self._manager.available_bytes):
            del self._lacked_memory[name]
            self._settling(name).retry_refused()

    def _temporary_failures(self, name: str) -> set[tuple[str, str]]:
        """Returns the versions that a slot could not load for a reason that may pass by itself."""
        return {
            report.key
            for slot in self._manager.slots
            for report in (*slot.refused, *slot.models)
            if report.name == name and report.temporary
        }

    def _change(self, name: str, versions: Mapping[str, str], served: Mapping[str, str]) -> None:
        fields = {"model": name, "versions": ",".join(versions), "before": ",".join(served)}
        rewritten = versions.keys() == served.keys()
        event(log, logging.INFO, "loading changed files" if rewritten else "changing versions", **fields)

        for slot in self._manager.slots:
            slot.forget_failed_load()
        available = self._manager.available_bytes
        self._lacked_memory.pop(name, None)

        def ended(error: str | None) -> None:
            if error is not None and any(slot.killed_while_loading for slot in self._manager.slots):
                self._lacked_memory[name] = available
            if error is None:
                message = "changed files loaded" if rewritten else "versions changed"
                self._history.note(log, logging.INFO, EventKind.VERSION, message, **fields)
                return
            failed = [
                report
                for slot in self._manager.slots
                for report in (*slot.refused, *slot.models)
                if report.name == name and report.state != "ready" and report.version in versions
            ]
            # Slots that wait for other contents say nothing about these.
            causes = {report.version: report.cause or error for report in failed if not report.files_changed}
            now = time.monotonic()
            others = any(slot.refuses_other_models(name) for slot in self._manager.slots) and not failed
            if causes and all(served.get(version) == versions[version] for version in causes):
                others = True  # versions that are served, and are no reason to refuse the new ones
            if others or any(slot.short_of_resources for slot in self._manager.slots):
                self._settling(name).record_shortage(versions, error, served, now)
            elif failed and not causes:
                self._settling(name).settle_again(now)
            else:
                temporary = {version for _, version in self._temporary_failures(name)}
                self._settling(name).record_failed_change(versions, causes or {"": error}, served, temporary, now)
            message = "changed files not loaded" if rewritten else "versions not changed"
            self._history.note(log, logging.ERROR, EventKind.VERSION, message, **fields, cause=error)

        self._orders.serve_versions(name, versions, ended)
