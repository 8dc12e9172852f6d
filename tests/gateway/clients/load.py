"""Load from many clients at a time: `load.py http|grpc CLIENTS [retry]`, through tritonclient's asyncio forms.

Each client asks the model `m` for y = 3 x + 1 with numbers of its own, checks the answer, and asks again, until stdin
ends. A line with the number of good answers so far is printed for each hundred; the last line is a tally. With `retry`
a request whose connection was lost, or whose model is loading, is sent again, as long as it takes.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections import Counter
from typing import Any

import aiohttp
import numpy as np
from tritonclient.utils import InferenceServerException

FORM, CLIENTS, RETRY = sys.argv[1], int(sys.argv[2]), "retry" in sys.argv
LOST = (aiohttp.ClientError, OSError, asyncio.IncompleteReadError)
module = importlib.import_module(f"tritonclient.{FORM}.aio")
plain = importlib.import_module(f"tritonclient.{FORM}")
job = json.loads(sys.stdin.readline())
counts: Counter[str] = Counter()
ended = asyncio.Event()


def lost(error: Exception) -> bool:
    """Whether sending the request again may help: its connection was lost, or the model is loading."""
    return isinstance(error, LOST) or "StatusCode.UNAVAILABLE" in str(error) or "[503]" in str(error)


async def ask(client: Any, x: int) -> None:
    given = plain.InferInput("x", [1, 1], "INT64").set_data_from_numpy(np.array([[x]], "i8"))
    while True:
        try:
            answer = (await client.infer("m", [given])).as_numpy("y")
        except (InferenceServerException, *LOST) as error:
            if RETRY and lost(error) and not ended.is_set():
                counts["retried"] += 1
                await asyncio.sleep(0.02)
                continue
            if not ended.is_set():
                counts[f"{type(error).__name__}: {error}"[:300]] += 1
            return
        good = answer.tolist() == [[3 * x + 1]]
        counts["ok" if good else "wrong"] += 1
        if good and counts["ok"] % 100 == 0:
            print(json.dumps({"ok": counts["ok"]}), flush=True)  # noqa: T201
        return


async def one(number: int) -> None:
    # An own channel for each: channels to the same address share a connection otherwise.
    options = {"channel_args": [("grpc.use_local_subchannel_pool", 1)]} if FORM == "grpc" else {}
    client = module.InferenceServerClient(job[FORM], **options)
    x = number
    while not ended.is_set():
        await ask(client, x)
        x += CLIENTS
    await client.close()


async def main() -> None:
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), lambda: sys.stdin.readline() or ended.set())
    await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    print(json.dumps(counts))  # noqa: T201


asyncio.run(main())
