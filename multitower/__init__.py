"""multitower: one TensorFlow model on every GPU of a machine, behind one endpoint.

Applications import from here: `Client` for threads, `AsyncClient` for asyncio, and the errors that they raise.
"""

from __future__ import annotations

from multitower.client import AsyncClient, Client
from multitower.errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelError,
    MultitowerError,
    NotFound,
    Overloaded,
    Poisoned,
    Reason,
    Unavailable,
)

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "Code",
    "DeadlineExceeded",
    "InternalError",
    "InvalidRequest",
    "ModelError",
    "MultitowerError",
    "NotFound",
    "Overloaded",
    "Poisoned",
    "Reason",
    "Unavailable",
    "__version__",
]

__version__ = "0.1.0"
