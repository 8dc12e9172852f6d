"""Retries of the clients with a real daemon: a full queue, and a model that loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import Running

from multitower import Unavailable

WAIT_S = 60.0

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - name: m
    handler: handlers:HANDLER
    parameters: {seconds: SECONDS}
    queue: {max_size: 1}
"""


def test_a_request_refused_by_a_full_queue_succeeds_later(tmp_path: Path) -> None:
    text = CONFIG.replace("HANDLER", "Sleeper").replace("SECONDS", "0.1")
    with Running(tmp_path, text) as daemon, daemon.wait_ready().client(timeout=60.0, retries=100) as client:
        with daemon.client(retries=0) as proud:
            futures = [proud.submit("m", {"x": np.full(1, number)}) for number in range(10)]
            refused = [error for future in futures if (error := future.exception(WAIT_S)) is not None]
            assert {getattr(error, "reason", error) for error in refused} == {"queue_full"}
        before = client.status()["models"][0]["completed"]
        futures = [client.submit("m", {"x": np.full(1, number)}) for number in range(10)]
        assert [int(future.result(60.0)["x"][0]) for future in futures] == list(range(10))
        assert client.status()["models"][0]["completed"] == before + 10  # none was run twice


def test_a_request_waits_for_a_model_that_loads(tmp_path: Path) -> None:
    text = CONFIG.replace("HANDLER", "SlowLoader").replace("SECONDS", "2.0")
    with Running(tmp_path, text) as daemon, daemon.client(timeout=60.0, retries=20) as client:
        with daemon.client(retries=0) as proud, pytest.raises(Unavailable) as error:
            proud.infer("m", {"x": np.zeros(1)})
        assert error.value.details["retry_after_ms"] > 0
        assert client.infer("m", {"x": np.ones(1)})["x"].tolist() == [1.0]
