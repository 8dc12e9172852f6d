"""What workers have found out about how a model may be batched, kept for all workers and for their successors.

A finding holds for one generation of a model version: a reload that changes the model or its configuration starts
without it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from multitower.spec import ModelReport, SignatureReport

from ..scheduling.pool_worker import Worker
from ..scheduling.scheduler import Scheduler
from .request_plans import RequestPlanner
from .routes import Route


class BatchingFindings:
    """The findings of all workers, and what follows from them for workers that serve.

    Args:
        scheduler: has the workers and the open requests.
        planner: makes plans for requests.
        routes: to each worker that serves.
    """

    def __init__(self, scheduler: Scheduler, planner: RequestPlanner, routes: Mapping[Worker, Route]) -> None:
        self._scheduler = scheduler
        self._planner = planner
        self._routes = routes
        # By model version and generation, and then by signature.
        self._unbatched: dict[tuple[tuple[str, str], int], dict[str, str]] = {}
        self._compared: dict[tuple[tuple[str, str], int], dict[str, str | None]] = {}

    def complete_report(self, report: ModelReport, generation: int) -> ModelReport:
        """The report of a worker, with what all workers have found out about this generation of the model."""
        unbatched = self._unbatched.get((report.key, generation), {})
        compared = self._compared.get((report.key, generation), {})
        if not unbatched and not compared:
            return report
        if "" in unbatched:
            report = replace(report, max_batch_size=0, unbatched_because=unbatched[""], unverified_because=None)
        elif "" in compared:
            report = replace(report, unverified_because=compared[""])
        signatures: list[SignatureReport] = []
        for other in report.signatures:
            if other.name in unbatched:
                because = unbatched[other.name]
                other = replace(other, max_batch_size=0, unbatched_because=because, unverified_because=None)
            elif other.name in compared:
                other = replace(other, unverified_because=compared[other.name])
            signatures.append(other)
        return replace(report, signatures=tuple(signatures))

    def add_unbatched(self, key: tuple[str, str], generation: int, signature: str, because: str) -> bool:
        """Adds a finding: requests run unbatched on all workers that serve this generation now, or will.

        Requests that wait run unbatched, too.

        Args:
            key: the model's name and the version.
            generation: of the version; see `Served`.
            signature: the name of the signature; "" for the default one.
            because: what a worker has found out.

        Returns:
            Whether it was not known before.
        """
        unbatched = self._unbatched.setdefault((key, generation), {})
        if signature in unbatched:
            return False
        unbatched[signature] = because
        self._apply(key, generation)
        return True

    def add_comparison(
        self, key: tuple[str, str], generation: int, signature: str, unverified_because: str | None
    ) -> None:
        """Adds what a comparison of values in batches of requests has shown.

        Args:
            key: see `add_unbatched`.
            generation: likewise.
            signature: likewise.
            unverified_because: why it could not show that requests may share batches; None where it has.
        """
        self._compared.setdefault((key, generation), {})[signature] = unverified_because
        self._apply(key, generation)

    def retain_generations(self, generations: Collection[int]) -> None:
        """Removes what is known of all other generations: no worker has them any more, or will have them."""
        for findings in (self._unbatched, self._compared):
            for known in [known for known in findings if known[1] not in generations]:
                del findings[known]

    def _apply(self, key: tuple[str, str], generation: int) -> None:
        """Changes what the workers of a generation serve, and the plans of its requests."""
        name, version = key
        report: ModelReport | None = None
        interface = 0
        for route in self._routes.values():
            served = route.worker.versions.get(key)
            if served is not None and served.generation == generation:
                interface = served.interface
                of_model = route.reports[name]
                number = next(number for number, each in enumerate(of_model) if each.key == key)
                report = of_model[number] = self.complete_report(of_model[number], generation)
        if report is None:
            return  # no worker serves it yet
        changed = self._planner.interface_of(report) != interface
        if changed:
            self._scheduler.change_interface(name, version, generation, self._planner.interface_of(report))
        newest_report = self._planner.catalog.newest.get(name)
        described = self._planner.generation_of(key)
        if newest_report is None or (described is not None and described != generation):
            return  # it is being unloaded, or another generation replaces it and answers the requests that wait
        newest = newest_report.version == version
        if described is not None:  # otherwise it was withdrawn, and this worker runs the requests that wait
            self._planner.add_version(report, newest=newest, generation=generation)
        if changed:
            versions = (version, "") if newest else (version,)
            change_plan = functools.partial(self._planner.change_plan, report=report)
            self._scheduler.replan(name, interface, versions, change_plan)


def reasons_in(report: ModelReport) -> Iterator[tuple[str, str]]:
    """The signatures that run unbatched although batching is configured, and why; "" for the default signature."""
    if report.unbatched_because is not None:
        yield "", report.unbatched_because
    for other in report.signatures:
        if other.unbatched_because is not None:
            yield other.name, other.unbatched_because
