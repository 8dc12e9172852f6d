"""The loop of a worker that is ready: it receives a batch, runs it and sends its answers, until it is told to stop.

Batches come from the supervisor's router as `worker_wire` describes. A batch that cannot be run because of a defect in
this program is answered with an error for each of its requests; only a message whose head cannot be read ends the
process, since there is no telling which batch it was.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multitower import batch_results, wire, worker_wire
from multitower.batch_results import Timing
from multitower.buffers import Buffers
from multitower.errors import MultitowerError, Reason, make
from multitower.spec import BatchingReport, MemoryReport, newest
from multitower.worker_wire import BatchHead, KeyMemory, KeySpec, Table, WorkerArea

from .batch_inputs import PreparedBatch
from .executor import Executor, Executors
from .inbox import Channel, Inbox
from .model_errors import log_traceback, one_line
from .records import log_event
from .replies import Answer, JoinedReplies
from .shared_memory.mappings import Mappings
from .shared_memory.regions import OutputWriter, Regions, SharedInputs

Models = Mapping[tuple[str, str], Executors]
"""The models that a worker serves, by name and version."""

MIN_OVERLAP_NS = 300_000
"""Where both computing a batch and assembling one take this long, a second thread assembles the next one meanwhile."""

MAX_FREE_BYTES = 64 << 20
"""Of memory for inputs. A worker needs one buffer an input, and a second while its answer is being sent."""


class UnreadableMessageError(Exception):
    """A message of the supervisor cannot be read; the text says which, and what is wrong with it."""


def log_unreadable(error: UnreadableMessageError) -> None:
    """Logs why the worker exits."""
    message = "a message of the supervisor cannot be read, which is a defect of multitower; exiting"
    log_event(logging.ERROR, message, cause=error)


def serve(channel: Channel, models: Models, mark_begun: Callable[[int], None]) -> None:
    """Answers batches, one at a time, until STOP.

    Args:
        channel: the worker's end of its connection to the supervisor.
        models: the models that are served, by name and version.
        mark_begun: stores the id of each batch before it runs, where the supervisor finds it after a crash.

    Raises:
        UnreadableMessageError: a message cannot be read; nothing is answered any more.
    """
    service = _Service(models, mark_begun)
    reporter = _Reporter(models)
    with Inbox(channel, service.open_message, service.release_unused) as inbox:
        while _answer_next(inbox, service, reporter):
            continue


def _answer_next(inbox: Inbox[_Job], service: _Service, reporter: _Reporter) -> bool:
    """Answers the next batch; False after STOP. Keeps no reference to the batch."""
    job = inbox.next_job()
    if job is None:
        return False
    inbox.set_prefetching(job.is_worth_overlapping(inbox.prefetching))
    answers = service.run(job)
    if job.executor is not None:
        # Before the answers: if requests must not share batches, a part of a split request is no answer.
        for report in reporter.changes(job.executor):
            inbox.send(report)
    inbox.send(answers)
    return True


class _Reporter:
    """Makes reports of what executors find out while they run batches."""

    def __init__(self, models: Models) -> None:
        self._signatures = {
            executor: signature for signatures in models.values() for signature, executor in signatures.items()
        }
        self._memory = {executor: (executor.safe_rows, 0) for executor in self._signatures}
        self._batching = {
            executor: (executor.unbatched_because, executor.unverified_because) for executor in self._signatures
        }

    def changes(self, executor: Executor) -> list[list[Any]]:
        """The messages that are due after a batch of this executor: none, nearly always."""
        messages: list[list[Any]] = []
        batching = executor.unbatched_because, executor.unverified_because
        if batching != self._batching[executor]:
            self._batching[executor] = batching
            report = BatchingReport(
                model=executor.name,
                version=executor.version,
                signature=self._signatures[executor],
                unbatched_because=executor.unbatched_because,
                unverified_because=executor.unverified_because,
            )
            messages.append([worker_wire.BATCHING, report.to_json()])
        now = executor.safe_rows, executor.exhausted
        if now != self._memory[executor]:
            self._memory[executor] = now
            memory = MemoryReport(model=executor.name, safe_rows=now[0], exhausted=now[1])
            messages.append([worker_wire.MEMORY, memory.to_json()])
        return messages


@dataclass(slots=True)
class _Job:
    """A batch that has been received.

    Attributes:
        batch_id: its id, which its answers carry.
        entries: the number of requests in it.
        executor: what runs it; None where it cannot be run.
        assemble_ns: nanoseconds that assembling its inputs has taken so far.
        prepared: the whole batch, where all of its inputs came in frames.
        parts: where some of its tensors lie in shared memory: what is run one after the other.
        regions: where `parts` is used: the open regions; they are closed once the batch is answered.
        error: why the batch cannot be run; it answers every request.
    """

    batch_id: int
    entries: int
    executor: Executor | None
    assemble_ns: int = 0
    prepared: PreparedBatch | None = None
    parts: Sequence[_Part] = ()
    regions: Regions | None = None
    error: MultitowerError | None = None

    def is_worth_overlapping(self, overlapping: bool) -> bool:
        """Whether batches like this one should be assembled while another one computes.

        Args:
            overlapping: whether they are now; stopping takes a clearer reason than going on.
        """
        if self.executor is None:
            return overlapping
        least = MIN_OVERLAP_NS // 2 if overlapping else MIN_OVERLAP_NS
        return self.assemble_ns >= least and self.executor.compute_ns >= least


@dataclass(slots=True)
class _Part:
    """All entries of a batch with tensors in shared memory; or one entry, where the model takes one request a call.

    Attributes:
        key: what the entries have in common.
        rows: of each entry.
        frames: of the inputs that came in frames; None once they have been prepared.
        table: the tensors that lie in shared memory.
        prepared: the entries that can be run; None before they are read, and where there are none.
        errors: the answers of the other entries, by their index.
        areas: where outputs are to be written, by entry and by name.
    """

    key: KeySpec
    rows: Sequence[int]
    frames: list[Any] | None
    table: Table
    prepared: PreparedBatch | None = None
    errors: Mapping[int, MultitowerError] = field(default_factory=dict)
    areas: dict[int, dict[str, WorkerArea]] = field(default_factory=dict)


class _Service:
    """Makes the message of the answers out of the message of a batch.

    The answers may refer to memory of the model: they must be sent before the next batch runs.
    """

    def __init__(self, models: Models, mark_begun: Callable[[int], None]) -> None:
        versions: dict[str, list[str]] = {}
        for name, version in models:
            versions.setdefault(name, []).append(version)
        self._models = {**models, **{(name, ""): models[name, newest(found)] for name, found in versions.items()}}
        self._mark_begun = mark_begun
        self._keys = KeyMemory()
        self._outputs = OutputWriter()
        self._buffers = Buffers(MAX_FREE_BYTES)
        self._mappings = Mappings()
        self._supervisor = os.getppid()

    def open_message(self, message: list[Any]) -> _Job | None:
        """Prepares the batch that a message brings. While it does, `run` may be running in another thread.

        Returns:
            The batch; or None for STOP.

        Raises:
            UnreadableMessageError: the message is of no known kind, or its head cannot be read.
        """
        if self._mappings.known:
            self._mappings.drop_unused()
        first = bytes(message[0])  # not `bytes` yet where a batch has very many requests
        kind = first[:1]
        if kind == worker_wire.STOP:
            return None
        if kind not in (worker_wire.BATCH, worker_wire.SHARED):
            raise UnreadableMessageError(f"a message of the unknown kind {kind!r}, of {len(message)} frames")
        try:
            head = worker_wire.read_batch_head(first)
        except struct.error as error:
            raise UnreadableMessageError(f"the head of a batch, of {len(first)} bytes: {error}") from error
        try:
            return self._prepare_job(kind, head, message)
        except Exception as error:  # noqa: BLE001  a defect: the requests concerned are answered, the worker goes on
            return _Job(head.batch_id, len(head.rows), None, error=_defect(head.batch_id, error))

    def release_unused(self) -> None:
        """Unmaps regions that have not been used lately. To be called while no message comes."""
        self._mappings.drop_unused()

    def run(self, job: _Job) -> list[Any]:
        """Runs a batch; returns the message of its answers."""
        self._mark_begun(job.batch_id)
        executor = job.executor
        if executor is not None:
            try:
                if job.prepared is not None:
                    return self._run_frames(job, executor, job.prepared)
                return self._run_parts(job, executor)
            except Exception as error:  # noqa: BLE001  likewise
                job.error = _defect(job.batch_id, error)
        assert job.error is not None  # there is no executor, or it raised
        answer = wire.dump_json(job.error.to_wire())
        return batch_results.result(job.batch_id, [answer] * job.entries, Timing(0, 0, 0))

    def _prepare_job(self, kind: bytes, head: BatchHead, message: list[Any]) -> _Job:
        key, rest = self._read_key(head, message)
        executor = self._models[key.model, key.version][key.signature]
        if kind == worker_wire.BATCH:
            prepared = executor.prepare(key, head.rows, _views(rest), joined=head.joined)
            return _Job(head.batch_id, len(head.rows), executor, prepared.assemble_ns, prepared)
        started = time.monotonic_ns()
        packed, *frames = rest
        whole = _Part(key, head.rows, _views(frames), Table.unpack(bytes(packed)))
        # A request that is run alone is also read and written alone, while it is in the processor's caches.
        parts = [whole] if key.batched or len(head.rows) == 1 else _split_by_entry(whole)
        regions = Regions(self._supervisor, self._mappings)
        try:
            self._prepare_part(parts[0], executor, regions)
        except Exception:
            regions.close()
            raise
        assemble_ns = time.monotonic_ns() - started
        return _Job(head.batch_id, len(head.rows), executor, assemble_ns, None, parts, regions)

    def _read_key(self, head: BatchHead, message: list[Any]) -> tuple[KeySpec, list[Any]]:
        """The key of a batch, and the frames behind its description."""
        start = 1
        if head.described:
            description = message[1]
            start = 2
            key: KeySpec | None = None
            try:
                # Large frames are not `bytes` yet, as where a key has very many inputs.
                key = KeySpec.from_json(bytes(description))
            finally:
                # Also one that cannot be read: the router counts it, and both sides must forget keys in step.
                self._keys.put(head.key_id, key, len(description))
        else:
            key = self._keys.get(head.key_id)
        if key is None:
            raise ValueError(f"the key {head.key_id} has not been described")
        return key, message[start:]

    def _prepare_part(self, part: _Part, executor: Executor, regions: Regions) -> None:
        """Reads the inputs of a part from shared memory, and prepares the entries that could be read."""
        assert part.frames is not None  # it is done once
        inputs = SharedInputs(
            part.key, part.rows, part.table, part.frames, regions, self._buffers, executor.padded_size
        )
        part.frames, part.errors = None, inputs.errors
        for area in part.table.outputs:
            part.areas.setdefault(area.entry, {})[str(area.tensor)] = area
        if inputs.rows:  # a model is not called for nothing
            joined = inputs.joined
            part.prepared = executor.prepare(part.key, inputs.rows, inputs.frames, joined=joined, padded=joined)

    def _run_frames(self, job: _Job, executor: Executor, prepared: PreparedBatch) -> list[Any]:
        """Runs a batch whose inputs all came in frames."""
        answers, timing = executor.run(prepared)
        if isinstance(answers, JoinedReplies):
            return batch_results.joined_result(job.batch_id, answers.headers, answers.rows, answers.frames, timing)
        return batch_results.result(job.batch_id, _as_frames(answers), timing)

    def _run_parts(self, job: _Job, executor: Executor) -> list[Any]:
        """Runs a batch of which some tensors lie in shared memory, part by part."""
        assert job.regions is not None
        answers: list[list[Any] | bytes] = []
        compute_ns, assemble_ns, started = 0, job.assemble_ns, time.monotonic_ns()
        with job.regions as regions:
            for part in job.parts:
                if part.frames is not None:
                    before = time.monotonic_ns()
                    self._prepare_part(part, executor, regions)
                    assemble_ns += time.monotonic_ns() - before
                ran: Sequence[Answer] = ()
                if part.prepared is not None:
                    ran, timing = executor.run(part.prepared)
                    compute_ns += timing.compute_ns
                    assemble_ns += timing.assemble_ns - part.prepared.assemble_ns
                done = _as_frames(self._write_outputs(part, ran, regions))
                # The answers are sent when all parts have run. The model's next calls must not change them.
                answers += _copied(done) if executor.volatile and part is not job.parts[-1] else done
                part.prepared = None  # its memory serves the next part
        slice_ns = time.monotonic_ns() - started - compute_ns - (assemble_ns - job.assemble_ns)
        return batch_results.result(job.batch_id, answers, Timing(assemble_ns, compute_ns, slice_ns))

    def _write_outputs(self, part: _Part, ran: Sequence[Answer], regions: Regions) -> list[Answer]:
        """The answers of all entries of a part. Outputs for which there is an area are written there.

        Outputs that cannot be written stay frames, also because of a defect, which is logged.
        """
        waiting = iter(ran)
        answers = [part.errors.get(entry) or next(waiting) for entry in range(len(part.rows))]
        for entry, areas in part.areas.items():
            answer = answers[entry]
            if not isinstance(answer, MultitowerError):
                try:
                    answers[entry] = self._outputs.write(answer, areas, regions)
                except Exception as error:  # noqa: BLE001  a defect, for which no other entry must fail
                    log_traceback("outputs could not be written to shared memory, which is a defect", error)
        return answers


def _defect(batch_id: int, error: Exception) -> MultitowerError:
    """The answer to the requests of a batch that a defect of this program concerns; it is logged."""
    log_traceback("a batch could not be run, which is a defect of multitower", error, batch=batch_id)
    return make(
        Reason.MODEL_ERROR, f"the worker could not run the batch, which is a defect of multitower: {one_line(error)}"
    )


def _split_by_entry(whole: _Part) -> list[_Part]:
    """A part for each entry."""
    frames = iter(whole.frames or ())
    tables = [Table([], []) for _ in whole.rows]
    for table, side in ((whole.table.inputs, 0), (whole.table.outputs, 1)):
        for area in table:
            tables[area.entry][side].append(WorkerArea(0, *area[1:]))
    width = len(whole.key.inputs)
    return [
        _Part(whole.key, (rows,), [next(frames) for _ in range(width - len(table.inputs))], table)
        for rows, table in zip(whole.rows, tables, strict=True)
    ]


def _views(inputs: list[Any]) -> list[Any]:
    # A view keeps the memory of a large frame from being freed.
    return [frame if type(frame) is bytes else memoryview(frame) for frame in inputs]


def _as_frames(answers: Sequence[Answer]) -> list[list[Any] | bytes]:
    """The answers as `batch_results.result` takes them."""
    return [wire.dump_json(answer.to_wire()) if isinstance(answer, MultitowerError) else answer for answer in answers]


def _copied(answers: Sequence[list[Any] | bytes]) -> list[list[Any] | bytes]:
    """Answers that the model's next call does not change."""
    return [answer if isinstance(answer, bytes) else [bytes(frame) for frame in answer] for answer in answers]
