"""How a loaded model describes itself to clients: the replies to `MT1:model_metadata` and `MT1:model_config`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multitower import tensors
from multitower.spec import ModelReport, SignatureReport, TensorReport


def model_metadata(report: ModelReport, versions: Sequence[str]) -> dict[str, Any]:
    """Returns the Open Inference Protocol's metadata of a model.

    Args:
        report: what a worker reported of the version. A handler that declares no inputs or outputs has empty lists.
        versions: all versions that are served, ascending.
    """
    return {
        "name": report.name,
        "versions": list(versions),
        "platform": report.platform,
        "inputs": [_tensor(tensor) for tensor in report.inputs or ()],
        "outputs": [_tensor(tensor) for tensor in report.outputs or ()],
        **(_signatures(report) if report.signature else {}),
        **({"signature_defs": report.signature_defs} if report.signature_defs else {}),
    }


def model_config(report: ModelReport, versions: Sequence[str]) -> dict[str, Any]:
    """Returns the part of Triton's model configuration that its clients read.

    Args:
        report: what a worker reported of the version.
        versions: all versions that are served, ascending.

    Returns:
        The configuration; `dims` are without the batch dimension.
    """
    return {
        "name": report.name,
        "platform": report.platform,
        "backend": "multitower",
        "version_policy": {"specific": {"versions": list(versions)}},
        "max_batch_size": report.max_batch_size,
        "input": _config_tensors(report.inputs, batched=report.max_batch_size > 0),
        "output": _config_tensors(report.outputs, batched=report.max_batch_size > 0),
    }


def _config_tensors(reports: Sequence[TensorReport] | None, *, batched: bool) -> list[dict[str, Any]]:
    return [
        {
            "name": tensor.name,
            "data_type": "TYPE_STRING" if tensor.datatype == tensors.BYTES else f"TYPE_{tensor.datatype}",
            "dims": list(tensor.shape or ())[1 if batched and tensor.has_rows else 0 :],
            **({"optional": True} if tensor.optional else {}),
        }
        for tensor in reports or ()
    ]


def _signatures(report: ModelReport) -> dict[str, Any]:
    """Returns all signatures that requests may name, and those that cannot be served, with the cause."""
    described: list[tuple[str, ModelReport | SignatureReport]] = [
        (report.signature, report),
        *((signature.name, signature) for signature in report.signatures),
    ]
    return {
        "signature_name": report.signature,
        "signatures": {
            name: {
                "inputs": [_tensor(tensor) for tensor in signature.inputs or ()],
                "outputs": [_tensor(tensor) for tensor in signature.outputs or ()],
                "max_batch_size": signature.max_batch_size,
                "unbatched_because": signature.unbatched_because,
                "unverified_because": signature.unverified_because,
                "cause": signature.cause,
            }
            for name, signature in described
        },
    }


def _tensor(tensor: TensorReport) -> dict[str, Any]:
    described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape or ())}
    if tensor.optional:
        described["optional"] = True
    if tensor.signature_key:
        described["signature_key"] = tensor.signature_key
    return described
