"""A daemon measured: its inputs made, client processes started, steps of load run one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from multitower.client.threads import Client
from multitower.tools.bench import inputs
from multitower.tools.bench.arrivals import Load
from multitower.tools.bench.bottleneck import judge
from multitower.tools.bench.client_pool import BenchError, Pool
from multitower.tools.bench.client_process import Target
from multitower.tools.bench.evidence import gather
from multitower.tools.bench.inputs import Array, Request, Shape
from multitower.tools.bench.observer import Watch
from multitower.tools.bench.rate_search import Objective, Search
from multitower.tools.bench.results import Result
from multitower.tools.bench.scaling import next_concurrency

WATCH_TIMEOUT_S: Final = 2.0
CONNECT_S: Final = 3.0
_ROOM_BYTES: Final = 1 << 30
_LEAST_ROOM: Final = 1000
_MOST_ROOM: Final = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure, whatever the load.

    Attributes:
        model: its name; None where the daemon has only one.
        version: "" for the one that is served.
        seconds, warmup: measured, and before it is measured, of each step.
        timeout: seconds for a request.
        processes: client processes.
        seed: of values and arrivals.
        rows, shapes: of the inputs, see `inputs.described`.
        read: gives the inputs from a file, for the datatypes that the model declares; None for random ones.
    """

    model: str | None
    version: str
    seconds: float
    warmup: float
    timeout: float
    processes: int
    seed: int
    rows: int | None
    shapes: Mapping[str, Shape]
    read: Callable[[Mapping[str, str]], dict[str, Array]] | None


class Session:
    """Measures one daemon; a context manager that ends its client processes in any case.

    Args:
        endpoint: the daemon's, as `Client` takes it.
        options: how.
        places: the most requests that a closed loop will keep outstanding.

    Attributes:
        model: the model's name.
        requests: what is sent, in turn.
        daemon: what the daemon says of itself and the model: `status`, `metadata` and `config`.
    """

    def __init__(self, endpoint: str | None, options: Options, places: int) -> None:
        self._options = options
        self._steps = 0
        self._stack = ExitStack()
        self._endpoint = endpoint
        self._places = places

    def __enter__(self) -> Self:
        """Asks the daemon for the model, tries one request, starts the client processes.

        Raises:
            MultitowerError: no daemon answers, there is no such model, or it does not take the request.
            InputsError: the inputs cannot be made.
            BenchError: the model is not named, or the client processes cannot be started.
        """
        with self._stack:
            options = self._options
            with Client(
                self._endpoint, timeout=options.timeout, connect_timeout=min(options.timeout, CONNECT_S), retries=0
            ) as client:
                status = client.status()
                self._workers = len(status["slots"])
                self.model = options.model or _only_model(status)
                metadata = client.metadata(self.model, options.version)
                config = client.model_config(self.model, options.version)
                self.daemon: dict[str, Any] = {"status": status, "metadata": metadata, "config": config}
                self.requests = _requests(metadata["inputs"], options)
                self._rows = inputs.rows_of(self.requests[0])
                client.infer(self.model, self.requests[0], version=options.version)
                endpoint = client.endpoint
            size = max(map(inputs.bytes_of, self.requests))
            room = max(self._places + 1, _LEAST_ROOM, min(_MOST_ROOM, _ROOM_BYTES // max(size, 1)))
            target = Target(endpoint, self.model, options.version, self.requests, options.timeout, room)
            self._pool = self._stack.enter_context(Pool(target, options.processes))
            watching = self._stack.enter_context(Client(endpoint, timeout=WATCH_TIMEOUT_S, retries=0))
            self._watch = Watch(watching, self.model, options.version)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def measure(self, load: Load) -> Result:
        """Runs one step.

        Raises:
            BenchError: a client process ended.
        """
        options = self._options
        self._steps += 1
        seed = options.seed + self._steps
        window = self._pool.begin(load, warmup=options.warmup, seconds=options.seconds, seed=seed)
        snapshots = self._watch.during(window)
        tally = self._pool.collect()
        evidence = gather(self.model, snapshots, tally.cpu, os.cpu_count() or 1)
        return Result(load, options.seconds, self._rows, self._workers, tally, evidence, judge(evidence))

    def search(self, objective: Objective, throughput: float, steps: int) -> Iterator[Result]:
        """Searches for the highest rate that holds an objective; gives each step as it is done.

        Args:
            objective: what is to hold.
            throughput: requests a second of a closed loop, where it begins.
            steps: at most.
        """
        search = Search(throughput, steps)
        while (rate := search.next()) is not None:
            result = self.measure(Load("open", rate))
            yield result
            search.tell(rate, held=objective.holds(result.tally.percentile_s(objective.percent)))

    def saturate(self, workers: int) -> Iterator[Result]:
        """Doubles the load of a closed loop until that answers no more; gives each step as it is done."""
        throughputs: list[float] = []
        while (places := next_concurrency(workers, throughputs)) is not None:
            result = self.measure(Load("closed", places))
            throughputs.append(result.requests_per_s)
            yield result


def _only_model(status: dict[str, Any]) -> str:
    names = list(dict.fromkeys(str(model["name"]) for model in status["models"]))  # each of its versions has an entry
    if len(names) != 1:
        raise BenchError(f"name one of the models: {', '.join(names)}")
    return names[0]


def _requests(declared: list[dict[str, Any]], options: Options) -> list[Request]:
    if options.read is not None:
        datatypes = {tensor["name"]: tensor["datatype"] for tensor in declared}
        return inputs.cut(options.read(datatypes), options.rows)
    return inputs.make(inputs.described(declared, options.shapes, options.rows), options.seed)
