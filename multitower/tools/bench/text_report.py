"""The text of a bench's results: rows of its tables, and lines below them. Pure; `cli.bench` prints them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from multitower.tools.bench.bottleneck import LIMIT, MACHINE_LIMIT, MEANING, Part
from multitower.tools.bench.rate_search import Objective
from multitower.tools.bench.results import PERCENTS, Result
from multitower.tools.bench.scaling import efficiency

COLUMNS: Final = (
    ">Workers",
    "Load",
    ">Requests/s",
    ">Rows/s",
    *(f">p{percent:g} ms" for percent in PERCENTS),
    ">max ms",
    ">Errors",
    ">Refused",
    ">Rows a batch",
    "Bottleneck",
)
SCALING_COLUMNS: Final = (">Workers", ">Requests/s", ">Rows/s", ">Efficiency", ">Outstanding", ">p99 ms", "Bottleneck")
"""A heading that begins with > belongs to a column of numbers, aligned to the right."""

OTHER_PROGRAMS: Final = 0.1
"""A note says that other programs use this share of the machine's cores or more."""

OTHER_CLIENTS: Final = 0.1
"""A note says that other clients send this share of the requests or more."""

_ANSWERS_APART: Final = 100
"""Answers by which the daemon's count may differ from ours: it is read a little earlier and later."""


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three significant digits; `-` for NaN."""
    if math.isnan(seconds):
        return "-"
    ms = seconds * 1000
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.{2 - math.floor(math.log10(ms)) if ms >= 0.01 else 3}f}"


def number(value: float) -> str:
    """A rate: whole from 100 on, with one decimal below."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def result_row(result: Result) -> tuple[str, ...]:
    """A result as a row of `COLUMNS`."""
    batch = result.evidence.batch_rows
    return (
        str(result.workers),
        str(result.load),
        number(result.requests_per_s),
        number(result.rows_per_s),
        *(milliseconds(result.latency_s(percent)) for percent in PERCENTS),
        milliseconds(result.max_s),
        f"{result.tally.failed:,}",
        f"{result.tally.refused:,}",
        f"{batch:.1f}" if batch is not None else "-",
        result.verdict.part,
    )


def step_name(result: Result) -> str:
    """A step by its load and workers."""
    return f"{result.load}, {result.workers} {'worker' if result.workers == 1 else 'workers'}"


def progress_line(result: Result) -> str:
    """A result in one line, printed as soon as the step is done."""
    tally = result.tally
    errors = f", {tally.failed:,} errors" if tally.failed else ""
    errors += f", {tally.refused:,} refused" if tally.refused else ""
    p50, p99 = milliseconds(result.latency_s(50)), milliseconds(result.latency_s(99))
    return f"{result.load}: {number(result.requests_per_s)} requests/s, p50 {p50} ms, p99 {p99} ms{errors}"


def explain_bottleneck(result: Result) -> Iterator[str]:
    """The bottleneck of a step and its evidence, line by line."""
    evidence, verdict = result.evidence, result.verdict
    yield f"Bottleneck at {step_name(result)}: {verdict.part}. {_sentence(MEANING[verdict.part])}"
    near = [part for part in verdict.near if part != verdict.part]
    if near:
        yield f"  Over {LIMIT:.0%} as well: {', '.join(near)}."
    if verdict.part not in (Part.MACHINE, Part.NONE) and verdict.shares.get(Part.MACHINE, 0.0) >= MACHINE_LIMIT:
        yield "  In addition, this machine's cores are all in use: clients, router and workers slow each other down."
    clients = ", ".join(f"{share:.0%}" for share in evidence.clients)
    cost = f"; {sum(evidence.clients) / result.requests_per_s * 1e6:,.0f} µs a request" if result.tally.answered else ""
    yield f"  client   CPU of each process, of one core: {clients or 'unknown'}{cost}"
    if evidence.router_thread is None:
        router = "unknown (its process runs on another machine, or belongs to another user)"
    else:
        router = f"{evidence.router_thread:.0%} in its busiest thread, {_percent(evidence.router)} in all threads"
    yield f"  router   CPU of the daemon's process, of one core: {router}"
    compute = _percent(evidence.compute)
    yield f"  device   computing: {compute} of the workers' time; batches of {_plain(evidence.batch_rows)} rows"
    yield f"  worker   assembling and splitting batches: {_percent(evidence.handling)} of their time"
    for worker in evidence.workers:
        used = f", GPU {worker.utilization:.0%}" if worker.utilization is not None else ""
        yield f"           slot {worker.slot} ({worker.device}): CPU {_percent(worker.cpu)}{used}, {worker.rows:,} rows"
    wait = milliseconds(evidence.queue_s) if evidence.queue_s is not None else "-"
    most = f"{evidence.queued_most:,}" if evidence.queued_most is not None else "-"
    yield f"  queue    {_plain(evidence.queued)} requests waited on average, {most} at most; {wait} ms each"
    machine, own = _percent(evidence.machine), _percent(evidence.own)
    yield f"  machine  {machine} of {evidence.cores} cores in use; {own} by clients, router and workers"


def notes(results: Sequence[Result]) -> Iterator[str]:
    """What the reader should know about figures, each note with the steps that it concerns."""
    steps: dict[str, list[str]] = {}
    for result in results:
        for text in _notes_of(result):
            steps.setdefault(text, []).append(step_name(result))
    for text, names in steps.items():
        where = "all steps" if len(names) == len(results) > 1 else "; ".join(names)
        yield f"Note on {where}: {text}."


def _notes_of(result: Result) -> Iterator[str]:
    tally, evidence = result.tally, result.evidence
    for reason, count in sorted(tally.errors.items()):
        yield f"{count:,} requests without an answer: {reason} ({' '.join(tally.messages[reason].split())[:200]})"
    if evidence.clients and max(evidence.clients) >= LIMIT:
        yield (
            f"the client processes used up to {max(evidence.clients):.0%} of a core each, so the figures are partly "
            "those of the client; use more --processes"
        )
    late = tally.late.percentile_ns(99) / 1e9
    if late > 0.1 * result.latency_s(99):
        yield f"1 in 100 requests was sent {milliseconds(late)} ms late or more; the latencies include it"
    yield from evidence.problems
    if evidence.others is not None and evidence.others >= OTHER_PROGRAMS:
        yield f"other programs used over {OTHER_PROGRAMS:.0%} of this machine's cores"
    if any(worker.replaced for worker in evidence.workers):
        yield "a worker was replaced during the step"
    if evidence.requests and evidence.requests > tally.answered * (1 + OTHER_CLIENTS) + _ANSWERS_APART:
        ours = f"{tally.answered:,} of them ours"
        yield f"the daemon answered {evidence.requests:,} requests, {ours}: it has other clients"


def objective_lines(objective: Objective, tried: Sequence[Result]) -> Iterator[str]:
    """The result of the search for the highest rate that meets an objective."""
    goal = f"p{objective.percent:g} within {milliseconds(objective.seconds)} ms"
    held = [result for result in tried if meets_objective(objective, result)]
    if not held:
        lowest = min(tried, key=lambda result: result.load.amount)
        yield f"No rate held {goal}. At the lowest, {lowest.load}: {_figures(objective, lowest)}"
        return
    highest = max(held, key=lambda result: result.load.amount)
    yield f"Highest rate with {goal}: {highest.load} ({_figures(objective, highest)})"
    above = [result for result in tried if result.load.amount > highest.load.amount]
    if above:
        next_up = min(above, key=lambda result: result.load.amount)
        yield f"Above it, at {next_up.load}: {_figures(objective, next_up)}"
    else:
        yield "No higher rate was tried: allow more --steps."


def meets_objective(objective: Objective, result: Result) -> bool:
    """Whether a step met the objective."""
    return objective.holds(result.tally.percentile_s(objective.percent))


def _figures(objective: Objective, result: Result) -> str:
    tally = result.tally
    reached = milliseconds(result.latency_s(objective.percent))
    errors = f", {tally.refused:,} refused, {tally.failed:,} other errors" if tally.errors else ""
    return (
        f"p{objective.percent:g} of the answers {reached} ms, {number(result.requests_per_s)} answers/s{errors}; "
        f"bottleneck: {result.verdict.part}"
    )


def scaling_rows(results: Mapping[int, Result]) -> Iterator[tuple[str, ...]]:
    """The rows of `SCALING_COLUMNS`: the best step of each number of workers."""
    shares = efficiency({workers: result.requests_per_s for workers, result in results.items()})
    for workers, result in sorted(results.items()):
        yield (
            str(workers),
            number(result.requests_per_s),
            number(result.rows_per_s),
            f"{shares[workers]:.1%}",
            f"{result.load.amount:g}",
            milliseconds(result.latency_s(99)),
            result.verdict.part,
        )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _percent(share: float | None) -> str:
    return f"{share:.0%}" if share is not None else "unknown"


def _plain(value: float | None) -> str:
    return f"{value:.1f}" if value is not None else "-"
