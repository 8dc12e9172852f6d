"""The gateway's gRPC services, called with Google's grpcio."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import foreign
import pytest
from gateway_grpc import PREDICTION, TRITON, Services, grpc, message, read_descriptors
from google.protobuf import descriptor_pb2
from running import Running

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
drain_timeout: 30s
gateway: {http: "127.0.0.1:*", grpc: "127.0.0.1:*", max_body_size: 1MiB}
models:
  - {name: echo, handler: "handlers:Echo"}
  - {name: patient, handler: "handlers:Patient"}
  - {name: declared, handler: "handlers:Declared"}
"""

with_gateway = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))


class Server(Services):
    """The gateway of a daemon."""

    def __init__(self, daemon: Running) -> None:
        self.daemon = daemon
        super().__init__(foreign.addresses(daemon)["grpc"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Running(tmp_path_factory.mktemp("grpc"), CONFIG) as daemon:
        daemon.wait_ready()
        yield Server(daemon)


def numbers(*values: float, model: str = "echo", request_id: str = "", **seconds: float) -> Any:
    """A ModelInferRequest with FP32 contents."""
    request = message("inference.ModelInferRequest", model_name=model, id=request_id)
    for name, data in (("x", values), *((name, (value,)) for name, value in seconds.items())):
        given = request.inputs.add(name=name, datatype="FP32", shape=[len(data)])
        given.contents.fp32_contents.extend(data)
    return request


def refused(call: Any, *arguments: Any, **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=options.pop("timeout", 60), **options)
    return caught.value


class TestMessages:
    """Names, numbers and types of fields are what clients depend on."""

    def test_messages_of_tensorflow_are_those_of_the_installed_tensorflow(self) -> None:
        pytest.importorskip("tensorflow")
        from tensorflow.core.example import example_pb2, feature_pb2
        from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
        from tensorflow.core.protobuf import meta_graph_pb2

        modules = (example_pb2, feature_pb2, tensor_pb2, tensor_shape_pb2, types_pb2, meta_graph_pb2)
        theirs: dict[str, Any] = {}
        for module in modules:
            theirs.update(module.DESCRIPTOR.message_types_by_name)
            theirs.update(module.DESCRIPTOR.enum_types_by_name)
        ours = read_descriptors()["tensorflow.proto"]
        for each in ours.message_type:
            compare(each, theirs[each.name])
        for kind in ours.enum_type:
            for value in kind.value:
                assert theirs[kind.name].values_by_name[value.name].number == value.number

    def test_health_is_grpcs_own(self) -> None:
        (service,) = read_descriptors()["health.proto"].service
        assert (service.name, [method.name for method in service.method]) == ("Health", ["Check", "Watch"])


def compare(ours: descriptor_pb2.DescriptorProto, theirs: Any) -> None:
    """Demands that each field of a message of ours exists with number, type and label."""
    for field in ours.field:
        their = theirs.fields_by_name[field.name]
        assert (their.number, their.type) == (field.number, field.type), f"{ours.name}.{field.name}"
        assert their.is_repeated == (field.label == field.LABEL_REPEATED), f"{ours.name}.{field.name}"
    for nested in ours.nested_type:
        if not nested.options.map_entry:
            compare(nested, theirs.nested_types_by_name[nested.name])


@with_gateway
class TestCalls:
    def test_a_stream_answers_each_request_in_order_and_outlives_errors(self, server: Server) -> None:
        sent = [numbers(number, request_id=str(number)) for number in range(40)]
        sent[3].model_name = "nosuch"
        answers = list(server.method(TRITON, "ModelStreamInfer")(iter(sent), timeout=60))
        assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(40)]
        assert "nosuch" in answers[3].error_message
        assert [number for number, answer in enumerate(answers) if answer.error_message] == [3]
        assert answers[5].infer_response.parameters["triton_final_response"].bool_param

    def test_the_timeout_parameter_is_a_deadline(self, server: Server) -> None:
        request = numbers(1.0, model="patient", seconds=1.0)
        request.parameters["timeout"].int64_param = 50_000
        error = refused(server.method(TRITON, "ModelInfer"), request)
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert dict(error.trailing_metadata())["multitower-reason"] == "deadline"

    def test_a_call_that_is_cancelled_is_cancelled_in_the_daemon(self, server: Server) -> None:
        def cancelled() -> int:
            (row,) = (row for row in server.daemon.status()["models"] if row["name"] == "patient")
            return int(row["errors"]["total"].get("cancelled", 0))

        before = cancelled()
        running = server.method(TRITON, "ModelInfer").future(numbers(1.0, model="patient", seconds=2.0))
        waiting = server.method(TRITON, "ModelInfer").future(numbers(1.0, model="patient", seconds=0.0))
        server.daemon.wait(lambda: bool(server.daemon.slot()["depth"]))
        waiting.cancel()
        running.cancel()
        server.daemon.wait(lambda: cancelled() >= before + 1)

    @pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
    def test_a_message_over_the_limit_is_refused_also_once_decompressed(self, server: Server, compression: Any) -> None:
        request = message("inference.ModelInferRequest", model_name="echo", raw_input_contents=[bytes(2 << 20)])
        request.inputs.add(name="x", datatype="UINT8", shape=[2 << 20])
        error = refused(server.method(TRITON, "ModelInfer"), request, compression=compression)
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "1048576 bytes" in error.details()

    def test_large_tensors_arrive_whole_also_compressed(self, server: Server) -> None:
        data = bytes(range(256)) * 3000
        request = message("inference.ModelInferRequest", model_name="echo", raw_input_contents=[data])
        request.inputs.add(name="x", datatype="UINT8", shape=[len(data)])
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate):
            answer = server.method(TRITON, "ModelInfer")(request, timeout=60, compression=compression)
            assert answer.raw_output_contents == [data]

    @pytest.mark.parametrize("method", ["ModelInfer", "ModelReady"])
    def test_bytes_that_are_no_message_are_invalid(self, server: Server, method: str) -> None:
        for garbage in (b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b"):
            error = refused(server.method(TRITON, method), garbage)
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT

    def test_a_tensor_that_promises_more_than_the_limit_is_refused(self, server: Server) -> None:
        request = message("tensorflow.serving.PredictRequest")
        request.model_spec.name = "echo"
        tensor = request.inputs["x"]
        tensor.dtype = 1
        for size in (1 << 30, 1 << 30):
            tensor.tensor_shape.dim.add(size=size)
        error = refused(server.method(PREDICTION, "Predict"), request)
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED

    def test_predict_works_for_a_handler_without_signatures(self, server: Server) -> None:
        request = message("tensorflow.serving.PredictRequest")
        request.model_spec.name = "declared"
        for name, dtype, field, values, shape in (
            ("x", 1, "float_val", [2.5], [2, 3]),
            ("n", 9, "int64_val", [1, -2], [2]),
        ):
            tensor = request.inputs[name]
            tensor.dtype = dtype
            getattr(tensor, field).extend(values)
            for size in shape:
                tensor.tensor_shape.dim.add(size=size)
        answer = server.method(PREDICTION, "Predict")(request, timeout=60)
        assert list(answer.outputs["y"].float_val) == [5.0] * 6
        assert list(answer.outputs["m"].int64_val) == [1, -2]
        assert (answer.model_spec.version.value, answer.model_spec.signature_name) == (1, "serving_default")

    def test_a_drain_ends_streams_and_answers_what_has_begun(self, server: Server) -> None:
        """The last test of the daemon: it ends with it."""
        requests: queue.Queue[Any] = queue.Queue()
        stream = server.method(TRITON, "ModelStreamInfer")(iter(requests.get, None))
        requests.put(numbers(1.0))
        assert next(stream).infer_response.model_name == "echo"
        watch = message("grpc.health.v1.HealthCheckRequest")
        watched = server.channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=type(message("grpc.health.v1.HealthCheckResponse")).FromString,
        )(watch)
        assert next(watched).status == 1
        requests.put(numbers(7.0, model="patient", seconds=0.5))
        server.daemon.wait(lambda: bool(server.daemon.slot()["depth"]))
        assert server.daemon.end() == 0, server.daemon.text()
        assert not next(stream).error_message
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert next(watched).status == 2
        requests.put(None)
