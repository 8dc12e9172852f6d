"""Answers every kind of request that is neither inference nor an order: readiness, metadata, statistics, status."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from multitower import wire
from multitower.errors import Reason, make
from multitower.infer_header import parse_version
from multitower.spec import ModelReport

from ..loop.history import KEPT
from ..routing.router import Router
from ..routing.version_catalog import MAX_DIGITS
from ..settings import ActiveSettings
from .model_metadata import model_config, model_metadata
from .readiness import Readiness
from .status import StatusReporter

EXTENSIONS: Final = ("model_configuration", "statistics", "binary_tensor_data", wire.SHARED_MEMORY_EXTENSION)
"""Extensions of the Open Inference Protocol that the daemon has, as `MT1:server_metadata` lists them."""


class Queries:
    """Answers queries from the live state.

    Construct it at the daemon's start: it reads the installed version from the file system, which the event loop must
    not do.

    Args:
        readiness: knows which models are ready.
        status: writes the status.
        router: the router.
        settings: the settings in force.
        max_message_size: bytes, as `MT1:server_metadata` reports it.
    """

    def __init__(
        self,
        readiness: Readiness,
        status: StatusReporter,
        router: Router,
        settings: ActiveSettings,
        max_message_size: int,
    ) -> None:
        self._readiness = readiness
        self._status = status
        self._router = router
        self._settings = settings
        self._server_metadata = {
            "name": "multitower",
            "version": version("multitower"),
            "extensions": list(EXTENSIONS),
            "protocol": wire.VERSION,
            "max_message_size": max_message_size,
        }

    def answer(self, kind: bytes, header: dict[str, Any], now: float) -> dict[str, Any]:
        """Returns the header of the reply.

        Args:
            kind: one of `wire.KINDS`, other than `infer` and `cancel`.
            header: the query's header.
            now: monotonic seconds.

        Raises:
            MultitowerError: the header names no model, or the model is unknown or not loaded.
        """
        if kind == wire.SERVER_LIVE:
            return {"live": True}
        if kind == wire.SERVER_READY:
            return self._readiness.report()
        if kind == wire.SERVER_METADATA:
            return self._server_metadata
        if kind == wire.STATUS and "slot" in header:
            return {"slots": [self._status.report_slot(header["slot"], now)]}
        if kind == wire.STATUS:
            if "model_name" in header:
                return self._model_status(header, now)
            return self._status.report(now, _read_events(header))
        if kind == wire.STATISTICS:
            return self._statistics(header)
        name, report = _read_name(header), self.find_report(header)
        if kind == wire.MODEL_READY:
            return {"name": name, "ready": self._is_model_ready(name, report, header)}
        if report is None:
            raise self._not_loaded(name)
        served = self._router.models.versions(name)
        return model_metadata(report, served) if kind == wire.MODEL_METADATA else model_config(report, served)

    def _model_status(self, header: dict[str, Any], now: float) -> dict[str, Any]:
        """Returns the status of the model that a header names: all of its versions, or the one that it names.

        Unlike other queries it also finds versions that are not served: one that loads, or has failed.
        """
        name, number, label = _read_name(header), *parse_version(header)
        if name not in self._settings.model_names:
            known = ", ".join(sorted(self._settings.model_names))
            raise make(Reason.MODEL_UNKNOWN, f"there is no model {name[:128]!r}, only {known}", field="model_name")
        rows = self._status.report_model(name, now)
        if label:
            labels = self._router.models.labels(name)
            if label not in labels:
                message = f"{name!r} has no version label {label[:128]!r}"
                raise make(Reason.VERSION_UNKNOWN, message, field="parameters.version_label")
            number = labels[label]
        if number:
            wanted = int(number) if number.isascii() and number.isdigit() and len(number) <= MAX_DIGITS else None
            known = ", ".join(row["version"] for row in rows if row["version"] is not None)
            rows = [row for row in rows if row["version"] is not None and int(row["version"]) == wanted]
            if not rows:
                message = f"{name!r} has no version {number[:40]!r}, only {known or 'one that is not loaded'}"
                raise make(Reason.VERSION_UNKNOWN, message, field="model_version")
        return {"models": rows}

    def _is_model_ready(self, name: str, report: ModelReport | None, header: dict[str, Any]) -> bool:
        version_named = report is not None and any(parse_version(header))
        ready = self._readiness.ready_slots(name, report.version if report is not None and version_named else None)
        return ready > 0 and not self._readiness.is_unloaded(name)

    def _not_loaded(self, name: str) -> Exception:
        refusal = self._router.scheduler.refusal_for_new_request(name)
        if refusal is not None:
            return refusal
        cause = self._readiness.cause(name) or "it is still loading"
        return make(Reason.NO_WORKER, f"{name!r} is not loaded: {cause}")

    def find_report(self, header: dict[str, Any]) -> ModelReport | None:
        """Returns the report of the model and version that a header names; None while no worker has loaded the model.

        Raises:
            MultitowerError: the header names no model, or the model or the version is unknown.
        """
        return self._router.models.find_report(_read_name(header), *parse_version(header))

    def _statistics(self, header: dict[str, Any]) -> dict[str, Any]:
        versions = {name: self._router.models.versions(name) or [""] for name in self._settings.model_names}
        if "model_name" in header:
            name, report = _read_name(header), self.find_report(header)
            if report is not None and any(parse_version(header)):
                versions = {name: [report.version]}
            else:
                versions = {name: versions.get(name, [""])}
        return {
            "model_stats": [
                self._router.models.statistics[name][version].to_json(name, version)
                for name, of_model in versions.items()
                for version in of_model
            ]
        }


def _read_events(header: dict[str, Any]) -> int | None:
    """Returns how many events the status is to have; None for those of a plain request."""
    events = header.get("events", False)
    if isinstance(events, bool):
        return KEPT if events else None
    if not isinstance(events, int) or events < 0:
        raise make(Reason.MALFORMED, "events is neither true nor false nor a number from 0", field="events")
    return min(events, KEPT)


def _read_name(header: dict[str, Any]) -> str:
    name = header.get("model_name")
    if not isinstance(name, str) or not name:
        raise make(Reason.MALFORMED, "model_name is missing or not a string", field="model_name")
    return name
