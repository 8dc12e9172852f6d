"""gRPC's standard services, with Google's own clients: server reflection as grpcurl uses it, and health checking.

It calls the server with nothing but what reflection tells it: no generated code of any service.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from report import job, report

JOB = job()
channel = grpc.insecure_channel(JOB["grpc"])
database = ProtoReflectionDescriptorDatabase(channel)
pool = descriptor_pool.DescriptorPool(database)
health = health_pb2_grpc.HealthStub(channel)


def call(service: str, method: str, request: dict[str, Any]) -> Any:
    """Calls a method, as `grpcurl -d REQUEST HOST SERVICE/METHOD` does."""
    found = pool.FindServiceByName(service).FindMethodByName(method)
    make = message_factory.GetMessageClass
    send = channel.unary_unary(
        f"/{service}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=make(found.output_type).FromString,
    )
    answer = send(json_format.ParseDict(request, make(found.input_type)()), timeout=30)
    return json_format.MessageToDict(answer, preserving_proto_field_name=True)


def methods() -> dict[str, list[str]]:
    services = database.get_services()
    return {
        name: [method.name for method in pool.FindServiceByName(name).methods]
        for name in services
        if not name.startswith("grpc.reflection")
    }


def check(service: str) -> str:
    answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def watch(service: str) -> str:
    for answer in health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=30):
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return "nothing"


def unary(path: str) -> str:
    """Calls a method by its path, with an empty message."""
    return channel.unary_unary(path)(b"", timeout=30).hex()


TENSOR = {"name": "x", "datatype": "INT64", "shape": [2], "contents": {"int64_contents": [7, -8]}}

report(
    {
        "services": lambda: sorted(database.get_services()),
        "methods": methods,
        "live": lambda: call("inference.GRPCInferenceService", "ServerLive", {}),
        "infer": lambda: call(
            "inference.GRPCInferenceService", "ModelInfer", {"model_name": "echo", "inputs": [TENSOR]}
        ),
        "health": lambda: check(""),
        "health_of_a_service": lambda: check("inference.GRPCInferenceService"),
        "health_of_nothing": lambda: check("nosuch"),
        "health_watched": lambda: watch(""),
        "unknown_service": lambda: unary("/nosuch.Service/Method"),
        "unknown_method": lambda: unary("/inference.GRPCInferenceService/NoSuch"),
    }
)
channel.close()
