"""TensorFlow Serving's clients on SavedModels, out of process: equal to direct TensorFlow through REST and gRPC."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import foreign
import pytest
from foreign import curl
from running import Running

STUBS = ("tensorflow_stubs",)

pytestmark = [
    pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing())),
]
with_clients = pytest.mark.skipif(bool(foreign.clients_missing()), reason=str(foreign.clients_missing()))


@pytest.fixture(scope="module")
def expected(all_models: Path) -> Any:
    return json.loads((all_models / "expected.json").read_text())


@pytest.fixture(scope="module")
def addresses(daemon_of_all_models: Running) -> dict[str, str]:
    return foreign.addresses(daemon_of_all_models)


@pytest.fixture(scope="module")
def stubs(addresses: dict[str, str], expected: Any) -> Any:
    found = importlib.util.find_spec("tensorflow")
    assert found is not None
    job = {
        **addresses,
        "tensorflow": str(Path(str(found.origin)).parent),
        "kinds": expected["kinds"]["sent"],
        "words": expected["texts"]["text"],
    }
    return foreign.run(*STUBS[:1], job)


def rest(addresses: dict[str, str], path: str, body: Any = None, *options: str) -> tuple[int, Any]:
    """GET, or POST with a body; the answer is always JSON."""
    given = None if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    status, content = curl(*options, f"{addresses['http']}/v1/models{path}", body=given)
    return status, json.loads(content)


@with_clients
class TestGrpc:
    def test_predict_is_equal_to_direct_tensorflow(self, stubs: Any, expected: Any) -> None:
        latest = expected["line"]["2"]
        answer = {"outputs": latest["serving_default"], "model_spec": ["line", 2, "serving_default"]}
        assert stubs["predict"] == stubs["tensor_content"] == stubs["still_serves"] == answer
        assert stubs["one_value_for_all"]["outputs"] == {"y": [[4.0], [4.0]]}
        assert stubs["signature"]["outputs"] == latest["both"]
        assert stubs["signature"]["model_spec"] == ["line", 2, "both"]
        assert stubs["output_filter"]["outputs"] == {"doubled": latest["both"]["doubled"]}

    def test_versions_and_labels(self, stubs: Any, expected: Any) -> None:
        assert stubs["version"]["outputs"] == stubs["label"]["outputs"] == expected["line"]["1"]["serving_default"]
        assert stubs["version"]["model_spec"][:2] == stubs["label"]["model_spec"][:2] == ["line", 1]

    def test_each_datatype_and_strings(self, stubs: Any, expected: Any) -> None:
        assert stubs["kinds"] == expected["kinds"]["answered"]
        assert stubs["strings"]["outputs"] == {name: expected["texts"][name] for name in ("upper", "raw_bytes")}

    def test_an_input_with_a_default_may_be_left_out(self, stubs: Any, expected: Any) -> None:
        assert stubs["defaults"]["outputs"] == expected["defaults"]

    def test_classify_regress_and_multi_inference(self, stubs: Any, expected: Any) -> None:
        latest = expected["line"]["2"]
        values = [value for (value,) in latest["regress"]["outputs"]]
        rows = [
            [[label, score] for label, score in zip(*row, strict=True)]
            for row in zip(latest["classify"]["classes"], latest["classify"]["scores"], strict=True)
        ]
        assert stubs["regress"] == values
        assert stubs["regress_with_context"] == [values[0], values[0]]
        assert stubs["classify"] == rows
        first, second = stubs["multi_inference"]
        assert [each["value"] for each in first["regression_result"]["regressions"]] == values
        classes = [
            [[each["label"], each["score"]] for each in row["classes"]]
            for row in second["classification_result"]["classifications"]
        ]
        assert classes == rows

    def test_after_a_wrong_value_the_model_serves_on(self, stubs: Any) -> None:
        assert stubs["value_valid"]["outputs"] == {"y": [[30.0]]}

    def test_metadata_and_status(self, stubs: Any) -> None:
        assert int(stubs["metadata"]["version"]) == 2
        assert int(stubs["metadata_of_version"]["version"]) == 1
        signatures = stubs["metadata"]["signatures"]
        assert set(signatures) >= {"serving_default", "both", "regress", "classify"}
        assert signatures["serving_default"]["inputs"]["x"]["name"] == "x:0"
        assert signatures["regress"]["method_name"] == "tensorflow/serving/regress"
        assert sorted(row["version"] for row in stubs["status"]) == ["1", "2"]
        assert [(row["version"], row["state"]) for row in stubs["status_of_version"]] == [("1", "AVAILABLE")]

    @pytest.mark.parametrize(
        ("case", "status"),
        [
            ("model_unknown", "NOT_FOUND"),
            ("version_unknown", "NOT_FOUND"),
            ("label_unknown", "INVALID_ARGUMENT"),
            ("signature_unknown", "INVALID_ARGUMENT"),
            ("input_unknown", "INVALID_ARGUMENT"),
            ("input_missing", "INVALID_ARGUMENT"),
            ("output_unknown", "INVALID_ARGUMENT"),
            ("datatype_mismatch", "INVALID_ARGUMENT"),
            ("shape_invalid", "INVALID_ARGUMENT"),
            ("value_invalid", "INVALID_ARGUMENT"),
            ("regress_of_predict", "INVALID_ARGUMENT"),
            ("classify_of_regress", "INVALID_ARGUMENT"),
            ("status_unknown", "NOT_FOUND"),
            ("metadata_unknown", "NOT_FOUND"),
            ("reload_not_allowed", "PERMISSION_DENIED"),
            ("session_run", "UNIMPLEMENTED"),
        ],
    )
    def test_errors_have_their_status(self, stubs: Any, case: str, status: str) -> None:
        assert stubs[case]["status"] == f"StatusCode.{status}", stubs[case]


class TestRest:
    def test_predict_rows_and_columns(self, addresses: dict[str, str], expected: Any) -> None:
        y = expected["line"]["2"]["serving_default"]["y"]
        for path in (
            "/line:predict",
            "/line:PREDICT",
            "/line/versions/2:predict",
            "/line/labels/canary:predict",
        ):
            assert rest(addresses, path, {"instances": [[1.0], [3.0]]}) == (200, {"predictions": y})
        assert rest(addresses, "/line:predict", {"instances": [{"x": [1.0]}, {"x": [3.0]}]}) == (
            200,
            {"predictions": y},
        )
        assert rest(addresses, "/line:predict", {"inputs": [[1.0], [3.0]]}) == (200, {"outputs": y})
        assert rest(addresses, "/line:predict", {"inputs": {"x": [[1.0], [3.0]]}}) == (200, {"outputs": y})

    def test_versions_labels_and_signatures(self, addresses: dict[str, str], expected: Any) -> None:
        first, latest = expected["line"]["1"], expected["line"]["2"]
        sent = {"instances": [[1.0], [3.0]]}
        for path in ("/line/versions/1:predict", "/line/labels/stable:predict"):
            assert rest(addresses, path, sent) == (200, {"predictions": first["serving_default"]["y"]})
        rows = [
            {"y": y, "doubled": doubled}
            for y, doubled in zip(latest["both"]["y"], latest["both"]["doubled"], strict=True)
        ]
        assert rest(addresses, "/line:predict", {**sent, "signature_name": "both"}) == (200, {"predictions": rows})
        columns = {"signature_name": "both", "inputs": [[1.0], [3.0]]}
        assert rest(addresses, "/line:predict", columns) == (200, {"outputs": latest["both"]})

    def test_strings_and_bytes(self, addresses: dict[str, str]) -> None:
        sent = {"instances": ["ab", {"b64": "AP8="}]}
        status, answer = rest(addresses, "/texts:predict", sent)
        assert status == 200, answer
        assert [row["raw_bytes"] for row in answer["predictions"]] == [{"b64": "YWL/"}, {"b64": "AP//"}]
        assert answer["predictions"][0]["upper"] == "AB"

    def test_an_input_with_a_default_may_be_left_out(self, addresses: dict[str, str], expected: Any) -> None:
        assert rest(addresses, "/defaults:predict", {"inputs": {"x": [[1.0], [3.0]]}}) == (
            200,
            {"outputs": expected["defaults"]["y"]},
        )

    def test_nan_and_infinity(self, addresses: dict[str, str]) -> None:
        status, body = curl(
            f"{addresses['http']}/v1/models/line:predict", body=b'{"instances": [[NaN], [Infinity], [-Infinity]]}'
        )
        assert status == 200, body
        assert b"NaN" in body
        assert b"-Infinity" in body

    def test_classify_and_regress(self, addresses: dict[str, str], expected: Any) -> None:
        latest = expected["line"]["2"]
        sent = {"signature_name": "regress", "examples": [{"x": 1.0}, {"x": 3.0}]}
        values = [value for (value,) in latest["regress"]["outputs"]]
        assert rest(addresses, "/line:regress", sent) == (200, {"results": values})
        sent = {"signature_name": "classify", "context": {"x": 1.0}, "examples": [{}, {}]}
        row = [[*pair] for pair in zip(latest["classify"]["classes"][0], latest["classify"]["scores"][0], strict=True)]
        assert rest(addresses, "/line:classify", sent) == (200, {"results": [row, row]})

    def test_status_and_metadata(self, addresses: dict[str, str]) -> None:
        status, answer = rest(addresses, "/line")
        assert status == 200
        rows = answer["model_version_status"]
        assert sorted((row["version"], row["state"]) for row in rows) == [("1", "AVAILABLE"), ("2", "AVAILABLE")]
        assert rows[0]["status"] == {"error_code": "OK", "error_message": ""}
        status, answer = rest(addresses, "/line/versions/1")
        assert [row["version"] for row in answer["model_version_status"]] == ["1"]
        status, answer = rest(addresses, "/line/metadata")
        assert status == 200
        definition = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert definition["inputs"]["x"]["tensor_shape"]["dim"][0]["size"] == "-1"
        assert (definition["inputs"]["x"]["name"], definition["inputs"]["x"]["dtype"]) == ("x:0", "DT_FLOAT")

    @pytest.mark.parametrize(
        ("path", "body", "status", "text"),
        [
            ("/nosuch:predict", '{"instances": [[1.0]]}', 404, "Servable not found for request: Latest(nosuch)"),
            ("/line/versions/77:predict", '{"instances": [[1.0]]}', 404, "Servable not found"),
            ("/line/labels/nosuch:predict", '{"instances": [[1.0]]}', 400, "Unrecognized servable version label"),
            ("/line:predict", "", 400, "document is empty"),
            ("/line:predict", "{", 400, "JSON Parse error"),
            ("/line:predict", "{}", 400, "Missing 'inputs' or 'instances' key"),
            ("/line:predict", '{"instances": [[1.0]], "inputs": [[1.0]]}', 400, "Not formatted correctly"),
            ("/line:predict", '{"instances": [["a"]]}', 400, "not of expected type"),
            ("/line:predict", '{"instances": [[1.0], [1.0, 2.0]]}', 400, "Expecting"),
            ("/line:predict", '{"instances": [[1.0]], "signature_name": 5}', 400, "must be a string value"),
            ("/line:predict", '{"instances": [[1.0]], "signature_name": "nosuch"}', 400, "nosuch"),
            ("/texts:predict", '{"instances": [{"b64": "%"}]}', 400, "Unable to base64 decode"),
            ("/lookup:predict", '{"instances": [[7]]}', 400, "indices[0,0] = 7 is not in [0, 3)"),
            ("/line:regress", '{"examples": [{"x": 1.0}]}', 400, ""),
            ("/line/versions/1/labels/stable:predict", "{}", 400, "Malformed request: POST"),
            ("/line/versions/99999999999999999999:predict", "{}", 400, "Failed to convert version"),
        ],
    )
    def test_errors(self, addresses: dict[str, str], path: str, body: str, status: int, text: str) -> None:
        found, answer = rest(addresses, path, body)
        assert (found, list(answer)) == (status, ["error"])
        assert text in answer["error"]

    def test_a_wrong_value_is_no_error_of_the_server(self, addresses: dict[str, str]) -> None:
        assert rest(addresses, "/lookup:predict", {"instances": [[0], [2]]}) == (200, {"predictions": [[10.0], [30.0]]})
        sent = {"inputs": [{"name": "index", "datatype": "INT64", "shape": [1, 1], "data": [7]}]}
        status, body = curl(f"{addresses['http']}/v2/models/lookup/infer", body=json.dumps(sent).encode())
        assert (status, "InvalidArgumentError" in json.loads(body)["error"]) == (400, True)

    def test_wrong_verbs_and_paths(self, addresses: dict[str, str]) -> None:
        assert rest(addresses, "")[1] == {"error": "Missing model name in request."}
        assert rest(addresses, "/nosuch")[0] == 404
        status, answer = rest(addresses, "/line:predict", None)
        assert (status, "Malformed request: GET" in answer["error"]) == (400, True)
        status, _ = curl(f"{addresses['http']}/v3/models/line")
        assert status == 404
