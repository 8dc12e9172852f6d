"""Why valid requests are refused: their model is unloaded, nothing serves it, or it crashes its workers."""

from __future__ import annotations

from collections.abc import Collection

from multitower.errors import MultitowerError, Reason, make

from .quarantine import ModelQuarantine, RequestQuarantine


class Refusals:
    """The models and requests that are refused.

    Attributes:
        requests: requests in quarantine.
        models: models in quarantine.
        unloaded: models that an operator has unloaded. Requests accepted before are still answered.
    """

    def __init__(self) -> None:
        self.requests = RequestQuarantine()
        self.models = ModelQuarantine()
        self.unloaded: set[str] = set()
        self._unavailable: dict[str, str] = {}  # by model, the message

    def for_new_request(self, model: str) -> MultitowerError | None:
        """Why new requests to the model are refused; None if they are accepted."""
        if self.unloaded and model in self.unloaded:
            return make(Reason.NO_WORKER, f"{model!r} is unloaded; `multitower load {model}` loads it")
        return self.for_accepted_request(model)

    def for_accepted_request(self, model: str) -> MultitowerError | None:
        """Why accepted requests to the model are not run; None if a worker serves it, or may serve it later."""
        if not self._unavailable and not self.models:
            return None
        # A new error each time: one that is raised repeatedly would collect the tracebacks of all times.
        message = self._unavailable.get(model)
        if message is not None:
            return make(Reason.NO_WORKER, message)
        if model not in self.models:
            return None
        message = f"{model!r} is in quarantine: {self.models.cause(model)}"
        return make(Reason.NO_WORKER, message, **self.models.details(model))

    def for_suspect(self, model: str) -> MultitowerError | None:
        """Why a suspect of the model is not run again; None if it is, since it may not be the one that crashes."""
        if model in self._unavailable or self.models.refuses_suspects(model):
            return self.for_accepted_request(model)
        return None

    def mark_unavailable(self, model: str, cause: str) -> None:
        """Nothing serves the model, and nothing will."""
        self._unavailable[model] = f"no worker serves {model!r}: {cause}"

    def mark_available(self, model: str) -> None:
        """Ends `mark_unavailable`."""
        self._unavailable.pop(model, None)

    def reset_crash_count(self, models: Collection[str] | None = None) -> None:
        """Ends the quarantine of models and of their requests; their crashes count from 0 again.

        Args:
            models: models that have changed, so that no request of theirs stays in quarantine; None for all models as
                they are: a request that is in quarantine alone, without its model, stays there.
        """
        for model in models or ():
            self.requests.remove_model(model)
        for model in self.models.models_with_crashes:
            if models is None or model in models:
                if model in self.models:
                    self.requests.remove_model(model)
                self.models.reset(model)

    def remove_model(self, model: str) -> None:
        """There is no such model any more."""
        self._unavailable.pop(model, None)
        self.unloaded.discard(model)
        self.models.reset(model)
        self.requests.remove_model(model)
