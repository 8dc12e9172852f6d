"""Parsing of `MT1:infer` headers, with all checks that need no model.

The router's `request_plans` parses each distinct header once. In a parsed header, names, datatypes, shapes and areas
have the right types and are within the protocol's bounds; `request_plans` checks them against the model.
"""

from __future__ import annotations

from typing import Any

from multitower import tensors, wire
from multitower.errors import Reason, make
from multitower.trace_context import read_parameters


def parse_infer_header(data: bytes) -> wire.InferHeader:
    """Parses the header of an `MT1:infer` request, and checks everything that does not depend on the model.

    Raises:
        InvalidRequest: `malformed`, `too_large`, `shape_invalid` or `datatype_mismatch`; the message and
            `details["field"]` name the offending field.
    """
    header = wire.load_header(data)
    model_name = header.get("model_name")
    if not isinstance(model_name, str) or not model_name:
        wire.refuse("model_name is missing or not a string", "model_name")
    version, label = parse_version(header)
    parameters = header.get("parameters", {})
    timeout_us = parameters.get(wire.TIMEOUT)
    if timeout_us is not None and (type(timeout_us) is not int or not 0 < timeout_us <= wire.MAX_DIMENSION):
        wire.refuse("parameters.timeout is not a positive integer (microseconds)", "parameters.timeout")
    priority = parameters.get(wire.PRIORITY, 0)
    if type(priority) is not int or not 0 <= priority <= wire.MAX_DIMENSION:
        wire.refuse("parameters.priority is not an integer of 0 or more", "parameters.priority")
    all_outputs = parameters.get(wire.ALL_OUTPUTS, False)
    if type(all_outputs) is not bool:
        wire.refuse("parameters.all_outputs is not a boolean", "parameters.all_outputs")
    names, areas = _parse_outputs(header.get("outputs"))
    signature = parameters.get(wire.SIGNATURE, "")
    if not isinstance(signature, str):
        wire.refuse("parameters.signature_name is not a string", "parameters.signature_name")
    return wire.InferHeader(
        model_name=model_name,
        model_version=version,
        inputs=_parse_inputs(header.get("inputs")),
        outputs=None if all_outputs else names,
        timeout_us=timeout_us,
        priority=priority,
        areas=areas,
        signature=signature,
        version_label=label,
        trace=read_parameters(parameters),
    )


def parse_version(header: dict[str, Any]) -> tuple[str, str]:
    """The `model_version` and the version label of a header; "" for one that is missing.

    Raises:
        InvalidRequest: `malformed` when one is not a string, or both are given.
    """
    version = header.get("model_version", "")
    if not isinstance(version, str):
        wire.refuse("model_version is not a string", "model_version")
    parameters = header.get("parameters", {})
    if not isinstance(parameters, dict):
        wire.refuse("parameters is not an object", "parameters")
    label = parameters.get(wire.VERSION_LABEL, "")
    if not isinstance(label, str):
        wire.refuse("parameters.version_label is not a string", "parameters.version_label")
    if version and label:
        wire.refuse("model_version and parameters.version_label both name a version", "parameters.version_label")
    return version, label


def _parse_inputs(value: Any) -> tuple[wire.Tensor, ...]:
    if not isinstance(value, list):
        wire.refuse("inputs is missing or not a list", "inputs")
    if len(value) > wire.MAX_INPUTS:
        wire.refuse(f"inputs has {len(value)} entries; the limit is {wire.MAX_INPUTS}", "inputs")
    inputs: list[wire.Tensor] = []
    names: set[str] = set()
    for index, entry in enumerate(value):
        field = f"inputs[{index}]"
        if not isinstance(entry, dict):
            wire.refuse(f"{field} is not an object", field)
        if "data" in entry:
            wire.refuse(f"{field}.data: tensors travel in frames of their own, not in the header", f"{field}.data")
        name = _parse_name(entry, field)
        if name in names:
            wire.refuse(f"{field}.name: the input {name[:80]!r} comes twice", f"{field}.name")
        names.add(name)
        datatype, shape = _parse_datatype(entry, field), _parse_shape(entry, field)
        area = parse_area(entry, field)
        if area is not None:
            _check_input_area(area, datatype, shape, field)
        inputs.append(wire.Tensor(name, datatype, shape, area))
    return tuple(inputs)


def _parse_name(entry: dict[str, Any], field: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        wire.refuse(f"{field}.name is missing or not a string", f"{field}.name")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        wire.refuse(f"{field}.name holds half a surrogate pair, which is not valid text", f"{field}.name")
    if size > wire.MAX_NAME_BYTES:
        wire.refuse(f"{field}.name has {size} bytes; the limit is {wire.MAX_NAME_BYTES}", f"{field}.name")
    return name


def _parse_datatype(entry: dict[str, Any], field: str) -> str:
    datatype = entry.get("datatype")
    if not isinstance(datatype, str):
        wire.refuse(f"{field}.datatype is missing or not a string", f"{field}.datatype")
    if datatype not in tensors.DATATYPES:
        raise make(
            Reason.DATATYPE_MISMATCH,
            f"{field}.datatype {datatype[:40]!r} is none of {', '.join(tensors.DATATYPES)}",
            field=f"{field}.datatype",
        )
    return datatype


def _parse_shape(entry: dict[str, Any], field: str) -> tuple[int, ...]:
    shape = entry.get("shape")
    where = f"{field}.shape"
    if not isinstance(shape, list):
        raise make(Reason.SHAPE_INVALID, f"{where} is missing or not a list", field=where)
    if len(shape) > wire.MAX_RANK:
        raise make(Reason.SHAPE_INVALID, f"{where} has {len(shape)} dimensions; at most {wire.MAX_RANK}", field=where)
    elements = 1
    for axis, size in enumerate(shape):
        if type(size) is not int or not 0 <= size <= wire.MAX_DIMENSION:
            raise make(
                Reason.SHAPE_INVALID,
                f"{where}[{axis}] is not an integer from 0 to 2^63 - 1",
                field=f"{where}[{axis}]",
            )
        elements *= size
    if elements > wire.MAX_DIMENSION:
        raise make(Reason.SHAPE_INVALID, f"{where} has more than 2^63 - 1 elements", field=where)
    return tuple(shape)


def _check_input_area(area: wire.Area, datatype: str, shape: tuple[int, ...], field: str) -> None:
    if datatype == tensors.BYTES:
        where = f"{field}.parameters.{wire.SHARED_MEMORY_REGION}"
        wire.refuse(f"{where}: BYTES tensors travel in frames, not in shared memory", where)
    wanted = tensors.byte_size(datatype, shape)
    if area.size != wanted:
        where = f"{field}.parameters.{wire.SHARED_MEMORY_BYTE_SIZE}"
        message = f"{where} is {area.size}, but {datatype} of shape {list(shape)} takes {wanted}"
        raise make(Reason.SIZE_MISMATCH, message, field=where)


def _parse_outputs(value: Any) -> tuple[tuple[str, ...] | None, dict[str, wire.Area]]:
    areas: dict[str, wire.Area] = {}
    if value is None:
        return None, areas
    if not isinstance(value, list):
        wire.refuse("outputs is not a list", "outputs")
    if len(value) > wire.MAX_INPUTS:
        wire.refuse(f"outputs has {len(value)} entries; the limit is {wire.MAX_INPUTS}", "outputs")
    names: dict[str, None] = {}  # an ordered set
    for index, entry in enumerate(value):
        field = f"outputs[{index}]"
        entry = entry if isinstance(entry, dict) else {}
        name = _parse_name(entry, field)
        if name in names:
            wire.refuse(f"{field}.name: the output {name[:80]!r} comes twice", f"{field}.name")
        area = parse_area(entry, field)
        if area is not None:
            areas[name] = area
        names[name] = None
    # As in the Open Inference Protocol, an empty list asks for all outputs.
    return tuple(names) or None, areas


def parse_area(entry: dict[str, Any], field: str) -> wire.Area | None:
    """The area of shared memory that holds a tensor; None for a tensor in a frame.

    Args:
        entry: an item of the header's inputs or outputs.
        field: its name in error messages, such as `inputs[0]`.

    Raises:
        InvalidRequest: `malformed`, naming the parameter.
    """
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        wire.refuse(f"{field}.parameters is not an object", f"{field}.parameters")
    if not any(key in parameters for key in wire.SHARED_MEMORY_KEYS):
        return None
    field = f"{field}.parameters"
    region = parameters.get(wire.SHARED_MEMORY_REGION)
    if not isinstance(region, str) or wire.REGION_NAME.fullmatch(region) is None:
        where = f"{field}.{wire.SHARED_MEMORY_REGION}"
        wire.refuse(f"{where} is missing, or not the name of a region (mt-PID-DESCRIPTOR-NONCE)", where)
    offset = parameters.get(wire.SHARED_MEMORY_OFFSET, 0)
    if type(offset) is not int or not 0 <= offset <= wire.MAX_DIMENSION:
        where = f"{field}.{wire.SHARED_MEMORY_OFFSET}"
        wire.refuse(f"{where} is not an integer from 0 to 2^63 - 1", where)
    size = parameters.get(wire.SHARED_MEMORY_BYTE_SIZE)
    if type(size) is not int or not 0 < size <= wire.MAX_DIMENSION:
        where = f"{field}.{wire.SHARED_MEMORY_BYTE_SIZE}"
        wire.refuse(f"{where} is missing, or not an integer from 1 to 2^63 - 1", where)
    return wire.Area(region, offset, size)
