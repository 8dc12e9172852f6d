"""What a worker needs of a model, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from multitower.spec import ONLY_VERSION, TensorReport, TowerReport

from ..model_errors import LoadError

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


class Model(Protocol):
    """A loaded model, or one of its signatures.

    Attributes:
        volatile: whether the next call of `infer` may change the arrays that this one has returned.
        version: the number of the version folder, "1" where there are none.
        inputs: the declared inputs; None where nothing is declared, and any are accepted.
        outputs: the declared outputs; None where nothing is declared.
        signature: the name of the default signature, "" where the format has no signatures.
        other_signatures: the other signatures by name; of one that cannot be served, the reason.
        defaults: the values of optional inputs, by name.
        signature_definitions: a serialized SignatureDefMap; empty where the format has none. See
            `signature_definitions`.
        tower: where the replica is, and its nodes; None where that is not looked at.
    """

    @property
    def volatile(self) -> bool: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> tuple[TensorReport, ...] | None: ...  # noqa: D102
    @property
    def outputs(self) -> tuple[TensorReport, ...] | None: ...  # noqa: D102
    @property
    def signature(self) -> str: ...  # noqa: D102
    @property
    def other_signatures(self) -> Mapping[str, Model | LoadError]: ...  # noqa: D102
    @property
    def defaults(self) -> Mapping[str, Array]: ...  # noqa: D102
    @property
    def signature_definitions(self) -> bytes: ...  # noqa: D102
    @property
    def tower(self) -> TowerReport | None: ...  # noqa: D102

    def infer(self, inputs: Arrays) -> Arrays:
        """Runs the model on arrays of the declared datatypes; BYTES are object arrays of `bytes`."""

    def try_out(self, inputs: Arrays) -> Arrays:
        """Runs the model as `infer` does, before it serves, and finds out what only running it shows."""

    def close(self) -> None:
        """Releases what the model holds beside memory. Called once, before the process ends."""


class ModelCall(Protocol):
    """A way to run a model.

    Attributes:
        graph: what a call runs: a GraphDef, with the functions that it calls.
        fetched: the names of the tensors and nodes of that graph that a call computes.
        tower: as in `Model`.
    """

    @property
    def graph(self) -> Any: ...  # noqa: D102
    @property
    def fetched(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def tower(self) -> TowerReport | None: ...  # noqa: D102

    def __call__(self, arrays: Arrays) -> Arrays:
        """Runs the model; see `Model.infer`."""

    def try_out(self, arrays: Arrays) -> Arrays:
        """See `Model.try_out`."""


class BaseModel(ABC):
    """What most formats need: a model with one signature on one device, whose arrays do not change.

    Args:
        inputs: the declared inputs.
        outputs: the declared outputs.
        version: as in `Model`.
    """

    volatile: ClassVar[bool] = False

    def __init__(
        self, inputs: tuple[TensorReport, ...], outputs: tuple[TensorReport, ...], version: str = ONLY_VERSION
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.version = version
        self.signature = ""
        self.other_signatures: Mapping[str, Model | LoadError] = {}
        self.defaults: Mapping[str, Array] = {}
        self.signature_definitions = b""

    @property
    def tower(self) -> TowerReport | None:
        """See `Model`."""
        return None

    @abstractmethod
    def infer(self, inputs: Arrays) -> Arrays:
        """See `Model`."""

    def try_out(self, inputs: Arrays) -> Arrays:
        """See `Model`."""
        return self.infer(inputs)

    def close(self) -> None:  # noqa: B027  most formats have nothing to release
        """See `Model`."""


class CallableModel(BaseModel):
    """A model that is one call: what the formats of TensorFlow make of what they read.

    Args:
        call: runs it.
        inputs: the declared inputs.
        outputs: the declared outputs.
        version: as in `Model`.

    Attributes:
        call: as given.
    """

    def __init__(
        self,
        call: ModelCall,
        inputs: tuple[TensorReport, ...],
        outputs: tuple[TensorReport, ...],
        version: str = ONLY_VERSION,
    ) -> None:
        super().__init__(inputs, outputs, version)
        self.call = call

    def infer(self, inputs: Arrays) -> Arrays:
        """Runs the call. Optional inputs that are missing get their defaults."""
        return self.call({**self.defaults, **inputs} if self.defaults else inputs)

    def try_out(self, inputs: Arrays) -> Arrays:
        """Runs the call, likewise, and finds out how it is best run."""
        return self.call.try_out({**self.defaults, **inputs} if self.defaults else inputs)

    @property
    def tower(self) -> TowerReport | None:
        """Where the replica is, and its nodes; None where that is not looked at."""
        return self.call.tower

    @property
    def graph(self) -> Any:
        """What a call runs: a GraphDef, with the functions that it calls."""
        return self.call.graph
