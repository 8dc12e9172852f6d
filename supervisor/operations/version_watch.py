"""Looks at the folders of versions while the daemon runs, and has the workers follow what changes there.

A look is an errand in a thread of its own, since file systems can be slow. What follows from it is a reload of that
model alone: slot by slot a new worker loads, and takes over. Where the new versions cannot be loaded the slots go back
to the former ones.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from multitower.spec import ONLY_VERSION, ModelSpec

from ..config.config import Config
from ..config.version_folders import Policy, fingerprint, versions_of
from ..loop.background import BackgroundJobs
from ..loop.log import event
from ..workers.manager import WorkerManager
from .orders import Orders
from .status import StatusReporter
from .version_settling import VersionSettling, worth_looking_at

log = logging.getLogger("multitower.daemon")


@dataclass(frozen=True, slots=True)
class Target:
    """A folder to look at.

    Attributes:
        name: the model's.
        path: the folder.
        policy: the model's.
        served: versions that are served.
        refused: versions that could not be loaded.
    """

    name: str
    path: str
    policy: Policy
    served: frozenset[str]
    refused: frozenset[str]


Look = Mapping[str, str] | OSError
"""What a look has shown: by version the fingerprint of its files; or why the folder cannot be read."""


def look(targets: Sequence[Target]) -> dict[str, Look]:
    """Looks at folders; for a thread. Models without numbered versions are left out."""
    found: dict[str, Look] = {}
    for target in targets:
        try:
            there = versions_of(target.path)
            if there is not None:
                wanted = worth_looking_at(there, target.policy, target.served, target.refused)
                found[target.name] = {version: fingerprint(target.path, version) for version in wanted}
        except OSError as error:
            found[target.name] = error
    return found


class Watch:
    """Follows the folders of versions.

    Args:
        worker_settings, reporter, orders, background: the daemon's.

    Attributes:
        due: when `tick` is to be called, in monotonic seconds.
    """

    def __init__(
        self, manager: WorkerManager, reporter: StatusReporter, orders: Orders, background: BackgroundJobs
    ) -> None:
        self._manager = manager
        self._reporter = reporter
        self._orders = orders
        self._background = background
        self._models: dict[str, VersionSettling] = {}
        self._complaints: dict[str, str] = {}
        self._config = orders.settings.config
        self._looking = False
        self.due = 0.0

    def tick(self, now: float) -> None:
        """Begins to look, where it is time to."""
        config = self._orders.settings.config
        if config is not self._config:
            self._reloaded(config)
        elif now < self.due:
            return
        self.due = now + config.watch.interval if config.watch.interval else inf
        if self._looking or self.due == inf or self._reporter.state != "running":
            return
        targets = self._targets()
        if targets:
            self._looking = True
            self._background.run(functools.partial(look, targets), functools.partial(self._seen, targets))

    def refused(self) -> dict[tuple[str, str], str]:
        """Why versions that are there are not served, by model and version."""
        return {
            (name, version): refused.cause
            for name, settling in self._models.items()
            for version, refused in settling.refused.items()
        }

    # How it is done.

    def _targets(self) -> list[Target]:
        return [
            Target(
                model.name,
                str(model.path),
                model.versions,
                frozenset(self._served(model.name)),
                frozenset(self._of(model.name).refused),
            )
            for model in self._orders.settings.config.models
            if any(spec.version is not None for spec in self._specs(model.name))
        ]

    def _reloaded(self, config: Config) -> None:
        """Models were read anew: what could not be loaded of them was tried once more, or is to be."""
        before = {id(model) for model in self._config.models}
        self._config = config
        names = {model.name for model in config.models}
        self._models = {name: settling for name, settling in self._models.items() if name in names}
        self._complaints = {name: problem for name, problem in self._complaints.items() if name in names}
        for model in config.models:
            # A model that was not read anew is the same object: `multitower load` takes one from the file.
            if id(model) not in before:
                self._of(model.name).try_again()

    def _of(self, name: str) -> VersionSettling:
        return self._models.setdefault(name, VersionSettling())

    def _specs(self, name: str) -> list[ModelSpec]:
        return [spec for spec in self._orders.settings.worker_settings.models if spec.name == name]

    def _served(self, name: str) -> dict[str, str]:
        """The fingerprints of the versions that are served, or may yet be."""
        refused = self._of(name).refused
        return {
            spec.version or ONLY_VERSION: spec.fingerprint
            for spec in self._specs(name)
            if (known := refused.get(spec.key[1])) is None or known.fingerprint != spec.fingerprint
        }

    def _seen(self, targets: Sequence[Target], outcome: dict[str, Look] | Exception) -> None:
        self._looking = False
        if isinstance(outcome, Exception):
            log.error("the folders of versions could not be looked at", exc_info=outcome)
            return
        now = time.monotonic()
        settings = self._orders.settings
        # What has been changed meanwhile may be about versions that were not looked at.
        as_before = {target.name for target in set(targets).intersection(self._targets())}
        for model in settings.config.models:
            seen = outcome.get(model.name)
            if seen is None or model.name not in as_before:
                continue
            if not self._readable(model.name, seen) or isinstance(seen, OSError):
                continue
            settling = self._of(model.name)
            settling.see(seen, now)
            if self._orders.changing or self._reporter.state != "running" or not self._specs(model.name):
                continue
            self._judge(model.name)
            served = self._served(model.name)
            change = settling.change(model.versions, served, settings.config.watch.settle, now)
            if change is not None:
                self._change(model.name, change, served)

    def _readable(self, name: str, seen: Look) -> bool:
        """Tells when a folder cannot be read, or holds no version any more: what is served goes on."""
        problem = "" if not isinstance(seen, OSError) else f"{seen.strerror or seen}: {seen.filename}"
        if not problem and not seen and self._served(name):
            problem = "its folder holds no version any more"
        if problem != self._complaints.get(name, ""):
            self._complaints[name] = problem
            if problem:
                event(log, logging.WARNING, "versions cannot be followed", model=name, cause=problem)
        return not problem

    def _judge(self, name: str) -> None:
        """Versions that no worker could load, since the daemon's start or a reload, make room for others."""
        for spec in self._specs(name):
            cause = self._reporter.failure(*spec.key)
            if cause is not None:
                self._of(name).refuse(spec.key[1], spec.fingerprint, cause)

    def _change(self, name: str, versions: Mapping[str, str], served: Mapping[str, str]) -> None:
        told = {"model": name, "versions": ",".join(versions), "before": ",".join(served)}
        event(log, logging.INFO, "versions change", **told)

        def ended(error: str | None) -> None:
            if error is None:
                event(log, logging.INFO, "versions changed", **told)
                return
            causes = {
                report.version: report.cause or error
                for slot in self._manager.slots
                for report in (*slot.refused, *slot.models)
                if report.name == name and report.state != "ready" and report.version in versions
            }
            self._of(name).failed(versions, causes or {"": error}, served)
            event(log, logging.ERROR, "versions not changed", **told, cause=error)

        self._orders.serve_versions(name, versions, ended)
