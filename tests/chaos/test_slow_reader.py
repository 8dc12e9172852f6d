"""A client that never reads its replies costs bounded memory, and delays nobody."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import zmq
from running import STEP_S, Running

from multitower import wire
from multitower.supervisor.routing.front_socket import MAX_UNREAD_BYTES

pytestmark = pytest.mark.chaos

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
models:
  - {name: m, handler: "handlers:Echo"}
"""
REPLY_BYTES = 16 << 20


def test_unread_replies_are_bounded_and_counted(tmp_path: Path) -> None:
    content = bytes(REPLY_BYTES)
    header = {"model_name": "m", "inputs": [{"name": "x", "datatype": "UINT8", "shape": [REPLY_BYTES]}]}
    message = [b"", wire.INFER, b"1", json.dumps(header).encode(), content]
    asked = 2 * MAX_UNREAD_BYTES // REPLY_BYTES
    with (
        Running(tmp_path, CONFIG) as daemon,
        daemon.wait_ready().client() as client,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as lazy,
    ):
        lazy.setsockopt(zmq.LINGER, 0)
        lazy.setsockopt(zmq.RCVHWM, 1)
        lazy.connect(daemon.endpoint)
        before = client.status()["daemon"]["rss_bytes"]
        waits = []
        for number in range(asked):
            lazy.send_multipart(message)
            daemon.wait(lambda number=number: client.status()["models"][0]["completed"] >= number + 1)
            begun = time.monotonic()
            client.live()
            waits.append(time.monotonic() - begun)
        state = client.status()["daemon"]
        assert state["replies_dropped"] >= asked // 2 - 4
        assert state["rss_bytes"] - before < 1.5 * MAX_UNREAD_BYTES
        assert sorted(waits)[len(waits) // 2] < 0.1
        # It is its own fault alone.
        assert client.submit("m", {"x": np.ones(3)}).result(STEP_S)["x"].tolist() == [1, 1, 1]
    assert len(waits) == asked
