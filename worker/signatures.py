"""The signatures of a model beside the one that it serves by default, each as a model of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from multitower.spec import ModelSpec, SignatureReport

from .executor import Counting, Executor
from .formats.model import Model
from .model_errors import LoadError
from .warmup.warmup import Findings, Sample, warm_up


@runtime_checkable
class Signed(Protocol):
    """What a model has beside `Model` where it has signatures.

    Attributes:
        signature: the name of the one that the model itself is.
        others: the others by name; of one that cannot be served, why.
    """

    signature: str
    others: Mapping[str, Model | LoadError]


def executor_of(model: Model, spec: ModelSpec, findings: Findings, pulse: Counting) -> Executor:
    """What runs batches on a model, according to what its warm-up has shown."""
    return Executor(
        spec.name,
        model,
        spec.allowed_batch_sizes,
        unbatched=rows_of_a_batch(spec, findings) == 0,
        proven=findings.proven,
        safe_rows=spec.safe_rows,
        pulse=pulse,
    )


def rows_of_a_batch(spec: ModelSpec, findings: Findings) -> int:
    """At the most; 0 where requests run singly."""
    return 0 if findings.unbatched_because is not None else spec.max_batch_size


def load_others(
    model: Model, spec: ModelSpec, samples: Sequence[Sample], pulse: Counting
) -> tuple[str, dict[str, Executor], tuple[SignatureReport, ...]]:
    """Makes a model's other signatures ready.

    They are warmed up where somebody has recorded requests for them. Of the others the first batches show whether
    requests can be joined.

    Returns:
        The name of the default signature, "" where there are none; what runs the others, by name; and a report of
        each, those among them that cannot be served.
    """
    if not isinstance(model, Signed):
        return "", {}, ()
    executors: dict[str, Executor] = {}
    reports: list[SignatureReport] = []
    for name, other in model.others.items():
        if isinstance(other, LoadError):
            reports.append(SignatureReport(name=name, cause=str(other)))
            continue
        findings = warm_up(other, spec, samples, signature=name)
        executors[name] = executor_of(other, spec, findings, pulse)
        reports.append(
            SignatureReport(
                name=name,
                inputs=other.inputs or (),
                outputs=other.outputs or (),
                max_batch_size=rows_of_a_batch(spec, findings),
                unbatched_because=findings.unbatched_because,
            )
        )
    return model.signature, executors, tuple(reports)
