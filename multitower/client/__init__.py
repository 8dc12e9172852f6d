"""The clients: `Client` for threads, `AsyncClient` for asyncio. They need numpy and pyzmq only.

`requests.py` is what both share; it starts requests over a `connection.py`, which has a thread and a socket
(`transport.py`). `codec.py` translates between arrays and messages.
"""

from __future__ import annotations

from multitower.client.aio import AsyncClient
from multitower.client.requests import Outputs
from multitower.client.threads import Client

__all__ = ["AsyncClient", "Client", "Outputs"]
