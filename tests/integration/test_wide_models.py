"""Models with thousands of inputs and outputs, and models to which the protocol can carry no request."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from running import STEP_S, Running

from multitower import Client, InvalidRequest, wire

INPUTS = 1100

HANDLERS = """
class Wide:
    def load(self, devices, parameters):
        tensor = {"datatype": "FP32", "shape": [-1, *parameters.get("row", [])]}
        self.inputs = [{"name": f"feature_{number:05}", **tensor} for number in range(parameters["inputs"])]

    def infer(self, inputs):
        return {f"{name}_doubled": 2 * array for name, array in inputs.items()}
"""

CONFIG = f"""
listen: ["{{endpoint}}"]
devices: {{cpu: 2}}
spares: 0
models:
  - {{name: wide, handler: "wide:Wide", parameters: {{inputs: {INPUTS}}}, batching: {{max_batch_size: 8}}}}
  - {{name: widest, handler: "wide:Wide", parameters: {{inputs: {wire.MAX_INPUTS}}}}}
  - {{name: too-wide, handler: "wide:Wide", parameters: {{inputs: {wire.MAX_INPUTS + 1}}}}}
  - {{name: too-large, handler: "wide:Wide", parameters: {{inputs: 2, row: [1000, 10000]}}}}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("wide")
    (folder / "wide.py").write_text(HANDLERS)
    with Running(folder, CONFIG) as running:
        yield running.wait_ready()


@pytest.fixture
def client(daemon: Running) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


def features(count: int, rows: int, start: int) -> dict[str, np.ndarray]:
    return {
        f"feature_{number:05}": np.arange(start + number, start + number + rows, dtype=np.float32)
        for number in range(count)
    }


def test_concurrent_requests_with_many_inputs_share_batches(client: Client) -> None:
    requests = [features(INPUTS, 1 + number % 3, 7 * number) for number in range(24)]
    answers = [client.submit("wide", request, timeout=STEP_S) for request in requests]
    for request, future in zip(requests, answers, strict=True):
        answer = future.result(STEP_S)
        assert list(answer) == [f"{name}_doubled" for name in request]
        assert all(np.array_equal(answer[f"{name}_doubled"], 2 * array) for name, array in request.items())
    (stats,) = client.statistics("wide")["model_stats"]
    assert stats["execution_count"] < stats["inference_count"]


def test_the_most_inputs_that_a_request_may_have_are_served(client: Client) -> None:
    request = features(wire.MAX_INPUTS, 1, 3)
    answer = client.infer("widest", request, timeout=STEP_S)
    assert all(np.array_equal(answer[f"{name}_doubled"], 2 * array) for name, array in request.items())


def test_an_error_about_many_inputs_lists_the_first_ones(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.infer("wide", {"feature_00000": np.zeros(1, np.float32)})
    assert "'feature_00001', " in str(caught.value)
    assert f"and {INPUTS - 17} more" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        ("too-wide", f"it has {wire.MAX_INPUTS + 1} inputs; a request can have {wire.MAX_INPUTS}"),
        ("too-large", "and max_message_size is 67108864: raise it"),
    ],
)
def test_a_model_that_no_request_can_reach_fails_with_the_limit(model: str, cause: str, client: Client) -> None:
    (state,) = (entry for entry in client.status()["models"] if entry["name"] == model)
    assert state["slots_ready"] == 0
    causes = {entry["cause"] for slot in client.status()["slots"] for entry in slot["models"] if entry["name"] == model}
    assert len(causes) == 1
    assert cause in causes.pop()
