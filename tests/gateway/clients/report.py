"""What the programs of this folder share: a job comes as JSON on stdin, results go to stdout as one line of JSON.

Each program runs in the environment `build/clients`, out of pytest's process: the protobuf definitions of one client
cannot be loaded beside those of another, nor their protobuf beside TensorFlow's.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "u2",
    "UINT32": "u4",
    "UINT64": "u8",
    "INT8": "i1",
    "INT16": "i2",
    "INT32": "i4",
    "INT64": "i8",
    "FP16": "f2",
    "BF16": ml_dtypes.bfloat16,
    "FP32": "f4",
    "FP64": "f8",
    "BYTES": object,
}

Job = dict[str, Any]
Cases = dict[str, Callable[[], Any]]


def array(datatype: str, values: Any) -> np.ndarray:
    """The array of nested lists; a string stands for the bytes with its code points."""
    made = np.array(values, DTYPES[datatype])
    if datatype == "BYTES":
        made = np.frompyfunc(lambda text: text.encode("latin-1"), 1, 1)(made)
    return made


def values(made: np.ndarray) -> Any:
    """The nested lists of an array, as `array` takes them."""
    if made.dtype == object:
        # Clients return text where it came as JSON.
        text = lambda data: (data if isinstance(data, bytes) else data.encode()).decode("latin-1")  # noqa: E731
        return np.frompyfunc(text, 1, 1)(made).tolist()
    if made.dtype == ml_dtypes.bfloat16:
        return made.astype("f4").tolist()
    return made.tolist()


def job() -> Job:
    """The job: addresses, and what the test wants to have sent."""
    return json.load(sys.stdin)


def find_tensorflow_messages(given: Job) -> None:
    """Lets tensorflow-serving-api import TensorFlow's messages, from the folder of a TensorFlow that stays unloaded."""
    sys.modules["tensorflow"] = types.ModuleType("tensorflow")
    sys.modules["tensorflow"].__path__ = [given["tensorflow"]]


def error(raised: BaseException) -> dict[str, Any]:
    """An exception of any client: its class, the status if it has one, and its text."""
    status = getattr(raised, "status", None) or getattr(raised, "code", None)
    response = getattr(raised, "response", None)  # httpx
    if response is not None:
        return {"error": type(raised).__name__, "status": str(response.status_code), "message": response.text}
    details = getattr(raised, "message", None) or getattr(raised, "details", None)
    return {
        "error": type(raised).__name__,
        "status": str(status() if callable(status) else status),
        "message": str(details() if callable(details) else raised),
    }


def report(cases: Cases) -> None:
    """Runs the cases in their order, and prints what each returned or raised."""
    results = {}
    for name, case in cases.items():
        try:
            results[name] = case()
        except Exception as raised:  # noqa: BLE001  every client has classes of its own; the test looks at them
            results[name] = error(raised)
    print(json.dumps(results))  # noqa: T201
