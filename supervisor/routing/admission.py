"""Which requests are taken: each distinct header is read and checked once, against the model it names.

The outcome is a `Plan`, cached by the header's bytes; the hot path is one look-up and a comparison of sizes.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

from multitower import tensors, wire
from multitower.errors import MultitowerError, Reason, make
from multitower.infer_header import parse_infer_header
from multitower.spec import ModelReport, SignatureReport, TensorReport
from multitower.worker_wire import SIZES, KeySpec

from ..scheduling.request import NORMAL_PRIORITY, BatchKey, Plan, Shared
from ..scheduling.worker import Served
from .version_catalog import VersionCatalog

MAX_CACHED_HEADER = 16 << 10
MAX_CACHED_ENTRIES = 10_000
MAX_CACHED_BYTES = 8 << 20


class Admission:
    """The models as their workers found them, and the plans made against them.

    Args:
        timeouts: seconds that a request of each configured model may take, by model name.
        why_absent: why no worker will load a model, or None where one may be about to.

    Attributes:
        catalog: the versions that can be asked for.
    """

    def __init__(
        self,
        timeouts: dict[str, float],
        why_absent: Callable[[str], MultitowerError | None] = lambda _: None,
    ) -> None:
        self._why_absent = why_absent
        self.catalog = VersionCatalog()
        self._interfaces: dict[tuple[object, ...], int] = {}
        self._timeouts = timeouts
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._bytes = 0
        self._keys: dict[tuple[KeySpec, int, str], BatchKey] = {}
        self._keys_bytes = 0  # of the headers that they were made for

    def describe(self, report: ModelReport, *, newest: bool = True) -> Served:
        """A worker has loaded the model: requests are checked against this description from now on.

        What was planned against an older one is forgotten.

        Args:
            report: of one version.
            newest: of those that the worker has: requests that name no version are checked against it.
        """
        before = self.catalog.describe(report, newest=newest)
        if any(known is None or not _alike(known, report) for known in before):
            self._forget_plans()
        return Served(report.version, self._interface(report))

    def set_labels(self, name: str, labels: Mapping[str, Sequence[str]]) -> None:
        """What the labels of the model's versions stand for; see `Catalogue.set_labels`."""
        if self.catalog.set_labels(name, labels):
            self._forget_plans()

    def set_timeout(self, name: str, seconds: float) -> None:
        """The model is new, or the time of its requests is."""
        if self._timeouts.get(name) != seconds:
            self._timeouts[name] = seconds
            self._forget_plans()

    def keep_versions(self, name: str, versions: Collection[str]) -> None:
        """Only these versions can be asked for by name, and the one described last."""
        if self.catalog.retain_versions(name, versions):
            self._forget_plans()

    def forget(self, name: str) -> None:
        """No worker has the model any more; one may again."""
        self.catalog.remove_versions(name)
        self._forget_plans()

    def remove(self, name: str) -> None:
        """There is no such model any more."""
        self._timeouts.pop(name, None)
        self.catalog.remove_model(name)
        self._forget_plans()

    def _forget_plans(self) -> None:
        self._plans.clear()
        self._keys.clear()
        self._bytes = self._keys_bytes = 0

    def newest(self, name: str) -> tuple[str, int] | None:
        """The version and contract that requests to the model are checked against; None while there are none."""
        report = self.catalog.newest.get(name)
        return None if report is None else (report.version, self._interface(report))

    def _interface(self, report: ModelReport) -> int:
        return self._interfaces.setdefault((report.name, *_signature(report)), len(self._interfaces))

    def plan(self, header: bytes) -> Plan:
        """What to do with a request of this header.

        Raises:
            InvalidRequest: the header is wrong, by itself or for the model; names the field.
            NotFound: `model_unknown`, `version_unknown` or `signature_unknown`.
            Unavailable: `no_worker`: no worker has loaded the model yet.
        """
        plan = self._plans.get(header)
        if plan is not None:
            self._plans.move_to_end(header)
            return plan
        plan = self._make(parse_infer_header(header), len(header))
        if len(header) <= MAX_CACHED_HEADER:
            self._plans[header] = plan
            self._bytes += len(header)
            while len(self._plans) > MAX_CACHED_ENTRIES or self._bytes > MAX_CACHED_BYTES:
                oldest, _ = self._plans.popitem(last=False)
                self._bytes -= len(oldest)
        return plan

    def model(self, name: str, version: str, label: str = "") -> ModelReport | None:
        """The description of a model, the newest or that of a version; see `Catalogue.find`.

        Raises:
            NotFound: `model_unknown` or `version_unknown`.
        """
        if name not in self._timeouts:
            known = ", ".join(sorted(self._timeouts))
            raise make(Reason.MODEL_UNKNOWN, f"there is no model {name[:128]!r}, only {known}", field="model_name")
        return self.catalog.find(name, version, label)

    def _make(self, header: wire.InferHeader, size: int) -> Plan:
        name = header.model_name
        report = self.model(name, header.model_version, header.version_label)
        if report is None:
            still_loading = make(Reason.NO_WORKER, f"{name!r} is still loading", retry_after_ms=1000)
            raise self._why_absent(name) or still_loading
        version = report.version if header.model_version or header.version_label else ""
        served = _signed(report, header.signature)
        batched = served.max_batch_size > 0
        if served.inputs is not None:
            _check_inputs(header.inputs, served.inputs, batched)
        if header.outputs is not None and served.outputs is not None:
            _check_outputs(header.outputs, served.outputs)
        rows = _rows(header.inputs) if batched else 1
        by_name = {tensor.name: index for index, tensor in enumerate(header.inputs)}
        # Clients may list the inputs in any order; the key has one, so that all can share a batch.
        declared = [tensor.name for tensor in served.inputs] if served.inputs is not None else sorted(by_name)
        order = tuple(by_name[input_name] for input_name in declared)
        inputs = tuple(
            (tensor.name, tensor.datatype, tensor.shape[1:] if batched else tensor.shape)
            for tensor in (header.inputs[index] for index in order)
        )
        sizes_frame = None
        if report.pad_variable_length_inputs and 0 < rows <= served.max_batch_size:
            inputs, sizes_frame = _variable(inputs, served.inputs)
        spec = KeySpec(
            model=name,
            inputs=inputs,
            outputs=header.outputs,
            batched=batched,
            # So that requests which name the default share batches with those that name none.
            signature=served.name if isinstance(served, SignatureReport) else "",
            version=version,
        )
        sizes = tuple(tensors.byte_size(tensor.datatype, tensor.shape) for tensor in header.inputs)
        identity = spec, self._interface(report), version
        key = self._keys.get(identity)
        if key is None:
            self._keys_bytes += size
            # Clients that send ever new shapes make ever new keys; a key is about as large as its header.
            if len(self._keys) >= MAX_CACHED_ENTRIES or self._keys_bytes > MAX_CACHED_BYTES:
                self._forget_plans()
            key = self._keys[identity] = BatchKey(spec, served.max_batch_size, *identity[1:])
        timeout = self._timeouts[name]
        if header.timeout_us is not None:
            timeout = min(timeout, header.timeout_us / 1e6)
        return Plan(
            key=key,
            rows=rows,
            order=order,
            sizes=sizes,
            variable=tuple(tensor.datatype == tensors.BYTES for tensor in header.inputs),
            names=tuple(tensor.name for tensor in header.inputs),
            timeout_s=timeout,
            priority=header.priority or NORMAL_PRIORITY,
            shared=_shared(header),
            sizes_frame=sizes_frame,
        )


def _shared(header: wire.InferHeader) -> Shared | None:
    inputs = tuple(tensor.area for tensor in header.inputs)
    return Shared(inputs, header.areas) if header.areas or any(inputs) else None


def _alike(one: ModelReport, other: ModelReport) -> bool:
    return (one.version, _signature(one)) == (other.version, _signature(other))


def _signature(report: ModelReport) -> tuple[object, ...]:
    batching = report.max_batch_size, report.pad_variable_length_inputs
    return report.inputs, report.outputs, batching, report.signature, report.signatures


_Inputs = tuple[tuple[str, str, tuple[int, ...]], ...]


def _variable(inputs: _Inputs, declared: Sequence[TensorReport] | None) -> tuple[_Inputs, bytes | None]:
    """A key's inputs without the sizes that may vary, and the frame that tells them.

    A request larger than a batch does not come here: its parts must not be padded each to another size. Nor is an
    empty tensor padded, which has no first element.
    """
    if not all(tensors.element_count(dims) for _, _, dims in inputs):
        return inputs, None
    free = [[True] * len(dims) for _, _, dims in inputs]
    if declared is not None:  # in the same order
        free = [[size == -1 for size in (tensor.shape or ())[1:]] for tensor in declared]
    sizes: list[int] = []
    variable = []
    for (name, datatype, dims), may_vary in zip(inputs, free, strict=True):
        sizes += [size for size, varies in zip(dims, may_vary, strict=True) if varies]
        variable.append((name, datatype, tuple(-1 if v else size for size, v in zip(dims, may_vary, strict=True))))
    if not sizes:
        return inputs, None
    return (*variable, (SIZES, "INT64", (len(sizes),))), struct.pack(f"<{len(sizes)}q", *sizes)


def _signed(report: ModelReport, name: str) -> ModelReport | SignatureReport:
    """What tells of the signature of that name, the model's own for none.

    Raises:
        NotFound: `signature_unknown`: the model has none of that name, or one that cannot be served.
    """
    if name in ("", report.signature):
        return report
    found = next((signature for signature in report.signatures if signature.name == name), None)
    if found is None:
        served = [report.signature, *(entry.name for entry in report.signatures if entry.cause is None)]
        has = f"only {', '.join(sorted(served))}" if report.signature else "nor any other"
        message = f"{report.name!r} has no signature {name[:128]!r}, {has}"
        raise make(Reason.SIGNATURE_UNKNOWN, message, field="parameters.signature_name")
    if found.cause is not None:
        message = f"the signature {name[:128]!r} of {report.name!r} cannot be served: {found.cause}"
        raise make(Reason.SIGNATURE_UNKNOWN, message, field="parameters.signature_name")
    return found


def check_frames(plan: Plan, sizes: Sequence[int]) -> None:
    """The frames of a request against its plan.

    Args:
        plan: of the request's header.
        sizes: bytes of each frame that came.

    Raises:
        InvalidRequest: `malformed` for a wrong number of frames, `size_mismatch` for a wrong size.
    """
    if tuple(sizes) == plan.sizes:
        return
    if len(sizes) != len(plan.sizes):
        raise make(
            Reason.MALFORMED,
            f"the header lists {len(plan.sizes)} inputs, but {len(sizes)} frames came with it",
            field="inputs",
        )
    for name, size, wanted, variable in zip(plan.names, sizes, plan.sizes, plan.variable, strict=True):
        if size < wanted or (size > wanted and not variable):
            at_least = "at least " if variable else ""
            raise make(
                Reason.SIZE_MISMATCH,
                f"the frame of input {name!r} has {size} bytes, but its shape takes {at_least}{wanted}",
                field=name,
            )


def _check_inputs(given: Sequence[wire.Tensor], declared: Sequence[TensorReport], batched: bool) -> None:
    wanted = {tensor.name: tensor for tensor in declared}
    for tensor in given:
        report = wanted.get(tensor.name)
        if report is None:
            raise make(
                Reason.INPUT_UNKNOWN,
                f"the model has no input {tensor.name[:128]!r}, only {', '.join(map(repr, wanted))}",
                field=tensor.name,
            )
        if tensor.datatype != report.datatype:
            raise make(
                Reason.DATATYPE_MISMATCH,
                f"the input {tensor.name!r} is {report.datatype}, not {tensor.datatype}",
                field=tensor.name,
            )
        if report.shape is not None and not _fits(tensor.shape, report.shape):
            raise make(
                Reason.SHAPE_INVALID,
                f"the input {tensor.name!r} has the shape {list(report.shape)} (-1: any size), "
                f"not {list(tensor.shape)}",
                field=tensor.name,
            )
    missing = [name for name in wanted if name not in {tensor.name for tensor in given}]
    if missing:
        raise make(
            Reason.INPUT_MISSING,
            f"the model also needs the input{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}",
            field=missing[0],
        )
    if batched and not given:
        raise make(Reason.INPUT_MISSING, "a request needs at least one input", field="inputs")


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    return len(shape) == len(declared) and all(
        size == wanted or wanted == -1 for size, wanted in zip(shape, declared, strict=True)
    )


def _check_outputs(names: Sequence[str], declared: Sequence[TensorReport]) -> None:
    known = [tensor.name for tensor in declared]
    for name in names:
        if name not in known:
            raise make(
                Reason.OUTPUT_UNKNOWN,
                f"the model has no output {name[:128]!r}, only {', '.join(map(repr, known))}",
                field=name,
            )


def _rows(inputs: Sequence[wire.Tensor]) -> int:
    """Dimension 0, which all inputs of a request share where requests are batched."""
    if not inputs:
        raise make(Reason.INPUT_MISSING, "a request needs at least one input", field="inputs")
    rows: int | None = None
    for tensor in inputs:
        if not tensor.shape:
            raise make(Reason.SHAPE_INVALID, f"the input {tensor.name!r} lacks the batch dimension", field=tensor.name)
        if rows is None:
            rows = tensor.shape[0]
        if tensor.shape[0] != rows:
            raise make(
                Reason.SHAPE_INVALID,
                f"dimension 0 of input {tensor.name!r} is {tensor.shape[0]}, that of {inputs[0].name!r} is {rows};"
                " inputs share the batch dimension",
                field=tensor.name,
            )
    # Rows without elements would make a request of no bytes and any number of rows.
    if not rows or not any(tensors.element_count(tensor.shape) for tensor in inputs):
        raise make(
            Reason.SHAPE_INVALID,
            f"the input {inputs[0].name!r} of shape {list(inputs[0].shape)} is empty, but a request has rows",
            field=inputs[0].name,
        )
    return rows
