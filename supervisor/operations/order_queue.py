"""Carries out orders that change the daemon's settings, one after the other.

Reloads, loading and unloading of models and new versions of a model all change which models the slots have, so none
begins before the one before it has ended. Each order is answered exactly once, also when a step of it raises.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

from multitower.durations import exact_duration
from multitower.errors import MultitowerError, Reason, make

from ..config.config import Config
from ..lifecycle import Lifecycle
from ..loop.background import BackgroundJobs
from ..loop.history import EventHistory
from ..machine.core_claims import CoreClaims
from ..routing.front_socket import internal_error
from ..routing.router import Router
from ..security.access_control import AccessControl
from ..settings import ActiveSettings
from ..workers.manager import WorkerManager
from .content_hashing import ContentHasher
from .service_manager import Announcer

log = logging.getLogger("multitower.daemon")

MAX_WAITING: Final = 256
"""Orders that wait for their turn at most; more are refused."""

RETRY_AFTER_MS: Final = 1000
"""When an operator whose order was refused may try again."""

READ_S: Final = 60.0
"""Seconds that an order may take to read the configuration and the folders of models."""

MAX_STUCK: Final = 4
"""Threads of ended orders that still read files at most; while there are as many, no further order reads files."""

P = ParamSpec("P")
T = TypeVar("T")

ReadConfig = Callable[[str | None], Config]
"""Reads the configuration file, or the section of the model with this name alone; it may block.

Raises:
    UnknownModelError: no section has this name.
    ConfigError: what was read is wrong.
"""

Done = Callable[[dict[str, Any] | MultitowerError], None]
"""Takes the answer to an order: the header of the reply, or why the order was refused or has failed."""


Recheck = Callable[[], MultitowerError | None]
"""Called when an order has waited: for its turn, or for files. Returns why its giver may not give it any more; None if
they still may."""


class Order:
    """One order, from its submission to its answer.

    Args:
        begin: called when the order's turn has come; it, or a later step, calls `end`.
        done: called once with the answer.
        ended: called once after `done`.
        recheck: see `Recheck`; None for an order of the daemon's own.

    Attributes:
        begun: the order's turn has come.
        on_defect: undoes what the order has half done, after a step raised; None for nothing to undo. It gets a
            callable that ends the order, and calls it at once, or once nothing of the order is in progress any more.
    """

    def __init__(
        self, begin: Callable[[Order], None], done: Done, ended: Callable[[], None], recheck: Recheck | None = None
    ) -> None:
        self.begun = False
        self.on_defect: Callable[[Callable[[], None]], None] | None = None
        self._begin = begin
        self._done = done
        self._ended = ended
        self._recheck = recheck
        self._failed = False
        self._answered = False

    def start(self) -> None:
        """Carries out the first step; the order may end before this returns."""
        self.begun = True
        self.guard(self._begin)(self)

    def check_giver(self) -> None:
        """Decides again whether the order may be given.

        Raises:
            MultitowerError: its giver may not give it any more.
        """
        refusal = self._recheck() if self._recheck is not None else None
        if refusal is not None:
            raise refusal

    def guard(self, step: Callable[P, None]) -> Callable[P, None]:
        """Returns a callable that runs a step of this order and ends the order where the step raises.

        A `MultitowerError` becomes the order's answer. Any other exception is a defect: it is logged, and the answer is
        `internal_error`. Either way, `on_defect` is called first. No-op once a step has raised or the order has ended.
        """

        @functools.wraps(step)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            if self._failed or self._answered:
                return
            try:
                step(*args, **kwargs)
            except MultitowerError as error:
                self._fail(error)
            except Exception:
                log.exception("order cannot be carried out")
                self._fail(internal_error())

        return guarded

    def _fail(self, answer: MultitowerError) -> None:
        """Ends the order after a step has raised, once what the order has half done is undone."""
        self._failed = True
        if self._answered or self.on_defect is None:
            self.end(answer)
            return
        try:
            self.on_defect(functools.partial(self.end, answer))
        except Exception:
            log.exception("order cannot be undone")
            self.end(answer)

    def end(self, answer: dict[str, Any] | MultitowerError) -> None:
        """Answers the order; the next one begins. No-op once the order has ended."""
        if self._answered:
            return
        self._answered = True
        try:
            self._done(answer)
        except Exception:
            log.exception("order answered, but the answer could not be delivered")
        self._ended()


class OrderQueue:
    """The orders that wait, and the one that is being carried out.

    Args:
        lifecycle: the daemon's; once it does not run any more, orders are refused as `draining`.
        background: runs the steps of orders that read files.
        max_waiting: orders that wait at most.
    """

    def __init__(self, lifecycle: Lifecycle, background: BackgroundJobs, max_waiting: int = MAX_WAITING) -> None:
        self._lifecycle = lifecycle
        self._background = background
        self._max_waiting = max_waiting
        self._orders: deque[Order] = deque()
        self._reading: tuple[Order, float, float] | None = None  # an order in `read_files`, until when, and its limit
        self._stuck: set[Order] = set()  # orders that have ended, and whose threads still read files
        self._advancing = False

    @property
    def busy(self) -> bool:
        """An order is being carried out, or waits."""
        return bool(self._orders)

    def submit(
        self, begin: Callable[[Order], None], done: Done, *, bounded: bool = True, recheck: Recheck | None = None
    ) -> None:
        """Carries out an order when its turn comes, which may be at once.

        Args:
            begin: carries out the order's first step; see `Order`.
            done: called once with the answer; `too_many_orders` where too many wait.
            bounded: False for an order that is always accepted, of which there is one at most.
            recheck: see `Recheck`; None for an order of the daemon's own.
        """
        if bounded and len(self._orders) > self._max_waiting:
            message = f"{self._max_waiting} orders wait already"
            done(make(Reason.TOO_MANY_ORDERS, message, retry_after_ms=RETRY_AFTER_MS))
            return
        self._orders.append(Order(functools.partial(self._begin, begin), done, self._order_ended, recheck))
        self._advance()

    def read_files(
        self, order: Order, job: Callable[[], T], then: Callable[[T | Exception], None], limit_s: float
    ) -> None:
        """Runs a step of an order that reads files in a thread; a file system that does not answer ends the order.

        Args:
            order: the order, which is being carried out.
            job: reads the files.
            then: the next step; gets what `job` returned or raised. Not called if the order may not be given any more.
            limit_s: seconds until the order ends.

        Raises:
            MultitowerError: `order_failed`: the threads of `MAX_STUCK` earlier orders still read files.
        """
        if len(self._stuck) >= MAX_STUCK:
            raise make(
                Reason.ORDER_FAILED,
                f"{len(self._stuck)} earlier orders still read the configuration or the models' folders, and nothing "
                "has changed; check the file systems that they are on",
            )
        self._reading = (order, time.monotonic() + limit_s, limit_s)

        def read(outcome: T | Exception) -> None:
            if self._reading is not None and self._reading[0] is order:
                self._reading = None
            self._stuck.discard(order)
            order.guard(go_on)(outcome)

        def go_on(outcome: T | Exception) -> None:
            order.check_giver()  # reading may have taken a minute
            then(outcome)

        self._background.run(job, read)

    @property
    def due(self) -> float | None:
        """When `tick` must be called, in monotonic seconds; None for never."""
        return None if self._reading is None else self._reading[1]

    def tick(self, now: float) -> None:
        """Ends the order whose files have not been read in time."""
        if self._reading is None or now < self._reading[1]:
            return
        order, _, limit_s = self._reading
        self._reading = None
        self._stuck.add(order)

        def give_up() -> None:
            raise make(
                Reason.ORDER_FAILED,
                f"the configuration and the models' folders could not be read within {exact_duration(limit_s)}, and "
                "nothing has changed; check the file systems that they are on",
            )

        order.guard(give_up)()

    def _begin(self, begin: Callable[[Order], None], order: Order) -> None:
        if not self._lifecycle.running:
            raise stopping()
        order.check_giver()
        begin(order)

    def _order_ended(self) -> None:
        self._orders.popleft()
        self._advance()

    def _advance(self) -> None:
        # A loop, since orders may end as they begin: each of them beginning the next would use up the stack.
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._orders and not self._orders[0].begun:
                self._orders[0].start()
        finally:
            self._advancing = False


@dataclass(frozen=True, slots=True)
class OrderContext:
    """The parts of the daemon that orders work with.

    Attributes:
        lifecycle: the daemon's.
        queue: carries out one order after the other.
        settings: the settings in force, which orders change.
        manager: the worker processes.
        router: the router.
        background: runs what would block the event loop.
        announcer: announces reloads to the service manager.
        read_config: reads the configuration file again.
        hasher: hashes the files of models.
        claims: what this daemon claims of the cores; None to bind workers whatever other daemons have claimed.
        access: the daemon's; None without `security`.
    """

    lifecycle: Lifecycle
    queue: OrderQueue
    settings: ActiveSettings
    manager: WorkerManager
    router: Router
    background: BackgroundJobs
    announcer: Announcer
    read_config: ReadConfig
    hasher: ContentHasher
    claims: CoreClaims | None = None
    access: AccessControl | None = None

    @property
    def history(self) -> EventHistory:
        """What has happened lately."""
        return self.manager.history

    def announce_reload_end(self) -> None:
        """Announces that a reload has ended; call it after the answer. An error is logged: it concerns no order."""
        try:
            self.announcer.reload_ended()
        except Exception:
            log.exception("the end of a reload cannot be announced")


def stopping() -> MultitowerError:
    """Returns the answer to an order that comes too late."""
    return make(Reason.DRAINING, "the daemon is stopping")
