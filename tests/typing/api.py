"""What type checkers see of the public package; `make lint` runs mypy --strict over it. It is never executed."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from multitower import AsyncClient, Client, Code, MultitowerError, Outputs, Overloaded, Reason, __version__


def threads() -> None:
    with Client() as client:
        assert_type(client, Client)
        assert_type(client.endpoint, str)
        assert_type(client.infer("m", {"x": np.zeros(3)}), Outputs)
        assert_type(
            client.submit("m", {"x": [1, 2]}, outputs=["y"], version="1", timeout=1, priority=1), Future[Outputs]
        )
        assert_type(client.submit("m", {}).result(1.0)["y"], NDArray[Any])
        assert_type(client.empty((1, 3)), NDArray[Any])
        assert_type(client.empty(3, np.int64), NDArray[Any])
        assert_type(client.live(), bool)
        assert_type(client.ready(), bool)
        assert_type(client.server_ready(), dict[str, Any])
        assert_type(client.server_metadata(), dict[str, Any])
        assert_type(client.status(), dict[str, Any])
        assert_type(client.status(events=True), dict[str, Any])
        assert_type(client.metrics(), str)
        assert_type(client.model_ready("m"), bool)
        assert_type(client.metadata("m", "1"), dict[str, Any])
        assert_type(client.metadata("m", version_label="stable"), dict[str, Any])
        assert_type(client.model_config("m"), dict[str, Any])
        assert_type(client.statistics(), dict[str, Any])
        assert_type(client.statistics("m"), dict[str, Any])
    Client(
        "ipc:///run/multitower/front.sock", timeout=30, connect_timeout=5, max_outstanding=10, shared_memory=False
    ).close()
    Client("tcp://gpus:5555", key=Path("ana.key_secret"), server_key="gpus.key").close()
    Client("tcp://gpus:5555", key=("PUBLIC", "SECRET"), server_key=b"KEY").close()
    Client("tcp://127.0.0.1:5555", 30.0)  # type: ignore[call-arg]  # the others are by name
    client.infer("m", {"x": 1}, ["y"])  # type: ignore[call-arg]
    client.infer("m", {"x": 1}, outputs="y")  # type: ignore[arg-type]
    client.infer("m", {"x": 1}, outputs=("y",), version=1, timeout=timedelta(seconds=1))
    client.submit("m", {"x": 1}, outputs="y")  # type: ignore[arg-type]
    answer: dict[str, NDArray[Any]] = client.infer("m", {"x": 1})
    assert_type(answer, Outputs)


async def coroutines() -> None:
    async with AsyncClient() as client:
        assert_type(client, AsyncClient)
        assert_type(await client.infer("m", {"x": np.zeros(3)}), Outputs)
        assert_type(client.submit("m", {"x": "text"}), asyncio.Task[Outputs])
        assert_type(client.empty((1, 3), "f8"), NDArray[Any])
        assert_type(await client.live(), bool)
        assert_type(await client.ready(), bool)
        assert_type(await client.server_ready(), dict[str, Any])
        assert_type(await client.server_metadata(), dict[str, Any])
        assert_type(await client.status(), dict[str, Any])
        assert_type(await client.status(events=50), dict[str, Any])
        assert_type(await client.metrics("openmetrics"), str)
        assert_type(await client.model_ready("m"), bool)
        assert_type(await client.metadata("m"), dict[str, Any])
        assert_type(await client.model_config("m"), dict[str, Any])
        assert_type(await client.statistics("m", "1"), dict[str, Any])
        await client.wait_until_ready(5)


def errors(error: MultitowerError, full: Overloaded) -> None:
    assert_type(error.code, str)
    assert_type(error.reason, str)
    assert_type(error.message, str)
    assert_type(error.details, dict[str, Any])
    assert error.reason == Reason.QUEUE_FULL
    assert full.code == Code.RESOURCE_EXHAUSTED
    assert_type(__version__, str)
