"""NVIDIA's tritonclient in its four forms: `triton.py http`, `http.aio`, `grpc` or `grpc.aio`.

All four have the same methods, so all run the same cases, and a test can demand the same results.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from report import array, report, values
from triton_form import FORM, GRPC, JOB, client, loop, plain, wait

AS_JSON = {"as_json": True} if GRPC else {}


def tensor(name: str, datatype: str, data: Any, binary: bool = True) -> Any:
    """An input; `binary` is for HTTP only, where it may travel as JSON."""
    made = array(datatype, data)
    given = plain.InferInput(name, list(made.shape), datatype)
    return given.set_data_from_numpy(made, **({} if GRPC else {"binary_data": binary}))


def output(name: str, binary: bool = True) -> Any:
    return plain.InferRequestedOutput(name, **({} if GRPC else {"binary_data": binary}))


def outputs(result: Any, names: Any) -> dict[str, Any]:
    """The outputs with these names, without those that the reply does not have."""
    found = {name: result.as_numpy(name) for name in names}
    return {name: values(made) for name, made in found.items() if made is not None}


def infer(model: str, inputs: list[Any], names: Any = ("y",), **options: Any) -> Any:
    return outputs(wait(client.infer(model, inputs, **options)), names)


def echo(which: str = "tensors", binary: bool = True, binary_output: bool | None = None, **options: Any) -> Any:
    """Each of the job's tensors there and back, in one request."""
    sent = JOB[which]
    inputs = [tensor(name, name, data, binary) for name, data in sent.items()]
    if binary_output is not None:
        options["outputs"] = [output(name, binary_output) for name in sent]
    return infer("echo", inputs, sent, **options)


def mixed() -> Any:
    """Tensors in JSON between binary ones, and outputs likewise."""
    sent = JOB["json_tensors"]
    inputs = [tensor(name, name, data, number % 2 == 0) for number, (name, data) in enumerate(sent.items())]
    wanted = [output(name, number % 3 == 0) for number, name in enumerate(sent)]
    return infer("echo", inputs, sent, outputs=wanted)


def declared(rows: int = 2) -> list[Any]:
    return [
        tensor("x", "FP32", (np.arange(rows * 3.0) / 2).reshape(rows, 3).tolist()),
        tensor("n", "INT64", list(range(rows))),
    ]


def identified() -> Any:
    result = wait(client.infer("declared", declared(), request_id="request 17"))
    response = result.get_response(**AS_JSON)
    return {"id": response["id"], "model_name": response["model_name"], "version": response.get("model_version")}


def many() -> Any:
    """Fifty requests, sent before the first answer is read where the client can."""
    sent = [[tensor("x", "INT64", [[number]])] for number in range(50)]
    if FORM.endswith("aio"):

        async def together() -> Any:
            return await asyncio.gather(*(client.infer("echo", inputs) for inputs in sent))

        results = loop.run_until_complete(together())
    elif GRPC:
        import queue

        done: queue.Queue[Any] = queue.Queue()
        for number, inputs in enumerate(sent):
            client.async_infer("echo", inputs, lambda result, error, number=number: done.put((number, result, error)))
        results = [result for _, result, error in sorted(done.get(timeout=30) for _ in sent)]
    else:
        results = [answer.get_result() for answer in [client.async_infer("echo", inputs) for inputs in sent]]
    return [int(result.as_numpy("x")[0, 0]) for result in results]


def stream() -> Any:
    """Ten requests over one stream, of which the last is wrong."""
    if FORM != "grpc":
        return "no stream"
    import queue

    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(10):
        client.async_stream_infer("echo" if number < 9 else "nosuch", [tensor("x", "INT64", [[number]])])
    found = [answers.get(timeout=30) for _ in range(10)]
    client.stop_stream()
    good = sorted(int(result.as_numpy("x")[0, 0]) for result, error in found if error is None)
    return [good, [error.message() for _, error in found if error is not None]]


def command(text: str, **options: Any) -> Any:
    return infer("commanded", [tensor("do", "BYTES", [text])], **options)


def large() -> Any:
    """An image: the reply has the same bytes."""
    image = np.random.default_rng(3).normal(size=(1, 224, 224, 3)).astype("f4")
    given = plain.InferInput("image", list(image.shape), "FP32").set_data_from_numpy(image)
    return bool((wait(client.infer("echo", [given])).as_numpy("image") == image).all())


def empty() -> Any:
    given = plain.InferInput("x", [0, 3], "FP32").set_data_from_numpy(np.ones((0, 3), "f4"))
    return list(wait(client.infer("echo", [given])).as_numpy("x").shape)


def compression(algorithm: str) -> dict[str, str]:
    if GRPC:
        return {"compression_algorithm": algorithm}
    return {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}


x = lambda shape=(1, 3): tensor("x", "FP32", np.ones(shape).tolist())  # noqa: E731

report(
    {
        "server_live": lambda: wait(client.is_server_live()),
        "server_ready": lambda: wait(client.is_server_ready()),
        "server_metadata": lambda: wait(client.get_server_metadata(**AS_JSON)),
        "model_ready": lambda: wait(client.is_model_ready("declared")),
        "model_ready_unknown": lambda: wait(client.is_model_ready("nosuch")),
        "model_ready_version": lambda: wait(client.is_model_ready("declared", "7")),
        "model_metadata": lambda: wait(client.get_model_metadata("declared", **AS_JSON)),
        "model_metadata_unknown": lambda: wait(client.get_model_metadata("nosuch", **AS_JSON)),
        "model_config": lambda: wait(client.get_model_config("declared", **AS_JSON)),
        "echo": echo,
        "echo_json": lambda: echo("json_tensors", binary=False, binary_output=False),
        "echo_json_to_binary": lambda: echo("json_tensors", binary=False),
        "echo_binary_to_json": lambda: echo("json_tensors", binary_output=False),
        "echo_mixed": mixed,
        "echo_gzip": lambda: echo(**compression("gzip")),
        "echo_deflate": lambda: echo(**compression("deflate")),
        "echo_large": large,
        "empty": empty,
        "scalar": lambda: infer(
            "echo", [plain.InferInput("x", [], "FP32").set_data_from_numpy(np.array(1.5, "f4"))], "x"
        ),
        "declared": lambda: infer("declared", declared(), "ym"),
        "one_output": lambda: infer("declared", declared(), "ym", outputs=[output("m")]),
        "outputs_in_order": lambda: infer("declared", declared(), "ym", outputs=[output("m"), output("y")]),
        "version": lambda: infer("declared", declared(), "ym", model_version="1"),
        "identified": identified,
        "many": many,
        "stream": stream,
        "priority": lambda: infer("declared", declared(), "ym", priority=1),
        "statistics": lambda: wait(client.get_inference_statistics("declared", **AS_JSON)),
        "statistics_of_all": lambda: wait(client.get_inference_statistics(**AS_JSON)),
        "repository_index": lambda: wait(client.get_model_repository_index(**AS_JSON)),
        # Errors.
        "model_unknown": lambda: infer("nosuch", declared()),
        "version_unknown": lambda: infer("declared", declared(), model_version="7"),
        "input_unknown": lambda: infer("declared", [*declared(), tensor("z", "FP32", [1.0])]),
        "input_missing": lambda: infer("declared", declared()[:1]),
        "output_unknown": lambda: infer("declared", declared(), outputs=[output("z")]),
        "datatype_mismatch": lambda: infer("declared", [tensor("x", "FP64", [[1.0, 2.0, 3.0]]), declared(1)[1]]),
        "shape_invalid": lambda: infer("declared", [x((1, 4)), declared(1)[1]]),
        "model_error": lambda: command("raise out of cheese"),
        "deadline": lambda: infer(
            "patient", [tensor("x", "FP32", [1.0]), tensor("seconds", "FP32", [5.0])], timeout=50_000
        ),
        "sequence": lambda: infer("declared", declared(), sequence_id=5, sequence_start=True),
        # What is not there, or not allowed.
        "load": lambda: wait(client.load_model("declared")),
        "unload": lambda: wait(client.unload_model("declared")),
        "shared_memory": lambda: wait(client.register_system_shared_memory("region", "/key", 64)),
        "shared_memory_status": lambda: wait(client.get_system_shared_memory_status(**AS_JSON)),
        "trace": lambda: wait(client.get_trace_settings(**AS_JSON)),
        "log": lambda: wait(client.get_log_settings(**AS_JSON)),
        "still_serves": lambda: infer("declared", declared(), "ym"),
    }
)
wait(client.close())
