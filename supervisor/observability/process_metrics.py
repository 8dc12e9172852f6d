"""Metrics of the daemon's own process, under the usual names of Prometheus clients. It reads /proc, which may block."""

from __future__ import annotations

from typing import Final

from prometheus_client.process_collector import ProcessCollector

from .exposition import Family, Kind, Metric

_COLLECTOR: Final = ProcessCollector(registry=None)


def process_families() -> list[Family]:
    """Returns the metrics of this process that the system provides."""
    return [
        Family(
            Metric(family.samples[0].name, Kind(family.type), family.documentation), [((), (family.samples[0].value,))]
        )
        for family in _COLLECTOR.collect()
    ]
