"""Writes metrics in the text formats of Prometheus and OpenMetrics.

prometheus-client writes each series once: its name, its labels and their escapes. What it wrote is kept as a template
without values, since writing a series takes it a hundred times as long as filling in the values, and the threads of
the daemon share one interpreter lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as AnyMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from multitower import wire

from ..loop.encodable import encodable

CONTENT_TYPES: Final = {
    wire.PROMETHEUS: "text/plain; version=0.0.4; charset=utf-8",
    wire.OPENMETRICS: "application/openmetrics-text; version=1.0.0; charset=utf-8",
}
"""The media type of each format."""

PAUSE_S: Final = 0.0001
"""How long other threads get the interpreter lock after prometheus-client has written a series."""

SERIES_AT_ONCE: Final = 100
"""Series that are written from templates before other threads may run."""

Labels: TypeAlias = tuple[str, ...]
"""The values of the labels of a series, in the order of the metric's label names."""

Series: TypeAlias = tuple[Labels, tuple[float, ...]]
"""Labels and values. A counter or gauge has one value. A histogram has the cumulative count of each bucket, the total
twice (`+Inf`, `_count`), then the sum."""


class Kind(StrEnum):
    """The type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    FOREIGN_COUNTER = "foreign_counter"  # a counter of another program, whose name does not end in `_total`


@dataclass(frozen=True, slots=True)
class Metric:
    """The fixed part of a metric.

    Attributes:
        name: of the metric, with the ending `_total` of a counter.
        kind: its type.
        help: one sentence for people.
        labels: the names of its labels.
        edges: of a histogram: the upper edges of its buckets, ascending, without the infinite one.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()


@dataclass(slots=True)
class Family:
    """A metric with its series at one moment."""

    metric: Metric
    series: list[Series]


class Exposition:
    """Writes one format, and remembers what prometheus-client wrote. For one thread at a time.

    Args:
        format: one of `wire.METRICS_FORMATS`.
    """

    def __init__(self, format: str) -> None:
        self._openmetrics = format == wire.OPENMETRICS
        self._generate: Callable[[Collector], bytes] = generate_openmetrics if self._openmetrics else generate_latest
        self._headers: dict[str, str] = {}
        self._templates: dict[str, dict[Labels, str]] = {}

    def write(self, families: Iterable[Family]) -> bytes:
        """Returns the text of these metrics in UTF-8; what UTF-8 cannot express becomes a question mark."""
        parts: list[str] = []
        written = 0
        for family in families:
            metric = family.metric
            header = self._headers.get(metric.name)
            if header is None:
                header = self._headers[metric.name] = self._make_header(metric)
            parts.append(header)
            known = self._templates.get(metric.name, {})
            used: dict[Labels, str] = {}
            for labels, values in family.series:
                template = known.get(labels)
                if template is None:
                    template = self._make_template(metric, labels)
                    time.sleep(PAUSE_S)
                used[labels] = template
                parts.append(template % values)
                written += 1
                if written % SERIES_AT_ONCE == 0:
                    time.sleep(0)
            self._templates[metric.name] = used  # without series that are gone
        if self._openmetrics:
            parts.append("# EOF\n")
        return "".join(parts).encode("utf-8", "replace")

    def _make_header(self, metric: Metric) -> str:
        lines = [line for line in self._lines(_make_family(metric)) if line.startswith("#")]
        if metric.kind is Kind.FOREIGN_COUNTER and not self._openmetrics:
            lines = [line.removesuffix("untyped") + "counter" if line.endswith(" untyped") else line for line in lines]
        return "".join(f"{line}\n" for line in lines)

    def _make_template(self, metric: Metric, labels: Labels) -> str:
        lines = self._lines(_make_family(metric, labels))
        series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
        return "".join(f"{line.replace('%', '%%')} %s\n" for line in series)

    def _lines(self, family: AnyMetricFamily) -> list[str]:
        text = self._generate(_Single(family)).decode("utf-8", "replace").removesuffix("# EOF\n")
        return text.removesuffix("\n").split("\n")  # not splitlines, which splits at other characters too


class _Single(Collector):
    """What prometheus-client takes: a collector, here of one metric."""

    def __init__(self, family: AnyMetricFamily) -> None:
        self._family = family

    def collect(self) -> Iterable[AnyMetricFamily]:
        return (self._family,)


def _make_family(metric: Metric, labels: Labels | None = None) -> AnyMetricFamily:
    """Returns prometheus-client's form of a metric, with a series for these labels if they are given."""
    labels = labels if labels is None else tuple(encodable(label) for label in labels)
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        if labels is not None:
            edges = [*(str(edge) for edge in metric.edges), "+Inf"]
            histogram.add_metric(labels, [(edge, 0.0) for edge in edges], 0.0)
        return histogram
    if metric.kind is Kind.FOREIGN_COUNTER:
        foreign = AnyMetricFamily(metric.name, metric.help, "unknown")
        if labels is not None:
            foreign.add_sample(metric.name, dict(zip(metric.labels, labels, strict=True)), 0.0)
        return foreign
    make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = make(metric.name, metric.help, labels=metric.labels)
    if labels is not None:
        family.add_metric(labels, 0.0)
    return family
