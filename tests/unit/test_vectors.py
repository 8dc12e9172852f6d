"""docs/protocol-vectors.json against the client's codec, the wire module and the router."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_front import FakeFront
from fake_operations import no_endpoints, no_measurements, no_traces

from multitower import Code, tensors, wire
from multitower.client import codec
from multitower.errors import CODE_OF, Reason
from multitower.infer_header import parse_infer_header
from multitower.spec import ModelReport, ModelSpec, TensorReport
from multitower.supervisor.lifecycle import Lifecycle, LifecycleState
from multitower.supervisor.loop.history import EventHistory
from multitower.supervisor.operations.queries import Queries
from multitower.supervisor.operations.readiness import Readiness
from multitower.supervisor.operations.status import StatusReporter
from multitower.supervisor.routing.router import Router
from multitower.supervisor.scheduling.queue import QueueLimits

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "protocol-vectors.json"
VECTORS: dict[str, Any] = json.loads(FILE.read_text())


def named(section: str) -> Any:
    vectors = VECTORS[section]
    return pytest.mark.parametrize("vector", vectors, ids=[vector.get("name") for vector in vectors])


def frames_of(vector: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(frame) for frame in vector["frames"]]


def values_of(array: np.ndarray) -> list[Any]:
    flat = array.ravel().tolist()
    if array.dtype == object:
        return [element.hex() for element in flat]
    return [[value.real, value.imag] if isinstance(value, complex) else value for value in flat]


def array_of(vector: dict[str, Any]) -> np.ndarray:
    dtype = tensors.dtype_of(vector["datatype"])
    if vector["datatype"] == tensors.BYTES:
        array = np.empty(len(vector["values"]), object)
        array[:] = [bytes.fromhex(element) for element in vector["values"]]
    else:
        values = [complex(*value) if isinstance(value, list) else value for value in vector["values"]]
        array = np.array(values, dtype)
    return array.reshape(vector["shape"])


def test_the_file_is_up_to_date_with_its_script() -> None:
    spec = importlib.util.spec_from_file_location("vectors_script", ROOT / "scripts" / "vectors.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert FILE.read_text() == script.generate(), "run python scripts/vectors.py"


def test_every_datatype_kind_and_reason_of_a_request_has_a_vector() -> None:
    assert {vector["datatype"] for vector in VECTORS["tensors"]} == set(tensors.DATATYPES)
    assert {vector["kind"].encode() for vector in VECTORS["requests"]} == wire.KINDS
    of_requests = (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED)
    of_orders = {Reason.CONFIG_REFUSED, Reason.SLOT_UNKNOWN, Reason.SLOT_EMPTY}
    assert {vector["reason"] for vector in VECTORS["refused"]} == {
        reason for reason, code in CODE_OF.items() if code in of_requests and reason not in of_orders
    }


@pytest.mark.parametrize("vector", VECTORS["tensors"], ids=lambda vector: f"{vector['datatype']}{vector['shape']}")
def test_tensors_are_encoded_and_decoded_as_in_the_vectors(vector: dict[str, Any]) -> None:
    if vector["datatype"] == "BF16":
        pytest.importorskip("ml_dtypes")
    frame = bytes.fromhex(vector["hex"])
    decoded = tensors.decode(vector["datatype"], vector["shape"], frame)
    assert values_of(decoded) == vector["values"]
    assert decoded.shape == tuple(vector["shape"])
    assert bytes(tensors.encode(array_of(vector))) == frame


# What the client writes and reads.


def test_the_client_writes_the_requests_of_the_vectors() -> None:
    plain, everything = VECTORS["requests"][:2]
    inputs = {"x": np.array([[1, 2], [3, 4]], np.float32), "label": ["a", "bc"]}
    for vector, version, outputs, priority in ((plain, "", None, 0), (everything, "3", ["z", "y"], 1)):
        request = codec.InferRequest("vectors", inputs, outputs, version, priority)
        sent = codec.Codec().encode(request, 1.5, copy=True)
        header, frames = sent.header, sent.frames
        wanted = frames_of(vector)
        assert [bytes(frame) for frame in frames] == wanted[4:]
        if vector is plain:  # the client always sends a timeout
            header = header.replace(b',"parameters":{"timeout":1500000}', b"")
        assert header == wanted[3]


@named("replies")
def test_the_client_reads_the_replies_of_the_vectors(vector: dict[str, Any]) -> None:
    delimiter, kind, id, header, *frames = frames_of(vector)
    assert (delimiter, id) == (wire.DELIMITER, bytes.fromhex(vector["id"]))
    if "error" in vector:
        assert kind == wire.ERROR
        error = codec.error_of(header)
        found = {"code": error.code, "reason": error.reason, "message": error.message, "details": error.details}
        assert found == vector["error"]
        return
    assert kind == wire.OK
    if "outputs" not in vector:
        assert (codec.read_header(header), frames) == (vector["header"], [])
        return
    outputs = codec.Codec().decode(header, frames)
    assert list(outputs) == [output["name"] for output in vector["outputs"]]
    for output in vector["outputs"]:
        array = outputs[output["name"]]
        assert (tensors.datatype_of(array), list(array.shape)) == (output["datatype"], output["shape"])
        assert values_of(array) == output["values"]
    described = [
        wire.Tensor(output["name"], output["datatype"], tuple(output["shape"])) for output in vector["outputs"]
    ]
    assert wire.reply_header("vectors", "3", described) == header


# Requests as the router handles them.


def front_with(frames: list[bytes]) -> FakeFront:
    """A front socket with a message of these frames, the delimiter first."""
    return FakeFront(frames[1:] if frames[0] == wire.DELIMITER else None)


def daemon() -> Router:
    """A router with the vectors' model and no worker."""
    model = VECTORS["model"]
    name = model["name"]
    router = Router(
        {name: QueueLimits(1000, 1 << 20)},
        {name: 30.0},
        model["max_message_size"],
    )
    manager: Any = SimpleNamespace(slots=[], spares=[], history=EventHistory())
    lifecycle = Lifecycle(LifecycleState.RUNNING)
    settings: Any = SimpleNamespace(
        models=[ModelSpec(name=name)],
        model_names=[name],
        current=SimpleNamespace(waiting=(), config=SimpleNamespace(path="multitower.yaml", insecure=False)),
    )
    readiness = Readiness(lifecycle, manager, router, settings)
    status = StatusReporter(
        lifecycle=lifecycle,
        readiness=readiness,
        router=router,
        manager=manager,
        settings=settings,
        refused_versions=dict,
        last_reload=lambda: None,
        started=0.0,
        sampler=no_measurements(),
        endpoints=no_endpoints(),
        gateway=None,
        tracing=no_traces(),
        access=None,
    )
    queries = Queries(readiness, status, router, settings, model["max_message_size"])
    metrics = [b'{"content_type":"text/plain"}', b"text"]
    router.open([], queries.answer, lambda _, done: done(metrics), lambda *_: None)
    inputs, outputs = (
        tuple(TensorReport(name=t["name"], datatype=t["datatype"], shape=tuple(t["shape"])) for t in model[side])
        for side in ("inputs", "outputs")
    )
    router.planner.add_version(
        ModelReport(
            name=name,
            version=model["version"],
            max_batch_size=model["max_batch_size"],
            inputs=inputs,
            outputs=outputs,
        ),
        newest=True,
        generation=0,
    )
    return router


@named("requests")
def test_the_daemon_accepts_the_requests_of_the_vectors(vector: dict[str, Any]) -> None:
    frames = frames_of(vector)
    router, front = daemon(), front_with(frames)
    router.receive(front)  # type: ignore[arg-type]
    assert frames[1].decode() == vector["kind"]
    assert frames[2].hex() == vector["id"]
    if frames[1] == wire.INFER:
        assert front.replies == []
        assert router.scheduler.queues["vectors"].size == 1
        parsed = parse_infer_header(frames[3])
        header = vector["header"]
        assert parsed.model_name == header["model_name"]
        assert parsed.model_version == header.get("model_version", "")
        assert [tensor.name for tensor in parsed.inputs] == [entry["name"] for entry in header["inputs"]]
        assert list(parsed.outputs or ()) == [entry["name"] for entry in header.get("outputs", [])]
        assert parsed.timeout_us == header.get("parameters", {}).get("timeout")
    elif frames[1] == wire.METRICS:
        assert front.replies == [(wire.OK, b"7", [b'{"content_type":"text/plain"}', b"text"])]
    elif frames[1] == wire.CANCEL:
        assert front.replies == [(wire.OK, b"7", [b'{"cancelled":0}'])]
    else:
        ((kind, id, (answer,)),) = front.replies
        assert (kind, id) == (wire.OK, b"7")
        assert isinstance(json.loads(answer), dict)
        assert wire.load_header(frames[3]) == vector["header"]


@named("refused")
def test_the_daemon_refuses_the_wrong_requests_of_the_vectors(vector: dict[str, Any]) -> None:
    frames = frames_of(vector)
    router, front = daemon(), front_with(frames)
    router.receive(front)  # type: ignore[arg-type]
    ((kind, id, (header,)),) = front.replies
    error = json.loads(header)["error"]
    assert kind == wire.ERROR
    assert (error["code"], error["reason"]) == (vector["code"], vector["reason"]), error
    assert error["details"]["field"] == vector["field"], error
    assert id == (bytes.fromhex(vector["reply_id"]) if "reply_id" in vector else frames[2])
    assert router.scheduler.queues["vectors"].size == 0
