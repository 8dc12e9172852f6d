"""Traces of requests: chooses requests, makes their spans, and sends them to a collector.

The daemon has one `Tracing`. Where `tracing` is not configured, it observes nothing.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from ..config.tracing import TracingConfig
from ..loop.log import event
from ..routing.observers import RequestObserver
from ..settings import ActiveSettings
from .otlp_exporter import INSTALL, missing_packages
from .span_export_thread import SpanExport
from .trace_observer import TraceObserver

log = logging.getLogger("multitower.tracing")


def why_impossible(config: TracingConfig | None) -> str | None:
    """Why requests cannot be traced as configured, and what to do; None where they can be."""
    missing = missing_packages(config.endpoint) if config is not None else []
    if not missing:
        return None
    return (
        f"`tracing` needs packages that are not installed ({', '.join(missing)}): {INSTALL}; or remove "
        "`tracing` from the configuration"
    )


class Tracing:
    """Traces requests as the settings in force want it.

    Args:
        settings: the settings in force; a reload may change them.
        observers: of the router; gets an observer while requests are traced.
    """

    def __init__(self, settings: ActiveSettings, observers: list[RequestObserver]) -> None:
        self._settings = settings
        self._observers = observers
        self._applied: TracingConfig | None = None
        self._export: SpanExport | None = None
        self._observer: TraceObserver | None = None
        self._ending: list[SpanExport] = []  # that send their last spans
        self._exported_before = self._dropped_before = 0  # by exports that have ended

    def tick(self, now: float) -> None:
        """Applies changed settings, and logs dropped spans at a limited rate; call it about once a second.

        Args:
            now: monotonic seconds.
        """
        wanted = self._settings.current.config.tracing
        if wanted != self._applied:
            self._apply(wanted)
        if self._export is not None:
            self._export.tick(now)
        for export in [export for export in self._ending if export.ended]:
            self._ending.remove(export)
            self._exported_before += export.exported
            self._dropped_before += export.dropped

    def _apply(self, wanted: TracingConfig | None) -> None:
        if self._export is not None and (wanted is None or wanted.endpoint != self._export.endpoint):
            self._stop()
        self._applied = None  # if the thread cannot be started, the next call tries again
        if wanted is None:
            event(log, logging.INFO, "requests are not traced any more")
            return
        if self._export is None:
            self._export = SpanExport(wanted.endpoint)
            self._observer = TraceObserver(wanted.sample, wanted.max_per_second, self._export.put)
            self._observers.append(self._observer)
        if self._observer is not None:
            self._observer.sampler.change(wanted.sample, wanted.max_per_second)
        self._applied = wanted
        event(log, logging.INFO, "tracing requests", endpoint=wanted.endpoint, sample=wanted.sample)

    def _stop(self) -> None:
        if self._observer is not None:
            self._observers.remove(self._observer)
        if self._export is not None:
            self._export.end()
            self._ending.append(self._export)
        self._export = self._observer = None

    @property
    def _exports(self) -> list[SpanExport]:
        return self._ending if self._export is None else [*self._ending, self._export]

    @property
    def exported(self) -> int:
        """Spans that collectors have taken since the daemon started."""
        return self._exported_before + sum(export.exported for export in self._exports)

    @property
    def dropped(self) -> int:
        """Spans that no collector has got."""
        return self._dropped_before + sum(export.dropped for export in self._exports)

    def report(self) -> dict[str, Any] | None:
        """The entry in the status; None where requests are not traced."""
        export, config = self._export, self._applied
        if export is None or config is None:
            return None
        return {
            "endpoint": config.endpoint,
            "sample": config.sample,
            "spans_exported": self.exported,
            "spans_waiting": export.waiting,
            "spans_dropped": self.dropped,
            "last_error": export.last_error,
        }

    def close(self, seconds: float) -> None:
        """Exports what waits, and ends.

        Args:
            seconds: how long that may take; what is left is dropped.
        """
        self._stop()
        until = time.monotonic() + seconds
        for export in self._ending:
            export.close(max(until - time.monotonic(), 0.0))
