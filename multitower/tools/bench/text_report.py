"""What a bench says on the terminal: rows of its tables, and lines of text. Pure; `cli.bench` prints them."""

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
"""A heading that begins with > stands over a column of numbers."""

OTHER_PROGRAMS: Final = 0.1
"""From this share of the machine's cores on it is said that other programs use them."""

OTHERS: Final = 0.1
"""From this share of requests on it is said that somebody else uses the model."""


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three digits that count; `-` for NaN."""
    if math.isnan(seconds):
        return "-"
    ms = seconds * 1000
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.{2 - math.floor(math.log10(ms)) if ms >= 0.01 else 3}f}"


def number(value: float) -> str:
    """A rate: whole above 100, with one digit below."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def row(result: Result) -> tuple[str, ...]:
    """One line of the table of `COLUMNS`."""
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


def name(result: Result) -> str:
    """A step in a few words."""
    return f"{result.load}, {result.workers} {'worker' if result.workers == 1 else 'workers'}"


def line(result: Result) -> str:
    """A step in one line, for those who wait."""
    tally = result.tally
    lost = f", {tally.failed:,} errors" if tally.failed else ""
    lost += f", {tally.refused:,} refused" if tally.refused else ""
    p50, p99 = milliseconds(result.latency_s(50)), milliseconds(result.latency_s(99))
    return f"{result.load}: {number(result.requests_per_s)} requests/s, p50 {p50} ms, p99 {p99} ms{lost}"


def explanation(result: Result) -> Iterator[str]:
    """What the bottleneck of a step is, and the evidence."""
    evidence, verdict = result.evidence, result.verdict
    yield f"Bottleneck at {name(result)}: {verdict.part}. {_sentence(MEANING[verdict.part])}"
    near = [part for part in verdict.near if part != verdict.part]
    if near:
        yield f"  Over {LIMIT:.0%} as well: {', '.join(near)}."
    if verdict.part not in (Part.MACHINE, Part.NONE) and verdict.shares.get(Part.MACHINE, 0.0) >= MACHINE_LIMIT:
        yield "  This machine's cores are all in use besides: clients, router and workers slow each other down."
    clients = ", ".join(f"{share:.0%}" for share in evidence.clients)
    cost = f"; {sum(evidence.clients) / result.requests_per_s * 1e6:,.0f} µs a request" if result.tally.answered else ""
    yield f"  client   CPU of each process, of one core: {clients or 'unknown'}{cost}"
    if evidence.router_thread is None:
        router = "unknown (it is not a process of this machine, or another user's)"
    else:
        router = f"{evidence.router_thread:.0%} in its busiest thread, {_percent(evidence.router)} in all"
    yield f"  router   CPU of the daemon's process, of one core: {router}"
    compute = _percent(evidence.compute)
    yield f"  device   computing: {compute} of the workers' time; batches of {_plain(evidence.batch_rows)} rows"
    yield f"  worker   assembling and cutting up batches: {_percent(evidence.handling)} of their time"
    for worker in evidence.workers:
        used = f", GPU {worker.utilization:.0%}" if worker.utilization is not None else ""
        yield f"           slot {worker.slot} ({worker.device}): CPU {_percent(worker.cpu)}{used}, {worker.rows:,} rows"
    wait = milliseconds(evidence.queue_s) if evidence.queue_s is not None else "-"
    most = f"{evidence.queued_most:,}" if evidence.queued_most is not None else "-"
    yield f"  queue    {_plain(evidence.queued)} requests waited on average, {most} at most; {wait} ms each"
    machine, own = _percent(evidence.machine), _percent(evidence.own)
    yield f"  machine  {machine} of {evidence.cores} cores; by all of the above: {own}"


def notes(results: Sequence[Result]) -> Iterator[str]:
    """What makes figures less than they seem, each with the steps that it is about."""
    steps: dict[str, list[str]] = {}
    for result in results:
        for text in _notes(result):
            steps.setdefault(text, []).append(name(result))
    for text, names in steps.items():
        where = "all steps" if len(names) == len(results) > 1 else "; ".join(names)
        yield f"Note on {where}: {text}."


def _notes(result: Result) -> Iterator[str]:
    tally, evidence = result.tally, result.evidence
    for reason, count in sorted(tally.errors.items()):
        yield f"{count:,} requests without an answer: {reason} ({' '.join(tally.messages[reason].split())[:200]})"
    if evidence.clients and max(evidence.clients) >= LIMIT:
        yield (
            f"the client processes used up to {max(evidence.clients):.0%} of a core each: what is measured is partly "
            "the client; use more --processes"
        )
    late = tally.late.percentile_ns(99) / 1e9
    if late > 0.1 * result.latency_s(99):
        yield f"1 in 100 requests was sent {milliseconds(late)} ms late or more; the latencies count it"
    yield from evidence.problems
    if evidence.others is not None and evidence.others >= OTHER_PROGRAMS:
        yield f"other programs used over {OTHER_PROGRAMS:.0%} of this machine's cores"
    if any(worker.replaced for worker in evidence.workers):
        yield "a worker was replaced meanwhile"
    if evidence.requests and evidence.requests > tally.answered * (1 + OTHERS) + 100:
        ours = f"{tally.answered:,} of them ours"
        yield f"the daemon answered {evidence.requests:,} requests, {ours}: it has other clients"


def objective_lines(objective: Objective, tried: Sequence[Result]) -> Iterator[str]:
    """What came of the search for the highest rate within an objective."""
    goal = f"p{objective.percent:g} within {milliseconds(objective.seconds)} ms"
    held = [result for result in tried if objective.holds(result.tally.percentile_s(objective.percent))]
    if not held:
        lowest = min(tried, key=lambda result: result.load.amount)
        yield f"No rate held {goal}. At the lowest, {lowest.load}: {_outcome(objective, lowest)}"
        return
    highest = max(held, key=lambda result: result.load.amount)
    yield f"Highest rate with {goal}: {highest.load} ({_outcome(objective, highest)})"
    above = [result for result in tried if result.load.amount > highest.load.amount]
    if above:
        next_up = min(above, key=lambda result: result.load.amount)
        yield f"Above it, at {next_up.load}: {_outcome(objective, next_up)}"
    else:
        yield "No higher rate was tried: give it more --steps."


def _outcome(objective: Objective, result: Result) -> str:
    tally = result.tally
    reached = milliseconds(result.latency_s(objective.percent))
    lost = f", {tally.refused:,} refused, {tally.failed:,} other errors" if tally.errors else ""
    return (
        f"p{objective.percent:g} of the answers {reached} ms, {number(result.requests_per_s)} answers/s{lost}; "
        f"bottleneck: {result.verdict.part}"
    )


def scaling_rows(results: Mapping[int, Result]) -> Iterator[tuple[str, ...]]:
    """The table of `SCALING_COLUMNS`: the best step of each number of workers."""
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
