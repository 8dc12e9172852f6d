"""The router: the daemon's data path between clients and workers.

It joins the clients' side (`clients`), the scheduler, which decides what runs where, and the connections to workers.
The daemon's loop calls `receive` when a front socket is readable, `receive_from_worker` when a worker's socket is, and
`flush` after each burst of events; nothing here blocks. The worker manager adds and removes workers, and reloads and
orders change the models.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from multitower import batch_results, wire, worker_wire
from multitower.errors import MultitowerError, Reason, from_wire, make
from multitower.spec import ModelReport

from ..loop.containment import ErrorLog
from ..scheduling.deaths import Death
from ..scheduling.pool import Rule
from ..scheduling.pool_worker import Batch, Served, Worker
from ..scheduling.queue import QueueLimits
from ..scheduling.scheduler import Scheduler, StateError
from . import shared_memory_regions
from .admission import Admission
from .batching_findings import BatchingFindings
from .clients import Clients, MetricsAnswerer, OrderTaker, QueryAnswerer
from .front_socket import FrontSocket, internal_error
from .observers import RequestObserver, record_run
from .recent import RefusedRequests
from .request_plans import RequestPlanner
from .routes import Route, models_of_towers
from .served_models import ServedModels
from .statistics import BatchTimes, ModelStatistics
from .unread import UnreadReplies
from .worker_connection import WorkerConnection, WorkerProtocolError
from .worker_totals import WorkerTotals

log = logging.getLogger("multitower.router")


class Router:
    """The data path of the daemon.

    Args:
        limits: the limits of each model's queue, by model name.
        timeouts: the longest time of a request in seconds, by model name.
        max_message_size: bytes that all frames of a request may have.
        dispatch: the rule that chooses the worker of a batch.
        unread: counts what clients leave unread, of all front sockets; by default with default limits.

    Attributes:
        fronts: the sockets that clients connect to.
        scheduler: the queues, the workers' load and the open requests.
        planner: the models as clients may ask for them.
        models: adds, changes and removes models and their versions, and has their statistics.
        routes: to each worker that serves.
        worker_totals: what the workers of each slot have done, by its number.
        batching: what workers have found out about how models may be batched.
        unread: as given.
        refused: requests that got an error without having been queued.
        observers: get the requests that they choose, when these are accepted and once they have their answers.
    """

    def __init__(
        self,
        limits: dict[str, QueueLimits],
        timeouts: dict[str, float],
        max_message_size: int,
        dispatch: Rule = Rule.EARLIEST_FINISH,
        unread: UnreadReplies | None = None,
    ) -> None:
        self._errors = ErrorLog(log)
        self.scheduler = Scheduler(limits, dispatch, self._errors.add)
        self.refused = RefusedRequests()
        self.planner = RequestPlanner(timeouts, self.scheduler.refusal_for_new_request, self.refused)
        self.fronts: list[FrontSocket] = []
        self._statistics = {model: defaultdict[str, ModelStatistics](ModelStatistics) for model in limits}
        self.routes: dict[Worker, Route] = {}
        self.worker_totals: dict[int, WorkerTotals] = {}
        self.batching = BatchingFindings(self.scheduler, self.planner, self.routes)
        self._routes_by_connection: dict[WorkerConnection, Route] = {}
        self.unread = unread or UnreadReplies()
        self.observers: list[RequestObserver] = []
        self._admission = Admission(
            self.scheduler, self.planner, max_message_size, self.unread, self.refused, self._errors, self.observers
        )
        self._clients = Clients(
            self.scheduler, self._admission, self.planner, self._statistics, self._errors, self.refused, self.observers
        )
        self.models = ServedModels(
            self.scheduler, self.planner, self.routes, self._statistics, self.refused, self._clients.send_replies
        )

    # Clients.

    def open(
        self,
        fronts: Sequence[FrontSocket],
        answer_query: QueryAnswerer,
        answer_metrics: MetricsAnswerer,
        take_order: OrderTaker,
    ) -> None:
        """Sets what `receive` needs.

        Args:
            fronts: the bound sockets.
            answer_query: answers the kinds other than `infer`, `cancel` and `metrics`.
            answer_metrics: answers `metrics`.
            take_order: gets the kinds that change something.
        """
        self.fronts = list(fronts)
        self._clients.answer_query = answer_query
        self._clients.answer_metrics = answer_metrics
        self._clients.take_order = take_order

    def receive(self, front: FrontSocket) -> None:
        """Reads a burst of requests from a front socket."""
        self._clients.receive(front)

    def start_draining(self, last: FrontSocket | None = None) -> None:
        """Refuses new requests for inference from now on; those that were accepted still get their answers.

        Args:
            last: a front socket whose requests are still accepted, until the next call without it; None for none.
        """
        self._admission.draining = True
        self._admission.drained_last = last

    # Workers.

    def add_worker(
        self,
        slot: int,
        device: str,
        connection: WorkerConnection,
        reports: Iterable[ModelReport],
        generations: Mapping[tuple[str, str], int],
        now: float,
    ) -> Route:
        """Adds a worker process: it gets batches from the next `flush` on.

        Args:
            slot: the number of its slot.
            device: the name of its device, or of several with commas between them.
            connection: to the process.
            reports: what it has loaded, one for each version of a model.
            generations: at least those of these versions, by the model's name and the version; see `Served`.
            now: monotonic seconds.

        Returns:
            The route to its first tower, which has all models.
        """
        reports = sorted(reports, key=_version_number)
        # Counted over all that it has loaded, since some models may have been removed from the configuration.
        towers = max([len(report.towers) for report in reports], default=1) or 1
        by_model: dict[str, list[ModelReport]] = {}
        for report in reports:
            if report.name in self.scheduler.models:
                by_model.setdefault(report.name, []).append(report)
        served: dict[tuple[str, str], Served] = {}
        for name, of_model in by_model.items():
            served.update(self.models.admit_versions(of_model, generations))
            self.scheduler.mark_available(name)
        models = models_of_towers(towers, by_model, served)
        batch_times, totals = BatchTimes(), self.worker_totals.setdefault(slot, WorkerTotals())
        routes = [
            Route(worker, connection, by_model, batch_times, totals, _tower_head(tower, towers))
            for tower, worker in enumerate(self.scheduler.add_process(slot, device, models, now))
        ]
        for route in routes:
            route.towers = routes
            self.routes[route.worker] = route
        self._routes_by_connection[connection] = routes[0]
        return routes[0]

    def remove_worker(
        self, route: Route, now: float, *, crashed: bool, begun: Sequence[int], death: Death | None = None
    ) -> bool:
        """Removes a worker process that has ended and whose messages have all been read.

        Args:
            route: to any of its towers.
            now: monotonic seconds.
            crashed: whether a request may have caused its end.
            begun: for each tower the id of the batch that it began last.
            death: how it ended; None if unknown.

        Returns:
            Whether a request that ran alone caused its end.
        """
        for worker in route.workers:
            del self.routes[worker]
        del self._routes_by_connection[route.connection]
        for model in route.worker.serves:
            left = [other for other in self.routes.values() if model in other.worker.serves]
            newest = self.planner.newest_interface(model)
            if left and all(other.worker.serves[model][:2] != newest for other in left):
                # Requests must be checked against what is served, which is not what was added last. The reports are of
                # all that the process has loaded, and only its first tower is sure to have all of that.
                first = left[-1].towers[0]
                generations = {key: served.generation for key, served in first.worker.versions.items()}
                self.models.admit_versions(first.reports[model], generations)
        suspect_to_blame = self.scheduler.remove_process(route.worker, now, crashed=crashed, begun=begun, death=death)
        self.models.remove_due()
        return suspect_to_blame

    # Results.

    def receive_from_worker(self, connection: WorkerConnection) -> bool:
        """Writes and reads as much as can be at once, and handles the messages that a worker process has sent.

        A result is handled here. Any other message goes to `connection.on_message`; when a result cannot be handled,
        `connection.on_error` gets the error.

        Returns:
            Whether anything had arrived.

        Raises:
            WorkerProtocolError: what has arrived is no message.
        """
        connection.write()
        arrived = connection.read()
        while (message := connection.receive()) is not None:
            arrived = True
            if bytes(message[0])[:1] != worker_wire.RESULT:
                connection.on_message(message)
                continue
            route = self._routes_by_connection.get(connection)
            if route is not None:
                try:
                    self.handle_result(route, message)
                except WorkerProtocolError as error:
                    connection.on_error(error)
        return arrived

    def handle_result(self, route: Route, message: list[Any]) -> None:
        """Handles the result of a batch.

        Args:
            route: to any tower of the process that sent it.
            message: a RESULT of `worker_wire`.

        Raises:
            WorkerProtocolError: the message is malformed, the process was not executing that batch, or it has not
                answered all of it.
            StateError: the scheduler failed.
        """
        try:
            result = batch_results.read_result(message)
            answers = [_model_error(entry) if isinstance(entry, bytes) else entry for entry in result.answers]
        except Exception as error:
            raise WorkerProtocolError("a result that cannot be read") from error
        if len(route.towers) > 1:
            route = next((each for each in route.towers if each.executes(result.batch_id)), route)
        now = time.monotonic()
        # Assembling its inputs counts as part of the way to the worker, since it can overlap with another batch.
        timing = result.timing
        busy_s = (timing.compute_ns + timing.slice_ns) / 1e9
        try:
            batch = self.scheduler.finish(route.worker, result.batch_id, answers, now, busy_s)
        except Exception as error:
            raise StateError("the scheduler failed in finish") from error
        if batch is None:
            raise WorkerProtocolError(f"answers to batch {result.batch_id}, which it was not executing")
        if self.observers:
            record_run(batch, now, timing.assemble_ns, timing.compute_ns, timing.slice_ns)
        route.batches += 1
        route.batch_times.add(now, now - batch.started, batch.rows)
        route.totals.add(now - batch.started, batch.rows)
        failed = 0
        for answer in answers:
            if isinstance(answer, MultitowerError):
                failed += 1
        batches = len(answers)
        if batch.key.max_batch_size:
            batches, failed = 1, int(failed == batches)
        self._statistics[batch.key.spec.model][batch.requests[0].version].count_batches(
            batches, batch.rows, len(answers), timing.assemble_ns, timing.compute_ns, timing.slice_ns, failed
        )

    # Batches and replies.

    def flush(self, now: float) -> None:
        """Sends batches to free workers and replies to clients; call it after each burst of events."""
        self.scheduler.expire(now)
        self._admission.refuse_waiting(now)
        for batch in self.scheduler.dispatch(now):
            try:
                self._send(batch)
            except Exception as error:  # noqa: BLE001  it is logged
                # Only the requests of this batch fail; the worker has not got them.
                fields = {"model": batch.key.spec.model, "slot": batch.worker.slot}
                self._errors.add("sending a batch", error, fields)
                self.scheduler.fail_batch(batch, internal_error(), now)
        self._clients.send_replies()

    def set_max_regions(self, maximum: int) -> None:
        """Sets how many regions of shared memory may be open at one time."""
        self._admission.regions.maximum = maximum

    def tick(self, now: float) -> None:
        """Does periodic work; call it about once a second."""
        self._admission.regions.close_idle(now)
        self.unread.tick(now)
        self.refused.tick(now)
        for of_model in self._statistics.values():
            for statistics in of_model.values():
                statistics.tick(now)
        running = dict.fromkeys(self.worker_totals, 0.0)
        for worker, route in self.routes.items():
            if worker is worker.towers[0]:
                running[worker.slot] += sum(route.running_s(now))
        for slot, running_s in running.items():
            self.worker_totals[slot].tick(now, running_s)

    def _send(self, batch: Batch) -> None:
        route = self.routes[batch.worker]
        key = batch.key
        joined = route.known_keys.get(key.id)
        if joined is not None:
            _send_to_worker(route.connection, [*route.head, *_batch_message(batch, joined, ())])
            return
        joined = worker_wire.travels_joined(key.spec)
        description = key.spec.to_json()
        _send_to_worker(route.connection, [*route.head, *_batch_message(batch, joined, (description,))])
        # The worker remembers the key, now that it has got it.
        route.known_keys.put(key.id, joined, len(description))


def _send_to_worker(connection: WorkerConnection, message: list[Any]) -> None:
    """Sends a message; reports the connection as broken if its socket fails, so that the process is replaced.

    Otherwise its worker would count as idle, and get the next batches too.
    """
    try:
        connection.send(message)
    except (OSError, MemoryError) as error:
        connection.on_error(error)
        raise


def _batch_message(batch: Batch, joined: bool, description: Sequence[bytes]) -> list[Any]:
    """The message to a worker for a batch.

    Args:
        batch: to be sent.
        joined: whether inputs travel joined, where none is in shared memory.
        description: of its key; empty where the worker knows the key.
    """
    requests = batch.requests
    for request in requests:
        if request.shared:
            return shared_memory_regions.batch_message(batch, description)
    if joined:
        frames = worker_wire.join_frames([request.frames for request in requests])
    else:
        frames = [frame for request in requests for frame in request.frames]
    rows = [request.rows for request in requests]
    head = worker_wire.batch_head(batch.id, batch.key.id, rows, joined=joined, described=bool(description))
    return [head, *description, *frames]


def _tower_head(tower: int, towers: int) -> list[bytes]:
    return [worker_wire.tower_head(tower)] if towers > 1 else []


def _version_number(report: ModelReport) -> int:
    return int(report.version)


def _model_error(header: bytes) -> MultitowerError:
    """The error in a result's entry."""
    try:
        return from_wire(wire.load_header(header))
    except MultitowerError as error:
        # Handlers choose the details of their errors freely.
        return make(Reason.MODEL_ERROR, f"the model's error cannot be read: {error.message}")
