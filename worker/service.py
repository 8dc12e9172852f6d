"""A ready worker's loop: a batch in, its answers out, until it is told to stop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq

from multitower import tensors, wire, worker_wire
from multitower.errors import MultitowerError
from multitower.spec import MemoryReport, UnbatchedReport, newest

from ..worker_wire import BatchHead, KeyMemory, KeySpec, Table, Timing, WorkerArea
from .batch import Joined
from .buffers import Buffers
from .executor import Executor
from .inbox import Inbox
from .prepared import Answer, Prepared
from .shared_memory.mappings import Mappings
from .shared_memory.regions import Inputs, Outputs, Regions

Executors = Mapping[str, Executor]
"""What runs the batches of a model's version, by signature; that of its default one by ""."""

Models = Mapping[tuple[str, str], Executors]
"""Those that a worker serves, by name and version."""

WORTH_NS = 300_000
"""Where both a batch's computation and its assembly take this long, the next one is assembled by another thread."""


def serve(socket: zmq.Socket[bytes], models: Models, begin: Callable[[int], None]) -> None:
    """Answers batches, one at a time, until STOP.

    Args:
        socket: the worker's end of its channel.
        models: those that serve, by name and version.
        begin: notes the id of each batch before it is executed, where the supervisor finds it whatever happens then.
    """
    service = _Service(models, begin)
    told = {executor: (executor.safe_rows, 0) for executors in models.values() for executor in executors.values()}
    joining = list(told)
    with Inbox(socket, service.open, service.tick) as inbox:
        while _answer_one(inbox, service):
            for executor in joining:
                if executor.unbatched_because is not None:
                    # Once, since there is no way back.
                    joining.remove(executor)
                    found = UnbatchedReport(
                        model=executor.name, version=executor.version, because=executor.unbatched_because
                    )
                    inbox.send([worker_wire.UNBATCHED, found.to_json()])
                    break
            for executor, before in told.items():
                now = executor.safe_rows, executor.exhausted
                if now != before:
                    told[executor] = now
                    report = MemoryReport(model=executor.name, safe_rows=now[0], exhausted=now[1])
                    inbox.send([worker_wire.MEMORY, report.to_json()])


def _answer_one(inbox: Inbox[_Job], service: _Service) -> bool:
    """Answers the next batch, keeping nothing of it; False when there is none to come."""
    job = inbox.next()
    if job is None:
        return False
    inbox.go_ahead(job.pays(inbox.ahead))
    inbox.send(service.run(job))
    return True


@dataclass(slots=True)
class _Job:
    """A batch that waits to be run.

    Attributes:
        batch_id: its number.
        executor: what runs it.
        assemble_ns: what its assembly has taken so far.
        prepared: all of it, where it came in frames.
        parts: that are run one after the other, where some of it lies in shared memory.
        regions: of that, open until the batch is answered.
    """

    batch_id: int
    executor: Executor
    assemble_ns: int
    prepared: Prepared | None
    parts: Sequence[_Part] = ()
    regions: Regions | None = None

    def pays(self, ahead: bool) -> bool:
        """It is worth while to put batches like this one together while another computes; `ahead`, as it is done."""
        least = WORTH_NS // 2 if ahead else WORTH_NS
        return self.assemble_ns >= least and self.executor.compute_ns >= least


@dataclass(slots=True)
class _Part:
    """All entries of a batch with shared memory, or one of those that run one by one.

    Attributes:
        key: what the entries have in common.
        rows: of each entry.
        frames: of the inputs that came in frames; none once they have been prepared.
        table: of what lies in shared memory.
        prepared: the entries that can be run; None while they have not been looked at, and when there are none.
        errors: the answers of the others, by their number.
        areas: where outputs are to be written, by entry and name.
    """

    key: KeySpec
    rows: Sequence[int]
    frames: list[Any] | None
    table: Table
    prepared: Prepared | None = None
    errors: Mapping[int, MultitowerError] = field(default_factory=dict)
    areas: dict[int, dict[str, WorkerArea]] = field(default_factory=dict)


class _Service:
    """From the message of a batch to that of its answers."""

    def __init__(self, models: Models, begin: Callable[[int], None]) -> None:
        versions: dict[str, list[str]] = {}
        for name, version in models:
            versions.setdefault(name, []).append(version)
        self._models = {**models, **{(name, ""): models[name, newest(found)] for name, found in versions.items()}}
        self._begin = begin
        self._keys = KeyMemory()
        self._outputs = Outputs()
        self._buffers = Buffers()
        self._mappings = Mappings()
        self._parent = os.getppid()

    def open(self, message: list[Any]) -> _Job | None:
        """Makes ready what a message brings; None for the one that says to stop. While it does, `run` may run."""
        if self._mappings.known:
            self._mappings.tick()
        kind = bytes(message[0])[:1]
        if kind == worker_wire.STOP:
            return None
        head, key, rest = self._read(message)
        executor = self._models[key.model, key.version][key.signature]
        if kind == worker_wire.BATCH:
            prepared = executor.prepare(key, head.rows, _views(rest), joined=head.joined)
            return _Job(head.batch_id, executor, prepared.assemble_ns, prepared)
        begun = time.monotonic_ns()
        packed, *frames = rest
        whole = _Part(key, head.rows, _views(frames), Table.unpack(bytes(packed)))
        # What runs one by one is also read and written one by one, while it is in the processor's caches.
        parts = [whole] if key.batched else _one_by_one(whole)
        regions = Regions(self._parent, self._mappings)
        self._prepare(parts[0], executor, regions)
        return _Job(head.batch_id, executor, time.monotonic_ns() - begun, None, parts, regions)

    def tick(self) -> None:
        """Gives up what is kept only for as long as it is used; to be called while nothing comes, too."""
        self._mappings.tick()

    def _prepare(self, part: _Part, executor: Executor, regions: Regions) -> None:
        """Reads what lies in shared memory."""
        assert part.frames is not None  # it is done once
        inputs = Inputs(part.key, part.rows, part.table, part.frames, regions, self._buffers, executor.padded)
        part.frames, part.errors = None, inputs.errors
        for area in part.table.outputs:
            part.areas.setdefault(area.entry, {})[str(area.tensor)] = area
        if inputs.rows:  # a model is not called for nothing
            joined = inputs.joined
            part.prepared = executor.prepare(part.key, inputs.rows, inputs.frames, joined=joined, padded=joined)

    def run(self, job: _Job) -> list[Any]:
        """Runs a batch; returns the message of its answers."""
        self._begin(job.batch_id)
        if job.prepared is not None:
            answers, timing = job.executor.run(job.prepared)
            if isinstance(answers, Joined):
                outputs = _kept(answers.frames) if job.executor.volatile else answers.frames
                return worker_wire.joined_result(job.batch_id, answers.headers, answers.rows, outputs, timing)
            return worker_wire.result(job.batch_id, _told(answers, job.executor), timing)
        assert job.regions is not None  # one of the two is there
        told: list[list[Any] | bytes] = []
        compute_ns, assemble_ns, begun = 0, job.assemble_ns, time.monotonic_ns()
        with job.regions as regions:
            for part in job.parts:
                if part.frames is not None:
                    before = time.monotonic_ns()
                    self._prepare(part, job.executor, regions)
                    assemble_ns += time.monotonic_ns() - before
                run: Sequence[Answer] = ()
                if part.prepared is not None:
                    run, timing = job.executor.run(part.prepared)
                    compute_ns += timing.compute_ns
                    assemble_ns += timing.assemble_ns - part.prepared.assemble_ns
                told += _told(self._place(part, run, regions), job.executor)
                part.prepared = None  # its memory is the next one's
        slice_ns = time.monotonic_ns() - begun - compute_ns - (assemble_ns - job.assemble_ns)
        return worker_wire.result(job.batch_id, told, Timing(assemble_ns, compute_ns, slice_ns))

    def _place(self, part: _Part, run: Sequence[Answer], regions: Regions) -> list[Answer]:
        """The answers of all entries, with those outputs in shared memory that have a place there."""
        ran = iter(run)
        answers = [part.errors.get(entry) or next(ran) for entry in range(len(part.rows))]
        for entry, wanted in part.areas.items():
            answer = answers[entry]
            if not isinstance(answer, MultitowerError):
                answers[entry] = self._outputs.write(answer, wanted, regions)
        return answers

    def _read(self, message: list[Any]) -> tuple[BatchHead, KeySpec, list[Any]]:
        """The head, the key, and the frames behind them."""
        head = worker_wire.read_batch_head(bytes(message[0]))  # not `bytes` yet, where there are very many requests
        start = 1
        if head.described:
            # No `bytes` yet, where a key has very many inputs.
            self._keys.put(head.key_id, KeySpec.from_json(bytes(message[1])), len(message[1]))
            start = 2
        key = self._keys.get(head.key_id)
        assert isinstance(key, KeySpec)  # the router sends the description with the first batch of a key
        return head, key, message[start:]


def _one_by_one(whole: _Part) -> list[_Part]:
    """A part for each entry."""
    frames = iter(whole.frames or ())
    tables = [Table([], []) for _ in whole.rows]
    for table, side in ((whole.table.inputs, 0), (whole.table.outputs, 1)):
        for area in table:
            tables[area.entry][side].append(area._replace(entry=0))
    width = len(whole.key.inputs)
    return [
        _Part(whole.key, (rows,), [next(frames) for _ in range(width - len(table.inputs))], table)
        for rows, table in zip(whole.rows, tables, strict=True)
    ]


def _views(inputs: list[Any]) -> list[Any]:
    # Large frames are libzmq's; a view keeps them from being freed.
    return [frame if type(frame) is bytes else frame.buffer for frame in inputs]


def _told(answers: Sequence[Answer], executor: Executor) -> list[list[Any] | bytes]:
    return [
        wire.dump_json(answer.to_wire())
        if isinstance(answer, MultitowerError)
        else _kept(answer)
        if executor.volatile
        else answer
        for answer in answers
    ]


def _kept(frames: Sequence[Any]) -> list[Any]:
    """Frames that stay as they are; small ones are copied when they are sent, large ones leave later."""
    return [frame if len(frame) < tensors.BULKY_BYTES else bytes(frame) for frame in frames]
