"""Peer inference servers and this one on the same three workloads, in one sitting.

    python benchmarks/peers.py --tools FOLDER [--rounds 1] [--seconds 5] [--concurrency 1,8,64] [--workloads w1,w2,w3]

FOLDER (or the environment's PEERS_TOOLS) holds the scripts that install and run the peers: `run.sh PEER WORKLOAD`
starts one with two workers, puts wrk (h2load for gRPC) on it, and prints a line of JSON. Ours go the same way: the load
is load.c over tcp, once with as many connections as requests outstanding and once with one that pipelines. One server
runs at a time.

- w1: identity, float32 [1, 16], no batching. Ours without `batching`, and with it, which a user would set.
- w2: identity, float32 [1, 224, 224, 3] (602,112 bytes), no batching. Ours over tcp; and over ipc with the Python
  client, which passes large tensors through shared memory where load.c cannot.
- w3: a SavedModel, Dense 64 -> 64 -> 10 on float32 [1, 64], TensorFlow with one thread, batches of up to 32. Peers may
  wait 1 ms for a batch; ours does not wait.

A figure's ratio is to the best peer's at the same workload and concurrency, of requests/s and requests per server CPU
second the highest, of p50 and p99 the lowest. With several rounds: medians, also of each round's ratios.
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
"""Seconds for one server and one workload beyond what is measured; run.sh may wait for its lock meanwhile."""


def entries(program: Path, tools: Path) -> dict[str, Any]:
    """Our servers as the runner's peers.json has them."""
    folder = HERE / "peers"
    made: dict[str, Any] = {}
    for name in sorted({name for names in OURS.values() for name in names}):
        client = [sys.executable, str(folder / "client.py")]
        over_ipc = ["--endpoint", "ipc://{run}/front.sock"] if "ipc" in name else []
        # load.c knows neither ports nor workloads: this program, called by the runner, says it in its words.
        in_c = [sys.executable, __file__, "--load", str(program), "one" if "pipelined" in name else "many"]
        made[name] = {
            "venv": "none",
            "cmd": [sys.executable, str(folder / "serve.py"), "{port}", "{run}", str(tools)]
            + (["batching"] if "batched" in name else []),
            "load": "command",
            "load_cmd": [*client, "load", *over_ipc] if "client" in name else in_c,
            "probe_cmd": [*client, "probe", *over_ipc],
            "log_cmd": [*client, "log", *over_ipc],
        }
    return made


def run_load(program: str, connections: str, port: str, workload: str, outstanding: str, seconds: str) -> None:
    """What the runner calls for a load: becomes load.c."""
    wanted = load.Load(int(outstanding), 1 if connections == "one" else int(outstanding))
    options = ["-m", "bench", "-s", SHAPES[workload], "-o", str(OUTPUT_BYTES[workload])]
    os.execv(program, [program, f"tcp://127.0.0.1:{port}", *load.arguments(wanted, float(seconds)), *options])


def run(tools: Path, name: str, workload: str, options: argparse.Namespace, environment: Mapping[str, str]) -> Any:
    """One server and workload: the runner's line."""
    command = [str(tools / "run.sh"), name, workload, "--conc", options.concurrency, "--secs", str(options.seconds)]
    command += ["--warm", "1", "--again", str(options.again)]
    levels = options.concurrency.count(",") + 1
    limit = levels * (1 + options.again) * (options.seconds + 5) + LIMIT_S
    runner = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = runner.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        runner.send_signal(signal.SIGINT)  # it stops its server then
        output, errors = runner.communicate()
    try:
        return json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return {"peer": name, "workload": workload, "error": (errors or output)[-300:]}


def levels_of(line: Any) -> dict[int, dict[str, float]]:
    """A line's good levels by concurrency."""
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
            had = [each[name][concurrency] for each in lines if concurrency in each.get(name, {})]
            if not had:
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
                median = statistics.median(level[figure] for level in had)
                cells.append(f"{median:12,.0f}" if median >= 100 else f"{median:12.2f}")
                cells.append(f"{statistics.median(ratios):9.2f}" if ratios else f"{'':9}")
            print(f"{name:24}{''.join(cells)}{sum(level.get('errors', 0) for level in had):8.0f}")


def main() -> None:
    """Runs the peers and ours, and prints the tables."""
    if sys.argv[1:2] == ["--load"]:
        run_load(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tools", type=Path, default=os.environ.get("PEERS_TOOLS"), help="the peers' scripts")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=5, help="for each server, workload and concurrency")
    parser.add_argument("--again", type=int, default=0, help="repeats of a level that others disturbed")
    parser.add_argument("--concurrency", default="1,8,64")
    parser.add_argument("--workloads", default="w1,w2,w3")
    parser.add_argument("--servers", help="only these, with commas between them")
    parser.add_argument("--json", type=Path, help="append the runner's lines to this file")
    options = parser.parse_args()
    if options.tools is None or not (options.tools / "run.sh").exists():
        raise SystemExit("the peers' scripts are needed: --tools FOLDER, or PEERS_TOOLS in the environment")
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
