"""Real models answer through each interface of the gateway what TensorFlow answers when it is called directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import real_models
from all_models import Direct
from foreign import curl
from gateway_grpc import PREDICTION, TRITON, Services, message
from running import Running

from multitower import tensors

STEP_S = 60

pytestmark = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))

# The numbers of tensorflow.DataType, and the fields of a TensorProto that have the values, as in TensorFlow Serving.
TENSORFLOW_TYPES = {"FP32": (1, "float_val"), "BYTES": (7, "string_val"), "INT64": (9, "int64_val")}
Arrays = dict[str, np.ndarray]


class Served:
    """A real model behind a gateway.

    Attributes:
        name: of the model.
        input: the name of its only input.
        sent: what the input gets.
        answered: what TensorFlow answers to it.
    """

    def __init__(self, name: str, addresses: dict[str, str], direct: Direct) -> None:
        self.name = name
        self.http = addresses["http"]
        self.services = Services(addresses["grpc"])
        metadata = json.loads(curl(f"{self.http}/v2/models/{name}")[1])
        (declared,) = metadata["inputs"]
        self.input: str = declared["name"]
        self.datatype: str = declared["datatype"]
        self.datatypes = {each["name"]: each["datatype"] for each in metadata["outputs"]}
        (self.sent,) = direct.inputs.values()
        self.answered = direct.outputs

    @property
    def text(self) -> Any:
        """What is sent, for JSON."""
        return json_values(self.sent)


def json_values(given: np.ndarray) -> Any:
    return np.frompyfunc(bytes.decode, 1, 1)(given).tolist() if given.dtype == object else given.tolist()


def from_json(datatype: str, data: Any, shape: Any = None) -> np.ndarray:
    if datatype == "BYTES":
        data = np.frompyfunc(str.encode, 1, 1)(np.array(data, object))
    made = np.array(data, tensors.dtype_of(datatype))
    return made if shape is None else made.reshape(shape)


def post(served: Served, path: str, body: Any, *options: str) -> bytes:
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, content = curl(*options, f"{served.http}{path}", body=given)
    assert status == 200, content[:1000]
    return content


# One function an interface: all outputs of a model for what it is sent.


def open_inference_json(served: Served) -> Arrays:
    given = {"name": served.input, "datatype": served.datatype, "shape": served.sent.shape, "data": served.text}
    answer = json.loads(post(served, f"/v2/models/{served.name}/infer", {"inputs": [given]}))
    return {each["name"]: from_json(each["datatype"], each["data"], each["shape"]) for each in answer["outputs"]}


def open_inference_binary(served: Served) -> Arrays:
    data = bytes(tensors.encode(served.sent))
    given = {"name": served.input, "datatype": served.datatype, "shape": served.sent.shape}
    given["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    header = f"Inference-Header-Content-Length: {len(head)}"
    content = post(served, f"/v2/models/{served.name}/infer", head + data, "-H", header)
    answer, end = json.JSONDecoder().raw_decode(content.decode("latin-1"))
    found = {}
    for each in answer["outputs"]:
        size = each["parameters"]["binary_data_size"]
        found[each["name"]] = tensors.decode(each["datatype"], each["shape"], content[end : end + size])
        end += size
    assert end == len(content)
    return found


def open_inference_grpc(served: Served) -> Arrays:
    request = message("inference.ModelInferRequest", model_name=served.name)
    request.inputs.add(name=served.input, datatype=served.datatype, shape=served.sent.shape)
    request.raw_input_contents.append(bytes(tensors.encode(served.sent)))
    answer = served.services.method(TRITON, "ModelInfer")(request, timeout=STEP_S)
    return {
        each.name: tensors.decode(each.datatype, list(each.shape), data)
        for each, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def serving_columns(served: Served) -> Arrays:
    answer = json.loads(post(served, f"/v1/models/{served.name}:predict", {"inputs": served.text}))["outputs"]
    named = answer if isinstance(answer, dict) else dict.fromkeys(served.answered, answer)
    return {name: from_json(served.datatypes[name], data) for name, data in named.items()}


def serving_rows(served: Served) -> Arrays:
    rows = json.loads(post(served, f"/v1/models/{served.name}:predict", {"instances": served.text}))["predictions"]
    return {name: from_json(served.datatypes[name], [row[name] for row in rows]) for name in served.answered}


def serving_grpc(served: Served) -> Arrays:
    request = message("tensorflow.serving.PredictRequest")
    request.model_spec.name = served.name
    given = request.inputs[served.input]
    given.dtype, field = TENSORFLOW_TYPES[served.datatype]
    for size in served.sent.shape:
        given.tensor_shape.dim.add(size=size)
    getattr(given, field).extend(served.sent.ravel().tolist())
    answer = served.services.method(PREDICTION, "Predict")(request, timeout=STEP_S)
    return {name: read_proto(served.datatypes[name], made) for name, made in answer.outputs.items()}


def read_proto(datatype: str, made: Any) -> np.ndarray:
    number, field = TENSORFLOW_TYPES[datatype]
    assert made.dtype == number
    shape = [dim.size for dim in made.tensor_shape.dim]
    return np.array(list(getattr(made, field)), tensors.dtype_of(datatype)).reshape(shape)


INTERFACES = [
    open_inference_json,
    open_inference_binary,
    open_inference_grpc,
    serving_columns,
    serving_rows,
    serving_grpc,
]


@pytest.fixture(scope="module", params=list(real_models.WHEELS))
def served(request: pytest.FixtureRequest, all_models: Path, daemon_of_all_models: Running) -> Served:
    return Served(request.param, foreign.addresses(daemon_of_all_models), Direct(all_models / f"{request.param}.npz"))


@pytest.mark.parametrize("ask", INTERFACES)
def test_each_interface_answers_what_tensorflow_answers(served: Served, ask: Any) -> None:
    found = ask(served)
    assert set(found) == set(served.answered)
    for name, wanted in served.answered.items():
        assert found[name].shape == wanted.shape, name
        if wanted.dtype == object:
            assert found[name].tolist() == wanted.tolist(), name
        else:
            assert np.array_equal(found[name], wanted), name
