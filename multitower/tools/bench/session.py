"""One daemon under measurement: makes the inputs, starts the client processes, and runs one step after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from multitower.client.threads import Client
from multitower.tools import tensor_files
from multitower.tools.bench import inputs
from multitower.tools.bench.arrivals import Load
from multitower.tools.bench.bottleneck import find_bottleneck
from multitower.tools.bench.client_pool import ClientPool
from multitower.tools.bench.client_process import CONNECT_S, Target
from multitower.tools.bench.evidence import gather_evidence
from multitower.tools.bench.inputs import InputShape, Request
from multitower.tools.bench.observer import Observer
from multitower.tools.bench.rate_search import Objective, RateSearch
from multitower.tools.bench.results import Result
from multitower.tools.bench.scaling import next_concurrency
from multitower.tools.errors import ToolError

OBSERVER_TIMEOUT_S: Final = 2.0
_OUTSTANDING_BYTES: Final = 1 << 30
_MIN_OUTSTANDING: Final = 1000
_MAX_OUTSTANDING: Final = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure, whatever the load.

    Attributes:
        model: the model's name; None where the daemon serves only one.
        version: the model's version; "" for the default one.
        seconds: seconds that each step is measured.
        warmup: seconds of load before each step is measured.
        timeout: seconds for a request.
        processes: client processes.
        seed: of random inputs and arrivals.
        rows: rows of each request; None for 1, or for the whole arrays of `source`.
        shapes: shapes of random inputs that the model leaves open.
        source: an .npz file with the inputs; None for random ones.
    """

    model: str | None = None
    version: str = ""
    seconds: float
    warmup: float
    timeout: float
    processes: int = 1
    seed: int = 0
    rows: int | None = None
    shapes: Mapping[str, InputShape] = field(default_factory=dict)
    source: str | None = None


class Session:
    """Measures one daemon. A context manager that ends its client processes in any case.

    Args:
        endpoint: the daemon's address, as `Client` takes it.
        options: how to measure.
        max_concurrency: the most requests that a closed loop will keep outstanding.

    Attributes:
        model: the model's name.
        requests: the requests that are sent in turn.
        daemon: `status`, `metadata` and `config` of the daemon and the model before the load.
    """

    def __init__(self, endpoint: str | None, options: Options, max_concurrency: int) -> None:
        self._options = options
        self._steps = 0
        self._stack = ExitStack()
        self._endpoint = endpoint
        self._max_concurrency = max_concurrency

    def __enter__(self) -> Self:
        """Asks the daemon about the model, tries one request, and starts the client processes.

        Raises:
            MultitowerError: no daemon answers, there is no such model, or it refuses the request.
            ToolError: the model is not named, the inputs cannot be made, or a client process cannot be started.
        """
        with self._stack:
            options = self._options
            with Client(
                self._endpoint, timeout=options.timeout, connect_timeout=min(options.timeout, CONNECT_S), retries=0
            ) as client:
                status = client.status()
                self._workers = len(status["slots"])
                self.model = options.model or only_model(status)
                metadata = client.metadata(self.model, options.version)
                config = client.model_config(self.model, options.version)
                self.daemon: dict[str, Any] = {"status": status, "metadata": metadata, "config": config}
                self.requests = _make_requests(metadata["inputs"], options)
                self._rows = inputs.row_count(self.requests[0])
                client.infer(self.model, self.requests[0], version=options.version)
                endpoint = client.endpoint
            size = max(map(inputs.byte_count, self.requests))
            fitting = min(_MAX_OUTSTANDING, _OUTSTANDING_BYTES // max(size, 1))
            outstanding = max(self._max_concurrency + 1, _MIN_OUTSTANDING, fitting)
            target = Target(endpoint, self.model, options.version, self.requests, options.timeout, outstanding)
            self._pool = self._stack.enter_context(ClientPool(target, options.processes))
            client = self._stack.enter_context(Client(endpoint, timeout=OBSERVER_TIMEOUT_S, retries=0))
            self._observer = Observer(client, self.model, options.version)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def measure(self, load: Load) -> Result:
        """Runs one step.

        Raises:
            ToolError: a client process ended.
        """
        options = self._options
        self._steps += 1
        seed = options.seed + self._steps
        window = self._pool.begin_step(load, warmup=options.warmup, seconds=options.seconds, seed=seed)
        snapshots = self._observer.observe(window)
        tally = self._pool.finish_step()
        evidence = gather_evidence(self.model, snapshots, tally.cpu, os.cpu_count() or 1)
        verdict = find_bottleneck(evidence)
        return Result(load, options.seconds, self._rows, self._workers, tally, evidence, verdict)

    def search_rate(self, objective: Objective, throughput: float, max_steps: int) -> Iterator[Result]:
        """Searches for the highest rate that meets an objective; yields each step when it is done.

        Args:
            objective: the latency objective.
            throughput: requests a second in a closed loop; the search begins below it.
            max_steps: the most rates to measure.
        """
        search = RateSearch(throughput, max_steps)
        while (rate := search.next_rate()) is not None:
            result = self.measure(Load("open", rate))
            yield result
            search.add_result(rate, held=objective.holds(result.tally.percentile_s(objective.percent)))

    def saturate(self, workers: int) -> Iterator[Result]:
        """Doubles the load of a closed loop until throughput no longer grows; yields each step when it is done."""
        throughputs: list[float] = []
        while (concurrency := next_concurrency(workers, throughputs)) is not None:
            result = self.measure(Load("closed", concurrency))
            throughputs.append(result.requests_per_s)
            yield result


def only_model(status: Mapping[str, Any]) -> str:
    """The name of the one model that a daemon serves.

    Raises:
        ToolError: it serves several.
    """
    names = list(dict.fromkeys(str(model["name"]) for model in status["models"]))  # each version has an entry
    if len(names) != 1:
        raise ToolError(f"name one of the models: {', '.join(names)}")
    return names[0]


def _make_requests(declared: list[dict[str, Any]], options: Options) -> list[Request]:
    if options.source is not None:
        datatypes = {tensor["name"]: tensor["datatype"] for tensor in declared}
        arrays = tensor_files.read_inputs(options.source, (), datatypes)
        return inputs.split_into_requests(arrays, options.rows)
    return inputs.random_requests(inputs.resolve_inputs(declared, options.shapes, options.rows), options.seed)
