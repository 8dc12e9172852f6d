"""Clients of Triton and KServe, out of process, on one daemon: each gets right answers through HTTP and gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import foreign
import numpy as np
import pytest
from foreign import Programs, curl
from running import Running

FORMS = ("http", "http.aio", "grpc", "grpc.aio")
KSERVE, REFLECTION = ("kserve_client",), ("reflection",)

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
gateway: {http: "127.0.0.1:*", grpc: "127.0.0.1:*"}
models:
  - {name: echo, handler: "handlers:Echo"}
  - {name: declared, handler: "handlers:Declared", batching: {max_batch_size: 8}}
  - {name: reckoner, handler: "handlers:DeclaredReckoner", batching: {max_batch_size: 8}}
  - {name: commanded, handler: "commanded_handlers:Commanded"}
  - {name: patient, handler: "handlers:Patient"}
"""

# Each value is exact in its datatype. A character of a string stands for a byte.
JSON_TENSORS: dict[str, Any] = {
    "BOOL": [[True, False, True]],
    "UINT8": [[0, 255]],
    "UINT16": [[0, 65535]],
    "UINT32": [[0, 2**32 - 1]],
    "UINT64": [[0, 2**64 - 1]],
    "INT8": [[-128], [127]],
    "INT16": [[-32768, 32767]],
    "INT32": [[[-(2**31)], [2**31 - 1]]],
    "INT64": [[-(2**63), 2**63 - 1]],
    "FP32": [[0.5, -3.4028234663852886e38, 1.401298464324817e-45]],
    "FP64": [0.1, -1e300, 5e-324],
    "BYTES": [["", "gr\xc3\xbcn", "a" * 300]],
}
TENSORS = {
    **JSON_TENSORS,
    "FP16": [[0.5, -65504.0]],
    "BF16": [[1.5, -3.0]],
    "BYTES": [["", "gr\xc3\xbcn"], ["\x00\xff", "\n"]],
}
COMPLEX = b'{"inputs": [{"name": "x", "datatype": "COMPLEX64", "shape": [1], "data": [1]}]}'
DECLARED = {"y": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "m": [0, 1]}

pytestmark = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))
with_clients = pytest.mark.skipif(bool(foreign.clients_missing()), reason=str(foreign.clients_missing()))


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with Running(tmp_path_factory.mktemp("gateway"), CONFIG) as daemon:
        daemon.wait_ready()
        yield foreign.addresses(daemon)
        assert daemon.end() == 0, daemon.text()


@pytest.fixture(scope="module")
def programs(addresses: dict[str, str]) -> Iterator[Programs]:
    job = {**addresses, "tensors": TENSORS, "json_tensors": JSON_TENSORS, "v1_model": "reckoner"}
    running = Programs(job, *(("triton", form) for form in FORMS), KSERVE, REFLECTION)
    yield running
    running.close()


@pytest.fixture(params=FORMS)
def triton(request: pytest.FixtureRequest, programs: Programs) -> dict[str, Any]:
    """The results of one form of tritonclient."""
    return {"form": request.param, **programs["triton", request.param]}


def as_integers(shape: list[Any]) -> list[int]:
    return [int(size) for size in shape]  # protobuf's JSON has 64-bit numbers as strings


@with_clients
class TestTritonclient:
    def test_server_and_models_are_live_and_ready(self, triton: dict[str, Any]) -> None:
        assert triton["server_live"] is True
        assert triton["server_ready"] is True
        assert triton["model_ready"] is True
        assert triton["model_ready_unknown"] in (False, None)
        assert triton["model_ready_version"] in (False, None)

    def test_metadata_of_server_and_model(self, triton: dict[str, Any]) -> None:
        assert triton["server_metadata"]["name"]
        assert "statistics" in triton["server_metadata"]["extensions"]
        metadata = triton["model_metadata"]
        assert (metadata["name"], metadata["versions"]) == ("declared", ["1"])
        inputs = {each["name"]: (each["datatype"], as_integers(each["shape"])) for each in metadata["inputs"]}
        assert inputs == {"x": ("FP32", [-1, 3]), "n": ("INT64", [-1])}
        assert [each["name"] for each in metadata["outputs"]] == ["y", "m"]

    def test_the_configuration_of_a_model(self, triton: dict[str, Any]) -> None:
        config = triton["model_config"]
        config = config.get("config", config)  # gRPC has a message around it
        assert (config["name"], config["max_batch_size"]) == ("declared", 8)
        assert as_integers(config["input"][0]["dims"]) == [3]
        assert config["input"][0]["data_type"] == "TYPE_FP32"

    @pytest.mark.parametrize("case", ["echo", "echo_gzip", "echo_deflate"])
    def test_each_datatype_there_and_back_in_binary(self, triton: dict[str, Any], case: str) -> None:
        assert triton[case] == TENSORS

    @pytest.mark.parametrize("case", ["echo_json", "echo_json_to_binary", "echo_binary_to_json", "echo_mixed"])
    def test_each_datatype_there_and_back_in_json(self, triton: dict[str, Any], case: str) -> None:
        assert triton[case] == JSON_TENSORS

    def test_large_empty_and_scalar_tensors(self, triton: dict[str, Any]) -> None:
        assert triton["echo_large"] is True
        assert triton["empty"] == [0, 3]
        assert triton["scalar"] == {"x": 1.5}

    def test_outputs_that_the_request_names(self, triton: dict[str, Any]) -> None:
        assert triton["declared"] == triton["outputs_in_order"] == DECLARED
        assert triton["one_output"] == {"m": DECLARED["m"]}
        assert triton["version"] == triton["priority"] == DECLARED

    def test_a_reply_has_the_request_id_and_the_version(self, triton: dict[str, Any]) -> None:
        assert triton["identified"] == {"id": "request 17", "model_name": "declared", "version": "1"}

    def test_many_requests_at_a_time(self, triton: dict[str, Any]) -> None:
        assert triton["many"] == list(range(50))

    def test_a_stream_of_requests(self, triton: dict[str, Any]) -> None:
        if triton["form"] == "grpc":
            good, errors = triton["stream"]
            assert good == list(range(9))
            assert len(errors) == 1
            assert "nosuch" in errors[0]

    def test_statistics_of_one_model_and_of_all(self, triton: dict[str, Any]) -> None:
        (one,) = triton["statistics"]["model_stats"]
        assert (one["name"], one["version"]) == ("declared", "1")
        assert int(one["inference_count"]) > 0
        assert int(one["inference_stats"]["success"]["count"]) > 0
        every = {each["name"] for each in triton["statistics_of_all"]["model_stats"]}
        assert every == {"echo", "declared", "reckoner", "commanded", "patient"}

    def test_the_repository_lists_the_models(self, triton: dict[str, Any]) -> None:
        index = triton["repository_index"]
        index = index["models"] if isinstance(index, dict) else index
        assert {(each["name"], each["version"], each["state"]) for each in index} >= {("echo", "1", "READY")}

    @pytest.mark.parametrize(
        ("case", "http", "grpc", "text"),
        [
            ("model_unknown", "404", "NOT_FOUND", "nosuch"),
            ("model_metadata_unknown", "404", "NOT_FOUND", "nosuch"),
            ("version_unknown", "404", "NOT_FOUND", "7"),
            ("input_unknown", "400", "INVALID_ARGUMENT", "z"),
            ("input_missing", "400", "INVALID_ARGUMENT", "n"),
            ("output_unknown", "400", "INVALID_ARGUMENT", "z"),
            ("datatype_mismatch", "400", "INVALID_ARGUMENT", "FP32"),
            ("shape_invalid", "400", "INVALID_ARGUMENT", "x"),
            ("model_error", "500", "INTERNAL", "out of cheese"),
            ("deadline", "504", "DEADLINE_EXCEEDED", ""),
            ("sequence", "501", "UNIMPLEMENTED", "sequence"),
            ("load", "403", "PERMISSION_DENIED", "operate"),
            ("unload", "403", "PERMISSION_DENIED", "operate"),
            ("shared_memory", "501", "UNIMPLEMENTED", ""),
            ("shared_memory_status", "501", "UNIMPLEMENTED", ""),
            ("trace", "501", "UNIMPLEMENTED", ""),
            ("log", "501", "UNIMPLEMENTED", ""),
        ],
    )
    def test_errors_have_their_status(self, triton: dict[str, Any], case: str, http: str, grpc: str, text: str) -> None:
        assert triton[case]["error"] == "InferenceServerException"
        assert triton[case]["status"] == (f"StatusCode.{grpc}" if triton["form"].startswith("grpc") else http)
        assert text in triton[case]["message"]

    def test_the_client_serves_on_after_all_errors(self, triton: dict[str, Any]) -> None:
        assert triton["still_serves"] == DECLARED


@with_clients
def test_kserve_over_rest(programs: Programs) -> None:
    found = programs[KSERVE]
    assert [found[case] for case in ("server_live", "server_ready", "model_ready")] == [True, True, True]
    assert found["model_ready_unknown"] is False
    numbers = {name: data for name, data in JSON_TENSORS.items() if name != "BYTES"}
    assert found["json"] == {"id": "17", "model_name": "echo", "outputs": numbers}
    whole = {**JSON_TENSORS, "FP16": TENSORS["FP16"]}
    assert found["binary"] == {"id": "17", "model_name": "echo", "outputs": whole}
    assert found["model_unknown"]["status"] == "404"
    assert found["v1"] == {"predictions": [[4], [10]]}


@with_clients
def test_kserve_over_grpc(programs: Programs) -> None:
    found = programs[KSERVE]
    assert [found[f"grpc_{case}"] for case in ("server_live", "server_ready", "model_ready")] == [True, True, True]
    whole = {**JSON_TENSORS, "FP16": TENSORS["FP16"]}
    assert found["grpc"] == {"id": "17", "model_name": "echo", "outputs": whole}
    numbers = {name: data for name, data in JSON_TENSORS.items() if name != "BYTES"}
    assert found["grpc_contents"]["outputs"] == numbers


@with_clients
def test_reflection_describes_each_service_well_enough_to_call_it(programs: Programs) -> None:
    found = programs[REFLECTION]
    services = {
        "inference.GRPCInferenceService",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
    }
    assert services <= set(found["services"])
    assert "ModelInfer" in found["methods"]["inference.GRPCInferenceService"]
    assert found["live"] == {"live": True}
    assert found["infer"]["outputs"][0]["shape"] == ["2"]


@with_clients
def test_grpc_health_and_unknown_methods(programs: Programs) -> None:
    found = programs[REFLECTION]
    assert found["health"] == found["health_of_a_service"] == found["health_watched"] == "SERVING"
    assert found["health_of_nothing"]["status"] == "StatusCode.NOT_FOUND"
    assert found["unknown_service"]["status"] == found["unknown_method"]["status"] == "StatusCode.UNIMPLEMENTED"


class TestCurl:
    def test_health_is_json(self, addresses: dict[str, str]) -> None:
        assert curl(f"{addresses['http']}/v2/health/live") == (200, b'{"live":true}')
        status, body = curl(f"{addresses['http']}/v2/health/ready")
        assert (status, json.loads(body)["ready"]) == (200, True)

    def test_infer_with_nested_and_flat_json(self, addresses: dict[str, str]) -> None:
        for data in ([[1, 2, 3], [4, 5, 6]], [1, 2, 3, 4, 5, 6]):
            sent = {
                "inputs": [
                    {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": data},
                    {"name": "n", "datatype": "INT64", "shape": [2], "data": [7, 8]},
                ]
            }
            status, body = curl(f"{addresses['http']}/v2/models/declared/infer", body=json.dumps(sent).encode())
            assert status == 200, body
            outputs = {each["name"]: each["data"] for each in json.loads(body)["outputs"]}
            assert outputs == {"y": [2.0, 4.0, 6.0, 8.0, 10.0, 12.0], "m": [7, 8]}

    @pytest.mark.parametrize("length", ["-1", "100000", "x", "99999999999999999999"])
    def test_a_wrong_header_length_is_refused(self, addresses: dict[str, str], length: str) -> None:
        header = f"Inference-Header-Content-Length: {length}"
        status, body = curl("-H", header, f"{addresses['http']}/v2/models/echo/infer", body=b'{"inputs": []}')
        assert (status, list(json.loads(body))) == (400, ["error"])

    def test_a_raw_request_is_the_only_input(self, addresses: dict[str, str]) -> None:
        header = "Inference-Header-Content-Length: 0"
        url = f"{addresses['http']}/v2/models/reckoner/infer"
        status, body = curl("-H", header, url, body=np.array([5], "<i8").tobytes())
        assert status == 200, body
        # As in Triton, the outputs are binary, too.
        assert body.endswith(np.array([16], "<i8").tobytes())

    def test_what_does_not_exist_is_404(self, addresses: dict[str, str]) -> None:
        for path in ("/nosuch", "/v2/nosuch", "/v2/models/echo/nosuch"):
            status, _ = curl(f"{addresses['http']}{path}")
            assert status == 404

    @pytest.mark.parametrize(
        ("path", "body", "status", "code", "reason"),
        [
            ("/v2/models/nosuch/infer", b'{"inputs": []}', 404, "NOT_FOUND", "model_unknown"),
            ("/v1/models/nosuch:predict", b'{"instances": [1]}', 404, "NOT_FOUND", "model_unknown"),
            ("/v2/models/echo/infer", b"[]", 400, "INVALID_ARGUMENT", "malformed"),
            ("/v2/models/echo/infer", COMPLEX, 501, "UNIMPLEMENTED", "kind_unknown"),
            ("/v2/models/echo/infer", None, 405, "UNIMPLEMENTED", "method_unknown"),
            ("/v2/nosuch", None, 404, "NOT_FOUND", "path_unknown"),
            ("/nosuch", None, 404, "NOT_FOUND", "path_unknown"),
            ("/v2/repository/models/echo/load", b"", 403, "PERMISSION_DENIED", "permission_denied"),
        ],
    )
    def test_an_error_has_code_and_reason_for_programs(
        self, addresses: dict[str, str], path: str, body: bytes | None, status: int, code: str, reason: str
    ) -> None:
        found, answer = curl("-i", f"{addresses['http']}{path}", body=body)
        head, _, text = answer.decode().partition("\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.splitlines()[1:])
        assert (found, headers["multitower-code"], headers["multitower-reason"]) == (status, code, reason)
        assert "retry-after" not in headers, "sending it again cannot help"
        assert list(json.loads(text)) == ["error"]

    def test_complex_outputs_are_not_implemented_in_json(self, addresses: dict[str, str]) -> None:
        # One element of COMPLEX64: eight bytes behind the JSON.
        tensor = {"name": "x", "datatype": "COMPLEX64", "shape": [1], "parameters": {"binary_data_size": 8}}
        text = json.dumps({"inputs": [tensor]}).encode()
        header, url = f"Inference-Header-Content-Length: {len(text)}", f"{addresses['http']}/v2/models/echo/infer"
        status, body = curl("-H", header, url, body=text + bytes(8))
        assert (status, "ask for binary data" in json.loads(body)["error"]) == (501, True)
        request = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        text = json.dumps(request).encode()
        status, body = curl("-H", f"Inference-Header-Content-Length: {len(text)}", url, body=text + bytes(8))
        assert (status, body[-8:]) == (200, bytes(8))

    def test_a_head_over_the_limit_gets_an_error_with_a_body(self, addresses: dict[str, str]) -> None:
        status, body = curl("-H", f"x-long: {'x' * 70_000}", f"{addresses['http']}/v2/health/live")
        assert (status, "65536 bytes" in json.loads(body)["error"]) == (431, True)

    def test_http_2_without_tls(self, addresses: dict[str, str]) -> None:
        assert curl("--http2-prior-knowledge", f"{addresses['http']}/v2/health/live")[0] == 200
