"""Loads the models of an assignment: reads them, warms them up, and makes what runs their batches."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from multitower.load_step import LoadStep
from multitower.spec import Assignment, ModelReport, ModelSpec, SignatureReport

from .executor import Executor, Executors
from .formats.graph_state import may_change_state
from .formats.loader import load_replicas
from .formats.model import Model
from .heartbeat import CallCounter, LoadSteps
from .loaded_content import FilesChangedError, LoadedContent
from .memory_use import MemoryMeter
from .model_errors import LoadError, is_out_of_memory, load_cause, log_traceback, may_pass
from .optional_inputs import BatchedModel, row_defaults
from .protocol_limits import check_limits
from .records import announce
from .row_comparison import VARYING
from .unrunnable import UnrunnableError, classify
from .warmup.padding_check import warn_of_padding
from .warmup.row_check import TRUSTED, RowFindings, check_rows
from .warmup.samples import load_samples
from .warmup.warmup import Sample, warm_up, warmup_sizes

CHANGES_STATE = "a call of it may change a state, so that batches of requests are not compared, which repeats calls"

MAX_COMPARISONS = 8
"""Batches of requests that are used to compare values, where the warm-up could not."""


class Replica(NamedTuple):
    """A model on one tower, and what runs its batches there."""

    model: Model
    executors: Executors


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """The models of an assignment.

    Attributes:
        replicas: of each model that can be served, by name and version: one a tower, from the first tower on.
        reports: one for each model of the assignment, in its order.
    """

    replicas: Mapping[tuple[str, str], Sequence[Replica]]
    reports: tuple[ModelReport, ...]

    def towers(self) -> list[dict[tuple[str, str], Executors]]:
        """What each tower serves. A model that has fewer replicas than others is on the first towers."""
        count = max(map(len, self.replicas.values()), default=0)
        return [
            {key: replicas[tower].executors for key, replicas in self.replicas.items() if tower < len(replicas)}
            for tower in range(count)
        ]

    def close(self) -> None:
        """Closes all models. What one raises is logged."""
        for key, replicas in self.replicas.items():
            announce(key)
            _close(replicas)
        announce(None)


def _close(replicas: Sequence[Replica]) -> None:
    for model, _ in replicas:
        try:
            model.close()
        except BaseException as error:  # noqa: BLE001  a handler may raise anything, sys.exit included
            log_traceback("model raised an exception when it was closed", error)


def load_models(assignment: Assignment, counters: Sequence[CallCounter], steps: LoadSteps) -> LoadedModels:
    """Loads and warms up each model. One that fails is logged and reported, and the others are loaded.

    Args:
        assignment: the models, and the devices for them.
        counters: one a device; the models' calls are counted there.
        steps: gets each step before it is done.
    """
    loaded: dict[tuple[str, str], list[Replica]] = {}
    reports: list[ModelReport] = []
    setup_error: BaseException | None = None
    if any(spec.format.uses_tensorflow for spec in assignment.models):
        from .formats.tensorflow_process import configure

        try:
            configure(assignment)
        except BaseException as error:  # noqa: BLE001  models that need TensorFlow fail with it, the others are loaded
            setup_error = error
    # A module is imported once a process, for all handlers that use it: with the first of them.
    contents = {
        spec.key: _content_of(spec, steps)
        for spec in assignment.models
        if spec.handler is not None and not spec.not_loaded_because
    }
    for spec in assignment.models:
        steps.begin(LoadStep(*spec.key))
        content: LoadedContent | Exception | None = None
        announce(spec.key)
        try:
            if setup_error is not None and spec.format.uses_tensorflow:
                raise setup_error
            if spec.not_loaded_because:
                raise LoadError(spec.not_loaded_because)
            meter = MemoryMeter(assignment.devices, tensorflow=spec.format.uses_tensorflow)
            content = contents.get(spec.key) or LoadedContent(spec)
            if isinstance(content, Exception):
                raise content
            replicas, report = _load_unchanged(spec, content, assignment, counters, steps)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, sys.exit included
            if not issubclass(type(error), LoadError):
                log_traceback("model cannot be loaded", error)
            reports.append(_failed_report(spec, content, error))
            continue
        loaded[report.key] = replicas
        reports.append(replace(report, **asdict(meter.growth())))
    # The output of a worker with one model concerns that one.
    announce(next(iter(loaded)) if len(loaded) == 1 else None)
    return LoadedModels(loaded, tuple(reports))


def _content_of(spec: ModelSpec, steps: LoadSteps) -> LoadedContent | Exception:
    """Returns the files of a model, or the exception that they raise."""
    steps.begin(LoadStep(*spec.key))  # a file server may keep it waiting
    try:
        return LoadedContent(spec)
    except Exception as error:  # noqa: BLE001  the model fails with it
        return error


def _failed_report(spec: ModelSpec, content: LoadedContent | Exception | None, error: BaseException) -> ModelReport:
    """Returns the report of a model that cannot be loaded.

    Args:
        spec: the model.
        content: its files, as far as they were looked at.
        error: why it cannot be loaded.
    """
    name, version = spec.key
    needs_gpu = isinstance(error, UnrunnableError) and error.needs_gpu
    failed = ModelReport(
        name=name,
        version=version,
        state="failed",
        cause=load_cause(error),
        needs_gpu=needs_gpu,
        temporary=may_pass(error, spec.path),
        out_of_memory=is_out_of_memory(error),
    )
    if type(error) is FilesChangedError:
        return replace(failed, files_changed=True, fingerprint=error.fingerprint)
    return replace(failed, files_changed=isinstance(content, LoadedContent) and content.has_changed())


def _load_unchanged(
    spec: ModelSpec,
    content: LoadedContent,
    assignment: Assignment,
    counters: Sequence[CallCounter],
    steps: LoadSteps,
) -> tuple[list[Replica], ModelReport]:
    """Loads a model; closes it again if its files have changed meanwhile."""
    replicas, report = _load_model(spec, assignment, counters, steps)
    try:
        return replicas, replace(report, fingerprint=content.finish(), same_content=content.same_content)
    except BaseException:
        _close(replicas)
        raise


def _load_model(
    spec: ModelSpec, assignment: Assignment, counters: Sequence[CallCounter], steps: LoadSteps
) -> tuple[list[Replica], ModelReport]:
    started = time.monotonic()
    if spec.custom_ops:
        from .formats.custom_ops import load_libraries

        load_libraries(spec.custom_ops)
    models = _load_replicas(spec, assignment.devices)
    loaded = time.monotonic()
    samples = load_samples(models[0], spec)
    replicas: list[Replica] = []
    compared: dict[str, RowFindings] = {}
    for model, counter in zip(models, counters, strict=False):
        try:
            _check_runnable(model, spec, assignment.max_message_size)
            findings = _warm_up(model, spec, samples, steps, compared)
        except UnrunnableError as error:
            raise _with_other_signatures(error, model) from error
        others, signatures = load_other_signatures(
            model, spec, samples, counter, steps, assignment.max_message_size, compared
        )
        replicas.append(Replica(model, {"": _executor(model, spec, findings, counter), **others}))
    # All replicas are alike: what the warm-up of the last one has shown holds for each, and so does the comparison of
    # values, for which the first one alone is run.
    report = ModelReport(
        name=spec.name,
        version=model.version,
        platform=spec.format.platform,
        inputs=model.inputs,
        outputs=model.outputs,
        max_batch_size=_rows_per_batch(spec, findings),
        unbatched_because=findings.unbatched_because,
        unverified_because=findings.unverified_because,
        pad_variable_length_inputs=spec.pad_variable_length_inputs,
        signature=model.signature,
        signatures=signatures,
        signature_defs=base64.b64encode(model.signature_definitions).decode(),
        towers=tuple(model.tower for model in models if model.tower is not None),
        load_s=loaded - started,
        warmup_s=time.monotonic() - loaded,
    )
    return replicas, report


def _load_replicas(spec: ModelSpec, devices: Sequence[str]) -> list[Model]:
    """Loads the replicas of a model.

    Raises:
        UnrunnableError: an operation of it does not exist in this process.
        LoadError: it cannot be served for another reason.
        BaseException: whatever the format's own code raises.
    """
    try:
        return load_replicas(spec, devices)
    except Exception as error:
        unrunnable = classify(error) if spec.format.uses_tensorflow else None
        if unrunnable is None:
            raise
        raise unrunnable from error


def _check_runnable(model: Model, spec: ModelSpec, max_message_size: int | None) -> None:
    """Checks a model, or one of its signatures: whether requests can reach it, and whether TensorFlow can run it.

    Raises:
        UnrunnableError: no request to it can succeed in this process.
    """
    required = None if model.inputs is None else [tensor for tensor in model.inputs if not tensor.optional]
    check_limits(spec.name, required, max_message_size)
    if spec.format.uses_tensorflow:
        from .formats.runnable import check_runnable

        check_runnable(model, spec)


def _with_other_signatures(error: UnrunnableError, model: Model) -> UnrunnableError:
    """The error of a default signature, with the names of other signatures that may be served in its place."""
    usable = [name for name, other in model.other_signatures.items() if not isinstance(other, LoadError)]
    if not usable:
        return error
    remedy = f"the model can be served by another one, with `signature`: {', '.join(usable)}"
    cause = f"the signature {model.signature!r} cannot be served: {error}; {remedy}"
    return UnrunnableError(cause, needs_gpu=error.needs_gpu)


def load_other_signatures(
    model: Model,
    spec: ModelSpec,
    samples: Sequence[Sample],
    counter: CallCounter,
    steps: LoadSteps,
    max_message_size: int | None = None,
    compared: dict[str, RowFindings] | None = None,
) -> tuple[dict[str, Executor], tuple[SignatureReport, ...]]:
    """Makes the signatures of a model that are not its default one ready.

    They are warmed up where there are recorded requests for them. Of the others, the first batches show whether
    requests can be joined.

    Args:
        model: one replica of the model.
        spec: as configured.
        samples: recorded requests.
        counter: counts the calls.
        steps: gets each step before it is done.
        max_message_size: bytes of the largest message that the daemon accepts; None for no limit.
        compared: what comparing values of another replica has shown, by signature; this one's findings are added.

    Returns:
        What runs each of them, by name; and a report of each, also of those that cannot be served.
    """
    executors: dict[str, Executor] = {}
    reports: list[SignatureReport] = []
    compared = {} if compared is None else compared
    for name, other in model.other_signatures.items():
        if isinstance(other, LoadError):
            reports.append(SignatureReport(name=name, cause=str(other)))
            continue
        try:
            _check_runnable(other, spec, max_message_size)
            findings = _warm_up(other, spec, samples, steps, compared, signature=name)
        except UnrunnableError as error:
            reports.append(SignatureReport(name=name, cause=str(error)))
            continue
        executors[name] = _executor(other, spec, findings, counter)
        reports.append(
            SignatureReport(
                name=name,
                inputs=other.inputs or (),
                outputs=other.outputs or (),
                max_batch_size=_rows_per_batch(spec, findings),
                unbatched_because=findings.unbatched_because,
                unverified_because=findings.unverified_because,
            )
        )
    return executors, tuple(reports)


class _Findings(NamedTuple):
    """What running a model has shown; see `Findings` and `RowFindings`.

    Attributes:
        may_compare: whether batches of requests are to be compared, since no values have been.
    """

    unbatched_because: str | None
    unverified_because: str | None
    proven: bool
    may_compare: bool


def _warm_up(
    model: Model,
    spec: ModelSpec,
    samples: Sequence[Sample],
    steps: LoadSteps,
    compared: dict[str, RowFindings],
    *,
    signature: str = "",
) -> _Findings:
    """Warms a model up, and compares values of rows in different batches, unless those of a replica have been."""

    def before_call(rows: int) -> None:
        fewer = max((size for size in warmup_sizes(spec) if size < rows), default=0)
        steps.begin(LoadStep(*spec.key, signature, rows, fewer))

    whole: list[Sample] = []
    original = model
    if model.defaults:
        model = BatchedModel(model)
        # Requests with inputs that no batch has run unbatched.
        known = {tensor.name for tensor in model.inputs or ()}
        own = [sample for sample in samples if sample.signature == signature]
        whole = [sample for sample in own if sample.inputs.keys() - known]
        samples = [sample for sample in own if not sample.inputs.keys() - known]
    shapes = warm_up(model, spec, samples, signature=signature, before_call=before_call)
    if whole:
        unbatched = replace(spec, max_batch_size=0, allowed_batch_sizes=())
        warm_up(model, unbatched, whole, signature=signature, before_call=before_call)
    is_first = signature not in compared
    if is_first:
        compared[signature] = check_rows(model, spec, shapes, samples, signature=signature, before_call=before_call)
    values = compared[signature]
    steps.begin(LoadStep(*spec.key))
    because = shapes.unbatched_because or values.unbatched_because
    if because is None and is_first:
        warn_of_padding(model, spec, samples, signature=signature)
    unverified = values.unverified_because
    may_compare = unverified not in (None, TRUSTED, VARYING)
    if may_compare and may_change_state(original):
        # A comparison repeats calls.
        unverified, may_compare = CHANGES_STATE, False
    return _Findings(because, unverified, shapes.proven and because is None, may_compare)


def _executor(model: Model, spec: ModelSpec, findings: _Findings, counter: CallCounter) -> Executor:
    """What runs batches on a model, according to what its warm-up has shown."""
    return Executor(
        spec.name,
        model,
        spec.allowed_batch_sizes,
        unbatched=_rows_per_batch(spec, findings) == 0,
        proven=findings.proven,
        unverified_because=findings.unverified_because,
        comparisons=MAX_COMPARISONS if findings.may_compare else 0,
        safe_rows=spec.safe_rows,
        counter=counter,
        row_defaults=row_defaults(model),
    )


def _rows_per_batch(spec: ModelSpec, findings: _Findings) -> int:
    """The largest number of rows in a batch; 0 where the model takes one request a call."""
    return 0 if findings.unbatched_because is not None else spec.max_batch_size
