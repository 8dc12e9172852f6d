"""multitower: one TensorFlow model on every GPU of a machine, behind one endpoint.

Applications import from here: `Client` for threads, `AsyncClient` for asyncio, the type `Outputs` of what they
return, and the errors that they raise.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from multitower.errors import (
    Cancelled,
    Code,
    ConnectError,
    DeadlineExceeded,
    Forbidden,
    InternalError,
    InvalidEndpoint,
    InvalidKey,
    InvalidRequest,
    ModelError,
    MultitowerError,
    NotFound,
    Overloaded,
    Poisoned,
    Reason,
    Unauthenticated,
    Unavailable,
)

if TYPE_CHECKING:
    from multitower.client import AsyncClient, Client, Outputs

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "Code",
    "ConnectError",
    "DeadlineExceeded",
    "Forbidden",
    "InternalError",
    "InvalidEndpoint",
    "InvalidKey",
    "InvalidRequest",
    "ModelError",
    "MultitowerError",
    "NotFound",
    "Outputs",
    "Overloaded",
    "Poisoned",
    "Reason",
    "Unauthenticated",
    "Unavailable",
    "__version__",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Imports the clients, or their package, at their first use.

    A worker process must be able to set variables before it loads numpy, and the command line must handle signals
    before it imports what takes long.
    """
    if name in ("AsyncClient", "Client", "Outputs", "client"):
        client = importlib.import_module("multitower.client")
        return client if name == "client" else getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
