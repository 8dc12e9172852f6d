"""Other inference servers and this one on the same three workloads, in one run.

    python benchmarks/peers.py --tools FOLDER [--rounds 1] [--seconds 5] [--concurrency 1,8,64] [--workloads w1,w2,w3]

FOLDER (or the environment variable PEERS_TOOLS) contains the scripts that install and run the peers: `run.sh PEER
WORKLOAD` starts one with two workers, loads it with wrk (h2load for gRPC), and prints a line of JSON. Our daemon is run
in the same way: its load is load.c over tcp, once with as many connections as requests outstanding and once with one
connection that pipelines. One server runs at a time.

- w1: identity, float32 [1, 16], no batching. Our daemon without `batching`, and with it, as users would set it.
- w2: identity, float32 [1, 224, 224, 3] (602,112 bytes), no batching. Our daemon over tcp, and over ipc with the Python
  client, which sends large tensors through shared memory; load.c cannot.
- w3: a SavedModel, Dense 64 -> 64 -> 10 on float32 [1, 64], TensorFlow with one thread, batches of up to 32. Peers may
  wait 1 ms for a batch; our daemon does not wait.

Ratios are to the best peer at the same workload and concurrency: the highest requests/s and requests per server CPU
second, the lowest p50 and p99. With several rounds, figures are medians, and so are ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import load

import multitower
from multitower.compiled import compiled, describe

PEERS = {
    "w1": ("mosec", "triton", "triton_grpc"),
    "w2": ("mosec", "triton"),
    "w3": ("mosec", "triton", "triton_grpc"),
}
OURS = {
    "w1": ("ours", "ours_pipelined", "ours_batched", "ours_batched_pipelined"),
    "w2": ("ours", "ours_pipelined", "ours_ipc_client", "ours_batched_ipc_client"),
    "w3": ("ours", "ours_pipelined"),
}
SHAPES = {"w1": "1,16", "w2": "1,224,224,3", "w3": "1,64"}
OUTPUT_BYTES = {"w1": 64, "w2": 602_112, "w3": 40}
FIGURES = {"requests/s": "rps", "per CPU s": "req_per_cpu_s", "p50 ms": "p50", "p99 ms": "p99"}
HIGHER_IS_BETTER = ("rps", "req_per_cpu_s")
HERE = Path(__file__).parent
LIMIT_S = 900.0
"""Seconds for one server and workload beyond the time measured; run.sh may have to wait for a lock."""


def entries(program: Path, tools: Path) -> dict[str, Any]:
    """The entries of our servers in the form of the runner's peers.json."""
    folder = HERE / "peers"
    # The runner removes PYTHONPATH; without it they would use the checkout, which is not compiled.
    python = ["env", f"PYTHONPATH={Path(multitower.__file__).resolve().parent.parent}", sys.executable]
    made: dict[str, Any] = {}
    for name in sorted({name for names in OURS.values() for name in names}):
        client = [*python, str(folder / "client.py")]
        over_ipc = ["--endpoint", "ipc://{run}/front.sock"] if "ipc" in name else []
        # The runner passes a port and a workload; this program translates them to options of load.c.
        load_c = [*python, __file__, "--load", str(program), "one" if "pipelined" in name else "many"]
        made[name] = {
            "venv": "none",
            "cmd": [*python, str(folder / "serve.py"), "{port}", "{run}", str(tools)]
            + (["batching"] if "batched" in name else []),
            "load": "command",
            "load_cmd": [*client, "load", *over_ipc] if "client" in name else load_c,
            "probe_cmd": [*client, "probe", *over_ipc],
            "log_cmd": [*client, "log", *over_ipc],
        }
    return made


def run_load(program: str, connections: str, port: str, workload: str, outstanding: str, seconds: str) -> None:
    """Called by the runner for a load: replaces this process by load.c."""
    wanted = load.Load(int(outstanding), 1 if connections == "one" else int(outstanding))
    options = ["-m", "bench", "-s", SHAPES[workload], "-o", str(OUTPUT_BYTES[workload])]
    os.execv(program, [program, f"tcp://127.0.0.1:{port}", *load.arguments(wanted, float(seconds)), *options])


def run(tools: Path, name: str, workload: str, options: argparse.Namespace, environment: Mapping[str, str]) -> Any:
    """Runs one server and workload; returns the runner's line of JSON."""
    command = [str(tools / "run.sh"), name, workload, "--conc", options.concurrency, "--secs", str(options.seconds)]
    command += ["--warm", "1", "--again", str(options.again)]
    levels = options.concurrency.count(",") + 1
    limit = levels * (1 + options.again) * (options.seconds + 5) + LIMIT_S
    runner = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = runner.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        runner.send_signal(signal.SIGINT)  # the runner then stops its server
        output, errors = runner.communicate()
    try:
        return json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return {"peer": name, "workload": workload, "error": (errors or output)[-300:]}


def levels_of(line: Any) -> dict[int, dict[str, float]]:
    """The complete levels of a line, by concurrency."""
    return {level["c"]: level for level in line.get("levels", []) if all(name in level for name in FIGURES.values())}


def show(workload: str, rounds: Sequence[Sequence[Any]]) -> None:
    """Prints the tables of one workload."""
    lines = [{line["peer"]: levels_of(line) for line in each if line["workload"] == workload} for each in rounds]
    names = [name for name in (*PEERS[workload], *OURS[workload]) if any(name in each for each in lines)]
    for concurrency in sorted({c for each in lines for levels in each.values() for c in levels}):
        print(
            f"\n{workload} c={concurrency:<17}"
            + "".join(f"{title:>12}{'of best':>9}" for title in FIGURES)
            + "  errors"
        )
        for name in names:
            levels = [each[name][concurrency] for each in lines if concurrency in each.get(name, {})]
            if not levels:
                print(f"{name:24}       failed")
                continue
            cells = []
            for figure in FIGURES.values():
                best = max if figure in HIGHER_IS_BETTER else min
                ratios = []
                for each in lines:
                    peers = [
                        each[peer][concurrency][figure] for peer in PEERS[workload] if concurrency in each.get(peer, {})
                    ]
                    if peers and concurrency in each.get(name, {}) and best(peers):
                        ratios.append(each[name][concurrency][figure] / best(peers))
                median = statistics.median(level[figure] for level in levels)
                cells.append(f"{median:12,.0f}" if median >= 100 else f"{median:12.2f}")
                cells.append(f"{statistics.median(ratios):9.2f}" if ratios else f"{'':9}")
            print(f"{name:24}{''.join(cells)}{sum(level.get('errors', 0) for level in levels):8.0f}")


def main() -> None:
    """Runs all servers, and prints the tables."""
    if sys.argv[1:2] == ["--load"]:
        run_load(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--tools", type=Path, default=os.environ.get("PEERS_TOOLS"), help="folder of the peers' scripts"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=5, help="for each server, workload and concurrency")
    parser.add_argument("--again", type=int, default=0, help="repetitions of a level that other programs disturbed")
    parser.add_argument("--concurrency", default="1,8,64")
    parser.add_argument("--workloads", default="w1,w2,w3")
    parser.add_argument("--servers", help="only these servers, separated by commas")
    parser.add_argument("--json", type=Path, help="append the runner's lines to this file")
    options = parser.parse_args()
    if options.tools is None or not (options.tools / "run.sh").exists():
        raise SystemExit("the peers' scripts are needed: --tools FOLDER, or PEERS_TOOLS in the environment")
    print(f"multitower {describe(compiled())}", flush=True)
    rounds: list[list[Any]] = []
    with tempfile.TemporaryDirectory(prefix="mt-") as folder:
        ours = Path(folder, "ours.json")
        ours.write_text(json.dumps(entries(load.build(Path(folder)), options.tools.resolve())))
        environment = os.environ | {"BENCH_PEERS": str(ours)}
        for number in range(options.rounds):
            rounds.append([])
            for workload in options.workloads.split(","):
                names = [*PEERS[workload], *OURS[workload]]
                names = [name for name in names if options.servers is None or name in options.servers.split(",")]
                shift = number * len(names) // options.rounds
                for name in names[shift:] + names[:shift]:
                    line = run(options.tools, name, workload, options, environment)
                    rounds[-1].append(line)
                    print(f"{workload} {name}: {line.get('error', 'done')}", file=sys.stderr, flush=True)
                    if options.json:
                        with options.json.open("a") as lines:
                            lines.write(json.dumps(line) + "\n")
    print(f"{options.rounds} rounds of {options.seconds} s for each server, workload and concurrency, medians")
    for workload in options.workloads.split(","):
        show(workload, rounds)


if __name__ == "__main__":
    main()
