"""A SavedModel without version folders whose weights are replaced while two workers serve it under load."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flow import paced_flow
from light_models import make_package, write_model
from running import STEP_S, Running, multitower

from multitower import Client

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 0
watch: {interval: 100ms, settle: 200ms}
restart: {max_restarts: 1, window: 1h}
models: [{name: m, path: model, batching: {max_batch_size: 8}, queue: {timeout: 10m}}]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for factor in (1, 2, 3):
        write_model(folder / str(factor), factor)
    return folder


def move_over(made: Path, number: int, folder: Path) -> None:
    """Moves a model over the served one; the files have the sizes and times of their predecessors."""
    shutil.copytree(made / str(number), folder / "new")
    for path in (folder / "new").rglob("*"):
        old = folder / "model" / path.relative_to(folder / "new")
        if old.exists():
            os.utime(path, ns=(old.stat().st_mtime_ns, old.stat().st_mtime_ns))
    (folder / "model").rename(folder / f"before-{number}")
    (folder / "new").rename(folder / "model")


def factors(client: Client) -> set[int]:
    """Returns by what requests of 20 rows, which are split over both workers, are multiplied."""
    sent = [client.submit("m", {"x": np.ones((20, 1), np.int64)}) for _ in range(20)]
    return {int(value) for future in sent for value in future.result(STEP_S)["x"].ravel()}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("rewritten")
    shutil.copytree(made / "1", folder / "model")
    with Running(folder, CONFIG, environment=make_package(folder / "package")) as running:
        yield running.wait_ready()


def test_a_folder_moved_over_a_served_model_is_rolled_out_without_mixed_answers(daemon: Running, made: Path) -> None:
    with daemon.client() as client:
        with paced_flow(client, "m", rows=20, pause_s=0.01) as sent:
            daemon.wait(lambda: len(sent) > 50)
            move_over(made, 2, daemon.config.parent)
            daemon.wait_line("changed files loaded", model="m")
            daemon.wait(lambda: len(sent) > 100)
        for number, future in sent:
            (value,) = set(future.result(STEP_S)["x"].ravel().tolist())
            assert value in (number, 2 * number)
        assert factors(client) == {2}


def test_a_restarted_worker_never_answers_with_replaced_weights_beside_the_former(daemon: Running, made: Path) -> None:
    # From now on changed files wait for a reload.
    daemon.config.write_text(daemon.config.read_text().replace("interval: 100ms", "interval: 0"))
    assert multitower("reload", daemon=daemon).returncode == 0
    with daemon.client() as client:
        move_over(made, 3, daemon.config.parent)
        os.kill(daemon.slot(0)["pid"], signal.SIGKILL)
        daemon.wait_line("slot failed", slot=0)
        assert factors(client) == {2}
        (row,) = client.status()["models"]
        assert "its files have changed" in row["cause"]
