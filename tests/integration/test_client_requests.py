"""`Client` against a scripted daemon: what it sends, how it reads answers, and many requests at a time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import fake_daemon
import numpy as np
import pytest
from fake_daemon import FakeDaemon

from multitower import (
    Client,
    InvalidRequest,
    tensors,
    wire,
)
from multitower.client import codec

WAIT_S = 60.0


@pytest.fixture(scope="module")
def echoing() -> Iterator[Client]:
    with FakeDaemon(fake_daemon.echo) as daemon, Client(daemon.endpoint) as client:
        yield client


# Arrays.

NUMBERS = [datatype for datatype in tensors.DATATYPES if datatype not in (tensors.BYTES, tensors.BF16)]
SHAPES = [(), (0, 3), (1,), (2, 3, 2)]


def numbers(datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return (
        (np.arange(count) % 2 if datatype == "BOOL" else np.arange(count))
        .astype(tensors.dtype_of(datatype))
        .reshape(shape)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_are_returned_unchanged(datatype: str, shape: tuple[int, ...], echoing: Client) -> None:
    sent = numbers(datatype, shape)
    received = echoing.infer("m", {"x": sent})["x"]
    assert (received.dtype, received.shape) == (sent.dtype, shape)
    np.testing.assert_array_equal(received, sent)


def test_bf16_is_returned_unchanged(echoing: Client) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    sent = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    received = echoing.infer("m", {"x": sent})["x"]
    assert received.dtype == sent.dtype
    assert received.tolist() == sent.tolist()


TEXTS: dict[str, tuple[Any, Any]] = {
    # input, the bytes that come back
    "str": ("grün", "grün".encode()),
    "bytes": (b"\xff\0", b"\xff\0"),
    "a list of str": (["a", "bc"], [b"a", b"bc"]),
    "a list of bytes that end in zeros": ([b"a\0\0", b""], [b"a\0\0", b""]),
    "nested lists": ([["a", "b"], ["c", "d"]], [[b"a", b"b"], [b"c", b"d"]]),
    "an array of str": (np.array(["a", "bc"]), [b"a", b"bc"]),
    "an array of bytes": (np.array([b"a", b"bc"]), [b"a", b"bc"]),
    "an array of objects": (np.array(["a", b"b\0"], object), [b"a", b"b\0"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text_and_bytes_are_returned_as_bytes(case: str, echoing: Client) -> None:
    sent, wanted = TEXTS[case]
    received = echoing.infer("m", {"x": sent})["x"]
    assert received.dtype == object
    assert received.tolist() == wanted


ARRAYS: dict[str, tuple[Any, np.ndarray]] = {
    "a number": (3.5, np.array(3.5)),
    "a list": ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
    "every second element": (np.arange(10, dtype=np.int32)[::2], np.arange(0, 10, 2, dtype=np.int32)),
    "a transposed array": (np.arange(6.0).reshape(2, 3).T, np.arange(6.0).reshape(2, 3).T.copy()),
    "big-endian": (np.arange(3, dtype=">i4"), np.arange(3, dtype="<i4")),
    "read-only": (np.frombuffer(b"\1\2\3", np.uint8), np.array([1, 2, 3], np.uint8)),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_anything_that_numpy_converts_can_be_sent(case: str, echoing: Client) -> None:
    sent, wanted = ARRAYS[case]
    received = echoing.infer("m", {"x": sent})["x"]
    assert received.dtype == wanted.dtype
    np.testing.assert_array_equal(received, wanted)


UNSENDABLE: dict[str, tuple[Any, str]] = {
    "dates": (np.array(["2020-01-01"], "datetime64[D]"), "datatype_mismatch"),
    "objects": ([object()], "datatype_mismatch"),
    "numbers among text": (["a", 1], "datatype_mismatch"),
    "no text": (["\ud800"], "datatype_mismatch"),
    "records": (np.zeros(2, [("a", "i4")]), "datatype_mismatch"),
    "wider than the protocol": (np.zeros(2, np.longdouble), "datatype_mismatch"),
    "rows of unequal length": ([[1, 2], [3]], "shape_invalid"),
}


@pytest.mark.parametrize("case", UNSENDABLE)
def test_an_input_that_cannot_be_sent_is_refused_by_name(case: str, echoing: Client) -> None:
    value, reason = UNSENDABLE[case]
    with pytest.raises(InvalidRequest, match="'image'") as refused:
        echoing.infer("m", {"image": value})
    assert refused.value.reason == reason
    assert refused.value.details["field"] == "image"


def test_rows_of_unequal_length_are_explained_in_plain_words(echoing: Client) -> None:
    with pytest.raises(InvalidRequest, match="input 'image' is not an array: its lists have different lengths"):
        echoing.infer("m", {"image": [[1, 2], [3]]})


@pytest.mark.parametrize("size", [10, 1 << 17], ids=["small", "large"])
def test_outputs_are_read_only(size: int, echoing: Client) -> None:
    assert not echoing.infer("m", {"x": np.zeros(size, np.uint8)})["x"].flags.writeable


def test_arrays_may_change_once_submit_has_returned(client: Client, daemon: FakeDaemon) -> None:
    x = np.zeros(1 << 16, np.float32)
    futures = []
    for number in range(5):
        x[:] = number
        futures.append(client.submit("m", {"x": x}))
    x[:] = -1
    for number in range(5):
        assert daemon.next().inputs["x"].tolist() == [number] * len(x)


# What is sent.


def test_the_request_has_all_arguments(client: Client, daemon: FakeDaemon) -> None:
    x, names = np.ones((2, 3), np.float32), np.array(["a", "b"])
    client.submit("m", {"x": x, "names": names}, outputs=["b", "a"], version="7", timeout=1.5, priority=3)
    request = daemon.next()
    assert request.json == {
        "model_name": "m",
        "model_version": "7",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 3]},
            {"name": "names", "datatype": "BYTES", "shape": [2]},
        ],
        "outputs": [{"name": "b"}, {"name": "a"}],
        "parameters": {"timeout": 1_500_000, "priority": 3},
    }
    assert request.frames == [x.tobytes(), b"\1\0\0\0a\1\0\0\0b"]
    assert 0 < len(request.id) <= wire.MAX_ID_BYTES


def test_the_timeout_of_the_client_is_sent_by_default(client: Client, daemon: FakeDaemon) -> None:
    client.submit("m", {"x": 1.0})
    assert daemon.next().json["parameters"] == {"timeout": WAIT_S * 1e6}


def test_headers_repeat_but_ids_do_not(client: Client, daemon: FakeDaemon) -> None:
    for number in range(3):
        client.submit("m", {"x": np.full((1, 4), number, np.float32)}, timeout=2.0)
    requests = [daemon.next() for _ in range(3)]
    assert len({request.header for request in requests}) == 1
    assert len({request.id for request in requests}) == 3


def test_headers_of_requests_are_forgotten_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def infer_header(model: str, inputs: Any, **more: Any) -> bytes:
        made.append(inputs[0].shape[0])
        return b" " * 1000

    monkeypatch.setattr(codec.wire, "infer_header", infer_header)
    monkeypatch.setattr(codec, "MAX_CACHED_BYTES", 3000)
    writer = codec.Codec()
    for rows in (1, 2, 3, 3, 1, 4, 4, 1):
        writer.encode(codec.InferRequest("m", {"x": np.zeros(rows)}), 1.0, copy=False)
    assert made == [1, 2, 3, 4, 1], "the fourth header forgot the others"


@pytest.mark.parametrize(
    "arguments",
    [{"priority": np.int64(1)}, {"priority": 1.5j}, {"outputs": [["y"]]}, {"version": b"1"}],
    ids=str,
)
def test_arguments_that_cannot_be_written_are_refused(arguments: dict[str, Any], echoing: Client) -> None:
    with pytest.raises(InvalidRequest) as raised:
        echoing.submit("m", {"x": np.ones(1)}, **arguments)
    assert raised.value.reason == "malformed"


def test_an_invalid_priority_does_not_affect_equal_valid_ones(client: Client, daemon: FakeDaemon) -> None:
    for priority in (True, 1):
        client.submit("m", {"x": np.ones(1)}, priority=priority)
    priorities = [daemon.next().json["parameters"]["priority"] for _ in range(2)]
    assert [type(priority) for priority in priorities] == [bool, int]


def test_masked_elements_are_refused(echoing: Client) -> None:
    with pytest.raises(InvalidRequest, match="input 'x': the protocol has no masked elements"):
        echoing.submit("m", {"x": np.ma.masked_array([1.0, 2.0], [False, True])})
    assert echoing.infer("m", {"x": np.ma.masked_array([1.0, 2.0])})["x"].tolist() == [1, 2]


def test_a_string_as_outputs_is_refused(echoing: Client) -> None:
    with pytest.raises(InvalidRequest, match="outputs"):
        echoing.infer("m", {"x": 1.0}, outputs="scores")


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_of_zero_is_refused(timeout: float, echoing: Client) -> None:
    with pytest.raises(ValueError, match="timeout"):
        echoing.infer("m", {"x": 1.0}, timeout=timeout)


ASKED: dict[str, tuple[bytes, dict[str, Any], dict[str, Any], Any]] = {
    # method: kind, header sent, answer, result
    "live": (wire.SERVER_LIVE, {}, {"live": True}, True),
    "ready": (wire.SERVER_READY, {}, {"ready": False, "slots_ready": 0, "slots_total": 1}, False),
    "server_ready": (wire.SERVER_READY, {}, {"ready": True}, {"ready": True}),
    "status": (wire.STATUS, {}, {"daemon": {}}, {"daemon": {}}),
    "statistics": (wire.STATISTICS, {}, {"model_stats": []}, {"model_stats": []}),
    "model_ready": (wire.MODEL_READY, {"model_name": "m"}, {"name": "m", "ready": True}, True),
    "metadata": (wire.MODEL_METADATA, {"model_name": "m"}, {"name": "m"}, {"name": "m"}),
    "model_config": (wire.MODEL_CONFIG, {"model_name": "m"}, {"name": "m"}, {"name": "m"}),
}


@pytest.mark.parametrize("method", ASKED)
def test_each_query_has_its_kind(method: str, client: Client, daemon: FakeDaemon) -> None:
    kind, header, answer, wanted = ASKED[method]
    results: list[Any] = []
    arguments = ["m"] if header else []
    asking = threading.Thread(target=lambda: results.append(getattr(client, method)(*arguments)))
    asking.start()
    request = daemon.next(kind)
    assert (request.json, request.frames) == (header, [])
    daemon.reply(request, fake_daemon.ok(request.id, answer))
    asking.join(WAIT_S)
    assert results == [wanted]


def test_the_version_is_sent_if_one_is_given(client: Client, daemon: FakeDaemon) -> None:
    asking = threading.Thread(target=lambda: client.metadata("m", "3"))
    asking.start()
    request = daemon.next(wire.MODEL_METADATA)
    assert request.json == {"model_name": "m", "model_version": "3"}
    daemon.reply(request, fake_daemon.ok(request.id, {}))
    asking.join(WAIT_S)


def test_server_metadata_is_that_of_the_daemon(echoing: Client) -> None:
    assert echoing.server_metadata() == fake_daemon.METADATA


# Many at one time.


def test_answers_may_arrive_in_any_order(client: Client, daemon: FakeDaemon) -> None:
    futures = [client.submit("m", {"x": np.array([number])}) for number in range(50)]
    requests = [daemon.next() for _ in futures]
    random.Random(1).shuffle(requests)
    for request in requests:
        daemon.reply(request, fake_daemon.outputs(request.id, y=request.inputs["x"] * 2))
    for number, future in enumerate(futures):
        assert future.result(WAIT_S)["y"].tolist() == [2 * number]


def test_sixteen_threads_share_a_connection(echoing: Client) -> None:
    wrong: list[object] = []

    def work(thread: int) -> None:
        for number in range(50):
            value = thread * 1000 + number
            received = echoing.infer("m", {"x": np.array([value])})["x"].tolist()
            if received != [value]:
                wrong.append((value, received))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_no_answer_remains_unread_whichever_thread_sends(echoing: Client) -> None:
    """Callers send by themselves while the connection's thread sleeps, and may take the sign of an answer from it."""
    rng = random.Random(7)
    pauses = [rng.expovariate(1 / 0.0003) if rng.random() < 0.5 else 0.0 for _ in range(400)]

    def work() -> None:
        for pause in pauses:
            time.sleep(pause)
            echoing.infer("m", {"x": 1.0}, timeout=WAIT_S)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work) for _ in range(3)]:
            done.result()


def test_requests_are_pipelined(client: Client, daemon: FakeDaemon) -> None:
    """All are at the daemon before the first is answered."""
    futures = [client.submit("m", {"x": 1.0}) for _ in range(100)]
    requests = [daemon.next() for _ in futures]
    assert not any(future.done() for future in futures)
    for request in requests:
        daemon.reply(request, fake_daemon.echo(request))
    for future in futures:
        future.result(WAIT_S)


def test_inputs_without_names_are_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match=r"inputs are arrays by name, as in .*, not ndarray") as raised:
        client.infer("m", np.zeros(3))  # type: ignore[arg-type]
    assert raised.value.reason == "malformed"


def test_a_callback_may_submit_but_not_wait(client: Client, daemon: FakeDaemon) -> None:
    results: list[Any] = []
    done = threading.Event()

    def callback(first: Future[Any]) -> None:
        results.append(client.submit("m", {"x": first.result()["x"] + 1}))
        try:
            client.infer("m", {"x": 1.0})
        except RuntimeError as error:
            results.append(error)
        done.set()

    # Answered once the callback is there: of a future that is done, it would run in this thread.
    client.submit("m", {"x": 1.0}).add_done_callback(callback)
    for _ in range(2):
        request = daemon.next()
        daemon.reply(request, fake_daemon.echo(request))
    assert done.wait(WAIT_S)
    assert results[0].result(WAIT_S)["x"].tolist() == 2.0
    assert "callback" in str(results[1])
