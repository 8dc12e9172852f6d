"""The operations of a daemon (orders, version watch, status) on a fleet without processes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from fake_workers import Scene

from multitower.errors import MultitowerError
from multitower.supervisor.config.config import Config
from multitower.supervisor.lifecycle import Lifecycle, LifecycleState
from multitower.supervisor.loop.background import BackgroundJobs
from multitower.supervisor.machine.resources import Sampler
from multitower.supervisor.observability.loop_lag import LoopLag
from multitower.supervisor.observability.metrics_reply import Metrics
from multitower.supervisor.observability.request_log import RequestLog
from multitower.supervisor.observability.snapshot import SnapshotReader
from multitower.supervisor.observability.tracing import Tracing
from multitower.supervisor.operations.content_hashing import ContentHasher
from multitower.supervisor.operations.model_orders import ModelOrders
from multitower.supervisor.operations.order_queue import OrderContext, OrderQueue
from multitower.supervisor.operations.orders import Orders
from multitower.supervisor.operations.presence_watch import PresenceWatch
from multitower.supervisor.operations.queries import Queries
from multitower.supervisor.operations.readiness import Readiness
from multitower.supervisor.operations.service_manager import Announcer, ServiceManager
from multitower.supervisor.operations.status import StatusReporter
from multitower.supervisor.operations.version_watch import VersionWatch
from multitower.supervisor.routing.endpoints import Endpoints
from multitower.supervisor.settings import ActiveSettings, Settings

Answer = dict[str, Any] | MultitowerError


def no_measurements() -> Sampler:
    """Stands for a `Sampler` that has measured nothing."""
    nothing = SimpleNamespace(
        own_rss_bytes=None,
        gpus=dict,
        sample=lambda _slot: None,
        sample_devices=lambda _slot: (),
        are_devices_present=lambda _slot: None,
    )
    return cast(Sampler, nothing)


def no_endpoints() -> Endpoints:
    """Stands for `Endpoints` that nobody can connect to."""
    nothing = SimpleNamespace(
        gateway=None,
        problems={},
        control=SimpleNamespace(endpoint=None),
        connections=SimpleNamespace(open=0, maximum=0, paused=False),
    )
    return cast(Endpoints, nothing)


def no_traces() -> Tracing:
    """Stands for `Tracing` that traces nothing."""
    return cast(Tracing, SimpleNamespace(report=lambda: None, exported=0, dropped=0))


class ImmediateJobs:
    """Stands for `BackgroundJobs`: a job has ended when `run` returns."""

    def run(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        try:
            outcome = job()
        except Exception as error:  # noqa: BLE001  as `BackgroundJobs` does
            outcome = error
        then(outcome)


class DelayedJobs:
    """Stands for `BackgroundJobs`: jobs end when a test calls what `run` keeps in `ended`, in order."""

    def __init__(self) -> None:
        self.ended: list[Callable[[], None]] = []

    def run(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        outcome = job()
        self.ended.append(lambda: then(outcome))


class Operations:
    """The operations of a daemon that runs.

    Args:
        scene: the fleet.
        settings: the settings in force.
        read_config: reads the configuration.
        sampler: what measures the processes; None for no figures.
    """

    def __init__(
        self, scene: Scene, settings: Settings, read_config: Callable[[], Config], sampler: Sampler | None = None
    ) -> None:
        self.lifecycle = Lifecycle(LifecycleState.RUNNING)
        self.settings = ActiveSettings(settings)
        background = cast(BackgroundJobs, ImmediateJobs())
        self.queue = OrderQueue(self.lifecycle, background)
        self.readiness = Readiness(self.lifecycle, scene.manager, scene.router, self.settings)
        self.context = OrderContext(
            lifecycle=self.lifecycle,
            queue=self.queue,
            settings=self.settings,
            manager=scene.manager,
            router=scene.router,
            background=background,
            announcer=Announcer(self.lifecycle, self.readiness, ServiceManager({}), scene.now),
            read_config=read_config,
            hasher=ContentHasher(),
        )
        self.orders = Orders(self.context, None)
        self.model_orders = ModelOrders(self.context)
        self.presence_watch = PresenceWatch(self.context)
        self.watch = VersionWatch(self.context, self.readiness, self.model_orders)
        sampler = sampler or no_measurements()
        self.status = StatusReporter(
            lifecycle=self.lifecycle,
            readiness=self.readiness,
            router=scene.router,
            manager=scene.manager,
            settings=self.settings,
            refused_versions=lambda: self.watch.refused_versions(),
            last_reload=lambda: self.orders.last_reload,
            started=scene.now,
            sampler=sampler,
            endpoints=no_endpoints(),
            gateway=None,
            tracing=no_traces(),
            access=None,
        )
        self.queries = Queries(self.readiness, self.status, scene.router, self.settings, 1 << 20)
        self.loop_lag = LoopLag()
        self.snapshots = SnapshotReader(
            router=scene.router,
            manager=scene.manager,
            settings=self.settings,
            loop_lag=self.loop_lag,
            sampler=sampler,
            endpoints=no_endpoints(),
            gateway=None,
            tracing=no_traces(),
            access=None,
            request_log=cast(RequestLog, SimpleNamespace(dropped=0, failed_rotations=0)),
        )
        self.metrics = Metrics(self.snapshots, cast(BackgroundJobs, ImmediateJobs()))
