"""Answers every kind of request that is neither inference nor an order: readiness, metadata, statistics, status."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from multitower import wire
from multitower.errors import Reason, make
from multitower.infer_header import parse_version
from multitower.spec import ModelReport

from ..routing.router import Router
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
        if kind == wire.STATUS:
            return self._status.report(now)
        if kind == wire.STATISTICS:
            return self._statistics(header)
        name, report = self._find_model(header)
        if kind == wire.MODEL_READY:
            return {"name": name, "ready": self._is_model_ready(name, report, header)}
        if report is None:
            raise self._not_loaded(name)
        served = self._router.versions(name)
        return model_metadata(report, served) if kind == wire.MODEL_METADATA else model_config(report, served)

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

    def _find_model(self, header: dict[str, Any]) -> tuple[str, ModelReport | None]:
        """Returns the model that a header names, with the report of the version; None while no worker has loaded it."""
        name = header.get("model_name")
        if not isinstance(name, str) or not name:
            raise make(Reason.MALFORMED, "model_name is missing or not a string", field="model_name")
        return name, self._router.find_report(name, *parse_version(header))

    def _statistics(self, header: dict[str, Any]) -> dict[str, Any]:
        versions = {name: self._router.versions(name) or [""] for name in self._settings.model_names}
        if "model_name" in header:
            name, report = self._find_model(header)
            if report is not None and any(parse_version(header)):
                versions = {name: [report.version]}
            else:
                versions = {name: versions.get(name, [""])}
        return {
            "model_stats": [
                self._router.statistics[name][version].to_json(name, version)
                for name, of_model in versions.items()
                for version in of_model
            ]
        }
