"""A ready worker's loop: a batch in, its answers out, until it is told to stop."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import zmq

from multitower import frames, wire, worker_wire
from multitower.errors import MultitowerError
from multitower.spec import MemoryReport
from multitower.worker.batch import Joined
from multitower.worker.buffers import Buffers
from multitower.worker.executor import Answer, Executor
from multitower.worker.regions import Inputs, Outputs, Regions
from multitower.worker_wire import BatchHead, KeyMemory, KeySpec, Place


def serve(socket: zmq.Socket[bytes], executors: Mapping[str, Executor]) -> None:
    """Answers batches, one at a time, until STOP.

    Args:
        socket: the worker's end of its channel.
        executors: the models that serve, by name.
    """
    keys = KeyMemory()
    answer_shared = partial(_answer_shared, Outputs(), Buffers(), os.getppid())
    told = {executor: (executor.safe_rows, 0) for executor in executors.values()}
    while True:
        message = frames.receive(socket, wait=True)
        assert message is not None  # it has waited for one
        kind = bytes(message[0])[:1]
        if kind == worker_wire.STOP:
            return
        if kind in (worker_wire.BATCH, worker_wire.SHARED):
            answer = _answer if kind == worker_wire.BATCH else answer_shared
            frames.send(socket, answer(message, keys, executors), wait=True)
            for executor, before in told.items():
                now = executor.safe_rows, executor.exhausted
                if now != before:
                    told[executor] = now
                    report = MemoryReport(model=executor.name, safe_rows=now[0], exhausted=now[1])
                    frames.send(socket, [worker_wire.MEMORY, report.to_json()], wait=True)


def _answer(message: list[Any], keys: KeyMemory, executors: Mapping[str, Executor]) -> list[Any]:
    head = worker_wire.read_batch_head(message[0])
    key = _key(head, message[1], keys)
    answers, timing = executors[key.model].run(key, head.rows, _views(message[2:]), joined=head.joined)
    if isinstance(answers, Joined):
        return worker_wire.joined_result(head.batch_id, answers.headers, answers.rows, answers.frames, timing)
    return worker_wire.result(head.batch_id, [_told(answer) for answer in answers], timing)


def _answer_shared(
    outputs: Outputs,
    buffers: Buffers,
    parent: int,
    message: list[Any],
    keys: KeyMemory,
    executors: Mapping[str, Executor],
) -> list[Any]:
    """Answers a batch of which some tensors lie in shared memory."""
    head = worker_wire.read_batch_head(message[0])
    key = _key(head, message[1], keys)
    table = worker_wire.Table.unpack(bytes(message[2]))
    with Regions(parent) as regions:
        begun = time.monotonic_ns()
        inputs = Inputs(key, head.rows, table, _views(message[3:]), regions, buffers)
        read = time.monotonic_ns()
        run, timing = executors[key.model].run(key, inputs.rows, inputs.frames, joined=inputs.joined)
        ran = iter(run)
        answers = [inputs.errors.get(entry) or next(ran) for entry in range(len(head.rows))]
        computed = time.monotonic_ns()
        places: dict[int, dict[str, Place]] = {}
        for place in table.outputs:
            places.setdefault(place.entry, {})[str(place.tensor)] = place
        for entry, wanted in places.items():
            answer = answers[entry]
            if not isinstance(answer, MultitowerError):
                answers[entry] = outputs.place(answer, wanted, regions)
        placed = time.monotonic_ns() - computed
    timing = timing._replace(assemble_ns=timing.assemble_ns + read - begun, slice_ns=timing.slice_ns + placed)
    return worker_wire.result(head.batch_id, [_told(answer) for answer in answers], timing)


def _key(head: BatchHead, description: Any, keys: KeyMemory) -> KeySpec:
    if len(description):
        # No `bytes` yet, where a key has very many inputs.
        keys.put(head.key_id, KeySpec.from_json(bytes(description)), len(description))
    key = keys.get(head.key_id)
    assert isinstance(key, KeySpec)  # the router sends the description with the first batch of a key
    return key


def _views(inputs: list[Any]) -> list[Any]:
    # Large frames are libzmq's; a view keeps them from being freed.
    return [frame if type(frame) is bytes else frame.buffer for frame in inputs]


def _told(answer: Answer) -> list[Any] | bytes:
    return wire.dump_json(answer.to_wire()) if isinstance(answer, MultitowerError) else answer
