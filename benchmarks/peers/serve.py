"""Our server in the comparison with peers: writes a configuration and replaces itself by the daemon.

    serve.py PORT FOLDER TOOLS [batching]

The daemon listens on tcp and on ipc (FOLDER/front.sock) and has two CPU workers. As for every peer, the environment
variables BENCH_WORKLOAD and, for w3, BENCH_MODEL name what to serve.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent


def configuration(port: str, folder: Path, batching: bool) -> str:
    """The configuration that a user would write for this workload, with one TensorFlow thread as for all peers."""
    models = [{"name": "bench", "handler": "handlers:Identity", **({"batching": {}} if batching else {})}]
    if os.environ["BENCH_WORKLOAD"] == "w3":
        models = [
            {"name": "bench", "path": os.environ["BENCH_MODEL"], "batching": {"max_batch_size": 32}},
            {"name": "loaded", "handler": "handlers:Loaded"},
        ]
    # JSON is YAML.
    return json.dumps(
        {
            "listen": [f"tcp://127.0.0.1:{port}", f"ipc://{folder}/front.sock"],
            "devices": {"cpu": 2},
            "threads": {"intra_op": 1, "inter_op": 1},
            "models": models,
            "spares": 0,
        }
    )


def main() -> None:
    """Replaces this process by the daemon, so that the runner's child is the daemon."""
    port, folder, tools, *rest = sys.argv[1:]
    # The daemon looks for handlers beside the configuration.
    config = Path(folder, "multitower.yaml")
    config.write_text(configuration(port, Path(folder), rest == ["batching"]))
    Path(folder, "handlers.py").write_text((HERE / "handlers.py").read_text())
    # Before the folder of the package that is measured; see `peers.py`.
    os.environ["PYTHONPATH"] = os.pathsep.join([tools, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.execv(sys.executable, [sys.executable, "-P", "-m", "multitower", "serve", str(config)])


if __name__ == "__main__":
    main()
