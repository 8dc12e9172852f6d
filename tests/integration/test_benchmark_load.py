"""The benchmarks' load generator load.c, with scripted servers: its counts, and wrong answers."""

from __future__ import annotations

import importlib.util
import json
import socket as socket_module
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import zmq

from multitower import wire
from multitower.infer_header import parse_infer_header

SOURCE = Path(__file__).parents[2] / "benchmarks" / "load.py"
Answers = Callable[[list[bytes]], list[list[bytes]]]


def right(request: list[bytes]) -> list[list[bytes]]:
    """The right answer of an echo."""
    client, empty, kind, id, header, tensor = request
    assert (empty, kind) == (b"", wire.INFER)
    assert parse_infer_header(header).model_name == "model"
    return [[client, b"", wire.OK, id, b"{}", tensor]]


def changed(place: int, value: bytes) -> Answers:
    """The right answer with one frame replaced."""

    def answer(request: list[bytes]) -> list[list[bytes]]:
        (reply,) = right(request)
        return [[*reply[:place], value, *reply[place + 1 :]]]

    return answer


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled load generator."""
    spec = importlib.util.spec_from_file_location("benchmark_load", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = ModuleType(spec.name)
    module.__file__ = str(SOURCE)
    spec.loader.exec_module(module)
    return Path(module.build(tmp_path_factory.mktemp("load")))


@contextmanager
def server(endpoint: str, answers: Answers) -> Iterator[list[bytes]]:
    """Runs a server with these answers; yields the clients of its requests, in order."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(endpoint)
    ended = threading.Event()
    asked: list[bytes] = []

    def serve() -> None:
        while not ended.is_set():
            if socket.poll(20):
                request = socket.recv_multipart()
                asked.append(request[0])
                for reply in answers(request):
                    socket.send_multipart(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        ended.set()
        thread.join()
        socket.close(0)
        context.term()


def run(program: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Runs load.c; returns exit code, figures and stderr."""
    ended = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=60)
    return ended.returncode, json.loads(ended.stdout or "{}"), ended.stderr


def test_answers_are_counted(program: Path, tmp_socket: str) -> None:
    with server(tmp_socket, right) as asked:
        code, figures, complaints = run(program, tmp_socket, "-c", "8", "-n", "4", "-r", "1000", "-t", "60", "-v")
    assert (code, complaints) == (0, "")
    assert len(set(asked)) == 4
    # After the thousandth answer, the other seven outstanding requests are answered as well.
    assert figures["answered"] == len(asked) == 1007
    assert (figures["errors"], figures["lost"]) == (0, 0)
    assert 0 < figures["p50"] <= figures["p99"] <= figures["max"]


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        (changed(2, wire.ERROR), "an error"),
        (changed(3, b"unknown"), "an answer to no request"),
        (changed(5, bytes(63)), "wrong outputs"),
        (changed(5, bytes(64)), "wrong outputs"),
        (lambda request: 2 * right(request), "an answer to no request"),
    ],
    ids=["error", "id", "size", "content", "twice"],
)
def test_a_wrong_answer_is_found(program: Path, tmp_socket: str, answers: Answers, complaint: str) -> None:
    with server(tmp_socket, answers):
        code, figures, complaints = run(program, tmp_socket, "-c", "1", "-r", "10", "-t", "0.2", "-v")
    assert code == 1
    assert figures["errors"] > 0
    assert complaint in complaints


def test_lost_requests_are_counted(program: Path, tmp_socket: str) -> None:
    with server(tmp_socket, lambda request: []):
        code, figures, complaints = run(program, tmp_socket, "-c", "3", "-t", "0.1")
    assert (code, figures["lost"]) == (1, 3)
    assert "3 requests were not answered" in complaints


def test_an_open_loop_sends_to_the_endpoints_in_turn(program: Path, tmp_socket: str) -> None:
    endpoints = [tmp_socket, tmp_socket + "2"]
    with server(endpoints[0], right) as one, server(endpoints[1], right) as two:
        code, figures, complaints = run(program, *endpoints, "-a", "1000", "-t", "0.5")
    assert (code, complaints) == (0, "")
    assert figures["answered"] == len(one) + len(two) == figures["n"]
    assert abs(len(one) - len(two)) <= 1
    # Random times, the same in each run: about 500.
    assert 400 < figures["n"] < 600


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_tensors_larger_than_the_buffers_of_sockets_pass(program: Path, tmp_socket: str, transport: str) -> None:
    with socket_module.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    endpoint = tmp_socket if transport == "ipc" else f"tcp://127.0.0.1:{port}"
    with server(endpoint, right) as asked:
        code, figures, complaints = run(
            program, endpoint, "-c", "4", "-n", "2", "-s", "1,500000", "-r", "20", "-t", "60", "-v"
        )
    assert (code, complaints) == (0, "")
    assert figures["answered"] == len(asked) >= 20


def test_a_peer_that_does_not_speak_zeromq_is_named(program: Path, tmp_socket: str) -> None:
    with socket_module.socket(socket_module.AF_UNIX) as listener:
        listener.bind(tmp_socket.removeprefix("ipc://"))
        listener.listen(1)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n".ljust(100))
                connection.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        code, _, complaints = run(program, tmp_socket, "-c", "1", "-t", "60")
        thread.join()
    assert code == 1
    assert "greeting" in complaints


def test_an_endpoint_where_nobody_listens_is_named(program: Path, tmp_socket: str) -> None:
    code, _, complaints = run(program, tmp_socket, "-c", "1", "-t", "60")
    assert (code, complaints) == (1, f"load: {tmp_socket}: No such file or directory\n")
