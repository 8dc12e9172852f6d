"""A ready worker's loop: a batch in, its answers out, until it is told to stop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zmq

from multitower import frames, tensors, wire, worker_wire
from multitower.errors import MultitowerError
from multitower.spec import MemoryReport, SinglyReport, newest
from multitower.worker.batch import Joined
from multitower.worker.buffers import Buffers
from multitower.worker.executor import Answer, Executor
from multitower.worker.regions import Inputs, Outputs, Regions
from multitower.worker_wire import BatchHead, KeyMemory, KeySpec, Place, Timing

Executors = Mapping[str, Executor]
"""What runs the batches of a model's version, by signature; that of its default one by ""."""

Models = Mapping[tuple[str, str], Executors]
"""Those that a worker serves, by name and version."""


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
    while True:
        message = frames.receive(socket, wait=True)
        assert message is not None  # it has waited for one
        kind = bytes(message[0])[:1]
        if kind == worker_wire.STOP:
            return
        if kind in (worker_wire.BATCH, worker_wire.SHARED):
            answer = service.answer if kind == worker_wire.BATCH else service.answer_shared
            frames.send(socket, answer(message), wait=True)
            for executor in joining:
                if executor.singly_because is not None:
                    # Once, since there is no way back.
                    joining.remove(executor)
                    found = SinglyReport(model=executor.name, version=executor.version, because=executor.singly_because)
                    frames.send(socket, [worker_wire.SINGLY, found.to_json()], wait=True)
                    break
            for executor, before in told.items():
                now = executor.safe_rows, executor.exhausted
                if now != before:
                    told[executor] = now
                    report = MemoryReport(model=executor.name, safe_rows=now[0], exhausted=now[1])
                    frames.send(socket, [worker_wire.MEMORY, report.to_json()], wait=True)


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
        self._parent = os.getppid()

    def answer(self, message: list[Any]) -> list[Any]:
        """Runs a batch whose tensors have come in frames."""
        head, key, rest = self._open(message)
        executor = self._models[key.model, key.version][key.signature]
        answers, timing = executor.run(key, head.rows, _views(rest), joined=head.joined)
        if isinstance(answers, Joined):
            outputs = _kept(answers.frames) if executor.volatile else answers.frames
            return worker_wire.joined_result(head.batch_id, answers.headers, answers.rows, outputs, timing)
        return worker_wire.result(head.batch_id, _told(answers, executor), timing)

    def answer_shared(self, message: list[Any]) -> list[Any]:
        """Runs a batch of which some tensors lie in shared memory."""
        head, key, (packed, *rest) = self._open(message)
        table = worker_wire.Table.unpack(bytes(packed))
        with Regions(self._parent) as regions:
            begun = time.monotonic_ns()
            inputs = Inputs(key, head.rows, table, _views(rest), regions, self._buffers)
            read = time.monotonic_ns()
            executor = self._models[key.model, key.version][key.signature]
            run: Sequence[Answer] = ()
            timing = Timing(0, 0, 0)
            if inputs.rows:  # a model is not called for nothing
                run, timing = executor.run(key, inputs.rows, inputs.frames, joined=inputs.joined)
            ran = iter(run)
            answers = [inputs.errors.get(entry) or next(ran) for entry in range(len(head.rows))]
            computed = time.monotonic_ns()
            places: dict[int, dict[str, Place]] = {}
            for place in table.outputs:
                places.setdefault(place.entry, {})[str(place.tensor)] = place
            for entry, wanted in places.items():
                answer = answers[entry]
                if not isinstance(answer, MultitowerError):
                    answers[entry] = self._outputs.place(answer, wanted, regions)
            placed = time.monotonic_ns() - computed
        timing = timing._replace(assemble_ns=timing.assemble_ns + read - begun, slice_ns=timing.slice_ns + placed)
        return worker_wire.result(head.batch_id, _told(answers, executor), timing)

    def _open(self, message: list[Any]) -> tuple[BatchHead, KeySpec, list[Any]]:
        """The head, the key, and the frames behind them."""
        head = worker_wire.read_batch_head(message[0])
        self._begin(head.batch_id)
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
