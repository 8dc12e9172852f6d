"""One of the four forms of NVIDIA's tritonclient, by the program's argument: `http`, `http.aio`, `grpc` or `grpc.aio`.

Attributes:
    FORM: the form.
    GRPC: whether it is one of gRPC.
    JOB: what the test has sent.
    plain: the module with the classes of inputs and outputs, the same for both forms of an interface.
    loop: the event loop in which coroutines of an aio client run.
    client: the client.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from typing import Any

from report import job

FORM = sys.argv[1]
GRPC = FORM.startswith("grpc")
JOB = job()
plain = importlib.import_module(f"tritonclient.{FORM.partition('.')[0]}")
loop = asyncio.new_event_loop()


def wait(result: Any) -> Any:
    """The result, also of the coroutines of an aio client."""
    return loop.run_until_complete(result) if inspect.isawaitable(result) else result


async def _make() -> Any:
    """The client; those of aio need a running loop."""
    module = importlib.import_module(f"tritonclient.{FORM}")
    return module.InferenceServerClient(JOB["grpc" if GRPC else "http"])


client = loop.run_until_complete(_make())
