"""Shared memory of local clients with a real daemon: the same answers as in frames, also when processes die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from memfds import in_shared_memory
from running import Running

from multitower import AsyncClient, Client, DeadlineExceeded, Overloaded, Unavailable, tensors

CONFIG = """
listen: ["{endpoint}", "tcp://127.0.0.1:*"]
devices: {cpu: 2}
spares: 0
restart: {max_restarts: 1000, window: 1s, backoff: {first: 10ms, max: 100ms}}
max_message_size: 32MiB
models:
  - {name: echo, handler: "handlers:Echo", batching: {max_batch_size: 8}}
  - {name: single, handler: "handlers:Echo"}
  - {name: sleeper, handler: "handlers:Sleeper", parameters: {seconds: 0.01}, batching: {max_batch_size: 4}, retry: 3}
  - name: padded
    handler: "handlers:Sleeper"
    parameters: {seconds: 0.01}
    batching: {max_batch_size: 4, pad_variable_length_inputs: true}
  - {name: patient, handler: "handlers:Patient"}
  - {name: narrow, handler: "handlers:Sleeper", parameters: {seconds: 0.5}, queue: {max_bytes: 1MiB}}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("shared"), CONFIG) as running:
        yield running.wait_ready()


@pytest.fixture
def client(daemon: Running) -> Iterator[Client]:
    with daemon.client() as made:
        made.live()  # from then on the client knows that the daemon accepts shared memory
        yield made


def image(number: int, rows: int = 1) -> np.ndarray:
    return np.full((rows, 224, 224, 3), number, np.float32)


def learn(client: Client, model: str, x: np.ndarray, **more: float) -> None:
    """Sends requests until the client knows how large the outputs are, and they are in shared memory."""
    client.live()
    for _ in range(2):
        y = client.infer(model, {"x": x, **more})["x"]
    assert in_shared_memory(y)


def descriptors(pid: int) -> int:
    """The number of client regions that a process has open, without the memfds of workers that a daemon has."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.append(os.readlink(entry))
    return sum("/memfd:" in link and "-begun" not in link for link in links)


# Answers.


@pytest.mark.parametrize("rows", [1, 3, 8, 19])
@pytest.mark.parametrize("model", ["echo", "single"])
@pytest.mark.parametrize("datatype", [name for name in tensors.DATATYPES if name not in ("BYTES", "BF16")])
def test_every_datatype_is_answered_as_in_frames(datatype: str, model: str, rows: int, daemon: Running) -> None:
    dtype = tensors.dtype_of(datatype)
    bits = np.random.default_rng(rows).integers(0, 256, (rows, 140 << 10), np.uint8)
    x = (bits % 2).astype(bool) if datatype == "BOOL" else bits.view(dtype)
    inputs = {"x": x, "text": [f"{row}" for row in range(rows)], "small": np.arange(rows)}
    with daemon.client() as shared, daemon.client(shared_memory=False) as framed:
        shared.live()
        wanted = framed.infer(model, inputs)
        assert not in_shared_memory(wanted["x"])
        for turn in range(3):
            found = shared.infer(model, inputs)
            assert list(found) == list(wanted)
            for name in wanted:
                assert found[name].dtype == wanted[name].dtype
                assert found[name].shape == wanted[name].shape
                assert found[name].tobytes() == wanted[name].tobytes() or found[name].tolist() == wanted[name].tolist()
            split = model == "echo" and rows > 8
            assert in_shared_memory(found["x"]) == (turn > 0 and not split), turn


def test_bf16_is_answered(client: Client) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.arange(100_000).astype(ml_dtypes.bfloat16)
    for _ in range(3):
        y = client.infer("single", {"x": x})["x"]
        assert y.dtype == x.dtype
        assert (y == x).all()
    assert in_shared_memory(y)


def test_small_rows_in_large_requests_are_answered(client: Client) -> None:
    # In frames, these inputs would be joined.
    for turn in range(6):
        x = np.arange(turn, turn + 8 * 4000, dtype=np.float64).reshape(8, -1)
        assert (client.infer("echo", {"x": x})["x"] == x).all()


def test_inputs_in_frames_and_in_shared_memory_are_padded_together(daemon: Running) -> None:
    with daemon.client() as shared, daemon.client(shared_memory=False) as framed:
        learn(shared, "padded", np.ones((1, 50_000), np.float32))
        before = executions(shared, "padded")
        futures: list[tuple[np.ndarray, Future[dict[str, np.ndarray]]]] = []
        for number in range(40):
            x = np.arange(number, number + 40_000 + 100 * number, dtype=np.float32)[None]
            futures.append((x, (framed if number % 4 == 0 else shared).submit("padded", {"x": x})))
        for x, future in futures:
            y = future.result(60)["x"]
            width = x.shape[1]
            assert (y[:, :width] == x).all()
            assert (y[:, width:] == x[0, 0]).all()
        assert executions(shared, "padded") - before < 40


def test_requests_in_frames_and_in_shared_memory_share_a_batch(daemon: Running) -> None:
    with daemon.client() as shared, daemon.client(shared_memory=False) as framed:
        learn(shared, "sleeper", image(0))
        before = executions(shared, "sleeper")
        futures: list[Future[dict[str, np.ndarray]]] = []
        for number in range(100):
            futures.append((shared, framed)[number % 2].submit("sleeper", {"x": image(number)}))
        for number, future in enumerate(futures):
            assert (future.result()["x"] == number).all(), number
        assert executions(shared, "sleeper") - before <= 100 / 2


def executions(client: Client, model: str) -> int:
    (entry,) = client.statistics(model)["model_stats"]
    return int(entry["execution_count"])


def test_later_requests_do_not_change_earlier_results(client: Client) -> None:
    learn(client, "single", image(0))
    kept = [client.infer("single", {"x": image(number)})["x"] for number in range(40)]
    for number in range(200):
        client.infer("single", {"x": image(-number)})
    assert [int(y.max()) for y in kept] == list(range(40))
    assert [int(y.min()) for y in kept] == list(range(40))


def test_an_array_in_shared_memory_is_sent_without_a_copy(client: Client) -> None:
    x = client.empty((4, 224, 224, 3))
    assert in_shared_memory(x)
    for number in range(8):
        x[:] = np.arange(number, number + 4).reshape(4, 1, 1, 1)
        y = client.infer("echo", {"x": x})["x"]
        assert (y == x).all()
        part = client.infer("echo", {"x": x[1:2]})["x"]
        assert (part == number + 1).all()
        assert (client.submit("echo", {"x": y[3:]}).result()["x"] == number + 3).all(), "an output as an input"


def test_the_asyncio_client_uses_shared_memory(daemon: Running) -> None:
    async def run() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            await client.live()
            for _ in range(3):
                answers = await asyncio.gather(*(client.infer("echo", {"x": image(n)}) for n in range(20)))
                assert [int(answer["x"].max()) for answer in answers] == list(range(20))
            assert in_shared_memory(answers[-1]["x"])
            x = client.empty((1, 224, 224, 3))
            x[:] = 7
            assert ((await client.infer("echo", {"x": x}))["x"] == 7).all()

    asyncio.run(run())


def test_bytes_in_shared_memory_count_towards_limits(client: Client) -> None:
    learn(client, "narrow", image(0))
    with daemon_without_retries(client) as impatient:
        futures = [impatient.submit("narrow", {"x": image(number)}) for number in range(6)]
        outcomes = [future.exception() for future in futures]
    assert any(isinstance(outcome, Overloaded) for outcome in outcomes)
    with pytest.raises(Exception, match="max_message_size is 33554432"):
        client.infer("echo", {"x": np.zeros(9 << 20, np.float32)})


def daemon_without_retries(client: Client) -> Client:
    made = Client(client.endpoint, retries=0)
    made.live()
    return made


# Cases without shared memory.


def test_tcp_clients_use_no_shared_memory(daemon: Running) -> None:
    endpoint = next(one for one in daemon.status()["daemon"]["listen"] if one.startswith("tcp"))
    with Client(endpoint) as client:
        client.live()
        for number in range(3):
            y = client.infer("single", {"x": image(number)})["x"]
            assert (y == number).all()
            assert not in_shared_memory(y)
        assert not in_shared_memory(client.empty((224, 224, 3)))


def test_shared_memory_can_be_turned_off(daemon: Running) -> None:
    with daemon.client(shared_memory=False) as client:
        for number in range(3):
            y = client.infer("single", {"x": image(number)})["x"]
            assert (y == number).all()
            assert not in_shared_memory(y)
        assert not in_shared_memory(client.empty((224, 224, 3)))


FOREIGN = textwrap.dedent("""
    import os, sys
    import numpy as np
    from multitower import Client
    with Client(sys.argv[1]) as client:
        client.live()
        x = client.empty((2, 100_000))
        x[:] = [[1], [2]]
        futures = [client.submit("single", {"x": part, "n": [1]}) for part in (x, x[1], np.arange(100_000)) * 3]
        for part, future in zip((x, x[1], np.arange(100_000)) * 3, futures):
            assert (future.result()["x"] == part).all()
        print(os.getpid(), client.statistics("single")["model_stats"][0]["inference_stats"]["fail"]["count"])
""")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_client_in_another_pid_namespace_falls_back(daemon: Running) -> None:
    """As in a container: its pid is that of another process here."""
    rejected = _rejected(daemon)
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", sys.executable, "-c", FOREIGN]
    done = subprocess.run([*command, daemon.endpoint], capture_output=True, text=True, timeout=60)
    if "unshare:" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "1", "a pid of its own"
    assert _rejected(daemon) > rejected


def _rejected(daemon: Running) -> int:
    return int(daemon.status()["daemon"]["rejected"])


def test_a_refusal_turns_shared_memory_off_for_the_connection(daemon: Running, client: Client) -> None:
    renamed = client.empty((1, 100_000))
    region = client._requests._arena.locate(renamed)[0]  # type: ignore[union-attr, index]
    region.name = region.name.replace(f"-{os.getpid()}-", "-4194304-")  # larger than any pid
    renamed[:] = 3
    before = _rejected(daemon)
    for _ in range(5):
        assert (client.infer("echo", {"x": renamed})["x"] == 3).all()
        assert (client.infer("single", {"x": image(4)})["x"] == 4).all()
    assert _rejected(daemon) == before + 1


# Processes that die.


CHILD = textwrap.dedent("""
    import sys, threading
    import numpy as np
    from multitower import Client
    client = Client(sys.argv[1])
    client.live()
    x = np.ones((1, 224, 224, 3), np.float32)
    for _ in range(3):
        client.infer("sleeper", {"x": x})
    for _ in range(20):
        client.submit("patient", {"x": x, "seconds": 1.0})
    print("begun", flush=True)
    threading.Event().wait()
""")


def test_regions_of_a_killed_client_are_closed(daemon: Running) -> None:
    files = set(os.listdir("/dev/shm"))
    daemon.wait(lambda: descriptors(daemon.process.pid) == 0, 30.0)
    child = subprocess.Popen([sys.executable, "-c", CHILD, daemon.endpoint], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        daemon.wait(lambda: descriptors(daemon.process.pid) > 0)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert set(os.listdir("/dev/shm")) <= files
    daemon.wait(lambda: descriptors(daemon.process.pid) == 0, 40.0)
    workers = [slot["pid"] for slot in daemon.status()["slots"]]
    daemon.wait(lambda: [descriptors(pid) for pid in workers] == [0, 0], 40.0)


class Load:
    """Threads that send requests, each with its own numbers, and record wrong answers."""

    def __init__(self, client: Client, model: str, threads: int = 8) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self._client, self._model = client, model
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(threads)]

    def _work(self, number: int) -> None:
        turn = 0
        while not self._end.is_set():
            turn += 1
            value = 1000 * number + turn % 1000
            try:
                y = self._client.infer(self._model, {"x": image(value)})["x"]
            except Exception as error:  # noqa: BLE001  any error is a lost request
                self.wrong.append(f"{value}: {error!r}")
                continue
            if not (y == value).all():
                self.wrong.append(f"{value}: {np.unique(y)}")
            self.answered += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def test_killed_workers_cost_no_answer(daemon: Running, client: Client) -> None:
    learn(client, "sleeper", image(0))
    with Load(client, "sleeper") as load:
        for turn in range(6):
            answered = load.answered
            daemon.wait(lambda answered=answered: load.answered >= answered + 20)  # type: ignore[misc]
            slot = daemon.slot(turn % 2)
            os.kill(slot["pid"], signal.SIGKILL)
            daemon.wait(lambda slot=slot: _back(daemon.slot(slot["slot"]), slot))  # type: ignore[misc]
        daemon.wait(lambda: in_shared_memory(client.infer("sleeper", {"x": image(1)})["x"]))
    assert load.wrong == []


def _back(slot: dict[str, Any], before: dict[str, Any]) -> bool:
    return bool(slot["state"] == "ready" and slot["incarnation"] > before["incarnation"])


def test_a_late_write_does_not_change_later_results(daemon: Running, client: Client) -> None:
    """A request times out while a worker executes it; what the worker writes later must not reach other results."""
    learn(client, "patient", image(0), seconds=0.0)
    before = _late(daemon)
    late = client.submit("patient", {"x": image(-1), "seconds": 3.0}, timeout=0.5)
    assert isinstance(late.exception(), DeadlineExceeded)
    kept = [client.infer("patient", {"x": image(number), "seconds": 0.0})["x"] for number in range(1, 11)]
    assert all(map(in_shared_memory, kept))
    assert _late(daemon) == before, "the other worker is still executing"
    daemon.wait(lambda: _late(daemon) > before)  # it answers after it has written
    assert [(int(y.min()), int(y.max())) for y in kept] == [(number, number) for number in range(1, 11)]


def _late(daemon: Running) -> int:
    return int(daemon.status()["daemon"]["late"])


def test_results_outlive_the_daemon_and_the_client(tmp_path: Path) -> None:
    first = Running(tmp_path, CONFIG)
    with first:
        first.wait_ready()
        client = first.client()
        client.live()
        learn(client, "single", image(0))
        kept = client.infer("single", {"x": image(5)})["x"]
        assert first.end() == 0
    assert (kept == 5).all()
    client.close()
    assert (kept == 5).all()
    with pytest.raises(Exception, match="closed"):
        client.empty((10,))


def test_after_a_killed_daemon_the_next_one_uses_shared_memory(tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    config = CONFIG.replace("{endpoint}", f"ipc://{folder}/f")
    files = set(os.listdir("/dev/shm"))
    with contextlib.closing(Client(f"ipc://{folder}/f", connect_timeout=60.0)) as client:
        for number in range(2):
            with Running(tmp_path, config) as running:
                client.wait_until_ready(60.0)
                learn(client, "patient", image(number), seconds=0.0)
                kept = client.infer("patient", {"x": image(7), "seconds": 0.0})["x"]
                lost = [client.submit("patient", {"x": image(number), "seconds": 60.0}) for _ in range(10)]
                running.remember()
                running.signal(signal.SIGKILL)
                for future in lost:
                    with pytest.raises(Unavailable, match="connection_lost"):
                        future.result()
                assert running.wait_end() == -signal.SIGKILL
            assert (kept == 7).all()
            assert set(os.listdir("/dev/shm")) <= files


FORK = textwrap.dedent("""
    import os, sys
    import numpy as np
    from multitower import Client, Unavailable
    client = Client(sys.argv[1])
    client.live()
    ask = lambda number: client.infer("single", {"x": np.full((1, 224, 224, 3), number, np.float32)})["x"]
    ask(0)
    kept = ask(5)
    pid = os.fork()
    if not pid:
        right = (kept == 5).all()
        try:
            client.empty((10,))
        except Unavailable:
            os._exit(0 if right else 1)
        os._exit(2)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), (ask(6) == 6).all(), (kept == 5).all())
""")


def test_a_forked_child_keeps_results_and_its_end_changes_nothing(daemon: Running) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, daemon.endpoint], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "True", "True"], done


def test_shared_memory_does_not_count_as_the_daemon_s_memory(daemon: Running, client: Client) -> None:
    learn(client, "single", image(0))
    before = psutil.Process(daemon.process.pid).memory_info().rss
    for _ in range(200):
        client.infer("single", {"x": image(1)})
    assert psutil.Process(daemon.process.pid).memory_info().rss - before < 16 << 20
