"""The trace of a client of HTTP or gRPC reaches the spans of its request."""

from __future__ import annotations

import itertools
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import foreign
import pytest
from collector import Collector, Span
from gateway_grpc import PREDICTION, TRITON, Services, message
from running import STEP_S, Running

pytestmark = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
gateway: {http: "127.0.0.1:*", grpc: "127.0.0.1:*"}
models:
  - {name: declared, handler: "handlers:Declared"}
  - {name: echo, handler: "handlers:Echo"}
tracing: {endpoint: "%s", sample: 0}
"""
LARGE = 1 << 20
"""Elements of a tensor that travels through shared memory."""

numbers = itertools.count(1)


class Server:
    """A daemon with a gateway, and the collector of its spans."""

    def __init__(self, daemon: Running, collector: Collector) -> None:
        addresses = foreign.addresses(daemon)
        self.http = addresses["http"]
        self.collector = collector
        self.services = Services(addresses["grpc"])

    def post(self, path: str, body: Any, headers: dict[str, str]) -> None:
        request = urllib.request.Request(f"http://{self.http}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=STEP_S) as response:
            assert response.status == 200

    def span_of(self, trace_id: str) -> Span:
        return next(span for name, span in self.collector.wait_for_trace(trace_id).items() if name.startswith("infer "))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Collector() as collector, Running(tmp_path_factory.mktemp("traces"), CONFIG % collector.grpc) as daemon:
        yield Server(daemon.wait_ready(), collector)


def headers() -> tuple[str, str, dict[str, str]]:
    number = next(numbers)
    trace_id, span_id = f"{number:032x}", f"{number:016x}"
    return trace_id, span_id, {"traceparent": f"00-{trace_id}-{span_id}-01", "tracestate": 'vendor=a"b,other=1'}


def request(elements: int = 3) -> Any:
    made = message("inference.ModelInferRequest", model_name="echo")
    made.inputs.add(name="x", datatype="FP32", shape=[elements])
    made.raw_input_contents.append(bytes(4 * elements))
    return made


def check(server: Server, trace_id: str, span_id: str) -> None:
    span = server.span_of(trace_id)
    assert (span.parent_id, span.state) == (span_id, 'vendor=a"b,other=1')
    assert span.attributes["multitower.interface"] == "gateway"


def test_the_trace_of_a_request_over_http(server: Server) -> None:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}]
    for path, body in (
        ("/v2/models/echo/infer", {"inputs": inputs}),
        ("/v2/models/echo/infer", {"inputs": inputs}),  # whose header the gateway has made before
    ):
        trace_id, span_id, named = headers()
        server.post(path, body, named)
        check(server, trace_id, span_id)


def test_the_trace_of_a_request_to_the_interface_of_tensorflow_serving(server: Server) -> None:
    trace_id, span_id, named = headers()
    server.post("/v1/models/declared:predict", {"instances": [{"x": [1, 2, 3], "n": 1}]}, named)
    check(server, trace_id, span_id)
    trace_id, span_id, named = headers()
    predict = message("tensorflow.serving.PredictRequest")
    predict.model_spec.name = "echo"
    predict.inputs["x"].dtype = 1
    predict.inputs["x"].float_val.append(1.0)
    predict.inputs["x"].tensor_shape.dim.add(size=1)
    server.services.method(PREDICTION, "Predict")(predict, timeout=STEP_S, metadata=tuple(named.items()))
    check(server, trace_id, span_id)


@pytest.mark.parametrize("elements", [3, LARGE], ids=["small", "in shared memory"])
def test_the_trace_of_a_request_over_grpc(server: Server, elements: int) -> None:
    trace_id, span_id, named = headers()
    infer = server.services.method(TRITON, "ModelInfer")
    infer(request(elements), timeout=STEP_S, metadata=tuple(named.items()))
    check(server, trace_id, span_id)


def test_each_request_of_a_stream_belongs_to_the_trace_of_the_call(server: Server) -> None:
    trace_id, _, named = headers()
    stream = server.services.method(TRITON, "ModelStreamInfer")
    assert len(list(stream(iter([request(), request()]), timeout=STEP_S, metadata=tuple(named.items())))) == 2
    server.collector.wait_for_trace(trace_id, 8)


@pytest.mark.parametrize("wrong", ["", "00-1-2-01", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "ff", "a" * 5000, '"}'])
def test_an_invalid_traceparent_is_no_error(server: Server, wrong: str) -> None:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]
    server.post("/v2/models/echo/infer", {"inputs": inputs}, {"traceparent": wrong})


def test_a_trace_that_is_not_sampled_is_not_passed_on(server: Server) -> None:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]
    not_sampled, _, named = headers()
    server.post("/v2/models/echo/infer", {"inputs": inputs}, named | {"traceparent": named["traceparent"][:-1] + "0"})
    trace_id, span_id, named = headers()
    server.post("/v2/models/echo/infer", {"inputs": inputs}, named)
    check(server, trace_id, span_id)
    assert not [span for span in server.collector.spans() if span.trace_id == not_sampled]
