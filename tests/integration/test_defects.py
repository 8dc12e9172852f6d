"""Defects injected into a daemon's own code: only the request or order that meets one fails, and the daemon goes on.

The defects are put into modules that are never compiled, so that the tests run on a compiled installation too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import zmq
from running import STEP_S, Running

from multitower import Client, InternalError, wire

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: good, handler: "handlers:Echo"}
  - {name: unsendable_batch, handler: "handlers:Echo"}
  - {name: commanded, handler: "commanded_handlers:Commanded"}
"""

PROGRAM = """
import fcntl, json, runpy
from multitower import wire
from multitower.supervisor.operations.orders import Orders


def broken(function, meets):
    defect = type("ZeroDivisionError", (Exception,), {})  # each of its own type: equal errors are logged once a minute

    def replacement(*arguments, **more):
        if meets(*arguments):
            raise defect("an injected defect")
        return function(*arguments, **more)

    return replacement


wire.load_header = broken(wire.load_header, lambda header: b"unreadable_request" in header)
wire.dump_json = broken(wire.dump_json, lambda value: "unsendable_reply" in str(value))
json.dumps = broken(json.dumps, lambda value: value and type(value) is list and value[0] == "unsendable_batch")
fcntl.fcntl = broken(fcntl.fcntl, lambda *_: True)  # which asks for the seals of a region
Orders.restart = broken(Orders.restart, lambda orders, slot, *_: slot == 7)
runpy.run_module("multitower", run_name="__main__")
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("defects"), CONFIG, program=("-c", PROGRAM)) as running:
        yield running.wait_ready()


@contextmanager
def good_requests(daemon: Running) -> Iterator[None]:
    """Sends good requests meanwhile; each must get its own answer, and some must come after the defect."""
    end = threading.Event()
    wrong: list[BaseException] = []
    answered = [0]

    def run() -> None:
        try:
            with daemon.client(shared_memory=False) as client:
                while not end.is_set():
                    futures = [client.submit("good", {"x": np.full(4, number)}) for number in range(8)]
                    for number, future in enumerate(futures):
                        assert future.result(STEP_S)["x"].tolist() == [number] * 4
                    answered[0] += 1
        except BaseException as error:  # noqa: BLE001  the main thread raises it
            wrong.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        daemon.wait(lambda: answered[0] > 0 or bool(wrong))
        yield
        before = answered[0]
        daemon.wait(lambda: answered[0] > before + 1 or bool(wrong))
    finally:
        end.set()
        thread.join(STEP_S)
    assert not wrong


def unreadable_request(client: Client) -> None:
    client.infer("good", {"unreadable_request": np.zeros(1)})


def unsendable_reply(client: Client) -> None:
    client.infer("commanded", {"do": np.array([b"raise unsendable_reply"], object)})


def unsendable_batch(client: Client) -> None:
    client.infer("unsendable_batch", {"x": np.zeros(1)})


def unreadable_region(client: Client) -> None:
    client.infer("good", {"x": np.zeros(100_000)})


@pytest.mark.parametrize(
    ("send", "line"),
    [
        (unreadable_request, "internal error while handling a request"),
        (unreadable_region, "internal error while handling a request"),
        (unsendable_reply, "internal error while sending a reply"),
        (unsendable_batch, "internal error while sending a batch"),
    ],
)
def test_a_defect_costs_one_request_its_answer(send: object, line: str, daemon: Running) -> None:
    before = daemon.status()
    seen = len(daemon.lines)
    with good_requests(daemon), daemon.client(retries=0) as client:
        client.live()
        for _ in range(3):
            with pytest.raises(InternalError, match="whose log has the traceback"):
                send(client)  # type: ignore[operator]
    assert "ZeroDivisionError: an injected defect" in daemon.wait_line(line, after=seen)["traceback"]
    assert len([each for each in daemon.lines[seen:] if each["message"] == line]) == 1, "one line for three errors"
    after = daemon.status()
    assert after["slots"][0]["pid"] == before["slots"][0]["pid"]
    assert after["daemon"]["replies_dropped"] == before["daemon"]["replies_dropped"] == 0
    assert [model["queue"] for model in after["models"]] == [0, 0, 0]


def test_a_defect_costs_one_order_its_answer(daemon: Running) -> None:
    control = daemon.status()["daemon"]["control"]
    line = "internal error while handling an order"
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVTIMEO, int(STEP_S * 1000))
        socket.connect(control)
        for slot, reason in ((7, "internal_error"), (8, "slot_unknown"), (7, "internal_error")):
            socket.send_multipart([wire.RESTART, b"id", wire.dump_json({"slot": slot})])
            kind, id, answer = socket.recv_multipart()
            assert (kind, id) == (wire.ERROR, b"id")
            assert wire.load_header(answer)["error"]["reason"] == reason
    assert "ZeroDivisionError" in daemon.wait_line(line)["traceback"]
    assert len([each for each in daemon.lines if each["message"] == line]) == 1, "one line for two errors"
    assert daemon.status()["slots"][0]["state"] == "ready"
