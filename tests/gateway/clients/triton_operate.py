"""Loading and unloading with tritonclient: `triton_operate.py http`, `http.aio`, `grpc` or `grpc.aio`.

Each form changes a model of its own, `m-FORM`, so that all can run on one daemon at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from report import report
from triton_form import FORM, GRPC, client, plain, wait

MODEL = f"m-{FORM}"


def infer() -> Any:
    given = plain.InferInput("x", [1, 1], "INT64").set_data_from_numpy(np.array([[5]], "i8"))
    return wait(client.infer(MODEL, [given])).as_numpy("y").tolist()


def entry() -> Any:
    """What the repository's index has about the model: version, state and reason."""
    index = wait(client.get_model_repository_index(**({"as_json": True} if GRPC else {})))
    rows = index["models"] if GRPC else index
    (row,) = (row for row in rows if row["name"] == MODEL)
    return [row.get("version", ""), row["state"], row.get("reason", "")]


report(
    {
        "index": entry,
        "unload": lambda: wait(client.unload_model(MODEL)),
        "index_unloaded": entry,
        "ready_unloaded": lambda: wait(client.is_model_ready(MODEL)),
        "infer_unloaded": infer,
        "unload_again": lambda: wait(client.unload_model(MODEL, unload_dependents=True)),
        "load": lambda: wait(client.load_model(MODEL)),
        "index_loaded": entry,
        "infer": infer,
        "load_again": lambda: wait(client.load_model(MODEL)),
        "load_unknown": lambda: wait(client.load_model("nosuch")),
        "unload_unknown": lambda: wait(client.unload_model("nosuch")),
        "load_broken": lambda: None if FORM.endswith("aio") else wait(client.load_model("broken")),
        "load_with_config": lambda: wait(client.load_model(MODEL, config='{"max_batch_size": 2}')),
        "load_with_files": lambda: wait(client.load_model(MODEL, config="{}", files={"file:1/model.graph": b"x"})),
        "still_serves": infer,
    }
)
wait(client.close())
