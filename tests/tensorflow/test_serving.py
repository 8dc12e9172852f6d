"""Real models served by the real daemon give what TensorFlow gives when it is called directly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zmq
from all_models import FORMATS, Direct
from click.testing import CliRunner
from running import START_S, STEP_S, Running

from multitower import Client, InvalidRequest, ModelError, NotFound, Unavailable, wire
from multitower.cli import commands

READ_RECORDED = Path(__file__).parents[1] / "fakes" / "read_recorded.py"


@pytest.fixture(scope="module")
def folder(all_models: Path) -> Path:
    return all_models


@pytest.fixture(scope="module")
def daemon(daemon_of_all_models: Running) -> Running:
    return daemon_of_all_models


@pytest.fixture
def client(daemon: Running) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


def same(answer: dict[str, Any], wanted: dict[str, np.ndarray], *, exact: bool = True) -> None:
    assert set(answer) == set(wanted)
    for name, array in wanted.items():
        got = answer[name]
        assert got.shape == array.shape, name
        assert got.dtype == array.dtype, name
        if exact or got.dtype == object:
            assert got.tobytes() == array.tobytes() if got.dtype != object else got.tolist() == array.tolist(), name
        else:
            np.testing.assert_allclose(got, array, rtol=1e-5, atol=1e-6, err_msg=name)


ALONE = [
    "dense",
    "words",
    *FORMATS,
    "frozen",
    "frozen-1",
    "vocabulary",
    "vocabulary-1",
    "legacy",
    "legacy-keras",
    "mean",
    "sneaky",
    "scalar",
    "fixed",
    "picky",
    "keras",
    "keras-h5",
    "guesslang",
    "basic-pitch",
]


@pytest.mark.parametrize("model", ALONE)
def test_a_single_request_gets_tensorflows_answer_to_the_bit(model: str, folder: Path, client: Client) -> None:
    direct = direct_of(model, folder)
    same(client.infer(model, named(client, model, direct)), direct.outputs)


def direct_of(model: str, folder: Path) -> Direct:
    """The expected outputs; one model in several formats or with other batching has the same."""
    file = "datatypes" if model in FORMATS else SAME.get(model, model)
    return Direct(folder / f"{file}.npz")


SAME = {"padded": "dense", "compiled": "dense", "warmed": "picky", "keras-h5": "keras", "legacy-keras": "legacy"}

MIXED = [
    "dense",
    "padded",
    "words",
    *FORMATS,
    "frozen",
    "frozen-1",
    "vocabulary",
    "vocabulary-1",
    "legacy",
    "legacy-keras",
    "keras",
    "keras-h5",
    "compiled",
    "warmed",
    "guesslang",
    "basic-pitch",
    "picky",
]


@pytest.mark.parametrize("model", MIXED)
def test_each_request_of_a_mixed_batch_gets_its_own_rows(model: str, folder: Path, client: Client) -> None:
    direct = direct_of(model, folder)
    inputs = named(client, model, direct)
    rows = len(next(iter(inputs.values())))
    before = stats(client, model)
    futures = [
        (row, client.submit(model, {name: array[row : row + 1] for name, array in inputs.items()}))
        for _ in range(1 if model == "basic-pitch" else 12)
        for row in range(rows)
    ]
    for row, future in futures:
        same(future.result(STEP_S), {n: a[row : row + 1] for n, a in direct.outputs.items()}, exact=model in FORMATS)
    after = stats(client, model)
    if model != "basic-pitch":
        assert after["batches"] - before["batches"] < len(futures), "nothing was batched"


def named(client: Client, model: str, direct: Direct) -> dict[str, np.ndarray]:
    """The inputs by their real names, which only the daemon knows for some models."""
    names = [tensor["name"] for tensor in client.metadata(model)["inputs"]]
    return direct.inputs if len(names) != 1 else dict(zip(names, direct.inputs.values(), strict=True))


def stats(client: Client, model: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in client.status()["models"] if entry["name"] == model)
    return found


@pytest.mark.parametrize("model", ["mean", "sneaky"])
def test_outputs_over_the_whole_batch_are_not_shared(model: str, folder: Path, client: Client) -> None:
    direct = Direct(folder / f"{model}.npz")
    x = direct.inputs["x"]
    futures = [client.submit(model, {"x": x * factor}) for factor in range(20)]
    for factor, future in enumerate(futures):
        answer = future.result(STEP_S)
        for name, array in direct.outputs.items():
            np.testing.assert_allclose(answer[name], array * factor, rtol=1e-5)
    state = stats(client, model)
    assert state["max_batch_size"] == 0
    assert next(iter(direct.outputs)) in state["unbatched_because"]


def test_recorded_requests_warm_up_the_model_and_keep_every_datatype(
    folder: Path, daemon: Running, client: Client, tmp_path: Path
) -> None:
    for model in ("datatypes", "dense"):
        direct = direct_of(model, folder)
        file = tmp_path / model
        with ThreadPoolExecutor(1) as pool:
            seen = len(daemon.lines)
            command = ["record", model, "--count", "2", "--output", str(file), "--endpoint", daemon.endpoint]
            recording = pool.submit(CliRunner().invoke, commands.multitower, command)
            daemon.wait_line("recording requests", START_S, after=seen)
            client.infer(model, direct.inputs)
            client.infer(model, {name: array[:1] for name, array in direct.inputs.items()})
            assert recording.result(START_S).exit_code == 0, recording.result().output
    model_folder = shutil.copytree(folder / "dense" / "10", tmp_path / "model")
    (model_folder / "assets.extra").mkdir()
    shutil.move(tmp_path / "dense", model_folder / "assets.extra" / "tf_serving_warmup_requests")
    program = [sys.executable, str(READ_RECORDED), tmp_path / "datatypes", folder / "datatypes.npz", model_folder]
    done = subprocess.run(program, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "16 inputs are the same\n2 samples warm up the model: (None, True)\n"


def test_a_bad_row_is_an_error_for_its_sender_only(folder: Path, client: Client) -> None:
    futures: list[tuple[int, Future[Any]]] = [
        (number, client.submit("picky", {"x": np.array([[number]], np.float32)})) for number in range(-1, 60)
    ]
    for number, future in futures:
        if number < 0:
            with pytest.raises(ModelError, match="negative row") as raised:
                future.result(STEP_S)
            assert raised.value.details["status"] == "INVALID_ARGUMENT"
        else:
            assert future.result(STEP_S)["y"][0, 0] == pytest.approx(number**0.5)


def test_a_large_request_is_split_over_batches(client: Client) -> None:
    x = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    answer = client.infer("dense", {"x": x})
    weights = np.arange(24, dtype=np.float32).reshape(6, 4) / 7 * 10
    np.testing.assert_allclose(answer["y"], x @ weights, rtol=1e-4, atol=1e-4)
    assert answer["best"].tolist() == (x @ weights).argmax(axis=1).tolist()


@pytest.mark.parametrize("model", ["masked", "exact"])
def test_padded_requests_under_load_are_answered_as_if_separate(model: str, folder: Path, client: Client) -> None:
    x = Direct(folder / "masked.npz").inputs["x"]
    sent, before = [], stats(client, model)
    for number in range(200):
        row, length = number % len(x), 1 + number % x.shape[1]
        inputs = {"x": x[row : row + 1, :length], "length": np.int32([length])}
        sent.append((x[row, :length].sum(), client.submit(model, inputs)))
    for wanted, future in sent:
        assert future.result(STEP_S)["sum"].tolist() == [wanted]
    after = stats(client, model)
    assert after["batches"] - before["batches"] < (100 if model == "masked" else 200)
    # Larger than a batch, and of a length that no other request has.
    many = np.tile(x[:1, :3], (100, 1))
    answer = client.infer(model, {"x": many, "length": np.full(100, 3, np.int32)})
    assert answer["sum"].tolist() == [many[0].sum()] * 100


@pytest.mark.parametrize("model", ["mean", "sneaky"])
def test_a_large_request_to_a_model_without_a_batch_dimension_is_not_split(model: str, client: Client) -> None:
    x = np.random.default_rng(0).integers(0, 9, size=(100, 3)).astype(np.float32)
    (answer,) = client.infer(model, {"x": x}).values()
    wanted = x.mean(axis=0) if model == "mean" else [x.sum()]
    np.testing.assert_allclose(answer, wanted, rtol=1e-5)


def test_an_unbatched_model_accepts_requests_of_every_size(folder: Path, client: Client) -> None:
    direct = Direct(folder / "dense.npz")
    same(client.infer("unbatched", direct.inputs), direct.outputs)
    before = stats(client, "unbatched")
    futures = [client.submit("unbatched", {"x": np.ones((40, 6), np.float32)}) for _ in range(10)]
    assert {future.result(STEP_S)["y"].shape for future in futures} == {(40, 4)}
    after = stats(client, "unbatched")
    assert after["batches"] - before["batches"] == 10, "neither joined nor split"
    assert (after["max_batch_size"], after["unbatched_because"]) == (0, None)


def test_a_request_may_choose_outputs(folder: Path, client: Client) -> None:
    direct = Direct(folder / "dense.npz")
    same(client.infer("dense", direct.inputs, outputs=["best"]), {"best": direct.outputs["best"]})
    with pytest.raises(InvalidRequest, match="worst"):
        client.infer("dense", direct.inputs, outputs=["worst"])


def test_the_configured_signature_is_served(client: Client) -> None:
    assert client.infer("twice", {"x": np.ones((1, 6), np.float32)})["double"].tolist() == [[2.0] * 6]


def test_requests_for_another_signature_have_batches_of_their_own(folder: Path, client: Client) -> None:
    direct = Direct(folder / "dense.npz")
    futures = [
        (row, signature, client.submit("dense", {"x": direct.inputs["x"][row : row + 1]}, signature=signature))
        for _ in range(10)
        for row in range(len(direct.inputs["x"]))
        for signature in ("", "twice", "serving_default")
    ]
    for row, signature, future in futures:
        answer = future.result(STEP_S)
        if signature == "twice":
            same(answer, {"double": 2 * direct.inputs["x"][row : row + 1]})
        else:
            same(answer, {name: array[row : row + 1] for name, array in direct.outputs.items()}, exact=False)


def test_the_metadata_lists_the_signatures_and_a_wrong_one_is_refused(client: Client) -> None:
    metadata = client.metadata("dense")
    assert metadata["signature_name"] == "serving_default"
    twice = metadata["signatures"]["twice"]
    assert [output["name"] for output in twice["outputs"]] == ["double"]
    assert (twice["max_batch_size"], twice["unbatched_because"], twice["cause"]) == (8, None, None)
    default = metadata["signatures"]["serving_default"]
    assert (default["inputs"], default["outputs"]) == (metadata["inputs"], metadata["outputs"])
    assert "signatures" not in client.metadata("keras")
    with pytest.raises(NotFound, match="no signature 'thrice', only serving_default, twice"):
        client.infer("dense", {"x": np.ones((1, 6), np.float32)}, signature="thrice")


def test_the_command_line_can_name_a_signature(folder: Path, client: Client) -> None:
    command = [
        sys.executable,
        "-m",
        "multitower",
        "infer",
        "dense",
        "--endpoint",
        client.endpoint,
        "--signature",
        "twice",
    ]
    given = json.dumps({"x": [[1, 2, 3, 4, 5, 6]]})
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=STEP_S, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"double": [[2, 4, 6, 8, 10, 12]]}


def test_the_highest_version_is_served_and_others_are_refused(client: Client) -> None:
    assert client.metadata("dense")["versions"] == ["10"]
    x = np.ones((1, 6), np.float32)
    same(client.infer("dense", {"x": x}, version="10"), client.infer("dense", {"x": x}))
    with pytest.raises(NotFound, match="'2'") as raised:
        client.infer("dense", {"x": x}, version="2")
    assert raised.value.reason == "version_unknown"


def test_the_status_says_why_a_model_cannot_be_served(client: Client) -> None:
    assert stats(client, "no-signature")["state"] == "failed"
    with pytest.raises(Unavailable, match="serving_default, twice"):
        client.infer("no-signature", {"x": np.ones((1, 6), np.float32)})


def test_a_warm_up_file_that_does_not_fit_fails_the_model(folder: Path, client: Client) -> None:
    state = stats(client, "cold")
    assert state["state"] == "failed"
    assert f"{folder / 'words.npz'}: it has the inputs in/text" in state["cause"]


@pytest.mark.parametrize(
    ("model", "tensor"), [("ragged", "'words' is a RaggedTensor"), ("sparse", "'positive' is a Sp")]
)
def test_a_ragged_output_fails_the_model_with_its_name(model: str, tensor: str, client: Client) -> None:
    assert stats(client, model)["state"] == "failed"
    with pytest.raises(Unavailable, match=f"{tensor}.*convert it inside the model"):
        client.infer(model, {"text": np.array([b"a b"], object)})


def test_another_signature_of_a_tensorflow_1_model(folder: Path, client: Client) -> None:
    direct = direct_of("vocabulary-1", folder)
    answer = client.infer("vocabulary-1", {"words": direct.inputs["text"]}, signature="ids")
    same(answer, {"id": direct.outputs["id"]})


def test_the_status_says_why_a_model_runs_unbatched(client: Client) -> None:
    assert "scalar" in stats(client, "scalar")["unbatched_because"]
    assert "fixed at 2" in stats(client, "fixed")["unbatched_because"]
    assert stats(client, "dense")["unbatched_because"] is None


def test_the_status_shows_the_memory_of_each_model(client: Client) -> None:
    models = [model for model in client.status()["models"] if model["state"] == "ready"]
    assert sum(model["host_memory_bytes"] for model in models) > 16 << 20, "TensorFlow's runtime is in the first"
    assert {model["device_memory_bytes"] for model in models} == {None}, "on the CPU"


def test_only_the_request_with_missing_strings_is_refused(client: Client) -> None:
    header = wire.infer_header("words", [wire.Tensor("text", "BYTES", (1, 2))])
    good = b"\x01\0\0\0a\x01\0\0\0b"
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, int(STEP_S * 1000))
        socket.connect(client.endpoint)
        bodies = {b"1": good, b"2": good + b"\0", b"3": good, b"4": b"\xff\xff\xff\xff" * 3, b"5": good}
        for id, body in bodies.items():
            socket.send_multipart([b"", wire.INFER, id, header, body])
        answers = {}
        for _ in bodies:
            _, kind, id, head, *_ = socket.recv_multipart()
            answers[id] = kind if kind == wire.OK else json.loads(head)["error"]["reason"]
    assert answers == {b"1": wire.OK, b"2": "size_mismatch", b"3": wire.OK, b"4": "size_mismatch", b"5": wire.OK}


def test_the_supervisor_maps_no_tensorflow_and_stays_small(daemon: Running) -> None:
    maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    assert "tensorflow" not in maps
    assert "libzmq" in maps
    assert psutil.Process(daemon.process.pid).memory_info().rss < 100e6
    worker = daemon.slot()["pid"]
    assert "tensorflow" in Path(f"/proc/{worker}/maps").read_text()
