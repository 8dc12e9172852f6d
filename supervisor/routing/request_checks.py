"""Checks of an `MT1:infer` request against the description of its model. Pure.

`request_plans` calls them for each header that it has not seen before; only `check_frames` runs for every request. Each
check takes time proportional to the size of the request.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Final

from multitower import tensors, wire
from multitower.errors import Reason, make
from multitower.spec import ModelReport, SignatureReport, TensorReport

from ..scheduling.request import Plan

MAX_EMPTY_ROWS: Final = 65_536
"""The most rows of a request to a batched model if none of its inputs has an element."""

_MAX_LISTED: Final = 16
"""The most names in a message."""


def find_signature(report: ModelReport, name: str) -> ModelReport | SignatureReport:
    """The description of a model's signature: inputs, outputs and batching.

    Args:
        report: of the model, which describes its default signature.
        name: of the signature; "" for the default.

    Raises:
        NotFound: `signature_unknown`: the model has no such signature, or it cannot be served.
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


def check_inputs(given: Sequence[wire.Tensor], declared: Sequence[TensorReport]) -> None:
    """Checks the inputs that a header describes against those that the model declares.

    Args:
        given: in the header's order, with distinct names.
        declared: in the model's order.

    Raises:
        InvalidRequest: `input_unknown`, `datatype_mismatch`, `shape_invalid` or `input_missing`, naming the input.
    """
    declared_by_name = {tensor.name: tensor for tensor in declared}
    for tensor in given:
        report = declared_by_name.get(tensor.name)
        if report is None:
            raise make(
                Reason.INPUT_UNKNOWN,
                f"the model has no input {tensor.name[:128]!r}, only {_listed(declared_by_name)}",
                field=tensor.name,
            )
        if tensor.datatype != report.datatype:
            raise make(
                Reason.DATATYPE_MISMATCH,
                f"the model takes {report.datatype} for the input {tensor.name!r}; the request has {tensor.datatype}: "
                f"convert it (in numpy to {tensors.numpy_name(report.datatype)})",
                field=tensor.name,
            )
        if report.shape is not None and not _fits(tensor.shape, report.shape):
            raise make(
                Reason.SHAPE_INVALID,
                f"the model takes the shape {list(report.shape)} (-1: any size) for the input {tensor.name!r}; the "
                f"request has {list(tensor.shape)}{_row_advice(tensor.shape, report.shape)}",
                field=tensor.name,
            )
    given_names = {tensor.name for tensor in given}
    missing = [tensor.name for tensor in declared if tensor.name not in given_names and not tensor.optional]
    if missing:
        raise make(
            Reason.INPUT_MISSING,
            f"the model also needs the input{'s' if len(missing) > 1 else ''} {_listed(missing)}",
            field=missing[0],
        )


def _row_advice(given: Sequence[int], declared: Sequence[int]) -> str:
    """The end of a message about a shape, for the most frequent cause: one row without the batch dimension."""
    if declared and declared[0] == -1 and _fits(given, declared[1:]):
        return f": one row is {[1, *given]}"
    return ""


def shares_batches(given: Sequence[wire.Tensor], declared: Sequence[TensorReport]) -> bool:
    """Whether a request to a batched model can share batches; otherwise it runs unbatched.

    It cannot if it has an optional input without a batch dimension, or lacks one whose default has several rows, or has
    no input at all.

    Args:
        given: the inputs that the header describes, after `check_inputs`.
        declared: the inputs that the model declares.
    """
    if not any(tensor.optional for tensor in declared):
        return True
    names = {tensor.name for tensor in given}
    return bool(names) and all(
        tensor.has_rows if tensor.name in names else tensor.batched_without for tensor in declared
    )


def check_outputs(names: Sequence[str], declared: Sequence[TensorReport]) -> None:
    """Checks that the model declares the outputs that a header asks for.

    Raises:
        InvalidRequest: `output_unknown`, naming the output.
    """
    declared_names = dict.fromkeys(tensor.name for tensor in declared)  # a set in the model's order
    for name in names:
        if name not in declared_names:
            raise make(
                Reason.OUTPUT_UNKNOWN,
                f"the model has no output {name[:128]!r}, only {_listed(declared_names)}",
                field=name,
            )


def count_rows(inputs: Sequence[wire.Tensor]) -> int:
    """The size of dimension 0, which all inputs of a batched model share; it may be 0.

    Raises:
        InvalidRequest: `input_missing` without inputs; `shape_invalid` where an input has no dimension 0, where the
            inputs differ in it, or where they have very many rows without elements.
    """
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
    assert rows is not None  # there is an input
    # Without elements, a request of no bytes could have any number of rows, and as many parts.
    if rows > MAX_EMPTY_ROWS and not any(tensors.element_count(tensor.shape) for tensor in inputs):
        raise make(
            Reason.SHAPE_INVALID,
            f"the input {inputs[0].name!r} has {rows} rows without elements; a request can have {MAX_EMPTY_ROWS}",
            field=inputs[0].name,
        )
    return rows


def check_frames(plan: Plan, sizes: Sequence[int]) -> None:
    """Checks the frames of a request against its plan.

    Args:
        plan: made of the request's header.
        sizes: the bytes of each frame, in the header's order.

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


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    return len(shape) == len(declared) and all(
        size == wanted or wanted == -1 for size, wanted in zip(shape, declared, strict=True)
    )


def _listed(names: Collection[str]) -> str:
    """Names for a message; of many, the first ones and how many more."""
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(map(repr, islice(names, _MAX_LISTED))) + more
