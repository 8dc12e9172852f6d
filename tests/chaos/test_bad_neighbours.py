"""Clients with bad requests beside clients with good ones, which must not notice."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handlers import POISON
from load import Load
from running import STEP_S, Running

from multitower import InvalidRequest, ModelError, Poisoned

BAD = 200
BURST = 20

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 2}
spares: 1
models:
  - name: declared
    handler: handlers:DeclaredReckoner
    parameters: {seconds: 0.005}
    batching: {max_batch_size: 8}
  - name: free
    handler: handlers:Reckoner
    parameters: {seconds: 0.005}
    batching: {max_batch_size: 8}
"""

pytestmark = pytest.mark.chaos

KINDS: list[tuple[str, list[list[int]], type[Exception]]] = [
    # model, rows, the error
    ("declared", [[1, 2]], InvalidRequest),  # the wrong width: refused before it is queued
    ("free", [[1, 2]], ModelError),  # the same without declared inputs: the model raises
    ("free", [[-1]], ModelError),  # in a batch with good ones, and only the model notices
    ("declared", [[3], [-1]], ModelError),
]


def test_two_hundred_bad_requests_fail_no_good_request(tmp_path: Path) -> None:
    """In other servers, one bad request fails its whole batch."""
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:
        endpoint = daemon.endpoint
        # Good clients on both models.
        with (
            Load(endpoint, model="free", processes=1, clients=4, raw=0) as one,
            Load(endpoint, model="declared", processes=1, clients=2, raw=2) as other,
        ):
            for start in range(0, BAD, BURST):
                burst: list[tuple[type[Exception], Future[Any]]] = []
                for number in range(start, start + BURST):
                    model, rows, wanted = KINDS[number % len(KINDS)]
                    burst.append((wanted, client.submit(model, {"x": np.array(rows)})))
                for wanted, future in burst:
                    with pytest.raises(wanted):
                        future.result(STEP_S)
                one.wait_ok(1)
                other.wait_ok(1)
            for load in (one, other):
                tally = load.stop()
                assert not tally.faults(), f"{tally}\n{daemon.text()}"
                assert tally.ok >= BAD
        assert [slot["restarts"] for slot in client.status()["slots"]] == [0, 0]


def test_a_poisoned_request_costs_two_workers_once(tmp_path: Path) -> None:
    poison = {"x": np.array([[POISON]])}
    with Running(tmp_path, CONFIG) as daemon, daemon.wait_ready().client() as client:

        def deaths() -> int:
            return sum(slot["restarts"] for slot in daemon.wait_ready().status()["slots"])

        with Load(daemon.endpoint, model="declared", processes=1) as load:
            with pytest.raises(Poisoned, match="2 workers died"):
                client.infer("declared", poison)
            assert deaths() == 2
            for _ in range(6):
                with pytest.raises(Poisoned):
                    client.infer("declared", poison)
                load.wait_ok(20)
            assert deaths() == 2, "sent again, it is refused unrun"
            tally = load.stop()
        assert not tally.faults(), f"{tally}\n{daemon.text()}"
        assert daemon.end() == 0
