"""The steps of one `multitower bench`, in order, and their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multitower.durations import exact_duration
from multitower.tools.bench.arrivals import Load
from multitower.tools.bench.inputs import Request
from multitower.tools.bench.rate_search import Objective
from multitower.tools.bench.results import Result, best
from multitower.tools.bench.scaling import max_concurrency
from multitower.tools.bench.session import Options, Session
from multitower.tools.bench.text_report import progress_line
from multitower.tools.daemon import OwnDaemon

if TYPE_CHECKING:
    from multitower.tools.bench.scaling_plan import ScalingPlan

DEFAULT_CONCURRENCY: Final = (1, 8, 64)
"""Requests outstanding, step by step, where no load is given."""

SEARCH_CONCURRENCY: Final = 64
"""Requests outstanding in the closed loop whose throughput a rate search begins with, where none is given."""


class BenchRun:
    """Runs the steps of a command and keeps their results, which are there also after an interruption.

    Args:
        options: how to measure.
        progress: takes a line of text before and after each step.

    Attributes:
        model: the model's name; "" before the first session.
        daemon: `status`, `metadata` and `config` before the load.
        requests: the requests that were sent in turn.
        steps: the results of all steps in order.
        tried: the steps of the search for an objective.
        scaling: the best step of each number of workers; None without `measure_scaling`.
        complete: whether all steps were run.
    """

    def __init__(self, options: Options, progress: Callable[[str], None]) -> None:
        self._options = options
        self._progress = progress
        self.model = ""
        self.daemon: Mapping[str, Any] | None = None
        self.requests: Sequence[Request] = ()
        self.steps: list[Result] = []
        self.tried: list[Result] = []
        self.scaling: dict[int, Result] | None = None
        self.complete = False

    def measure_daemon(
        self,
        endpoint: str | None,
        *,
        concurrency: Sequence[int] | None,
        rates: Sequence[float] | None,
        objective: Objective | None,
        max_search_steps: int,
    ) -> None:
        """Measures a running daemon.

        Args:
            endpoint: the daemon's address, as `Client` takes it.
            concurrency: requests outstanding, for each step of the closed loop.
            rates: requests a second, for each step of the open loop.
            objective: the latency objective to search the highest rate for.
            max_search_steps: the most rates to measure in that search.

        Raises:
            MultitowerError: no daemon answers, or it refuses the request.
            ToolError: something cannot be measured.
        """
        if not concurrency and objective is not None:
            concurrency = (SEARCH_CONCURRENCY,)
        elif not concurrency and not rates:
            concurrency = DEFAULT_CONCURRENCY
        loads = [Load("closed", amount) for amount in concurrency or ()]
        loads += [Load("open", rate) for rate in rates or ()]
        with Session(endpoint, self._options, max(concurrency or (0,))) as session:
            self._begin(session)
            for load in loads:
                self._add(session.measure(load))
            if objective is not None:
                throughput = best([step for step in self.steps if step.load.loop == "closed"]).requests_per_s
                for result in session.search_rate(objective, throughput, max_search_steps):
                    self.tried.append(result)
                    self._add(result)
        self.complete = True

    def measure_scaling(self, config: Path, plan: ScalingPlan, concurrency: Sequence[int] | None) -> None:
        """Measures daemons with different numbers of workers, one after the other.

        Args:
            config: the configuration file.
            plan: the numbers of workers.
            concurrency: requests outstanding, step by step; None to double them until throughput no longer grows.

        Raises:
            MultitowerError: a daemon refuses the request.
            ToolError: a daemon cannot serve, or something cannot be measured.
        """
        self.scaling = {}
        for workers in plan.workers:
            self._progress(f"starting a daemon with {workers} {'worker' if workers == 1 else 'workers'}")
            most = max(concurrency or (max_concurrency(workers),))
            with (
                OwnDaemon(config, [plan.override(workers), "spares=0"]) as daemon,
                Session(daemon.endpoint, self._options, most) as session,
            ):
                self._begin(session)
                steps: Iterator[Result] = session.saturate(workers)
                if concurrency is not None:
                    steps = (session.measure(Load("closed", amount)) for amount in concurrency)
                done = []
                for result in steps:
                    done.append(result)
                    self._add(result)
                    self.scaling[workers] = best(done)
        self.complete = True

    def _begin(self, session: Session) -> None:
        self.model, self.daemon, self.requests = session.model, session.daemon, session.requests
        count, seconds = self._options.processes, self._options.seconds
        inputs = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in self.requests[0].items())
        processes = "1 client process" if count == 1 else f"{count} client processes"
        self._progress(f"asking {self.model} with {inputs}, from {processes}, {exact_duration(seconds)} a step")

    def _add(self, result: Result) -> None:
        self.steps.append(result)
        self._progress(f"  {progress_line(result)}")
