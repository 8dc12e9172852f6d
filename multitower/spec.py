"""What the supervisor sends to a worker about its work, and what the worker reports: plain data that travels as JSON.

A process gets a `ProcessSpec` when it is spawned, and an `Assignment` either in it (a cold start) or later (a spare
that takes over a slot). It answers with `WorkerReport`s. Supervisor and worker share only this module, `worker_wire`
and `format_registry`; neither imports the other.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from multitower.format_registry import ModelFormat, expected_format, recognize

NO_SOCKET: Final = 73
"""The exit code of a worker that cannot make its socket, and so cannot report why (EX_CANTCREAT of sysexits.h)."""

UNREADABLE_MESSAGE: Final = 76
"""The exit code of a worker that cannot read a message of the supervisor (EX_PROTOCOL of sysexits.h)."""

FILES_CHANGED: Final = (
    "its files have changed, and other workers may serve the former ones: all workers load the new ones once these "
    "have not changed for watch.settle, or with `multitower reload`"
)
"""Why a model is not loaded, or not served, whose files are not those of its specification."""

ONLY_VERSION: Final = "1"
"""The version of a model without version folders."""


def newest(versions: Iterable[str]) -> str:
    """The version for requests that name none: the highest number. There must be at least one version."""
    return max(versions, key=int)


class _Json:
    """Writes the frozen dataclasses below as JSON; each has its own reader."""

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode()  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec(_Json):
    """One version of a model, as configured.

    Attributes:
        name: the name that clients use.
        path: the absolute path of a SavedModel, of a folder of numbered versions, or of a file; None for a handler.
        version: the numbered folder under `path` to load; None where there are none. The supervisor chooses it, so that
            a restarted worker serves the same versions as the others. Each served version has a spec of its own.
        handler: `module:Class`, or None; exactly one of `path` and `handler` is given.
        module_folder: of a handler: the folder of the configuration, which may contain its module; else None.
        parameters: passed to the handler's `load`.
        inputs: of a frozen graph: the tensors that requests feed, by the names that clients use.
        outputs: of a frozen graph: the tensors that requests get, by name.
        signature: the SavedModel's default signature; None for `serving_default`, else `serve`, else the only one.
        tags: the tags of the SavedModel's MetaGraph; empty for that of `serve`, else the only one.
        max_batch_size: the largest number of rows in a batch; 0 runs the model unbatched.
        allowed_batch_sizes: sizes that batches are padded to, ascending, up to `max_batch_size`; empty for no padding.
        pad_variable_length_inputs: whether requests that differ in dimensions other than the first share batches,
            padded.
        trust_batching: whether requests share batches although values may show that rows influence each other.
        warmup: the absolute path of an .npz file with inputs for the warm-up, or None.
        custom_ops: the absolute paths of libraries with operations that the model uses; loaded before it.
        jit_compile: whether XLA compiles the model for each allowed batch size.
        placement: in a worker of several devices: `towers` for a replica on each, or `as_saved` for one that spans
            them, on the devices that its graph names.
        log_device_placement: whether the worker logs the device of each node. A single device then has a tower too.
        fingerprint: of the model's files, by which a reload recognises a changed model; see `model_files`.
        content_digest: of the contents that have this fingerprint; "" if it is unknown, or the fingerprint covers them.
        must_match: whether the model must not be loaded if its files are others, since other workers may serve these.
        safe_rows: rows of a call that earlier workers of the slot had no memory for more than, or did not survive more
            than; 0 while unknown.
        not_loaded_because: why the worker must not try to load it; empty otherwise.
    """

    name: str
    path: str | None = None
    version: str | None = None
    handler: str | None = None
    module_folder: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    signature: str | None = None
    tags: tuple[str, ...] = ()
    max_batch_size: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    trust_batching: bool = False
    warmup: str | None = None
    custom_ops: tuple[str, ...] = ()
    jit_compile: bool = False
    placement: str = "towers"
    log_device_placement: bool = False
    fingerprint: str = ""
    content_digest: str = ""
    must_match: bool = False
    safe_rows: int = 0
    not_loaded_because: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Its name and version, as in its report."""
        return self.name, self.version or ONLY_VERSION

    @property
    def format(self) -> ModelFormat:
        """Its format, by what lies at its path: `format_registry.recognize` reads a file."""
        return recognize(self.path)

    @property
    def expects_tensorflow(self) -> bool:
        """Whether its worker should import TensorFlow early, as far as the model's name tells: nothing is read."""
        return expected_format(self.path).uses_tensorflow

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `dataclasses.asdict` and JSON made of a spec."""
        lists = {name: tuple(data[name]) for name in ("tags", "allowed_batch_sizes", "custom_ops")}
        return cls(**{**data, **lists})


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment(_Json):
    """The work of a slot: its devices, its share of the host, its models.

    Attributes:
        slot: the slot's number.
        incarnation: the number of the process in that slot, from 1.
        devices: names of the devices, such as `("GPU-…",)` or `("cpu:0",)`. Several are all of one kind; the i-th is
            TensorFlow's `GPU:i` or `CPU:i`.
        environment: variables to set before any device is touched and any library is loaded (`CUDA_VISIBLE_DEVICES`,
            `CUDA_DEVICE_ORDER`, `OMP_NUM_THREADS` and others).
        intra_op_threads: TensorFlow's threads within one operation.
        inter_op_threads: how many operations TensorFlow runs at the same time.
        cores: CPU numbers that the worker is bound to; empty for no binding.
        memory_limit_bytes: a limit on each device's memory for TensorFlow; None for growth on demand.
        max_message_size: bytes that a request may have; None if that is not to be checked.
        spin_s: seconds for which it looks for messages again and again before it sleeps.
        models: the models to load, in this order.
    """

    slot: int
    incarnation: int
    devices: tuple[str, ...]
    environment: Mapping[str, str]
    intra_op_threads: int
    inter_op_threads: int
    cores: tuple[int, ...] = ()
    memory_limit_bytes: int | None = None
    max_message_size: int | None = None
    spin_s: float = 0.0
    models: tuple[ModelSpec, ...] = ()

    @property
    def title(self) -> str:
        """The title of the process, as `ps` shows it."""
        return f"worker {self.slot} {','.join(self.devices)}"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `dataclasses.asdict` and JSON made of an assignment."""
        return cls(
            **{
                **data,
                "devices": tuple(data["devices"]),
                "cores": tuple(data["cores"]),
                "models": tuple(ModelSpec.from_dict(model) for model in data["models"]),
            }
        )

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Reads what `to_json` wrote."""
        return cls.from_dict(json.loads(text))


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessSpec(_Json):
    """What a process gets when it is spawned.

    Attributes:
        endpoint: the ipc address that the worker binds; a fresh one for every process.
        parent_pid: the supervisor's pid; a worker that has another parent exits at once.
        name: the name that `ps` shows, of at most 15 bytes.
        import_tensorflow: whether to import TensorFlow before waiting for an assignment, since a model will need it.
        import_path: folders that become the last ones on the import path, for handlers.
        heartbeat_s: seconds from one heartbeat to the next.
        log_level: the daemon's, as `logging` names it; with `DEBUG` TensorFlow logs everything.
        temporary_folder: its TMPDIR, for it alone, removed with it; None for that of the daemon.
        assignment: the work of the slot; None for a spare, which gets it later.
        environment: variables to set at the start of a spare; other processes get those of their assignment.
        control_group: the folder of the control group that the process enters, or None.
    """

    endpoint: str
    parent_pid: int
    name: str
    import_tensorflow: bool
    import_path: tuple[str, ...] = ()
    heartbeat_s: float = 1.0
    log_level: str = "INFO"
    temporary_folder: str | None = None
    assignment: Assignment | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    control_group: str | None = None

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Reads what `to_json` wrote."""
        data = json.loads(text)
        assignment = data["assignment"]
        return cls(
            **{
                **data,
                "import_path": tuple(data["import_path"]),
                "assignment": Assignment.from_dict(assignment) if assignment is not None else None,
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorReport:
    """An input or output.

    Attributes:
        name: its name.
        datatype: its datatype.
        shape: its shape, in which -1 is a dimension of any size; None where the rank is unknown.
        optional: of an input: whether a request may leave it out, since the model has a default for it.
        batched_without: of an optional input: whether requests that leave it out may share batches.
        signature_key: of an input of a SavedModel: its key in the SignatureDef where that is not its name; else "".
    """

    name: str
    datatype: str
    shape: tuple[int, ...] | None
    optional: bool = False
    batched_without: bool = True
    signature_key: str = ""

    @property
    def has_rows(self) -> bool:
        """Whether dimension 0 has any size, and so may be the batch dimension."""
        return self.shape is not None and self.shape[:1] == (-1,)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `dataclasses.asdict` and JSON made of a report."""
        shape = data["shape"]
        return cls(**{**data, "shape": None if shape is None else tuple(shape)})


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerReport:
    """The device of a replica of a model, and the devices on which its nodes ran in a traced run of the warm-up.

    Attributes:
        device: its name in the configuration; several names joined by commas where the replica spans devices.
        nodes: the number of its graph's nodes on each device; None where no run has shown it.
        fallbacks: the number of nodes that ran elsewhere than on the tower's device, by operation: the device has no
            kernel for them, or they pass a tensor of the request into a loop or a branch.
    """

    device: str
    nodes: Mapping[str, int] | None = None
    fallbacks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignatureReport:
    """A signature that requests may name, beside the default one.

    Attributes:
        name: the signature's name.
        inputs: its inputs.
        outputs: its outputs.
        max_batch_size: the largest number of rows in a batch; 0 where it runs unbatched.
        unbatched_because: why it runs unbatched although batching is configured, or None.
        unverified_because: why it is batched though no values have shown that rows do not influence each other, or
            None.
        cause: why it cannot be served, or None.
    """

    name: str
    inputs: tuple[TensorReport, ...] = ()
    outputs: tuple[TensorReport, ...] = ()
    max_batch_size: int = 0
    unbatched_because: str | None = None
    unverified_because: str | None = None
    cause: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `dataclasses.asdict` and JSON made of a report."""
        tensors = {side: tuple(TensorReport.from_dict(entry) for entry in data[side]) for side in ("inputs", "outputs")}
        return cls(**{**data, **tensors})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReport:
    """A model on a worker.

    Attributes:
        name: as configured.
        version: the number of the version folder, "1" where there are none.
        platform: see `format_registry`.
        state: `ready` or `failed`; the supervisor also writes `loading`, where another worker of the slot loads it.
        cause: why it failed, for people.
        needs_gpu: whether it failed because an operation has a kernel for GPUs only, and the worker has no GPU.
        fingerprint: of the files that were loaded, or that were found instead of those of the specification.
        same_content: whether their contents were compared with those of the specification, and are equal.
        files_changed: whether it failed because its files are not those of the specification, or changed while they
            were loaded.
        temporary: whether that may pass by itself: its files were missing or could not be read.
        out_of_memory: whether it failed because memory was exhausted, on the host or on a device.
        inputs: its inputs; None where a handler declares none, and accepts any.
        outputs: its outputs; None where a handler declares none.
        max_batch_size: the largest number of rows in a batch; 0 where it runs unbatched.
        unbatched_because: why it runs unbatched although batching is configured, or None.
        unverified_because: why it is batched though no values have shown that rows do not influence each other, or
            None.
        pad_variable_length_inputs: as configured.
        signature: the name of the default signature, which this report describes; "" where the model has none.
        signatures: its other signatures.
        signature_defs: all signatures of a SavedModel: a serialized SignatureDefMap in base64; "" where there is none.
        towers: its replicas, where the worker made towers of it.
        load_s: seconds that loading it took.
        warmup_s: seconds that warming it up took.
        host_memory_bytes: the growth of the worker's resident memory meanwhile.
        device_memory_bytes: the growth of device memory meanwhile; None without a GPU, and where it is unknown.
        device_memory_peak_bytes: the largest growth in between; None also where TensorFlow does not run the model.
    """

    name: str
    version: str = ONLY_VERSION
    platform: str = ""
    state: str = "ready"
    cause: str | None = None
    needs_gpu: bool = False
    fingerprint: str = ""
    same_content: bool = False
    files_changed: bool = False
    temporary: bool = False
    out_of_memory: bool = False
    inputs: tuple[TensorReport, ...] | None = None
    outputs: tuple[TensorReport, ...] | None = None
    max_batch_size: int = 0
    unbatched_because: str | None = None
    unverified_because: str | None = None
    pad_variable_length_inputs: bool = False
    signature: str = ""
    signatures: tuple[SignatureReport, ...] = ()
    signature_defs: str = ""
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
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `dataclasses.asdict` and JSON made of a report."""
        tensors = {
            side: None if data[side] is None else tuple(TensorReport.from_dict(entry) for entry in data[side])
            for side in ("inputs", "outputs")
        }
        signatures = tuple(SignatureReport.from_dict(entry) for entry in data["signatures"])
        towers = tuple(TowerReport(**entry) for entry in data["towers"])
        return cls(**{**data, **tensors, "signatures": signatures, "towers": towers})


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchingReport(_Json):
    """Batches of requests have shown whether a model may be batched.

    Attributes:
        model: its name.
        version: its version.
        signature: the signature that is concerned; "" for the default one.
        unbatched_because: why it runs unbatched from now on, or None.
        unverified_because: why no comparison of values has shown that it may be batched, or None.
    """

    model: str
    version: str
    signature: str
    unbatched_because: str | None
    unverified_because: str | None

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryReport(_Json):
    """Memory did not suffice for a batch; or it does again.

    Attributes:
        model: the model's name.
        safe_rows: the largest number of rows in a call from now on; 0 for no limit.
        exhausted: calls in a row for which memory did not suffice though they could not be split any further.
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
    """The state of a worker.

    Attributes:
        state: `importing` (its socket is bound), `idle` (a spare that waits), `loading`, `ready` (at least one model
            can be served) or `failed` (none can, or TensorFlow cannot be imported).
        pid: the pid of the process.
        cause: why it failed.
        visible_devices: `CUDA_VISIBLE_DEVICES` as the process reads it; None if it is not set.
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
        return cls(**{**data, "models": tuple(ModelReport.from_dict(model) for model in data["models"])})
