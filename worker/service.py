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
from multitower.spec import MemoryReport, SinglyReport
from multitower.worker.batch import Joined
from multitower.worker.buffers import Buffers
from multitower.worker.executor import Executor
from multitower.worker.inbox import Inbox
from multitower.worker.prepared import Answer, Prepared
from multitower.worker.regions import Inputs, Outputs, Regions
from multitower.worker_wire import BatchHead, KeyMemory, KeySpec, Place, Timing

Executors = Mapping[str, Executor]
"""What runs the batches of a model, by signature; that of its default one by ""."""

WORTH_NS = 300_000
"""Where both a batch's computation and its assembly take this long, the next one is assembled by another thread."""


def serve(socket: zmq.Socket[bytes], models: Mapping[str, Executors], begin: Callable[[int], None]) -> None:
    """Answers batches, one at a time, until STOP.

    Args:
        socket: the worker's end of its channel.
        models: those that serve, by name.
        begin: notes the id of each batch before it is executed, where the supervisor finds it whatever happens then.
    """
    service = _Service(models, begin)
    told = {executor: (executor.safe_rows, 0) for executors in models.values() for executor in executors.values()}
    joining = list(told)
    with Inbox(socket, service.open) as inbox:
        while _answer_one(inbox, service):
            for executor in joining:
                if executor.singly_because is not None:
                    # Once, since there is no way back.
                    joining.remove(executor)
                    found = SinglyReport(model=executor.name, because=executor.singly_because)
                    inbox.send([worker_wire.SINGLY, found.to_json()])
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
        prepared: it; None when none of its entries can be run.
        assemble_ns: what its assembly has taken so far.
        shared: what came in shared memory, and is to go there; None where all came in frames.
    """

    batch_id: int
    executor: Executor
    prepared: Prepared | None
    assemble_ns: int
    shared: _Shared | None = None

    def pays(self, ahead: bool) -> bool:
        """It is worth while to put batches like this one together while another computes; `ahead`, as it is done."""
        least = WORTH_NS // 2 if ahead else WORTH_NS
        return self.assemble_ns >= least and self.executor.compute_ns >= least


@dataclass(slots=True)
class _Shared:
    """What a batch has with shared memory.

    Attributes:
        regions: that it names, which are open until it is answered.
        errors: the answers of entries that cannot be run, by their number.
        entries: how many it has.
        places: where outputs are to be written, by entry and name.
    """

    regions: Regions
    errors: Mapping[int, MultitowerError]
    entries: int
    places: dict[int, dict[str, Place]] = field(default_factory=dict)


class _Service:
    """From the message of a batch to that of its answers."""

    def __init__(self, models: Mapping[str, Executors], begin: Callable[[int], None]) -> None:
        self._models = models
        self._begin = begin
        self._keys = KeyMemory()
        self._outputs = Outputs()
        self._buffers = Buffers()
        self._parent = os.getppid()

    def open(self, message: list[Any]) -> _Job | None:
        """Makes ready what a message brings; None for the one that says to stop. While it does, `run` may run."""
        kind = bytes(message[0])[:1]
        if kind == worker_wire.STOP:
            return None
        head, key, rest = self._read(message)
        executor = self._models[key.model][key.signature]
        if kind == worker_wire.SHARED:
            return self._open_shared(head, key, executor, rest)
        prepared = executor.prepare(key, head.rows, _views(rest), joined=head.joined)
        return _Job(head.batch_id, executor, prepared, prepared.assemble_ns)

    def _open_shared(self, head: BatchHead, key: KeySpec, executor: Executor, rest: list[Any]) -> _Job:
        """A batch of which some tensors lie in shared memory."""
        begun = time.monotonic_ns()
        packed, *frames = rest
        table = worker_wire.Table.unpack(bytes(packed))
        regions = Regions(self._parent)
        inputs = Inputs(key, head.rows, table, _views(frames), regions, self._buffers)
        shared = _Shared(regions, inputs.errors, len(head.rows))
        for place in table.outputs:
            shared.places.setdefault(place.entry, {})[str(place.tensor)] = place
        prepared = None
        if inputs.rows:  # a model is not called for nothing
            prepared = executor.prepare(key, inputs.rows, inputs.frames, joined=inputs.joined)
        return _Job(head.batch_id, executor, prepared, time.monotonic_ns() - begun, shared)

    def run(self, job: _Job) -> list[Any]:
        """Runs a batch; returns the message of its answers."""
        self._begin(job.batch_id)
        answers: Sequence[Answer] = ()
        timing = Timing(0, 0, 0)
        if job.prepared is not None:
            answers, timing = job.executor.run(job.prepared)
            reading_ns = job.assemble_ns - job.prepared.assemble_ns
            timing = timing._replace(assemble_ns=timing.assemble_ns + reading_ns)
        if job.shared is not None:
            begun = time.monotonic_ns()
            answers = self._place(job.shared, answers)
            timing = timing._replace(slice_ns=timing.slice_ns + time.monotonic_ns() - begun)
        elif isinstance(answers, Joined):
            outputs = _kept(answers.frames) if job.executor.volatile else answers.frames
            return worker_wire.joined_result(job.batch_id, answers.headers, answers.rows, outputs, timing)
        return worker_wire.result(job.batch_id, _told(answers, job.executor), timing)

    def _place(self, shared: _Shared, run: Sequence[Answer]) -> list[Answer]:
        """The answers of all entries, with those outputs in shared memory that have a place there."""
        ran = iter(run)
        answers = [shared.errors.get(entry) or next(ran) for entry in range(shared.entries)]
        with shared.regions as regions:
            for entry, wanted in shared.places.items():
                answer = answers[entry]
                if not isinstance(answer, MultitowerError):
                    answers[entry] = self._outputs.place(answer, wanted, regions)
        return answers

    def _read(self, message: list[Any]) -> tuple[BatchHead, KeySpec, list[Any]]:
        """The head, the key, and the frames behind them."""
        head = worker_wire.read_batch_head(message[0])
        start = 1
        if head.described:
            # No `bytes` yet, where a key has very many inputs.
            self._keys.put(head.key_id, KeySpec.from_json(bytes(message[1])), len(message[1]))
            start = 2
        key = self._keys.get(head.key_id)
        assert isinstance(key, KeySpec)  # the router sends the description with the first batch of a key
        return head, key, message[start:]


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
