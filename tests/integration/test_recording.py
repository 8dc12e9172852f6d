"""`multitower record` with a real daemon: which requests it writes, and what it reports when there are fewer."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fake_daemon
import numpy as np
import pytest
from click.testing import CliRunner
from fake_daemon import FakeDaemon, Received
from running import STEP_S, Running

from multitower import Client, ModelError, MultitowerError, Reason, wire
from multitower.cli import commands
from multitower.client.requests import Requests
from multitower.exit_codes import Exit
from multitower.supervisor.lifecycle import REPEAT_S
from multitower.tools.prediction_log import RecordedRequest, read_recorded

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: echo, handler: "handlers:Echo", batching: {max_batch_size: 8}}
  - {name: commanded, handler: "commanded_handlers:Commanded"}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("recording"), CONFIG) as running:
        yield running.wait_ready()


@pytest.fixture
def client(daemon: Running) -> Iterator[Client]:
    with daemon.client() as made:
        made.live()  # from then on the client knows that the daemon accepts shared memory
        yield made


class Recording(threading.Thread):
    """`multitower record`, from when the daemon records until the command ends."""

    def __init__(self, daemon: Running, *arguments: str) -> None:
        super().__init__()
        self._arguments = ["record", *arguments, "--endpoint", daemon.endpoint]
        seen = len(daemon.lines)
        self.start()
        daemon.wait_line("recording requests", STEP_S, after=seen)

    def run(self) -> None:
        self._done = CliRunner().invoke(commands.multitower, self._arguments)

    def result(self) -> tuple[int, str, str]:
        """The exit code and the output of the command."""
        self.join(STEP_S)
        return self._done.exit_code, self._done.stdout, self._done.stderr


def ask(daemon: Running, header: dict[str, object]) -> tuple[dict[str, object], list[RecordedRequest]]:
    """Gives the order to record at the control endpoint; returns the reply's header and the requests."""
    control = Requests(daemon.status()["daemon"]["control"], STEP_S, STEP_S)
    try:
        reply, frames = control.start_framed_query(wire.RECORD, header, STEP_S).result()
    finally:
        control.close()
    return reply, read_recorded(frames)


def test_the_next_answered_requests_are_written_to_a_private_file(
    daemon: Running, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "tf_serving_warmup_requests"
    file.write_bytes(b"before")
    file.chmod(0o644)
    recording = Recording(daemon, "commanded", "--count", "2", "--output", str(file))
    for command in ("raise wrong", "nothing", "raise wrong again", "nothing more"):
        do = {"do": np.array([[command]], object)}
        if command.startswith("raise"):
            with pytest.raises(ModelError):
                client.infer("commanded", do)
        else:
            client.infer("commanded", do)
    code, out, err = recording.result()
    content = file.read_bytes()
    assert (code, out, err) == (0, f"recorded 2 requests to commanded in {file} ({len(content)} bytes)\n", "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert content.count(b"nothing") == 2
    assert b"wrong" not in content
    assert os.listdir(tmp_path) == [file.name]


def test_inputs_in_frames_and_in_shared_memory_are_recorded(daemon: Running, client: Client) -> None:
    small, large = np.arange(6, dtype=np.float16).reshape(2, 3), np.random.default_rng(1).random((2, 20_000))
    recorded: list[RecordedRequest] = []
    seen = len(daemon.lines)

    def record() -> None:
        recorded.extend(ask(daemon, {"model_name": "echo", "count": 2, "timeout_ms": 1000 * STEP_S})[1])

    thread = threading.Thread(target=record)
    thread.start()
    daemon.wait_line("recording requests", STEP_S, after=seen)
    shared = client.empty(large.shape, large.dtype)
    shared[:] = large
    client.infer("echo", {"x": shared}, timeout=STEP_S)
    shared[:] = 0
    client.infer("echo", {"x": small}, timeout=STEP_S)
    thread.join(STEP_S)
    assert [(each.inputs[0].datatype, each.inputs[0].shape) for each in recorded] == [
        ("FP64", (2, 20_000)),
        ("FP16", (2, 3)),
    ]
    assert [bytes(each.inputs[0].data) for each in recorded] == [large.tobytes(), small.tobytes()]


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        ("timeout", "no more were answered within 60 s (--timeout)"),
        ("full", "the inputs of more would exceed what the daemon keeps, 256 MiB for all recordings"),
        ("draining", "the daemon is stopping"),
    ],
)
def test_fewer_requests_than_asked_for_are_written_with_the_reason(
    ended: str, why: str, tmp_socket: str, tmp_path: Path
) -> None:
    described = {"signature_name": "", "outputs": None, "inputs": [{"name": "x", "datatype": "UINT8", "shape": [2]}]}

    def answer(request: Received) -> list[bytes]:
        if request.kind == wire.STATUS:
            return fake_daemon.ok(request.id, {"daemon": {"control": tmp_socket}})
        assert request.json == {"model_name": "m", "model_version": "7", "count": 100, "timeout_ms": 60_000.0}
        return fake_daemon.ok(request.id, {"recorded": 1, "ended": ended}, json.dumps(described).encode(), b"ab")

    file = tmp_path / "file"
    command = ["record", "m", "--version", "7", "--output", str(file), "--endpoint", tmp_socket]
    with FakeDaemon(answer, tmp_socket):
        done = CliRunner().invoke(commands.multitower, command)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == (
        f"recorded 1 request to m in {file} ({file.stat().st_size} bytes)\n100 were asked for: {why}\n"
    )


def test_without_a_request_nothing_is_written(tmp_socket: str, tmp_path: Path) -> None:
    def answer(request: Received) -> list[bytes]:
        if request.kind == wire.STATUS:
            return fake_daemon.ok(request.id, {"daemon": {"control": tmp_socket}})
        return fake_daemon.ok(request.id, {"recorded": 0, "ended": "timeout"})

    file = tmp_path / "file"
    with FakeDaemon(answer, tmp_socket):
        command = ["record", "m", "--output", str(file), "--endpoint", tmp_socket]
        done = CliRunner().invoke(commands.multitower, command)
    assert (done.exit_code, done.stdout) == (1, "")
    why = "no more were answered within 60 s (--timeout)"
    assert done.stderr == f"multitower: no request was recorded, and {file} was not written: {why}\n"
    assert not file.exists()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({}, Reason.MALFORMED),
        ({"model_name": "nosuch"}, Reason.MODEL_UNKNOWN),
        ({"model_name": "echo", "model_version": "9"}, Reason.VERSION_UNKNOWN),
        ({"model_name": "echo", "count": 0}, Reason.MALFORMED),
        ({"model_name": "echo", "count": wire.MAX_RECORDED + 1}, Reason.MALFORMED),
        ({"model_name": "echo", "count": True}, Reason.MALFORMED),
        ({"model_name": "echo", "timeout_ms": 0}, Reason.MALFORMED),
    ],
)
def test_a_wrong_order_to_record_is_refused(daemon: Running, header: dict[str, object], reason: Reason) -> None:
    with pytest.raises(MultitowerError) as raised:
        ask(daemon, header)
    assert raised.value.reason == reason


def test_clients_cannot_record(daemon: Running) -> None:
    front = Requests(daemon.endpoint, STEP_S, STEP_S)
    try:
        with pytest.raises(MultitowerError) as raised:
            front.start_framed_query(wire.RECORD, {"model_name": "echo"}, STEP_S).result()
    finally:
        front.close()
    assert raised.value.reason == Reason.KIND_UNKNOWN


def test_a_file_that_cannot_be_written_is_reported_at_once(daemon: Running, tmp_path: Path) -> None:
    command = ["record", "echo", "--output", str(tmp_path / "no" / "file"), "--endpoint", daemon.endpoint]
    done = CliRunner().invoke(commands.multitower, command)
    assert done.exit_code == 1
    assert done.stderr == f"multitower: {tmp_path / 'no' / 'file'} cannot be written: No such file or directory\n"


def test_the_end_of_the_daemon_answers_a_recording_with_what_it_has(tmp_path: Path) -> None:
    # The daemon ends by itself, without a drain.
    config = CONFIG + "exit_when_failed: true\nrestart: {max_restarts: 0}\n"
    file = tmp_path / "file"
    with Running(tmp_path, config) as daemon, daemon.wait_ready().client() as client:
        recording = Recording(daemon, "echo", "--count", "5", "--output", str(file))
        client.infer("echo", {"x": np.ones((1, 2), np.float32)})
        os.kill(daemon.slot()["pid"], signal.SIGKILL)
        code, out, err = recording.result()
        assert (code, err) == (0, "")
        assert out.endswith("5 were asked for: the daemon is stopping\n")
        assert out.startswith(f"recorded 1 request to echo in {file} ")
        assert daemon.process.wait(STEP_S) == Exit.UNAVAILABLE


def test_a_second_signal_leaves_no_recording_without_an_answer(tmp_path: Path) -> None:
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        running = client.submit("commanded", {"do": np.array([[f"sleep {STEP_S}"]], object)}, timeout=STEP_S)
        daemon.wait(lambda: daemon.slot()["depth"] == 1)
        recording = Recording(daemon, "echo", "--count", "5", "--output", str(tmp_path / "file"))
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("draining", STEP_S)
        time.sleep(REPEAT_S)  # a signal before that counts as the same request to stop
        daemon.signal(signal.SIGTERM)
        code, _, err = recording.result()
        assert code == 1
        assert err.endswith("was not written: the daemon is stopping\n")
        assert daemon.process.wait(STEP_S) == Exit.SECOND_SIGNAL
        with pytest.raises(MultitowerError):
            running.result(STEP_S)
