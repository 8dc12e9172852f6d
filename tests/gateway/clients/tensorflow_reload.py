"""Changes of what is served through `ModelService.HandleReloadConfigRequest`, with tensorflow-serving-api's stubs."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import json_format
from report import find_tensorflow_messages, job, report

JOB = job()
find_tensorflow_messages(JOB)

from tensorflow_serving.apis import (  # noqa: E402
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2  # noqa: E402

channel = grpc.insecure_channel(JOB["grpc"])
models = model_service_pb2_grpc.ModelServiceStub(channel)


def config(*names: str, **fields: Any) -> Any:
    listed = [model_server_config_pb2.ModelConfig(name=name, base_path="/m", **fields) for name in names]
    return model_server_config_pb2.ModelServerConfig(
        model_config_list=model_server_config_pb2.ModelConfigList(config=listed)
    )


def reload(given: Any = None) -> Any:
    """Sends a configuration; returns the status that the answer has, and then the states of all models."""
    answer = models.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(config=given), timeout=60)
    return {"status": json_format.MessageToDict(answer.status), "states": states()}


def states() -> Any:
    return {name: state(name) for name in JOB["models"]}


def state(name: str) -> Any:
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=model_pb2.ModelSpec(name=name))
    answer = models.GetModelStatus(request, timeout=30)
    kinds = get_model_status_pb2.ModelVersionStatus.State
    return [kinds.Name(row.state) for row in answer.model_version_status]


FIRST, *OTHERS = JOB["models"]
policy = {"model_version_policy": {"latest": {"num_versions": 2}}}
report(
    {
        "before": states,
        "one": lambda: reload(config(FIRST)),
        "other": lambda: reload(config(OTHERS[0])),
        "all": lambda: reload(config(FIRST, *OTHERS)),
        "unchanged": lambda: reload(config(FIRST, *OTHERS)),
        "unknown_model": lambda: reload(config("nosuch", FIRST)),
        "other_versions": lambda: reload(config(FIRST, **policy)),
        "other_labels": lambda: reload(config(FIRST, version_labels={"stable": 5})),
        "nothing": reload,
        "custom": lambda: reload(model_server_config_pb2.ModelServerConfig(custom_model_config={})),
        "after_refusals": states,
    }
)
channel.close()
