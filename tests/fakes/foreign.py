"""The clients of other servers, each run by the Python of the environment that `make build/clients/.made` makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from running import Running

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / "build" / "clients"
PROGRAMS = ROOT / "tests" / "gateway" / "clients"
PERF_ANALYZER = ENVIRONMENT / "bin" / "perf_analyzer"
LIMIT_S = 240.0


def addresses(daemon: Running) -> dict[str, str]:
    """Where the daemon's gateway serves `http` and `grpc`."""
    row = daemon.status()["daemon"]["gateway"]
    return {"http": row["http"][0], "grpc": row["grpc"][0]}


def http_url(daemon: Running) -> str:
    """The address of HTTP of the daemon's gateway, as `http://127.0.0.1:8000`."""
    (http,) = daemon.status()["daemon"]["gateway"]["http"]
    return f"http://{http}"


def gateway_missing() -> str | None:
    """Why no gateway can be started, or None."""
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    if shutil.which("multitower-gateway", path=places):
        return None
    return "multitower-gateway is not installed: `pip install ./gateway` needs a Rust compiler"


def clients_missing() -> str | None:
    """Why no foreign client can be run, or None."""
    if not (ENVIRONMENT / ".made").exists():
        return "the foreign clients are not installed: make build/clients/.made"
    return None


def run(program: str, job: Mapping[str, Any], *arguments: str) -> dict[str, Any]:
    """Runs one of the programs of tests/gateway/clients, and returns its results by case."""
    command = [str(ENVIRONMENT / "bin" / "python"), str(PROGRAMS / f"{program}.py"), *arguments]
    # Proxies are not for this machine's own addresses; variables of Python are for the tests' environment.
    left_out = ("PYTHON", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(left_out)}
    done = subprocess.run(
        command, input=json.dumps(job), env=kept, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, f"{program} {arguments}: {done.stderr[-3000:]}"
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


class Programs:
    """Runs several programs at a time, and waits for each when its results are asked for."""

    def __init__(self, job: Mapping[str, Any], *commands: tuple[str, ...]) -> None:
        self._pool = ThreadPoolExecutor(len(commands))
        self._running = {command: self._pool.submit(run, command[0], job, *command[1:]) for command in commands}

    def __getitem__(self, command: tuple[str, ...]) -> dict[str, Any]:
        return self._running[command].result(2 * LIMIT_S)

    def close(self) -> None:
        """Waits for all of them."""
        self._pool.shutdown()


def curl(*arguments: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Runs curl; returns the status and the body."""
    command = ["curl", "-sS", "--noproxy", "*", "--max-time", "30", "--write-out", "\n%{http_code}"]
    given = [] if body is None else ["--data-binary", "@-"]
    done = subprocess.run([*command, *given, *arguments], input=body, capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    content, _, status = done.stdout.rpartition(b"\n")
    return int(status), content
