"""What a spawned worker is told, and what it reports of its models: plain data that travels as JSON.

The supervisor writes `ProcessSpec` into the spawned process and `Assignment` either with it (a cold start) or
later (a spare that takes over a slot). The worker answers with `ModelReport`s. Supervisor and worker meet only
here and in `worker_wire`; neither imports the other.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from multitower.model_formats import ModelFormat, recognize

NO_SOCKET: Final = 73
"""The exit code of a worker that cannot make its socket (EX_CANTCREAT of sysexits.h): it cannot report why."""

UNREADABLE_MESSAGE: Final = 76
"""The exit code of a worker that cannot read a message of the supervisor (EX_PROTOCOL of sysexits.h)."""

ONLY_VERSION: Final = "1"
"""Of a model that has no version folders."""


def newest(versions: Iterable[str]) -> str:
    """Of these versions, at least one, the one that requests get which name none: the highest number."""
    return max(versions, key=int)


class _Json:
    """To JSON and back for the frozen dataclasses below; nested ones name their own readers."""

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode()  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec(_Json):
    """One model as the configuration names it.

    Attributes:
        name: what clients ask for.
        path: an absolute path of a SavedModel (or a folder of numbered versions) or a file with one of the
            `FILE_SUFFIXES`, or None.
        version: the numbered folder under `path` to load, or None where there are none. The supervisor chooses it,
            so that a worker that is started again never serves another version than its neighbours. A model of which
            several versions are served has a spec for each.
        handler: `module:Class`, or None; exactly one of `path` and `handler` is given.
        parameters: passed to the handler's `load`.
        inputs: of a frozen graph: the tensors that requests give, by the names that clients use for them.
        outputs: of a frozen graph: those that they get.
        signature: the SavedModel's signature; None picks `serving_default`, else `serve`, else the only one.
        max_batch_size: rows a batch at the most; 0 means that requests are never batched together.
        allowed_batch_sizes: sizes a batch is padded to, ascending, the last being `max_batch_size`; empty for
            no padding.
        pad_variable_length_inputs: requests that differ in other dimensions than their rows share batches, padded.
        warmup: an absolute path of an .npz file with inputs for the warm-up, or None.
        jit_compile: XLA compiles the model for each of the allowed batch sizes.
        placement: in a worker of several devices: `towers`, a replica on each; or `as_saved`, one that spans them on
            the devices that its graph names.
        log_device_placement: the worker logs the device of each node; then a single device has a tower, too.
        fingerprint: of what lies at `path`, so that a reload sees that it is another model; empty for handlers.
        safe_rows: rows that an earlier worker of the slot found to fit into the device's memory; 0 while that is
            unknown.
    """

    name: str
    path: str | None = None
    version: str | None = None
    handler: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    signature: str | None = None
    max_batch_size: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    warmup: str | None = None
    jit_compile: bool = False
    placement: str = "towers"
    log_device_placement: bool = False
    fingerprint: str = ""
    safe_rows: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Its name and version, as its report has them."""
        return self.name, self.version or ONLY_VERSION

    @property
    def format(self) -> ModelFormat:
        """Its format."""
        return recognize(self.path)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The spec that `dataclasses.asdict` and JSON made `data` of."""
        return cls(**{**data, "allowed_batch_sizes": tuple(data["allowed_batch_sizes"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment(_Json):
    """A slot's work: which device, how much of the host, which models.

    Attributes:
        slot: the slot's number.
        incarnation: the n-th process in that slot, from 1.
        devices: names of the devices, `("GPU-…",)` or `("cpu:0",)`; of several, all of one kind, the i-th is
            TensorFlow's `GPU:i` or `CPU:i`.
        environment: variables to set before any device is touched (`CUDA_VISIBLE_DEVICES`,
            `CUDA_DEVICE_ORDER`).
        intra_op_threads: TensorFlow's threads within one operation.
        inter_op_threads: TensorFlow's operations at one time.
        cores: CPU numbers the worker is bound to, or empty for no binding.
        memory_limit_bytes: a hard limit of each device's memory for TensorFlow, or None for growth on demand.
        models: what to load, in this order.
    """

    slot: int
    incarnation: int
    devices: tuple[str, ...]
    environment: Mapping[str, str]
    intra_op_threads: int
    inter_op_threads: int
    cores: tuple[int, ...] = ()
    memory_limit_bytes: int | None = None
    models: tuple[ModelSpec, ...] = ()

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The assignment that `dataclasses.asdict` and JSON made `data` of."""
        return cls(
            **{
                **data,
                "devices": tuple(data["devices"]),
                "cores": tuple(data["cores"]),
                "models": tuple(ModelSpec.of(model) for model in data["models"]),
            }
        )

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Reads what `to_json` wrote."""
        return cls.of(json.loads(text))


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessSpec(_Json):
    """What a process is told at birth.

    Attributes:
        endpoint: the ipc address that the worker binds; a fresh one for every process.
        parent_pid: the supervisor's pid; a worker that finds another parent ends at once.
        name: what `ps` shows, at most 15 bytes.
        import_tensorflow: import TensorFlow before waiting for an assignment, since a model will need it.
        import_path: folders put in front of the import path, for handlers.
        heartbeat_s: seconds from one heartbeat to the next.
        log_level: the daemon's, as `logging` names it; with `DEBUG` TensorFlow logs everything.
        assignment: the slot's work, or None for a spare, which gets it later.
    """

    endpoint: str
    parent_pid: int
    name: str
    import_tensorflow: bool
    import_path: tuple[str, ...] = ()
    heartbeat_s: float = 1.0
    log_level: str = "INFO"
    assignment: Assignment | None = None

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Reads what `to_json` wrote."""
        data = json.loads(text)
        assignment = data["assignment"]
        return cls(
            **{
                **data,
                "import_path": tuple(data["import_path"]),
                "assignment": Assignment.of(assignment) if assignment is not None else None,
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorReport:
    """Name, datatype and shape of an input or output; -1 is a dimension that may vary, None an unknown rank."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The report that `dataclasses.asdict` and JSON made `data` of."""
        shape = data["shape"]
        return cls(name=data["name"], datatype=data["datatype"], shape=None if shape is None else tuple(shape))


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerReport:
    """Where a replica of a model is, and where its nodes were in a traced run of its warm-up.

    Attributes:
        device: as the configuration names it; several joined by commas where it spans them.
        nodes: of its graph, by the device that they were on; None where no run has shown it.
        fallbacks: those that were not on the tower's device, by operation: it has no kernel for them; or they are where
            a request's own tensor enters a loop or a branch.
    """

    device: str
    nodes: Mapping[str, int] | None = None
    fallbacks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignatureReport:
    """What a worker found of a signature that requests may name.

    Attributes:
        name: the signature's.
        inputs: its inputs.
        outputs: its outputs.
        max_batch_size: rows a batch; 0 if requests run unbatched.
        unbatched_because: why they do although the model is configured to be batched, or None.
        cause: why it cannot be served, or None where it can.
    """

    name: str
    inputs: tuple[TensorReport, ...] = ()
    outputs: tuple[TensorReport, ...] = ()
    max_batch_size: int = 0
    unbatched_because: str | None = None
    cause: str | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The report that `dataclasses.asdict` and JSON made `data` of."""
        tensors = {side: tuple(TensorReport.of(entry) for entry in data[side]) for side in ("inputs", "outputs")}
        return cls(**{**data, **tensors})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReport:
    """What a worker found a model to be.

    Attributes:
        name: as configured.
        version: the number of the version folder, "1" where there are none.
        platform: `tensorflow_savedmodel`, `tensorflow_graphdef`, `keras` or `python`.
        state: `ready` or `failed`.
        cause: why it failed, for people.
        inputs: the model's inputs, or None where a handler declares none and takes any.
        outputs: its outputs, or None where a handler declares none.
        max_batch_size: rows a batch; 0 if requests run unbatched.
        unbatched_because: why a model that is configured to be batched runs unbatched, or None.
        pad_variable_length_inputs: as configured.
        signature: the name of the signature that all of this tells of, "" where the model has none.
        signatures: the others that it has.
        towers: its replicas, where the worker made towers of it.
        load_s: seconds to load it.
        warmup_s: seconds to warm it up.
        host_memory_bytes: by how much the worker's resident memory grew meanwhile.
        device_memory_bytes: the same of its devices' memory; None without a GPU, and where nobody says.
        device_memory_peak_bytes: the most that it was meanwhile; None as well where only TensorFlow could say.
    """

    name: str
    version: str = ONLY_VERSION
    platform: str = ""
    state: str = "ready"
    cause: str | None = None
    inputs: tuple[TensorReport, ...] | None = None
    outputs: tuple[TensorReport, ...] | None = None
    max_batch_size: int = 0
    unbatched_because: str | None = None
    pad_variable_length_inputs: bool = False
    signature: str = ""
    signatures: tuple[SignatureReport, ...] = ()
    towers: tuple[TowerReport, ...] = ()
    load_s: float = 0.0
    warmup_s: float = 0.0
    host_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    device_memory_peak_bytes: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Its name and version."""
        return self.name, self.version

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The report that `dataclasses.asdict` and JSON made `data` of."""
        tensors = {
            side: None if data[side] is None else tuple(TensorReport.of(entry) for entry in data[side])
            for side in ("inputs", "outputs")
        }
        signatures = tuple(SignatureReport.of(entry) for entry in data["signatures"])
        towers = tuple(TowerReport(**entry) for entry in data["towers"])
        return cls(**{**data, **tensors, "signatures": signatures, "towers": towers})


@dataclass(frozen=True, kw_only=True, slots=True)
class UnbatchedReport(_Json):
    """Requests for a model that was batched run unbatched from now on.

    Attributes:
        model: its name.
        version: its version.
        because: what a batch has shown.
    """

    model: str
    version: str
    because: str

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryReport(_Json):
    """Memory did not suffice for a batch.

    Attributes:
        model: whose.
        safe_rows: rows that calls of the model have from now on; 0 where that is not the way out.
        exhausted: calls in a row for which it did not suffice, though they could not be split further.
    """

    model: str
    safe_rows: int
    exhausted: int

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerReport(_Json):
    """A worker's own account of its state.

    Attributes:
        state: `importing` (the socket is bound), `idle` (a spare that waits), `loading`, `ready` (at least one
            model serves) or `failed` (none does, or TensorFlow cannot be imported).
        pid: the process.
        cause: why it failed.
        visible_devices: `CUDA_VISIBLE_DEVICES` as the process itself reads it, or None when it is not set.
        models: one report for each model of the assignment, once they have been loaded.
    """

    state: str
    pid: int
    cause: str | None = None
    visible_devices: str | None = None
    models: tuple[ModelReport, ...] = ()

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Reads what `to_json` wrote."""
        data = json.loads(text)
        return cls(**{**data, "models": tuple(ModelReport.of(model) for model in data["models"])})
