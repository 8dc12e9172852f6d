"""TensorFlow Serving's gRPC interface, with the stubs of its package tensorflow-serving-api.

They import messages of TensorFlow. Those come from the TensorFlow of the tests' environment (the job's `tensorflow`);
nothing else of it is loaded.
"""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from report import find_tensorflow_messages, job, report, values

JOB = job()
find_tensorflow_messages(JOB)

from tensorflow.core.example import example_pb2  # noqa: E402
from tensorflow.core.framework import tensor_pb2, types_pb2  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
    session_service_pb2,
)

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
channel = grpc.insecure_channel(JOB["grpc"], options=OPTIONS)
prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
models = model_service_pb2_grpc.ModelServiceStub(channel)
DTYPES = {
    types_pb2.DT_FLOAT: ("f4", "float_val"),
    types_pb2.DT_DOUBLE: ("f8", "double_val"),
    types_pb2.DT_INT64: ("i8", "int64_val"),
    types_pb2.DT_INT32: ("i4", "int_val"),
    types_pb2.DT_BOOL: ("?", "bool_val"),
    types_pb2.DT_UINT8: ("u1", "int_val"),
}


def proto(data: Any, dtype: int = types_pb2.DT_FLOAT, content: bool = False) -> Any:
    """A TensorProto: with typed values, or with `tensor_content`."""
    made = tensor_pb2.TensorProto(dtype=dtype)
    array = np.array(data, object if dtype == types_pb2.DT_STRING else DTYPES.get(dtype, ("f4",))[0])
    for size in array.shape:
        made.tensor_shape.dim.add(size=size)
    if dtype == types_pb2.DT_STRING:
        made.string_val.extend(text.encode("latin-1") for text in array.ravel())
    elif dtype == types_pb2.DT_HALF:
        made.half_val.extend(array.astype("f2").view("u2").ravel().tolist())
    elif dtype == types_pb2.DT_BFLOAT16:
        made.half_val.extend((array.astype("f4").view("u4") >> 16).ravel().tolist())
    elif content:
        made.tensor_content = array.tobytes()
    else:
        getattr(made, DTYPES[dtype][1]).extend(array.ravel().tolist())
    return made


def read(made: Any) -> Any:
    """The values of a TensorProto, from either form; one value stands for all, as TensorFlow has it."""
    shape = [dim.size for dim in made.tensor_shape.dim]
    if made.dtype == types_pb2.DT_STRING:
        flat = np.frompyfunc(made.string_val.__getitem__, 1, 1)(np.arange(len(made.string_val)))
        return values(flat.astype(object).reshape(shape))
    if made.dtype in (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16):
        bits = np.frombuffer(made.tensor_content, "u2") if made.tensor_content else np.array(made.half_val, "u2")
        floats = bits.view("f2") if made.dtype == types_pb2.DT_HALF else (bits.astype("u4") << 16).view("f4")
        return floats.reshape(shape).tolist()
    dtype, field = DTYPES[made.dtype]
    if made.tensor_content:
        return np.frombuffer(made.tensor_content, dtype).reshape(shape).tolist()
    given = np.array(getattr(made, field), dtype)
    return (np.broadcast_to(given, shape) if given.size == 1 else given.reshape(shape)).tolist()


def one_for_all() -> Any:
    """Two rows of the same number, of which TensorFlow's own compression sends one."""
    made = proto([[2.0], [2.0]])
    del made.float_val[1:]
    return made


def spec(model: str, version: int | None = None, label: str = "", signature: str = "") -> Any:
    made = model_pb2.ModelSpec(name=model, signature_name=signature)
    if label:
        made.version_label = label
    if version is not None:
        made.version.value = version
    return made


def predict(model: str, inputs: dict[str, Any], outputs: Any = (), **which: Any) -> Any:
    request = predict_pb2.PredictRequest(model_spec=spec(model, **which), inputs=inputs, output_filter=outputs)
    answer = prediction.Predict(request, timeout=30)
    named = answer.model_spec
    return {
        "outputs": {name: read(made) for name, made in answer.outputs.items()},
        "model_spec": [named.name, named.version.value, named.signature_name],
    }


def examples(*numbers: float) -> Any:
    made = input_pb2.Input()
    for number in numbers:
        example = made.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(number)
    return made


def with_context(*numbers: float) -> Any:
    """Examples that share what they have in common."""
    made = input_pb2.Input()
    made.example_list_with_context.context.features.feature["x"].float_list.value.append(numbers[0])
    for _ in numbers:
        made.example_list_with_context.examples.add()
    return made


def classify(**which: Any) -> Any:
    request = classification_pb2.ClassificationRequest(model_spec=spec(**which), input=examples(1.0, 3.0))
    answer = prediction.Classify(request, timeout=30)
    return [[(each.label, each.score) for each in row.classes] for row in answer.result.classifications]


def regress(given: Any = None, **which: Any) -> Any:
    request = regression_pb2.RegressionRequest(model_spec=spec(**which), input=given or examples(1.0, 3.0))
    return [row.value for row in prediction.Regress(request, timeout=30).result.regressions]


def multi_inference() -> Any:
    request = inference_pb2.MultiInferenceRequest(input=examples(1.0, 3.0))
    for method, signature in (("tensorflow/serving/regress", "regress"), ("tensorflow/serving/classify", "classify")):
        request.tasks.add(model_spec=spec("line", signature=signature), method_name=method)
    answer = prediction.MultiInference(request, timeout=30)
    return [json_format.MessageToDict(each, preserving_proto_field_name=True) for each in answer.results]


def metadata(**which: Any) -> Any:
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec(**which), metadata_field=["signature_def"])
    answer = prediction.GetModelMetadata(request, timeout=30)
    held = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(held)
    return {
        "version": answer.model_spec.version.value,
        "signatures": {
            name: json_format.MessageToDict(signature, preserving_proto_field_name=True)
            for name, signature in held.signature_def.items()
        },
    }


def status(**which: Any) -> Any:
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec(**which))
    answer = models.GetModelStatus(request, timeout=30)
    return json_format.MessageToDict(answer, preserving_proto_field_name=True)["model_version_status"]


def reload() -> Any:
    return str(models.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=30))


def session_run() -> Any:
    send = channel.unary_unary(
        "/tensorflow.serving.SessionService/SessionRun",
        request_serializer=session_service_pb2.SessionRunRequest.SerializeToString,
        response_deserializer=session_service_pb2.SessionRunResponse.FromString,
    )
    return str(send(session_service_pb2.SessionRunRequest(), timeout=30))


def kinds() -> Any:
    """Each datatype with typed values, and where it can be with `tensor_content`."""
    sent = {
        "float32": proto(JOB["kinds"]["float32"]),
        "float64": proto(JOB["kinds"]["float64"], types_pb2.DT_DOUBLE, content=True),
        "int64": proto(JOB["kinds"]["int64"], types_pb2.DT_INT64),
        "uint8": proto(JOB["kinds"]["uint8"], types_pb2.DT_UINT8),
        "bool": proto(JOB["kinds"]["bool"], types_pb2.DT_BOOL),
        "float16": proto(JOB["kinds"]["float16"], types_pb2.DT_HALF),
        "bfloat16": proto(JOB["kinds"]["bfloat16"], types_pb2.DT_BFLOAT16),
        "string": proto(JOB["kinds"]["string"], types_pb2.DT_STRING),
    }
    return predict("kinds", sent)["outputs"]


assert example_pb2 is not None  # registers tf.Example
X = proto([[1.0], [3.0]])
report(
    {
        "predict": lambda: predict("line", {"x": X}),
        "tensor_content": lambda: predict("line", {"x": proto([[1.0], [3.0]], content=True)}),
        "one_value_for_all": lambda: predict("line", {"x": one_for_all()}),
        "version": lambda: predict("line", {"x": X}, version=1),
        "label": lambda: predict("line", {"x": X}, label="stable"),
        "signature": lambda: predict("line", {"x": X}, signature="both"),
        "output_filter": lambda: predict("line", {"x": X}, ["doubled"], signature="both"),
        "defaults": lambda: predict("defaults", {"x": X}),
        "strings": lambda: predict("texts", {"text": proto(JOB["words"], types_pb2.DT_STRING)}),
        "kinds": kinds,
        "classify": lambda: classify(model="line", signature="classify"),
        "regress": lambda: regress(model="line", signature="regress"),
        "regress_with_context": lambda: regress(with_context(1.0, 3.0), model="line", signature="regress"),
        "multi_inference": multi_inference,
        "metadata": lambda: metadata(model="line"),
        "metadata_of_version": lambda: metadata(model="line", version=1),
        "status": lambda: status(model="line"),
        "status_of_version": lambda: status(model="line", version=1),
        # Errors.
        "model_unknown": lambda: predict("nosuch", {"x": X}),
        "version_unknown": lambda: predict("line", {"x": X}, version=77),
        "label_unknown": lambda: predict("line", {"x": X}, label="nosuch"),
        "signature_unknown": lambda: predict("line", {"x": X}, signature="nosuch"),
        "input_unknown": lambda: predict("line", {"z": X}),
        "input_missing": lambda: predict("line", {}),
        "output_unknown": lambda: predict("line", {"x": X}, ["nosuch"]),
        "datatype_mismatch": lambda: predict("line", {"x": proto([[1]], types_pb2.DT_INT64)}),
        "shape_invalid": lambda: predict("line", {"x": proto([[[1.0]]])}),
        "regress_of_predict": lambda: regress(model="line"),
        "classify_of_regress": lambda: classify(model="line", signature="regress"),
        "status_unknown": lambda: status(model="nosuch"),
        "metadata_unknown": lambda: metadata(model="nosuch"),
        "reload_not_allowed": reload,
        "value_invalid": lambda: predict("lookup", {"index": proto([[7]], types_pb2.DT_INT64)}),
        "value_valid": lambda: predict("lookup", {"index": proto([[2]], types_pb2.DT_INT64)}),
        "session_run": session_run,
        "still_serves": lambda: predict("line", {"x": X}),
    }
)
channel.close()
