"""A worker without a supervisor: spawned as the supervisor spawns it, and used through its socket."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import zmq

from multitower import batch_results, tensors, worker_wire
from multitower.errors import MultitowerError, from_wire
from multitower.spec import Assignment, ModelSpec, ProcessSpec, WorkerReport
from multitower.worker_log import decode
from multitower.worker_wire import KeySpec

STEP_S = 240.0  # it may import TensorFlow, beside others
Arrays = dict[str, Any]
Answer = Arrays | MultitowerError


def _live(spec: str, log: str) -> None:
    """The target of the process: does what a worker needs of `supervisor/workers/bootstrap.py`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from multitower.worker.main import run

    begun = os.memfd_create("begun")
    os.truncate(begun, worker_wire.BEGUN_BYTES)
    code = run(ProcessSpec.from_json(spec), os.open(os.devnull, os.O_WRONLY), begun)
    os._exit(code)


def assignment(*models: ModelSpec, environment: Mapping[str, str] | None = None, **more: Any) -> Assignment:
    """The assignment of a CPU slot."""
    settings: dict[str, Any] = {
        "slot": 0,
        "incarnation": 1,
        "devices": ("cpu:0",),
        "environment": {"CUDA_VISIBLE_DEVICES": ""} if environment is None else environment,
        "intra_op_threads": 1,
        "inter_op_threads": 1,
        "models": models,
    }
    return Assignment(**settings | more)


class WorkerChild:
    """Spawns a worker; a context manager that ends it in any case.

    Args:
        assignment: its assignment; None for a spare.
        import_path: folders for handlers.
        import_tensorflow: as in `ProcessSpec`.
        log_level: as in `ProcessSpec`.
    """

    def __init__(
        self,
        assignment: Assignment | None,
        *,
        import_path: Sequence[Path] = (),
        import_tensorflow: bool = False,
        log_level: str = "INFO",
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mt-")
        self._log = Path(self._folder.name, "log")
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        endpoint = f"ipc://{self._folder.name}/worker"
        self._socket.connect(endpoint)
        spec = ProcessSpec(
            endpoint=endpoint,
            parent_pid=os.getpid(),
            name="mt-test",
            import_tensorflow=import_tensorflow,
            import_path=tuple(map(str, import_path)),
            log_level=log_level,
            assignment=assignment,
        )
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=_live, args=(spec.to_json().decode(), str(self._log)))
        self.process.start()
        self._keys = worker_wire.KeyMemory()
        self._ids: dict[KeySpec, int] = {}
        self._batches: dict[int, KeySpec] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join(STEP_S)
        self._socket.close()
        self._context.term()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """The pid of the process."""
        assert self.process.pid is not None
        return self.process.pid

    def log(self) -> str:
        """Its output so far; records as `LEVEL text`, their causes and their tracebacks."""
        lines = self._log.read_bytes().splitlines() if self._log.exists() else []
        return "".join(f"{_shown(line)}\n" for line in lines)

    def receive(self) -> list[bytes]:
        """Returns the next message of the worker; fails if it ends instead."""
        until = time.monotonic() + STEP_S
        while time.monotonic() < until:
            if self._socket.poll(100):
                return self._socket.recv_multipart()
            if not self.process.is_alive() and not self._socket.poll(0):
                raise AssertionError(f"it ended with {self.process.exitcode}:\n{self.log()}")
        raise AssertionError(f"nothing within {STEP_S} s:\n{self.log()}")

    def report(self) -> WorkerReport:
        """Returns the next message, which must be a report."""
        kind, body = self.receive()
        assert kind == worker_wire.REPORT
        return WorkerReport.from_json(body)

    def reports(self, last: str) -> list[WorkerReport]:
        """Returns the reports up to the one of this state."""
        reports = [self.report()]
        while reports[-1].state != last:
            reports.append(self.report())
            assert len(reports) < 10, reports
        return reports

    def assign(self, assignment: Assignment) -> None:
        """Sends an assignment to a spare."""
        self._socket.send_multipart([worker_wire.ASSIGN, assignment.to_json()])

    def send_raw(self, *frames: bytes) -> None:
        """Sends a message unchanged."""
        self._socket.send_multipart(frames)

    def send(self, key: KeySpec, *entries: Arrays, tower: int | None = None) -> int:
        """Sends a batch as the router does, the key's description with the first one; returns its id.

        Each of several towers must be sent different keys.
        """
        batch_id = len(self._batches) + 1
        self._batches[batch_id] = key
        key_id = self._ids.setdefault(key, len(self._ids) + 7)
        description: list[bytes] = []
        if self._keys.get(key_id) is None:
            description = [key.to_json()]
            self._keys.put(key_id, key, len(description[0]))
        names = [name for name, _, _ in key.inputs]
        rows = [len(entry[names[0]]) if key.batched else 1 for entry in entries]
        frames = [
            [
                entry[name] if isinstance(entry[name], bytes) else tensors.encode(np.asarray(entry[name]))
                for name in names
            ]
            for entry in entries
        ]
        joined = worker_wire.travels_joined(key)
        head = worker_wire.batch_head(batch_id, key_id, rows, joined=joined, described=bool(description))
        sent = worker_wire.join_frames(frames) if joined else [frame for entry in frames for frame in entry]
        to = [worker_wire.tower_head(tower)] if tower is not None else []
        self._socket.send_multipart([*to, head, *description, *sent])
        return batch_id

    def result(self, batch_id: int) -> list[Answer]:
        """Returns the answers to a batch, which must be the next message but for what the batch has shown."""
        message = self.receive()
        while message[0] == worker_wire.BATCHING:
            message = self.receive()
        result = batch_results.read_result(message)
        assert result.batch_id == batch_id
        assert result.timing.compute_ns > 0
        answers: list[Answer] = []
        for answer in result.answers:
            if isinstance(answer, bytes):
                answers.append(from_wire(json.loads(answer)))
                continue
            header = json.loads(answer[0])
            assert header["model_name"] == self._batches[batch_id].model
            outputs = zip(header["outputs"], answer[1:], strict=True)
            answers.append({o["name"]: tensors.decode(o["datatype"], o["shape"], frame) for o, frame in outputs})
        return answers

    def ask(self, key: KeySpec, *entries: Arrays) -> list[Answer]:
        """Sends these entries as one batch; returns their answers."""
        return self.result(self.send(key, *entries))

    def stop(self) -> int | None:
        """Sends STOP; returns the exit code."""
        self._socket.send_multipart([worker_wire.STOP])
        return self.end()

    def end(self) -> int | None:
        """Waits for the end of the process; returns the exit code."""
        self.process.join(STEP_S)
        assert not self.process.is_alive(), self.log()
        return self.process.exitcode


def _shown(line: bytes) -> str:
    record = decode(line)
    if record is None:
        return line.decode()
    level = "" if record.level is None else f"{logging.getLevelName(record.level)} "
    return "\n".join(map(str, (f"{level}{record.text}", *record.fields.values())))
