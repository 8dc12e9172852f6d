"""Why requests are refused although their headers are good: their model is served by nobody, or crashes its workers.

Pure. The balancer asks before it takes a request in; `recovery.py` tells of crashes.
"""

from __future__ import annotations

from collections.abc import Collection

from multitower.errors import MultitowerError, Reason, make

from .crashing_models import CrashingModels
from .quarantine import Quarantine


class Refusals:
    """The models and requests that are kept away.

    Attributes:
        quarantine: requests that crashed a worker alone.
        crashing: models whose requests do so one after the other.
        unloaded: models that an operator has taken out; what was accepted before is answered.
    """

    def __init__(self) -> None:
        self.quarantine = Quarantine()
        self.crashing = CrashingModels()
        self.unloaded: set[str] = set()
        self._unavailable: dict[str, str] = {}

    def for_new_request(self, model: str) -> MultitowerError | None:
        """Why new requests to the model are refused, or None."""
        if self.unloaded and model in self.unloaded:
            return make(Reason.NO_WORKER, f"{model!r} is unloaded; `multitower load {model}` loads it")
        return self.for_accepted_request(model)

    def for_accepted_request(self, model: str) -> MultitowerError | None:
        """Why the model's requests are not run, or None while there is hope."""
        if not self._unavailable and not self.crashing.until:
            return None
        # Made anew each time: an exception that is raised over and over keeps the traceback of every time.
        message = self._unavailable.get(model)
        if message is None and (why := self.crashing.why(model)) is not None:
            message = f"{model!r} is in quarantine: {why}"
        return None if message is None else make(Reason.NO_WORKER, message)

    def for_suspect(self, model: str) -> MultitowerError | None:
        """Why one that has not died often enough is not run again either, or None: it may be a good one."""
        return self.for_accepted_request(model) if model in self._unavailable or self.crashing.certain(model) else None

    def mark_unavailable(self, model: str, cause: str) -> None:
        """Nothing serves or will serve this model."""
        self._unavailable[model] = f"no worker serves {model!r}: {cause}"

    def mark_available(self, model: str) -> None:
        """It may be served again."""
        self._unavailable.pop(model, None)

    def reset_crash_count(self, models: Collection[str] | None = None) -> None:
        """What made these models crash, or all, has been seen to: they are tried again, and so are their requests."""
        for model in self.crashing.suspected:
            if models is None or model in models:
                if model in self.crashing.until:
                    self.quarantine.forget_model(model)
                self.crashing.forget(model)

    def remove(self, model: str) -> None:
        """The model is no more."""
        self._unavailable.pop(model, None)
        self.unloaded.discard(model)
        self.crashing.forget(model)
