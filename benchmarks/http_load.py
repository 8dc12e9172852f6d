"""Load for HTTP and gRPC servers: requests with one tensor, and wrk and h2load to send them.

Both are C programs that cost little of the machine that they share with the server: on Debian `apt-get install wrk
nghttp2-client`. `load.c` stands beside them for MT1.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import load
import numpy as np
import psutil
import serving

GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"

WRK_SCRIPT = """
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
for line in os.getenv("HEADERS"):gmatch("[^\\n]+") do
  local name, value = line:match("^(.-): (.*)$")
  wrk.headers[name] = value
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\nJSON{"answered":%d,"seconds":%f,"p50":%f,"p99":%f,"errors":%d}\\n', summary.requests,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Target:
    """What a load generator sends to.

    Attributes:
        tool: `wrk`, `h2load` or `load.c`.
        address: `HOST:PORT`, or an MT1 endpoint.
        path: of the URL.
        headers: of each request.
        body: of each request.
        pid: the server's main process; those below it count, too.
        scheme: `http`, or `https` for wrk, which does not verify the certificate.
    """

    tool: str
    address: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    pid: int
    scheme: str = "http"


def varint(value: int) -> bytes:
    """An integer as protobuf writes it."""
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def field(number: int, content: bytes | str) -> bytes:
    """A field of a protobuf message, of those with a length."""
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def grpc_body(model: str, tensor: np.ndarray, output: str) -> bytes:
    """A ModelInferRequest with raw contents, in gRPC's frame."""
    shape = b"".join(varint(size) for size in tensor.shape)
    given = field(1, "x") + field(2, "FP32") + field(3, shape)
    message = field(1, model) + field(5, given) + field(6, field(1, output)) + field(7, tensor.tobytes())
    return b"\0" + len(message).to_bytes(4, "big") + message


def http_body(tensor: np.ndarray, output: str) -> tuple[dict[str, str], bytes]:
    """Headers and body of an infer request with binary tensors."""
    parameters = {"binary_data_size": tensor.nbytes}
    given = {"name": "x", "shape": list(tensor.shape), "datatype": "FP32", "parameters": parameters}
    wanted = {"name": output, "parameters": {"binary_data": True}}
    header = json.dumps({"inputs": [given], "outputs": [wanted]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    return headers, header + tensor.tobytes()


def ask(target: Target) -> bytes:
    """One request over HTTP/1.1; returns the body of its answer."""
    host, _, port = target.address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request("POST", target.path, body=target.body, headers=dict(target.headers))
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise SystemExit(f"{target.address}{target.path} answered {answer.status}: {body[:300]!r}")
    return body


def cpu_seconds(pid: int) -> float:
    """CPU time of a server's processes so far."""
    main = psutil.Process(pid)
    return serving.cpu_seconds([pid, *(child.pid for child in main.children(recursive=True))])


class Loads:
    """Runs the load generators.

    Args:
        folder: for their files.
        programs: of wrk and h2load, those that are used.
    """

    def __init__(self, folder: Path, programs: Sequence[str] = ("wrk", "h2load")) -> None:
        for program in programs:
            if shutil.which(program) is None:
                raise SystemExit(f"{program} is needed: apt-get install wrk nghttp2-client")
        self._folder = folder
        self._load_c = load.build(folder)
        self._script = folder / "post.lua"
        self._script.write_text(WRK_SCRIPT)

    def measure(self, target: Target, mt1: Sequence[str], connections: int, seconds: int) -> dict[str, float]:
        """Puts a load on a server: a number of connections, each with one request outstanding.

        Args:
            target: the server.
            mt1: options of load.c for the request, which a body states for the others.
            connections: how many.
            seconds: how long.

        Returns:
            `answered`, `rps`, `p50` and `p99` in milliseconds, and `per_cpu_second`: answers for each second of CPU
            time of the server's processes.

        Raises:
            SystemExit: a request failed.
        """
        run = {"wrk": self._wrk, "h2load": self._h2load, "load.c": self._mt1}[target.tool]
        before = cpu_seconds(target.pid)
        figures = run(target, mt1, connections, seconds)
        used = cpu_seconds(target.pid) - before
        return {**figures, "per_cpu_second": figures["answered"] / used}

    def _body(self, target: Target) -> Path:
        path = self._folder / "body"
        path.write_bytes(target.body)
        return path

    def _wrk(self, target: Target, _: Sequence[str], connections: int, seconds: int) -> dict[str, float]:
        headers = "\n".join(f"{name}: {value}" for name, value in target.headers.items())
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(self._script)]
        environment = {**os.environ, "BODY": str(self._body(target)), "HEADERS": headers}
        url = f"{target.scheme}://{target.address}{target.path}"
        done = subprocess.run([*command, url], env=environment, capture_output=True, text=True)
        line = next((line for line in done.stdout.splitlines() if line.startswith("JSON")), None)
        if line is None:
            raise SystemExit(f"wrk on {target.address}: {done.stdout}{done.stderr}")
        figures: dict[str, float] = json.loads(line.removeprefix("JSON"))
        if figures["errors"]:
            raise SystemExit(f"wrk on {target.address}: {figures['errors']} errors")
        return {**figures, "rps": figures["answered"] / figures["seconds"]}

    def _h2load(self, target: Target, _: Sequence[str], connections: int, seconds: int) -> dict[str, float]:
        """Unary calls, one at a time on each connection."""
        log = self._folder / "h2load.tsv"
        log.unlink(missing_ok=True)
        command = ["h2load", "-t1", f"-c{connections}", "-m1", f"-D{seconds}", f"--log-file={log}"]
        command += ["-d", str(self._body(target))]
        given = [option for each in target.headers.items() for option in ("-H", "{}: {}".format(*each))]
        url = f"http://{target.address}{target.path}"
        done = subprocess.run([*command, *given, url], capture_output=True, text=True)
        rows = [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []
        times = sorted(int(row[2]) / 1e3 for row in rows if row[1] == "200")
        if not times or len(times) < len(rows):
            raise SystemExit(f"h2load on {target.address}: {len(rows) - len(times)} errors\n{done.stdout}{done.stderr}")
        p50, p99 = (times[int(len(times) * share)] for share in (0.5, 0.99))
        return {"answered": len(times), "rps": len(times) / seconds, "p50": p50, "p99": p99}

    def _mt1(self, target: Target, mt1: Sequence[str], connections: int, seconds: int) -> dict[str, float]:
        wanted = load.Load(connections, connections)
        figures = load.run(self._load_c, target.address, wanted, seconds, *mt1, warm_up=0.1)
        return {"answered": figures.answered, "rps": figures.rps, "p50": figures.p50, "p99": figures.p99}
