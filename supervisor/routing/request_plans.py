"""Plans of requests: reads and checks each distinct header once, against the model that it names.

The result is a `Plan`, cached by the header's bytes: for most requests, planning is one look-up and a comparison of
sizes. The router updates the models here as workers load and unload them.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from multitower import tensors, wire
from multitower.errors import MultitowerError, Reason, make
from multitower.infer_header import parse_infer_header
from multitower.spec import ModelReport, SignatureReport, TensorReport
from multitower.trace_context import split_header
from multitower.worker_wire import SIZES, KeySpec

from ..scheduling.pool_worker import Served
from ..scheduling.request import NORMAL_PRIORITY, BatchKey, Plan, Shared
from .recent import RefusedRequests
from .request_checks import check_inputs, check_outputs, count_rows, find_signature, shares_batches
from .version_catalog import VersionCatalog

MAX_CACHED_ENTRIES = 10_000
MAX_CACHED_BYTES = 32 << 20
"""Bounds of each cache; bytes are those of the headers.

Headers of `wire.MAX_HEADER_BYTES` are cached, too: making the plan of a request with thousands of inputs holds up the
router for a tenth of a second. The bound leaves room for 32 of them, as each number of rows has a header of its own. A
plan takes up to three times the bytes of its header.
"""


class RequestPlanner:
    """Makes plans for requests, of the models as workers have loaded them.

    Args:
        timeouts: the longest time of a request in seconds, for each configured model by name.
        why_absent: returns the error for a model that no worker will load, or None where a worker may load it.
        refused: counts refused requests by their model.

    Attributes:
        catalog: the served versions and their labels.
    """

    def __init__(
        self,
        timeouts: dict[str, float],
        why_absent: Callable[[str], MultitowerError | None] = lambda _: None,
        refused: RefusedRequests | None = None,
    ) -> None:
        self._why_absent = why_absent
        self._refused = refused or RefusedRequests()
        self.catalog = VersionCatalog()
        self._interfaces: dict[tuple[object, ...], int] = {}
        self._generations: dict[tuple[str, str], int] = {}
        self._timeouts = timeouts
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._plans_bytes = 0
        # The header looked up last, and its plan: most requests have the header of the one before.
        self._last_header = b""
        self._last_plan: Plan | None = None
        self._keys: dict[tuple[KeySpec, int, str], BatchKey] = {}
        self._keys_bytes = 0

    # Changes of the models. Each discards the plans that it may have made wrong.

    def add_version(self, report: ModelReport, *, generation: int, newest: bool) -> Served:
        """Adds a version that a worker has loaded: requests are checked against this description from now on.

        Args:
            report: of the version.
            generation: of the version; see `Served`.
            newest: whether it is the newest version that the worker has; then requests that name no version get it.

        Returns:
            What a worker with this report serves.
        """
        replaced = self.catalog.describe(report, newest=newest)
        if any(known is None or not _same_interface(known, report) for known in replaced):
            self._discard_plans()
        self._generations[report.key] = generation
        return Served(report.version, self.interface_of(report), generation)

    def set_labels(self, name: str, labels: Mapping[str, Sequence[str]]) -> None:
        """Sets the version labels of a model; see `VersionCatalog.set_labels`."""
        if self.catalog.set_labels(name, labels):
            self._discard_plans()

    def set_timeout(self, name: str, seconds: float) -> None:
        """Adds a model with the longest time of its requests, or changes that time."""
        if self._timeouts.get(name) != seconds:
            self._timeouts[name] = seconds
            self._discard_plans()

    def retain_versions(self, name: str, versions: Collection[str]) -> None:
        """Removes the versions of a model that are neither among these nor the newest."""
        if self.catalog.retain_versions(name, versions):
            self._discard_plans()
            self._forget_generations(name)

    def remove_versions(self, name: str) -> None:
        """Removes all versions of a model, which no worker serves any more; the model stays configured."""
        self.catalog.remove_versions(name)
        self._discard_plans()
        self._forget_generations(name)

    def remove_model(self, name: str) -> None:
        """Removes a model: requests that name it are refused as `model_unknown`."""
        self._timeouts.pop(name, None)
        self.catalog.remove_model(name)
        self._discard_plans()
        self._forget_generations(name)

    def _forget_generations(self, name: str) -> None:
        """Forgets the generations of the model's versions that are not served any more."""
        served = self.catalog.versions(name)
        for key in [key for key in self._generations if key[0] == name and key[1] not in served]:
            del self._generations[key]

    def _discard_plans(self) -> None:
        self._plans.clear()
        self._last_plan = None
        self._keys.clear()
        self._plans_bytes = self._keys_bytes = 0

    # Questions about the models.

    def newest_interface(self, name: str) -> tuple[str, int] | None:
        """The version and interface that requests without a version are checked against; None without a worker."""
        report = self.catalog.newest.get(name)
        return None if report is None else (report.version, self.interface_of(report))

    def generation_of(self, key: tuple[str, str]) -> int | None:
        """The generation that requests for a model and version are checked against; None if they are refused."""
        return self._generations.get(key)

    def find_report(self, name: str, version: str, label: str = "") -> ModelReport | None:
        """The description that a request is checked against; None if no worker has loaded the model.

        Args:
            name: the model's name.
            version: the version's number as the request has it; "" for the newest.
            label: the label in place of a number, or "".

        Raises:
            NotFound: `model_unknown` or `version_unknown`.
        """
        if name not in self._timeouts:
            known = ", ".join(sorted(self._timeouts))
            raise make(Reason.MODEL_UNKNOWN, f"there is no model {name[:128]!r}, only {known}", field="model_name")
        return self.catalog.find(name, version, label)

    def interface_of(self, report: ModelReport) -> int:
        """A number for the model's inputs, outputs and batching; see `Served`."""
        return self._interfaces.setdefault((report.name, *_interface_of(report)), len(self._interfaces))

    # Plans.

    def plan(self, header: bytes) -> Plan:
        """The plan for a request with this header.

        Raises:
            InvalidRequest: the header is malformed, or does not fit the model; the error names the field.
            NotFound: `model_unknown`, `version_unknown` or `signature_unknown`.
            Unavailable: `no_worker`: no worker has loaded the model.
        """
        plan = self._last_plan
        if plan is not None and header == self._last_header:
            return plan
        plan = self._plans.get(header)
        if plan is None:
            bare, trace = split_header(header)
            if trace is not None:
                # No other request has this header, so only the plan for the rest of it is worth keeping.
                return self.plan(bare).with_trace(trace)
            plan = self._add_plan(header)
        else:
            self._plans.move_to_end(header)
        self._last_header, self._last_plan = header, plan
        return plan

    def _add_plan(self, header: bytes) -> Plan:
        """Makes the plan for a header, and caches it."""
        parsed = parse_infer_header(header)
        try:
            plan = self._make_plan(parsed, len(header))
        except MultitowerError as error:
            if parsed.model_name in self._timeouts:
                self._refused.add_of_model(parsed.model_name, error.reason)
            raise
        self._plans[header] = plan
        self._plans_bytes += len(header)
        while len(self._plans) > MAX_CACHED_ENTRIES or self._plans_bytes > MAX_CACHED_BYTES:
            oldest, _ = self._plans.popitem(last=False)
            self._plans_bytes -= len(oldest)
        return plan

    def _make_plan(self, header: wire.InferHeader, header_bytes: int) -> Plan:
        name = header.model_name
        report = self.find_report(name, header.model_version, header.version_label)
        if report is None:
            still_loading = make(Reason.NO_WORKER, f"{name!r} is still loading", retry_after_ms=1000)
            raise self._why_absent(name) or still_loading
        version = report.version if header.model_version or header.version_label else ""
        signature = find_signature(report, header.signature)
        batched = signature.max_batch_size > 0
        declared = signature.inputs
        if declared is not None:
            check_inputs(header.inputs, declared)
            batched = batched and shares_batches(header.inputs, declared)
        if header.outputs is not None and signature.outputs is not None:
            check_outputs(header.outputs, signature.outputs)
        rows = count_rows(header.inputs) if batched else 1
        if not rows:
            # There is nothing to join. The model is called with it as it is, as if it were not batched.
            batched, rows = False, 1
        index_of = {tensor.name: index for index, tensor in enumerate(header.inputs)}
        # Clients list inputs in any order. A key has one order, so that all these requests can share a batch.
        if declared is not None:
            declared = tuple(tensor for tensor in declared if tensor.name in index_of)
        names = [tensor.name for tensor in declared] if declared is not None else sorted(index_of)
        order = tuple(index_of[input_name] for input_name in names)
        inputs = tuple(
            (tensor.name, tensor.datatype, tensor.shape[1:] if batched else tensor.shape)
            for tensor in (header.inputs[index] for index in order)
        )
        sizes_frame = None
        if report.pad_variable_length_inputs and batched and 0 < rows <= signature.max_batch_size:
            inputs, sizes_frame = _with_variable_sizes(inputs, declared)
        spec = KeySpec(
            model=name,
            inputs=inputs,
            outputs=header.outputs,
            batched=batched,
            # "" for the default signature, so that requests which name it share batches with those that do not.
            signature=signature.name if isinstance(signature, SignatureReport) else "",
            version=version,
        )
        timeout = self._timeouts[name]
        own = header.timeout_us is not None and header.timeout_us / 1e6 < timeout
        if own and header.timeout_us is not None:
            timeout = header.timeout_us / 1e6
        return Plan(
            key=self._key(spec, report, signature.max_batch_size if batched else 0, header_bytes),
            rows=rows,
            order=order,
            sizes=tuple(tensors.byte_size(tensor.datatype, tensor.shape) for tensor in header.inputs),
            variable=tuple(tensor.datatype == tensors.BYTES for tensor in header.inputs),
            names=tuple(tensor.name for tensor in header.inputs),
            timeout_s=timeout,
            timeout_is_own=own,
            priority=header.priority or NORMAL_PRIORITY,
            shared=_shared(header),
            sizes_frame=sizes_frame,
            trace=header.trace,
        )

    def change_plan(self, plan: Plan, report: ModelReport) -> Plan:
        """The plan of a request, made again for a description that differs in batching alone.

        Args:
            plan: made for the former description.
            report: the description that is in force now.
        """
        key = plan.key
        spec, rows, sizes_frame = key.spec, plan.rows, plan.sizes_frame
        signature = find_signature(report, spec.signature)
        if spec.batched and signature.max_batch_size == 0:
            inputs = whole_inputs(plan)
            spec = KeySpec(spec.model, inputs, spec.outputs, False, spec.signature, spec.version)
            rows, sizes_frame = 1, None
        # A request may run unbatched though its signature is batched: it gives an input that has no rows, for example.
        max_batch_size = signature.max_batch_size if spec.batched else 0
        return replace(plan, key=self._key(spec, report, max_batch_size, 0), rows=rows, sizes_frame=sizes_frame)

    def _key(self, spec: KeySpec, report: ModelReport, max_batch_size: int, header_bytes: int) -> BatchKey:
        """The batch key for this specification: the same object for equal ones, while it is cached."""
        interface, version = self.interface_of(report), spec.version
        key = self._keys.get((spec, interface, version))
        if key is None:
            self._keys_bytes += header_bytes
            # Clients that send ever new shapes make ever new keys. A key is about as large as its header.
            if len(self._keys) >= MAX_CACHED_ENTRIES or self._keys_bytes > MAX_CACHED_BYTES:
                self._discard_plans()
            key = self._keys[spec, interface, version] = BatchKey(spec, max_batch_size, interface, version)
        return key


def _shared(header: wire.InferHeader) -> Shared | None:
    inputs = tuple(tensor.area for tensor in header.inputs)
    return Shared(inputs, header.areas) if header.areas or any(inputs) else None


def _same_interface(one: ModelReport, other: ModelReport) -> bool:
    return (one.version, _interface_of(one)) == (other.version, _interface_of(other))


def _interface_of(report: ModelReport) -> tuple[object, ...]:
    """What the plans of requests depend on."""
    batching = report.max_batch_size, report.pad_variable_length_inputs
    # Workers may word differently why a signature runs as it does.
    others = tuple(
        (other.name, other.inputs, other.outputs, other.max_batch_size, other.cause) for other in report.signatures
    )
    return report.inputs, report.outputs, batching, report.signature, others


_Inputs = tuple[tuple[str, str, tuple[int, ...]], ...]


def _with_variable_sizes(inputs: _Inputs, declared: Sequence[TensorReport] | None) -> tuple[_Inputs, bytes | None]:
    """Leaves the sizes that may vary out of a key, for models whose inputs are padded.

    Not for requests larger than a batch, whose parts would each be padded to another size.

    Args:
        inputs: name, datatype and dimensions of the key's inputs, without the batch dimension.
        declared: the model's inputs in the same order; None where the model declares none.

    Returns:
        The key's inputs with -1 for sizes that may vary, and the frame with the sizes of this request. The inputs as
        they were, and None, where nothing varies or a tensor has no element to pad it with.
    """
    if not all(tensors.element_count(dims) for _, _, dims in inputs):
        return inputs, None
    free = [[True] * len(dims) for _, _, dims in inputs]
    if declared is not None:
        free = [[size == -1 for size in (tensor.shape or ())[1:]] for tensor in declared]
    sizes: list[int] = []
    variable = []
    for (name, datatype, dims), may_vary in zip(inputs, free, strict=True):
        sizes += [size for size, varies in zip(dims, may_vary, strict=True) if varies]
        variable.append((name, datatype, tuple(-1 if v else size for size, v in zip(dims, may_vary, strict=True))))
    if not sizes:
        return inputs, None
    return (*variable, (SIZES, "INT64", (len(sizes),))), struct.pack(f"<{len(sizes)}q", *sizes)


def whole_inputs(plan: Plan) -> _Inputs:
    """Name, datatype and whole shape of each input of a request, in the order of its key.

    Args:
        plan: of the request.
    """
    inputs = plan.key.spec.inputs
    if not plan.key.spec.batched:
        return inputs
    if plan.sizes_frame is not None:
        sizes = iter(struct.unpack(f"<{len(plan.sizes_frame) // 8}q", plan.sizes_frame))
        inputs = tuple(
            (name, datatype, tuple(next(sizes) if size == -1 else size for size in dims))
            for name, datatype, dims in inputs[:-1]
        )
    return tuple((name, datatype, (plan.rows, *dims)) for name, datatype, dims in inputs)
