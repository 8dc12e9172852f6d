"""The gateway's memory: when it is idle, and over a million requests through HTTP.

    python benchmarks/gateway_memory.py [--requests 1000000]

wrk asks for an echo of 64 bytes on 64 connections, and the resident memory of the gateway's process is read before and
after each tenth of the requests. It needs wrk: on Debian `apt-get install wrk`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import psutil
from http_load import Loads

import gateway

CONNECTIONS = 64
MIB = 1 << 20


def main() -> None:
    """Sends the requests and prints the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        folder = Path(name)
        loads = Loads(folder)
        with gateway.ours(folder, "echo", folder) as servers:
            target = servers["http"]
            process = psutil.Process(gateway.gateway_pid(target.pid))
            print(f"idle {process.memory_info().rss / MIB:.1f} MiB")
            gateway.check("http", target, "echo")
            answered, reported = 0.0, 0
            while answered < options.requests:
                answered += loads.measure(target, [], CONNECTIONS, 1)["answered"]
                if answered * 10 // options.requests > reported:
                    reported = int(answered * 10 // options.requests)
                    print(f"{answered:12,.0f} requests: {process.memory_info().rss / MIB:.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
