"""A ready worker's loop: a batch in, its answers out, until it is told to stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import zmq

from multitower import frames, wire, worker_wire
from multitower.errors import MultitowerError
from multitower.spec import MemoryReport, SinglyReport
from multitower.worker.batch import Joined
from multitower.worker.executor import Executor
from multitower.worker_wire import KeyMemory, KeySpec

Executors = Mapping[str, Executor]
"""What runs the batches of a model, by signature; that of its default one by ""."""


def serve(socket: zmq.Socket[bytes], models: Mapping[str, Executors]) -> None:
    """Answers batches, one at a time, until STOP.

    Args:
        socket: the worker's end of its channel.
        models: those that serve, by name.
    """
    keys = KeyMemory()
    told = {executor: (executor.safe_rows, 0) for executors in models.values() for executor in executors.values()}
    joining = list(told)
    while True:
        message = frames.receive(socket, wait=True)
        assert message is not None  # it has waited for one
        kind = bytes(message[0])[:1]
        if kind == worker_wire.STOP:
            return
        if kind == worker_wire.BATCH:
            frames.send(socket, _answer(message, keys, models), wait=True)
            for executor in joining:
                if executor.singly_because is not None:
                    # Once, since there is no way back.
                    joining.remove(executor)
                    found = SinglyReport(model=executor.name, because=executor.singly_because)
                    frames.send(socket, [worker_wire.SINGLY, found.to_json()], wait=True)
                    break
            for executor, before in told.items():
                now = executor.safe_rows, executor.exhausted
                if now != before:
                    told[executor] = now
                    report = MemoryReport(model=executor.name, safe_rows=now[0], exhausted=now[1])
                    frames.send(socket, [worker_wire.MEMORY, report.to_json()], wait=True)


def _answer(message: list[Any], keys: KeyMemory, models: Mapping[str, Executors]) -> list[Any]:
    head = worker_wire.read_batch_head(message[0])
    start = 1
    if head.described:
        # No `bytes` yet, where a key has very many inputs.
        keys.put(head.key_id, KeySpec.from_json(bytes(message[1])), len(message[1]))
        start = 2
    key = keys.get(head.key_id)
    assert isinstance(key, KeySpec)  # the router sends the description with the first batch of a key
    # Large frames are libzmq's; a view keeps them from being freed.
    inputs = [frame if type(frame) is bytes else frame.buffer for frame in message[start:]]
    answers, timing = models[key.model][key.signature].run(key, head.rows, inputs, joined=head.joined)
    if isinstance(answers, Joined):
        return worker_wire.joined_result(head.batch_id, answers.headers, answers.rows, answers.frames, timing)
    told = [wire.dump_json(answer.to_wire()) if isinstance(answer, MultitowerError) else answer for answer in answers]
    return worker_wire.result(head.batch_id, told, timing)
