"""What encryption costs: CURVE against plain tcp, and TLS over HTTP against plain HTTP, each pair in one run.

    python benchmarks/security.py [--rounds 9] [--seconds 3] [--parts curve,tls]

Each part has two daemons with one CPU worker and an echo handler, which run at the same time. Each round measures both,
in alternating order. CURVE is measured with pyzmq's DEALER sockets, in a process of its own on either side, since
load.c knows no CURVE: 64 bytes with 64 requests outstanding, and 600 kB with 8. So the client encrypts as well, and the
second figure, requests per CPU second of the daemon's processes, depends least on it. It says whether libzmq computes
CURVE with libsodium or with TweetNaCl.

TLS is measured by wrk, which does not verify certificates; both daemons ask for a bearer token, so TLS is all that
differs. It needs wrk and openssl: on Debian `apt-get install wrk openssl`. The figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import http_load
import numpy as np
import serving
import zmq

from multitower import Client, wire
from multitower.bearer_tokens import new_token
from multitower.compiled import compiled, describe
from multitower.tools.doctor import security as examination

SHAPES = {"64 bytes": ((1, 16), 64), "600 kB": ((1, 150_000), 8)}
"""Of the tensor, and how many requests are outstanding."""

CONNECTIONS = 8
WARM_UP_S = 0.3
MODELS = {"model": "handler: 'handlers:Echo', batching: {}"}


def ask(endpoint: str, shape: tuple[int, ...], outstanding: int, seconds: float, keys: list[str]) -> float:
    """Sends requests and checks the answers; the client process of a measurement.

    Args:
        endpoint: of the daemon.
        shape: of the tensor, FP32.
        outstanding: how many requests.
        seconds: how long.
        keys: the daemon's public key, and the client's public and secret key; none for a daemon without `security`.

    Returns:
        Answers per second.
    """
    tensor = np.random.default_rng(1).normal(size=shape).astype(np.float32).tobytes()
    header = wire.infer_header("model", [wire.Tensor("x", "FP32", shape)])
    numbers = itertools.count(1)
    done = 0
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        if keys:
            for option, key in zip((zmq.CURVE_SERVERKEY, zmq.CURVE_PUBLICKEY, zmq.CURVE_SECRETKEY), keys, strict=True):
                socket.set(option, key.encode())
        socket.connect(endpoint)

        def send() -> None:
            socket.send_multipart([b"", wire.INFER, next(numbers).to_bytes(8, "little"), header, tensor])

        for _ in range(outstanding):
            send()
        began = time.monotonic()
        measured_at = began + WARM_UP_S
        while (now := time.monotonic()) < measured_at + seconds:
            if not socket.poll(30_000):
                raise SystemExit(f"{endpoint} does not answer")
            reply = socket.recv_multipart()
            if reply[1] != wire.OK or reply[4] != tensor:
                raise SystemExit(f"wrong answer: {reply[:4]}")
            done += now >= measured_at
            send()
    return done / seconds


def measured(daemon: serving.Daemon, *arguments: object) -> tuple[float, float]:
    """Runs `ask` in a process; returns answers per second, and per CPU second of the daemon's processes."""
    before = serving.cpu_seconds(daemon.pids())
    job = json.dumps([daemon.endpoint, *arguments])
    done = subprocess.run([sys.executable, __file__, "--ask", job], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    used = serving.cpu_seconds(daemon.pids()) - before
    rate = float(done.stdout)
    return rate, rate / used


def write_principals(folder: Path, **entry: object) -> None:
    """Writes principals.yaml with one client, who may infer."""
    text = json.dumps({"principals": [{"name": "client", "roles": ["infer", "observe"], **entry}]})
    (folder / "principals.yaml").write_text(text)
    (folder / "principals.yaml").chmod(0o644)


def show(what: str, ratios: dict[str, list[float]]) -> None:
    """Prints medians and ranges."""
    print(what)
    for name, found in ratios.items():
        print(f"  {name:12}{statistics.median(found):8.3f}   ({min(found):.3f} to {max(found):.3f})", flush=True)


def measure_curve(folder: Path, rounds: int, seconds: float) -> None:
    """Prints requests/s with CURVE, of those without."""
    print(examination.curve_finding(zmq.has("curve"), examination.loaded_library(), examination.seconds_for_a_key).text)
    (server, secret), client = (tuple(key.decode() for key in zmq.curve_keypair()) for _ in range(2))
    path = folder / "server.key_secret"
    path.write_text(f'metadata\ncurve\n    public-key = "{server}"\n    secret-key = "{secret}"\n')
    path.chmod(0o600)
    write_principals(folder, public_key=client[0])
    secured = "spares: 0\nsecurity: {curve: {secret_key: server.key_secret}, principals: principals.yaml}"
    keys = {True: [server, *client], False: []}
    with ExitStack() as stack:
        # `serving` waits at the first endpoint, without a key; the user of the daemon needs none over ipc.
        tcp = {with_keys: serving.free_endpoint(folder, "", "tcp") for with_keys in keys}
        daemons = {
            with_keys: stack.enter_context(
                serving.daemon(
                    folder,
                    "curve" if with_keys else "plain",
                    workers=1,
                    models=MODELS,
                    more=secured if with_keys else "spares: 0",
                    also=[tcp[with_keys]],
                )
            )
            for with_keys in keys
        }
        over_tcp = {each: serving.Daemon(tcp[each], made.pid, made.log) for each, made in daemons.items()}
        for name, (shape, outstanding) in SHAPES.items():
            ratios: dict[str, list[float]] = {"requests/s": [], "per CPU s": []}
            for number in range(rounds):
                figures = {}
                for each in (True, False) if number % 2 else (False, True):
                    figures[each] = measured(over_tcp[each], shape, outstanding, seconds, keys[each])
                for index, found in enumerate(ratios.values()):
                    found.append(figures[True][index] / figures[False][index])
            title = f"{name}, {outstanding} outstanding, medians of {rounds} rounds of {seconds:g} s"
            show(f"CURVE, of tcp without it ({title}):", ratios)


def measure_tls(folder: Path, rounds: int, seconds: float) -> None:
    """Prints requests/s over HTTPS, of those over HTTP."""
    token, hashed = new_token("client")
    write_principals(folder, token_hash=str(hashed))
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (folder / "server.key").chmod(0o600)
    tls = ", tls: {certificate: server.pem, private_key: server.key}"
    loads = http_load.Loads(folder, programs=("wrk",))
    with ExitStack() as stack:
        targets: dict[bool, dict[str, http_load.Target]] = {}
        for encrypted in (True, False):
            gateway = f"gateway: {{http: '127.0.0.1:*'{tls * encrypted}}}"
            more = f"spares: 0\nsecurity: {{principals: principals.yaml}}\n{gateway}"
            daemon = stack.enter_context(
                serving.daemon(folder, "tls" if encrypted else "http", workers=1, models=MODELS, more=more)
            )
            with Client(daemon.endpoint, timeout=60) as client:
                (address,) = client.status()["daemon"]["gateway"]["http"]
            targets[encrypted] = {}
            for name, (shape, _) in SHAPES.items():
                headers, body = http_load.http_body(np.ones(shape, "f4"), "x")
                headers = {**headers, "Authorization": f"Bearer {token}"}
                scheme = "https" if encrypted else "http"
                targets[encrypted][name] = http_load.Target(
                    "wrk", address, "/v2/models/model/infer", headers, body, daemon.pid, scheme
                )
        for name in SHAPES:
            ratios: dict[str, list[float]] = {"requests/s": [], "per CPU s": [], "p50": [], "p99": []}
            for number in range(rounds):
                figures = {
                    each: loads.measure(targets[each][name], (), CONNECTIONS, max(1, round(seconds)))
                    for each in ((True, False) if number % 2 else (False, True))
                }
                for found, figure in zip(ratios.values(), ("rps", "per_cpu_second", "p50", "p99"), strict=True):
                    found.append(figures[True][figure] / figures[False][figure])
            title = f"{name}, {CONNECTIONS} connections, medians of {rounds} rounds of {seconds:g} s"
            show(f"TLS, of HTTP without it ({title}):", ratios)


def main() -> None:
    """Measures the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each side of each round")
    parser.add_argument("--parts", default="curve,tls")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask is not None:
        endpoint, shape, outstanding, seconds, keys = json.loads(options.ask)
        print(ask(endpoint, tuple(shape), outstanding, seconds, keys))
        return
    print(f"multitower {describe(compiled())}, {os.cpu_count()} CPUs")
    parts = options.parts.split(",")
    if "tls" in parts and shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: apt-get install wrk; or --parts curve")
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        if "curve" in parts:
            measure_curve(Path(name), options.rounds, options.seconds)
        if "tls" in parts:
            measure_tls(Path(name), options.rounds, options.seconds)


if __name__ == "__main__":
    main()
