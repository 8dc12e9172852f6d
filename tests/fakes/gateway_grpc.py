"""The gateway's gRPC services, called with grpcio and with the messages that the gateway itself describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

grpc = pytest.importorskip("grpc")

DESCRIPTORS = Path(__file__).parents[2] / "gateway" / "src" / "proto" / "descriptors.bin"
TRITON, PREDICTION = "inference.GRPCInferenceService", "tensorflow.serving.PredictionService"


def read_descriptors() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file
    return {file.name: file for file in files}


def make_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in read_descriptors().values():
        pool.Add(file)
    return pool


POOL = make_pool()


def message(name: str, /, **fields: Any) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))(**fields)


class Services:
    """The services at an address, called by service and method."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)])

    def method(self, service: str, name: str) -> Any:
        found = POOL.FindServiceByName(service).FindMethodByName(name)
        answer = message_factory.GetMessageClass(found.output_type)
        make = self.channel.unary_stream if found.server_streaming else self.channel.unary_unary
        if found.client_streaming:
            make = self.channel.stream_stream
        return make(
            f"/{service}/{name}",
            request_serializer=lambda sent: sent if isinstance(sent, bytes) else sent.SerializeToString(),
            response_deserializer=answer.FromString,
        )
