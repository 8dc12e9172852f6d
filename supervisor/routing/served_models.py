"""The models and versions that the router serves: added, changed, withdrawn and removed by reloads, orders and workers.

Whether a model is served decides which requests are refused, and how long its statistics are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from multitower.spec import ModelReport

from ..scheduling.pool_worker import Served, Worker
from ..scheduling.queue import QueueLimits
from ..scheduling.scheduler import Scheduler
from .recent import RefusedRequests
from .request_plans import RequestPlanner
from .routes import Route
from .statistics import ModelStatistics


class ServedModels:
    """The models of the router, and their versions.

    Args:
        scheduler: the router's.
        planner: likewise.
        routes: likewise, to each worker that serves.
        statistics: by model name and version.
        refused: requests that got an error without having been queued.
        send_replies: sends the replies that the scheduler has.

    Attributes:
        statistics: as given.
        removed_statistics: by model name, of all versions that are not served any more.
        to_remove: models that are refused as unknown once their last worker is withdrawn.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        planner: RequestPlanner,
        routes: Mapping[Worker, Route],
        statistics: dict[str, defaultdict[str, ModelStatistics]],
        refused: RefusedRequests,
        send_replies: Callable[[], None],
    ) -> None:
        self.statistics = statistics
        self.removed_statistics: dict[str, ModelStatistics] = {}
        self.to_remove: set[str] = set()
        self._scheduler = scheduler
        self._planner = planner
        self._routes = routes
        self._refused = refused
        self._send_replies = send_replies
        self._removals_due: set[str] = set()  # once no worker has them any more

    def set_model(self, name: str, limits: QueueLimits, timeout_s: float) -> None:
        """Adds a model, or changes the limits of its queue and the longest time of its requests."""
        self._removals_due.discard(name)
        self._scheduler.set_limits(name, limits)
        self._planner.set_timeout(name, timeout_s)
        self.statistics.setdefault(name, defaultdict(ModelStatistics))

    def set_labels(self, labels: Mapping[str, Mapping[str, str]]) -> None:
        """Sets the version labels of all models: by model name, the version that each label names."""
        for name in self._scheduler.models:
            self._planner.set_labels(name, {label: [version] for label, version in labels.get(name, {}).items()})

    def set_label_candidates(self, model: str, labels: Mapping[str, Sequence[str]]) -> None:
        """Sets for each label of a model its versions; it names the first of them that is served."""
        self._planner.set_labels(model, labels)

    def labels(self, model: str) -> dict[str, str]:
        """The version that each label of the model names, served or not."""
        return self._planner.catalog.labels(model)

    def versions(self, model: str) -> list[str]:
        """The served versions of the model, ascending."""
        return self._planner.catalog.versions(model)

    def report(self, model: str, version: str) -> ModelReport | None:
        """The description of a served version, or None."""
        return self._planner.catalog.report(model, version)

    def find_report(self, model: str, version: str, label: str) -> ModelReport | None:
        """The description that requests for this model, version and label are checked against.

        See `RequestPlanner.find_report`.
        """
        return self._planner.find_report(model, version, label)

    def retain_models(self, names: Collection[str]) -> None:
        """Removes all other models; what waits for them is answered.

        A model that a worker still serves, and may be executing, is removed when its last worker is.
        """
        self._removals_due = {name for name in self._scheduler.models if name not in names}
        self.remove_due()

    def remove_due(self) -> None:
        """Removes the models that are not retained, as far as no worker serves them any more."""
        served = {name for worker in self._routes for name in worker.serves}
        for name in self._removals_due - served:
            self._removals_due.discard(name)
            self._planner.remove_model(name)
            self._scheduler.remove_model(name)
            self._send_replies()  # before the statistics, which count them, are removed
            del self.statistics[name]
            self.removed_statistics.pop(name, None)
            self._refused.remove_model(name)

    def close_model(self, name: str) -> None:
        """Refuses new requests for a model that will be unloaded; accepted ones still get their answers."""
        self._scheduler.close_model(name)

    def open_model(self, name: str) -> None:
        """Accepts requests for a model that is loaded, or will be."""
        self._scheduler.open_model(name)

    def finish_unload(self, name: str) -> None:
        """Removes the versions of a closed model that no worker has any more; what waits for it is answered."""
        self._scheduler.mark_unavailable(name, "it was unloaded")
        self._planner.remove_versions(name)
        self._send_replies()  # before the statistics, which count them, end
        self._end_statistics(name)

    def admit_versions(
        self, reports: Sequence[ModelReport], generations: Mapping[tuple[str, str], int]
    ) -> dict[tuple[str, str], Served]:
        """Admits requests for the versions of one model.

        Args:
            reports: of the versions, the newest last.
            generations: at least theirs, by the model's name and the version; see `Served`.

        Returns:
            What each version is served as.

        Raises:
            KeyError: the generation of a version is missing; the versions before it have been admitted.
        """
        return {
            report.key: self._planner.add_version(
                report, newest=report is reports[-1], generation=generations[report.key]
            )
            for report in reports
        }

    def withdraw_versions(self, route: Route, coming: Collection[tuple[str, str]] = ()) -> None:
        """Refuses new requests for versions that only this worker process serves; it can still run those that wait.

        Args:
            route: to the process.
            coming: models and versions that a worker which is being started will serve.
        """
        others = [worker for worker in self._routes if worker not in route.workers and not worker.retiring]
        kept = {key for worker in others for key in worker.versions}.union(coming)
        for model in route.worker.serves:
            if model in self._scheduler.models:
                versions = {version for name, version in kept if name == model}
                self._retain_versions_of(model, versions)
                if model in self.to_remove and not versions:
                    self._planner.remove_model(model)

    def retain_versions(self, keys: Collection[tuple[str, str]]) -> None:
        """Removes all other versions of the models that occur in `keys`; what waits for them is answered.

        Args:
            keys: the models and versions that are served, or will be.
        """
        for model in self._scheduler.models:
            versions = {version for name, version in keys if name == model}
            if versions and not versions.issuperset(self._planner.catalog.versions(model)):
                self._retain_versions_of(model, versions)
                self._scheduler.refuse_versions(model, versions)

    def _retain_versions_of(self, model: str, versions: Collection[str]) -> None:
        self._planner.retain_versions(model, versions)
        self._end_statistics(model)

    def _end_statistics(self, model: str) -> None:
        """Ends the statistics of each version that is not served any more."""
        statistics = self.statistics[model]
        # Those without a version count requests that no version has answered, which goes on.
        for version in statistics.keys() - {"", *self._planner.catalog.versions(model)}:
            self.removed_statistics.setdefault(model, ModelStatistics()).add_removed(statistics.pop(version))
