"""Loading, unloading and changed configurations through the gateway, with clients of Triton and TensorFlow Serving.

One daemon with `operate: true`. That these orders are refused without it is tested with the other requests of each
client.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import foreign
import pytest
from foreign import Programs, curl
from running import Running

FORMS = ("http", "http.aio", "grpc", "grpc.aio")
OWN_MODELS = [f"m-{form}" for form in FORMS]
MODELS = ["steady", OWN_MODELS[0]]
CONFIG = f"""
listen: ["{{endpoint}}"]
devices: {{cpu: 1}}
spares: 1
gateway: {{http: "127.0.0.1:*", grpc: "127.0.0.1:*", operate: true}}
models:
{"".join(f'  - {{name: {model}, handler: "handlers:DeclaredReckoner"}}{chr(10)}' for model in ("steady", *OWN_MODELS))}
  - {{name: broken, handler: "handlers:Broken"}}
"""
AVAILABLE, ENDED = ["AVAILABLE"], ["END"]

pytestmark = [
    pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing())),
    pytest.mark.skipif(bool(foreign.clients_missing()), reason=str(foreign.clients_missing())),
]


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with Running(tmp_path_factory.mktemp("operate"), CONFIG) as daemon:
        daemon.wait_ready()
        yield foreign.addresses(daemon)
        assert daemon.end() == 0, daemon.text()


@pytest.fixture(scope="module")
def programs(addresses: dict[str, str]) -> Iterator[Programs]:
    running = Programs(addresses, *(("triton_operate", form) for form in FORMS))
    yield running
    running.close()


@pytest.fixture(params=FORMS)
def triton(request: pytest.FixtureRequest, programs: Programs) -> dict[str, Any]:
    return {"form": request.param, **programs["triton_operate", request.param]}


@pytest.fixture(scope="module")
def reloads(addresses: dict[str, str], programs: Programs) -> dict[str, Any]:
    """The results of TensorFlow Serving's client, whose orders concern all models: it begins after the others."""
    programs.close()
    found = importlib.util.find_spec("tensorflow")
    assert found is not None
    tensorflow = str(Path(str(found.origin)).parent)
    return foreign.run("tensorflow_reload", {**addresses, "tensorflow": tensorflow, "models": MODELS})


class TestTriton:
    def test_a_model_is_unloaded_and_loaded_again(self, triton: dict[str, Any]) -> None:
        assert triton["index"] == triton["index_loaded"] == ["1", "READY", ""]
        assert triton["unload"] is triton["load"] is None
        assert triton["index_unloaded"][1:] == ["UNAVAILABLE", "unloaded"]
        assert triton["ready_unloaded"] is False
        assert triton["infer"] == triton["still_serves"] == [[16]]

    def test_orders_that_change_nothing_succeed(self, triton: dict[str, Any]) -> None:
        assert triton["unload_again"] is triton["load_again"] is None

    @pytest.mark.parametrize(
        ("case", "http", "grpc", "text"),
        [
            ("infer_unloaded", "503", "UNAVAILABLE", "unloaded"),
            ("load_unknown", "404", "NOT_FOUND", "nosuch"),
            ("unload_unknown", "404", "NOT_FOUND", "nosuch"),
            ("load_with_config", "501", "UNIMPLEMENTED", "config"),
            ("load_with_files", "501", "UNIMPLEMENTED", "parameter"),
        ],
    )
    def test_orders_that_fail_have_their_status(
        self, triton: dict[str, Any], case: str, http: str, grpc: str, text: str
    ) -> None:
        assert triton[case]["status"] == (f"StatusCode.{grpc}" if triton["form"].startswith("grpc") else http)
        assert text in triton[case]["message"]

    @pytest.mark.parametrize(("form", "status"), [("http", "500"), ("grpc", "StatusCode.INTERNAL")])
    def test_a_model_that_cannot_be_loaded_has_its_cause(self, programs: Programs, form: str, status: str) -> None:
        failed = programs["triton_operate", form]["load_broken"]
        assert failed["status"] == status
        assert "the weights are missing" in failed["message"]


class TestTensorFlowServing:
    def test_exactly_the_models_of_the_request_are_loaded(self, reloads: dict[str, Any]) -> None:
        first, second = MODELS
        every = dict.fromkeys(MODELS, AVAILABLE)
        none = dict.fromkeys(MODELS, ENDED)
        assert reloads["before"] == every
        assert reloads["one"] == {"status": {}, "states": {**none, first: AVAILABLE}}
        assert reloads["other"] == {"status": {}, "states": {**none, second: AVAILABLE}}
        assert reloads["all"] == reloads["unchanged"] == {"status": {}, "states": every}

    @pytest.mark.parametrize(
        ("case", "status", "text"),
        [
            ("unknown_model", "FAILED_PRECONDITION", "nosuch"),
            ("other_versions", "FAILED_PRECONDITION", "versions"),
            ("other_labels", "FAILED_PRECONDITION", "labels"),
            ("nothing", "INVALID_ARGUMENT", "model_config_list"),
            ("custom", "UNIMPLEMENTED", "custom_model_config"),
        ],
    )
    def test_what_only_the_configuration_can_change_is_refused(
        self, reloads: dict[str, Any], case: str, status: str, text: str
    ) -> None:
        assert reloads[case]["status"] == f"StatusCode.{status}"
        assert text in reloads[case]["message"]
        assert reloads["after_refusals"] == dict.fromkeys(MODELS, AVAILABLE)


class TestCurl:
    def test_the_index_lists_what_is_ready(self, addresses: dict[str, str], reloads: dict[str, Any]) -> None:
        assert reloads["after_refusals"]
        status, body = curl(f"{addresses['http']}/v2/repository/index", body=b'{"ready": true}')
        assert (status, sorted(row["name"] for row in json.loads(body))) == (200, sorted(MODELS))
        status, body = curl("-X", "POST", f"{addresses['http']}/v2/repository/index")
        assert (status, len(json.loads(body))) == (200, len(OWN_MODELS) + 2)

    @pytest.mark.parametrize(("body", "words"), [(b"{", "not JSON"), (b"[]", "not a JSON object")])
    def test_a_malformed_body_is_refused(self, addresses: dict[str, str], body: bytes, words: str) -> None:
        status, answer = curl(f"{addresses['http']}/v2/repository/models/{MODELS[0]}/load", body=body)
        assert (status, words in json.loads(answer)["error"]) == (400, True)
