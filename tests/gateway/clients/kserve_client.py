"""KServe's own clients, of its package `kserve`: `InferenceRESTClient` with both protocols, and `InferenceGRPCClient`.

The package's `__init__` imports its server. What only that needs is not installed; stand-ins let the client be
imported.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import types
from typing import Any

from report import array, job, report, values

SERVER_ONLY = {
    "pandas": ["DataFrame"],
    "cloudevents": [],
    "cloudevents.conversion": ["to_binary", "to_structured"],
    "cloudevents.http": ["CloudEvent"],
    "fastapi": [],
    "fastapi.responses": ["JSONResponse"],
}
for name, classes in SERVER_ONLY.items():
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update({each: type(each, (), {}) for each in classes})
found = importlib.util.find_spec("kserve")
assert found is not None
sys.modules["kserve"] = types.ModuleType("kserve")
sys.modules["kserve"].__path__ = list(found.submodule_search_locations or [])

from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig  # noqa: E402
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput  # noqa: E402

JOB = job()
URL = f"http://{JOB['http']}"
loop = asyncio.new_event_loop()
wait = loop.run_until_complete


async def make() -> tuple[Any, Any, Any]:
    return (
        InferenceRESTClient(RESTConfig(protocol="v2", retries=1)),
        InferenceRESTClient(RESTConfig(protocol="v1", retries=1)),
        InferenceGRPCClient(JOB["grpc"], timeout=30, retries=0),
    )


rest, rest_v1, grpc = wait(make())


def request(tensors: dict[str, Any], binary: bool) -> Any:
    inputs = []
    for datatype, data in tensors.items():
        made = array(datatype, data)
        inputs.append(InferInput(datatype, list(made.shape), datatype))
        inputs[-1].set_data_from_numpy(made, binary_data=binary)
    wanted = [RequestedOutput(datatype, {"binary_data": binary}) for datatype in tensors]
    return InferRequest(model_name="echo", infer_inputs=inputs, request_outputs=wanted, request_id="17")


def answer(response: Any) -> Any:
    return {
        "id": response.id,
        "model_name": response.model_name,
        "outputs": {output.name: values(output.as_numpy()) for output in response.outputs},
    }


numbers = {name: data for name, data in JOB["json_tensors"].items() if name != "BYTES"}
# It has no BF16, and takes bytes for UTF-8.
whole = {**numbers, "FP16": JOB["tensors"]["FP16"], "BYTES": JOB["json_tensors"]["BYTES"]}

report(
    {
        "server_live": lambda: wait(rest.is_server_live(URL)),
        "server_ready": lambda: wait(rest.is_server_ready(URL)),
        "model_ready": lambda: wait(rest.is_model_ready(URL, "echo")),
        "model_ready_unknown": lambda: wait(rest.is_model_ready(URL, "nosuch")),
        "json": lambda: answer(wait(rest.infer(URL, request(numbers, binary=False), model_name="echo"))),
        "binary": lambda: answer(wait(rest.infer(URL, request(whole, binary=True), model_name="echo"))),
        "model_unknown": lambda: answer(wait(rest.infer(URL, request(numbers, binary=False), model_name="nosuch"))),
        "v1": lambda: wait(rest_v1.infer(URL, {"instances": [[1], [3]]}, model_name=JOB["v1_model"])),
        "grpc_server_live": lambda: wait(grpc.is_server_live()),
        "grpc_server_ready": lambda: wait(grpc.is_server_ready()),
        "grpc_model_ready": lambda: wait(grpc.is_model_ready("echo")),
        "grpc": lambda: answer(wait(grpc.infer(request(whole, binary=True)))),
        # Typed contents instead of raw ones.
        "grpc_contents": lambda: answer(wait(grpc.infer(request(numbers, binary=False)))),
    }
)
wait(rest.close())
wait(rest_v1.close())
wait(grpc.close())
