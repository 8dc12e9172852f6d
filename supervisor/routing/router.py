"""Between clients and workers: reads requests, admits them, sends batches, gives answers.

The shell around `admission` (what is taken), `balancer` (who gets it) and `answers` (all that is not inference).
The daemon's loop calls `receive` when a front socket is readable, `result` when a worker has answered, and `flush`
after each burst of events; nothing in here waits.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multitower import wire, worker_wire
from multitower.errors import MultitowerError, Reason, from_wire, make
from multitower.spec import ModelReport

from ..scheduling.pool import Rule
from ..scheduling.queue import Batch, QueueLimits
from ..scheduling.request import Plan, Request, SharedRequest
from ..scheduling.scheduler import Scheduler
from ..scheduling.worker import Served, Worker
from . import regions
from .admission import Admission
from .front_socket import FrontSocket, Incoming
from .request_checks import check_frames
from .statistics import BatchTimes, ModelStatistics
from .worker_connection import WorkerConnection, WorkerProtocolError

log = logging.getLogger("multitower.router")

BURST = 256
"""Messages read from one front socket before the others, the workers and the timers have their turn."""

BURST_S = 0.005
"""The same in seconds: a large header of its own takes milliseconds to read."""


@dataclass(slots=True, eq=False)
class Route:
    """A worker that serves.

    Attributes:
        worker: its place in the balancer.
        connection: to its process.
        reports: what that has loaded of each model, the newest version last.
        batch_times: the last batches of all its towers.
        head: the frames in front of each batch: which tower it is for, where there are several.
        keys: those that its end knows.
        batches: answered.
        towers: the channels of its process, it among them, tower by tower.
    """

    worker: Worker
    connection: WorkerConnection
    reports: dict[str, list[ModelReport]]
    batch_times: BatchTimes
    head: list[bytes]
    keys: worker_wire.KeyMemory = field(default_factory=worker_wire.KeyMemory)
    batches: int = 0
    towers: list[Route] = field(default_factory=list)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Those of its process, tower by tower."""
        return self.worker.towers

    def executes(self, batch_id: int) -> bool:
        """Its worker is at that batch."""
        return self.worker.batch is not None and self.worker.batch.id == batch_id

    @property
    def depth(self) -> int:
        """Rows that its process has not answered yet."""
        return sum(worker.depth for worker in self.workers)

    @property
    def completed(self) -> int:
        """Rows that its process has answered."""
        return sum(worker.completed for worker in self.workers)

    @property
    def requests(self) -> int:
        """Requests that its process has answered."""
        return sum(worker.requests for worker in self.workers)


class Router:
    """The data path of the daemon.

    Args:
        limits: of each model's queue, by model name.
        timeouts: seconds a request of each model may take.
        max_message_size: bytes over all frames of a message.
        answer: answers the kinds other than `infer` and `cancel`: takes kind and header, returns the reply's
            header, or raises a `MultitowerError`.
        dispatch: the rule by which workers get batches.

    Attributes:
        draining: no new request is taken.
        rejected: requests that got an error without having been queued.
        statistics: of each model and version.
        regions: shared memory of local clients.
        leaving: models that are refused as unknown once their last worker goes.
    """

    def __init__(
        self,
        limits: dict[str, QueueLimits],
        timeouts: dict[str, float],
        max_message_size: int,
        answer: Callable[[bytes, dict[str, Any]], dict[str, Any]],
        dispatch: Rule = Rule.EARLIEST_FINISH,
    ) -> None:
        self.scheduler = Scheduler(limits, dispatch)
        self.admission = Admission(timeouts, self.scheduler.refusal_for_new_request)
        self.fronts: list[FrontSocket] = []
        self.regions = regions.Regions()
        self.statistics = {model: defaultdict[str, ModelStatistics](ModelStatistics) for model in limits}
        self.routes: dict[Worker, Route] = {}
        self._routes_by_connection: dict[WorkerConnection, Route] = {}
        self.draining = False
        self.rejected = 0
        self.leaving: set[str] = set()
        self._max_message_size = max_message_size
        self._answer = answer

    # Clients.

    def receive(self, front: FrontSocket) -> None:
        """Reads a burst of requests."""
        until = time.monotonic() + BURST_S
        for count in range(BURST):
            incoming = front.receive()
            if incoming is None:
                return
            self._take(front, incoming)
            if count % 8 == 0:
                if not front.readable:
                    return
                if time.monotonic() > until:
                    break
        front.recheck()  # there may be more

    def _take(self, front: FrontSocket, incoming: Incoming) -> None:
        address, body = incoming
        id = b""
        try:
            if body is None:
                raise make(Reason.MALFORMED, "no empty delimiter frame before the request", field="envelope")
            if len(body) < 2:
                raise make(Reason.MALFORMED, "a request has at least a kind and an id", field="id")
            kind = body[0]
            id = _readable_id(body[1])
            if kind == wire.INFER:
                self._infer(front, address, id, body)
            else:
                self._other(front, address, id, body)
        except MultitowerError as error:
            self._reject(front, address, id, error)
        except Exception:
            # A defect of ours. It must cost one request an error, not all clients their daemon.
            log.exception("a request could not be read")
            self._reject(front, address, id, make(Reason.MODEL_ERROR, "the daemon failed to read the request"))

    def _reject(self, front: FrontSocket, address: tuple[bytes, ...], id: bytes, error: MultitowerError) -> None:
        self.rejected += 1
        front.reply(address, wire.ERROR, id, (wire.dump_json(error.to_wire()),))

    def _infer(self, front: FrontSocket, address: tuple[bytes, ...], id: bytes, body: list[Any]) -> None:
        if self.draining:
            raise make(Reason.DRAINING, "the daemon is stopping")
        if len(body) < 3:
            raise make(Reason.MALFORMED, "a request has a header frame behind its id", field="header")
        header = body[2]
        sizes = [len(frame) for frame in body[3:]]
        size = sum(sizes)
        self._check_size(size + len(header))
        plan = self.admission.plan(header if type(header) is bytes else bytes(header))
        if plan.shared is not None:
            self._infer_shared(front, address, id, plan, body)
            return
        check_frames(plan, sizes)
        frames = [body[3 + index] for index in plan.order]
        self.scheduler.submit(Request((front, address), id, plan, frames, size, time.monotonic()))

    def _infer_shared(
        self, front: FrontSocket, address: tuple[bytes, ...], id: bytes, plan: Plan, body: list[Any]
    ) -> None:
        now = time.monotonic()
        if not front.local:
            raise regions.refusal(plan, "this endpoint is not ipc")
        tensors, slots = self.regions.resolve(plan, body[3:], now)
        sizes = [len(tensor) for tensor in tensors]
        self._check_size(sum(sizes) + len(body[2]))
        check_frames(plan, sizes)
        in_order = [tensors[index] for index in plan.order]
        self.scheduler.submit(SharedRequest((front, address), id, plan, in_order, sum(sizes), now, slots))

    def _other(self, front: FrontSocket, address: tuple[bytes, ...], id: bytes, body: list[Any]) -> None:
        kind = bytes(body[0])
        if kind not in wire.KINDS:
            shown = kind[: wire.MAX_KIND_BYTES].decode("ascii", "backslashreplace")
            raise make(Reason.KIND_UNKNOWN, f"unknown kind {shown!r}; this daemon speaks {wire.VERSION}", field="kind")
        self._check_size(sum(map(len, body)))
        if len(body) > 3:
            raise make(Reason.MALFORMED, f"{len(body) - 3} frames too many behind the header", field="frames")
        header = wire.load_header(bytes(body[2])) if len(body) == 3 else {}
        if kind == wire.CANCEL:
            cancelled = self.scheduler.cancel((front, address), id)
            # The answers of the cancelled requests come before the answer of what cancelled them.
            self._reply_all()
            front.reply(address, wire.OK, id, (wire.dump_json({"cancelled": cancelled}),))
        else:
            front.reply(address, wire.OK, id, (wire.dump_json(self._answer(kind, header)),))

    def _check_size(self, size: int) -> None:
        if size > self._max_message_size:
            raise make(
                Reason.TOO_LARGE,
                f"the message has {size} bytes; max_message_size is {self._max_message_size}",
                field="frames",
            )

    # Models.

    def add_model(self, name: str, limits: QueueLimits, timeout_s: float) -> None:
        """A model is new, or the settings of its queue are."""
        self.scheduler.set_limits(name, limits)
        self.admission.set_timeout(name, timeout_s)
        self.statistics.setdefault(name, defaultdict(ModelStatistics))

    def set_labels(self, labels: Mapping[str, Mapping[str, str]]) -> None:
        """The labels of the models' versions, by model: for each label the version."""
        for name in self.scheduler.models:
            self.admission.set_labels(name, {label: [version] for label, version in labels.get(name, {}).items()})

    def forget_models(self, keep: Collection[str]) -> None:
        """No worker serves any other model any more."""
        for name in [name for name in self.scheduler.models if name not in keep]:
            self.admission.remove_model(name)
            self.scheduler.remove_model(name)
            self._reply_all()  # while its statistics are there
            del self.statistics[name]

    def close(self, name: str) -> None:
        """The model is to be unloaded: new requests to it are refused, those that there are get their answers."""
        self.scheduler.close_model(name)

    def open(self, name: str) -> None:
        """The model is loaded, or is to be."""
        self.scheduler.open_model(name)

    def unloaded(self, name: str) -> None:
        """No worker has the model any more; what still waits for it is answered."""
        self.scheduler.mark_unavailable(name, "it was unloaded")
        self.admission.remove_versions(name)

    # Workers.

    def worker_ready(
        self,
        slot: int,
        device: str,
        connection: WorkerConnection,
        reports: Iterable[ModelReport],
        generations: Mapping[tuple[str, str], int],
        now: float,
    ) -> Route:
        """A process serves the models of these reports from now on; `editions` are those of `serving.Served`.

        They and the reports are of each version of a model by itself.

        Returns:
            The channel of its first tower, which has all of them.
        """
        reports = sorted(reports, key=_number)
        # Of all that it has loaded, as it counts them itself: some may not be asked for any more.
        towers = max([len(report.towers) for report in reports], default=1) or 1
        described: dict[str, list[ModelReport]] = {}
        for report in reports:
            if report.name in self.scheduler.models:
                described.setdefault(report.name, []).append(report)
        versions = {
            report.key: self._describe(report, of_model)._replace(generation=generations.get(report.key, 0))
            for of_model in described.values()
            for report in of_model
        }
        serves = {name: versions[of_model[-1].key] for name, of_model in described.items()}
        for name in serves:
            self.scheduler.mark_available(name)
        batch_times = BatchTimes()
        of_tower = []
        for tower in range(towers):
            # A model that has fewer replicas than others is on the first towers.
            here = {
                report.key
                for of_model in described.values()
                for report in of_model
                if not tower or tower < len(report.towers)
            }
            newest = {name: served for name, served in serves.items() if described[name][-1].key in here}
            of_tower.append((newest, {key: served for key, served in versions.items() if key in here}))
        routes = [
            Route(worker, connection, described, batch_times, [worker_wire.tower_head(tower)] if towers > 1 else [])
            for tower, worker in enumerate(self.scheduler.add_process(slot, device, of_tower, now))
        ]
        for route in routes:
            route.towers = routes
            self.routes[route.worker] = route
        self._routes_by_connection[connection] = routes[0]
        return routes[0]

    def _describe(self, report: ModelReport, of_model: Sequence[ModelReport]) -> Served:
        return self.admission.add_version(report, newest=report is of_model[-1])

    def withdraw(self, route: Route, coming: Collection[tuple[str, str]] = ()) -> None:
        """What only this worker serves cannot be asked for any more; what waits for it can still be answered.

        Args:
            route: the worker's.
            coming: models that a worker which is to come will serve, and their versions.
        """
        others = [worker for worker in self.routes if worker not in route.workers and not worker.retiring]
        kept = {key for worker in others for key in worker.versions}.union(coming)
        for model in route.worker.serves:
            if model in self.scheduler.models:
                served = {version for name, version in kept if name == model}
                self._keep(model, served)
                if model in self.leaving and not served:
                    self.admission.remove_model(model)

    def keep_versions(self, kept: Collection[tuple[str, str]]) -> None:
        """Of models of which some version is, or will be, served, these are all; what waits for others is answered."""
        for model in self.scheduler.models:
            served = {version for name, version in kept if name == model}
            if served and not served.issuperset(self.admission.catalog.versions(model)):
                self._keep(model, served)
                self.scheduler.refuse_versions(model, served)

    def _keep(self, model: str, served: Collection[str]) -> None:
        self.admission.retain_versions(model, served)
        statistics = self.statistics[model]
        for version in statistics.keys() - set(self.admission.catalog.versions(model)):
            del statistics[version]

    def worker_gone(self, route: Route, now: float, *, crashed: bool, begun: Sequence[int]) -> bool:
        """A process is gone and has been read to its end.

        Args:
            route: any of its routes.
            now: monotonic seconds.
            crashed: whether it ended in a way for which a request may be to blame.
            begun: the ids of the batches that its towers began last.

        Returns:
            Whether a request that ran alone is to blame.
        """
        for worker in route.workers:
            del self.routes[worker]
        del self._routes_by_connection[route.connection]
        for model in route.worker.serves:
            left = [other for other in self.routes.values() if model in other.worker.serves]
            newest = self.admission.newest_interface(model)
            if left and all(other.worker.serves[model][:2] != newest for other in left):
                # Requests are to be checked against what is served, not against what came last.
                for report in left[-1].reports[model]:
                    self._describe(report, left[-1].reports[model])
        return self.scheduler.remove_process(route.worker, now, crashed=crashed, begun=begun)

    def receive_from_worker(self, connection: WorkerConnection) -> bool:
        """Reads one message of a worker process, if one has arrived.

        A result is handled here. Any other message goes to `connection.on_message`; when a result cannot be handled,
        `connection.on_error` gets the error.

        Returns:
            Whether a message had arrived.
        """
        message = connection.receive()
        if message is None:
            return False
        connection.recheck()  # there may be more, though seldom; the reactor looks once its next batch has been sent
        if bytes(message[0])[:1] != worker_wire.RESULT:
            connection.on_message(message)
            return True
        route = self._routes_by_connection.get(connection)
        if route is not None:
            try:
                self.result(route, message)
            except WorkerProtocolError as error:
                connection.on_error(error)
        return True

    def result(self, route: Route, message: list[Any]) -> None:
        """Handles the result of a batch.

        Raises:
            WorkerProtocolError: the message is malformed, the process was not executing that batch, or it has not
                answered all of it.
        """
        try:
            batch_id, told, timing = worker_wire.read_result(message)
            answers = [_error_of(answer) if type(answer) is bytes else answer for answer in told]
        except Exception as error:
            raise WorkerProtocolError("a result that cannot be read") from error
        if len(route.towers) > 1:
            route = next((each for each in route.towers if each.executes(batch_id)), route)
        now = time.monotonic()
        # Its assembly counts as the way to the worker: like that it can take place while another batch computes.
        busy_s = (timing.compute_ns + timing.slice_ns) / 1e9
        batch = self.scheduler.finish(route.worker, batch_id, answers, now, busy_s)
        if batch is None:
            raise WorkerProtocolError(f"answers to batch {batch_id}, which it was not executing")
        route.batches += 1
        route.batch_times.add(now, now - batch.begun, batch.rows)
        batches = 1 if batch.key.max_batch_size else len(answers)
        self.statistics[batch.key.spec.model][batch.requests[0].version].count_batches(batches, len(answers), *timing)

    def tick(self, now: float) -> None:
        """Does what is due about once a second; call it that often."""
        self.regions.close_idle(now)

    # After each burst.

    def flush(self, now: float) -> None:
        """Sends what can be sent: batches to free workers, answers to clients."""
        self.scheduler.expire(now)
        for batch in self.scheduler.dispatch(now):
            self._send(batch)
        self._reply_all()

    def _send(self, batch: Batch) -> None:
        route = self.routes[batch.worker]
        key = batch.key
        description: list[bytes] = []
        joined = route.keys.get(key.id)
        if joined is None:
            joined = worker_wire.joinable(key.spec)
            description = [key.spec.to_json()]
            route.keys.put(key.id, joined, len(description[0]))  # the worker keeps the key itself
        requests = batch.requests
        for request in requests:
            if request.shared:
                route.connection.send([*route.head, *regions.batch_message(batch, description)])
                return
        if joined:
            frames = worker_wire.join([request.frames for request in requests])
        else:
            frames = [frame for request in requests for frame in request.frames]
        rows = [request.rows for request in requests]
        head = worker_wire.batch_head(batch.id, key.id, rows, joined=joined, described=bool(description))
        route.connection.send([*route.head, head, *description, *frames])

    def _version_of(self, request: Request) -> str:
        """The version that a request was for which no worker has had."""
        report = self.admission.catalog.newest.get(request.plan.model)
        return request.plan.key.version or (report.version if report is not None else "")

    def _reply_all(self) -> None:
        replies = self.scheduler.replies()
        if not replies:
            return
        now = time.monotonic()
        for request, answer in replies:
            front, address = request.sender
            statistics = self.statistics[request.plan.model][request.version or self._version_of(request)]
            if isinstance(answer, MultitowerError):
                statistics.count_failure(now - request.received)
                front.reply(address, wire.ERROR, request.id, (wire.dump_json(answer.to_wire()),))
            else:
                statistics.count_success(request.rows, request.sent - request.received, now - request.received)
                front.reply(address, wire.OK, request.id, answer)


def _number(report: ModelReport) -> int:
    return int(report.version)


def _error_of(header: bytes) -> MultitowerError:
    try:
        return from_wire(wire.load_header(header))
    except MultitowerError as error:
        # A handler may put anything into the details of its errors.
        return make(Reason.MODEL_ERROR, f"the model's error cannot be told: {error.message}")


def _readable_id(frame: Any) -> bytes:
    if not 0 < len(frame) <= wire.MAX_ID_BYTES:
        raise make(Reason.MALFORMED, f"the id has {len(frame)} bytes; 1 to {wire.MAX_ID_BYTES} are allowed", field="id")
    return bytes(frame)
