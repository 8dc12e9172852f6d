"""The plot of a bench, SVG or PNG. The only module that imports matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from multitower.tools.bench.rate_search import Objective
from multitower.tools.bench.results import PERCENTS, Result
from multitower.tools.bench.scaling import efficiency

_COLOURS: Final = ("#4c78a8", "#54a24b", "#f58518", "#e45756", "#b279a2", "#9d755d", "#72b7b2", "#bab0ac")
_TICKS: Final = (0, 50, 90, 99, 99.9, 99.99, 99.999)


def draw(
    path: Path,
    title: str,
    steps: Sequence[Result],
    *,
    objective: Objective | None = None,
    scaling: Mapping[int, Result] | None = None,
) -> None:
    """Draws the results of a bench into a file.

    Args:
        path: a name that ends in .svg or .png.
        title: the title of the plot.
        steps: the results to draw.
        objective: drawn as a line if given.
        scaling: the best step of each number of workers; if given, throughput and efficiency are drawn, not latencies.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    if scaling is not None:
        _draw_throughput(left, scaling)
        _draw_efficiency(right, scaling)
    else:
        _draw_latency_over_throughput(left, steps, objective)
        _draw_distribution(right, steps, objective)
    # Text as text: the file is smaller and can be searched.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, dpi=120)


def _draw_latency_over_throughput(axes: Any, steps: Sequence[Result], objective: Objective | None) -> None:
    """Percentiles of the latency over requests a second: a line for each percentile and each kind of loop."""
    for loop, style, marker in (("closed", "-", "o"), ("open", "--", "s")):
        chosen = sorted((step for step in steps if step.load.loop == loop), key=lambda step: step.load.amount)
        if not chosen:
            continue
        rates = [step.requests_per_s for step in chosen]
        for colour, percent in zip(_COLOURS, PERCENTS, strict=False):
            latencies = [step.latency_s(percent) * 1000 for step in chosen]
            label = f"p{percent:g}, {loop} loop"
            axes.plot(rates, latencies, style, marker=marker, markersize=4, color=colour, label=label)
    _draw_objective(axes, objective)
    axes.set(xlabel="requests/s answered", ylabel="latency, ms", yscale="log", title="Latency over throughput")
    axes.set_xlim(left=0)
    _add_grid_and_legend(axes)


def _draw_distribution(axes: Any, steps: Sequence[Result], objective: Objective | None) -> None:
    """Each step's latencies by percentile, with the axis stretched towards 100 as HDR histograms are drawn."""
    chosen = [step for step in steps if step.tally.latency.count]
    for index, step in enumerate(_spread_evenly(chosen, len(_COLOURS))):
        latency, seen = step.tally.latency, 0
        positions, values = [], []
        for upper, count in latency.buckets():
            # The bucket's requests, from the first to the last of them; 100 % itself would be at infinity.
            for share in (seen / latency.count, (seen + count) / latency.count):
                positions.append(_stretch(min(share, 1 - 0.5 / latency.count)))
                values.append(min(upper, latency.max_ns) / 1e6)
            seen += count
        axes.plot(positions, values, color=_COLOURS[index], label=str(step.load))
    _draw_objective(axes, objective)
    right = axes.get_xlim()[1]
    ticks = [percent for percent in _TICKS if _stretch(percent / 100) <= right]
    axes.set_xticks([_stretch(percent / 100) for percent in ticks], [f"{percent:g}" for percent in ticks])
    axes.set(xlabel="per cent of the answered requests", ylabel="latency, ms", yscale="log")
    axes.set_title("Latency distribution")
    _add_grid_and_legend(axes)


def _stretch(share: float) -> float:
    """0 for 0, 1 for 90 %, 2 for 99 %, and so on."""
    return -math.log10(1 - share)


def _spread_evenly(steps: Sequence[Result], most: int) -> list[Result]:
    """At most `most` of the steps, evenly spread, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


def _draw_objective(axes: Any, objective: Objective | None) -> None:
    if objective is not None:
        label = f"objective: p{objective.percent:g}"
        axes.axhline(objective.seconds * 1000, color="black", linewidth=1, linestyle=":", label=label)


def _draw_throughput(axes: Any, scaling: Mapping[int, Result]) -> None:
    workers = sorted(scaling)
    rates = [scaling[count].requests_per_s for count in workers]
    ideal = [rates[0] * count / workers[0] for count in workers]
    axes.plot(workers, ideal, "--", color="#bab0ac", label="ideal")
    axes.plot(workers, rates, "-o", color=_COLOURS[0], label="measured")
    axes.set(xlabel="workers", ylabel="requests/s", title="Throughput over workers", xticks=workers)
    axes.set_ylim(bottom=0)
    _add_grid_and_legend(axes)


def _draw_efficiency(axes: Any, scaling: Mapping[int, Result]) -> None:
    shares = efficiency({count: result.requests_per_s for count, result in scaling.items()})
    names = [str(count) for count in shares]
    bars = axes.bar(names, [share * 100 for share in shares.values()], color=_COLOURS[0], width=0.6)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares.values()])
    axes.axhline(100, color="#bab0ac", linestyle="--")
    axes.set(xlabel="workers", ylabel="of the ideal, %", title="Efficiency")
    axes.set_ylim(0, max(115, *(share * 110 for share in shares.values())))
    axes.grid(visible=True, axis="y", alpha=0.3)


def _add_grid_and_legend(axes: Any) -> None:
    axes.grid(visible=True, which="both", alpha=0.3)
    if axes.get_yscale() == "log":
        # 1, 2, 5, 10, …: a narrow range may contain no power of ten.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
