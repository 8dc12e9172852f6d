"""A daemon with `security` on an address that another machine reaches, and clients there: Python and HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import foreign
import linked_machines
import pytest
from linked_machines import SERVER_ADDRESS, LinkedMachines
from made_security import make_keys, make_security, write_certificate, write_secret
from running import STEP_S, Running

from multitower.bearer_tokens import new_token

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(linked_machines.why_not() is not None, reason=str(linked_machines.why_not())),
    pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing())),
]

PORT, HTTP_PORT = 5599, 8099
ENDPOINT = f"tcp://{SERVER_ADDRESS}:{PORT}"
URL = f"https://localhost:{HTTP_PORT}/v2/models/echo/infer"

CONFIG = f"""
listen: ["{{endpoint}}", "{ENDPOINT}"]
security: {{curve: {{secret_key: server.key_secret}}, principals: principals.yaml}}
gateway:
  http: "{SERVER_ADDRESS}:{HTTP_PORT}"
  tls: {{certificate: certificate.pem, private_key: private_key.pem}}
devices: {{cpu: 1}}
spares: 0
peer_timeout: 2s
models: [{{name: echo, handler: "handlers:Echo"}}]
"""

# Asks again and again, with a number that no other request has, until its stdin ends. Each request has one outcome,
# which it prints: its number, and the number that came back or the reason of the error.
PROGRAM = """
import json, sys, threading
import numpy as np
from multitower import Client, MultitowerError

endpoint, options = sys.argv[1], json.loads(sys.argv[2])
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
with Client(endpoint, timeout=1.0, connect_timeout=1.0, peer_timeout=2.0, **options) as client:
    number = 0
    while not ended.is_set():
        number += 1
        try:
            outcome = int(client.infer("echo", {"x": np.float64([number])})["x"][0])
        except MultitowerError as error:
            outcome = error.reason
        print(json.dumps([number, outcome]), flush=True)
        ended.wait(0.02)
"""

# One request by a client that may have to wait for the handshake.
ONE = """
import json, sys
import numpy as np
from multitower import Client, MultitowerError

try:
    with Client(sys.argv[1], timeout=60, connect_timeout=60, **json.loads(sys.argv[2])) as client:
        print(int(client.infer("echo", {"x": np.float64([7])})["x"][0]))
except MultitowerError as error:
    print(error.reason, error.details.get("connect_error"))
"""


@pytest.fixture
def machines() -> Iterator[LinkedMachines]:
    with linked_machines.linked_machines() as made:
        yield made


class Asking:
    """A client on the other machine that asks until it is told to end."""

    def __init__(self, machines: LinkedMachines, options: dict[str, Any]) -> None:
        command = [*machines.on_client, sys.executable, "-c", PROGRAM, ENDPOINT, json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.outcomes: list[list[Any]] = []

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=STEP_S)

    def until(self, wanted: str | None) -> None:
        """Reads outcomes until one is an answer (None), or an error with this reason."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.outcomes.append(json.loads(line))
            outcome = self.outcomes[-1][1]
            if outcome == wanted or (wanted is None and isinstance(outcome, int)):
                return
        raise AssertionError("the client has ended")

    def end(self) -> list[list[Any]]:
        """Ends the client, and returns all outcomes."""
        rest, _ = self._process.communicate(timeout=STEP_S)  # which closes its stdin
        self.outcomes += map(json.loads, rest.splitlines())
        return self.outcomes


def test_clients_on_another_machine_need_their_keys_and_lose_only_what_was_lost(
    tmp_path: Path, machines: LinkedMachines
) -> None:
    known, stranger = make_keys(), make_keys()
    token, hashed = new_token("shop")
    principal = {"name": "shop", "public_key": known.public, "token_hash": str(hashed), "roles": ["infer"]}
    server = make_security(tmp_path, [principal])
    certificate, _ = write_certificate(tmp_path)
    known_file = str(write_secret(tmp_path / "shop.key_secret", known))
    good = {"key": known_file, "server_key": server.public}

    def one(options: dict[str, str]) -> str:
        command = [*machines.on_client, sys.executable, "-c", ONE, ENDPOINT, json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * STEP_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def http(*arguments: str) -> str:
        """The status of a request over HTTP; empty if there was no answer."""
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [7]}]})
        command = ["curl", "-sS", "--noproxy", "*", "--max-time", "5", "--data-binary", body, "-o", os.devnull]
        command += ["-w", "%{http_code}", "--connect-to", f"localhost:{HTTP_PORT}:{SERVER_ADDRESS}:{HTTP_PORT}"]
        done = subprocess.run(
            [*machines.on_client, *command, *arguments], capture_output=True, text=True, timeout=STEP_S, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    trusted = ("--cacert", str(certificate), URL)
    with Running(tmp_path, CONFIG, inside=machines.on_server) as daemon:
        daemon.wait_ready()
        daemon.wait(lambda: http("-H", f"Authorization: Bearer {token}", *trusted) == "200")

        # Without the right key nothing answers but a refusal.
        assert one(good) == "7"
        assert one({}) == "unauthenticated key_needed"
        assert one({"key": stranger.secret, "server_key": server.public}) == "unauthenticated key_refused"
        assert one({"key": known_file, "server_key": stranger.public}) == "unauthenticated server_key_wrong"
        assert http(*trusted) == "401"
        assert http("-H", f"Authorization: Bearer {new_token('shop')[0]}", *trusted) == "401"
        assert http("-H", f"Authorization: Bearer {token}", URL) == ""  # curl does not trust the certificate
        assert http("-H", f"Authorization: Bearer {token}", URL.replace("https:", "http:")) != "200"

        # A cut link loses what was under way, and nothing else.
        with Asking(machines, good) as asking:
            asking.until(None)
            machines.cut()
            asking.until("deadline")
            assert http("-H", f"Authorization: Bearer {token}", *trusted) == ""
            machines.heal()
            asking.until(None)  # the same client
            asking.until(None)
            daemon.wait(lambda: http("-H", f"Authorization: Bearer {token}", *trusted) == "200")
            outcomes = asking.end()
        assert [number for number, _ in outcomes] == list(range(1, len(outcomes) + 1))  # one outcome each, in order
        answered = [number == outcome for number, outcome in outcomes if isinstance(outcome, int)]
        assert all(answered)
        lost = [number for number, outcome in outcomes if not isinstance(outcome, int)]
        reasons = {outcome for _, outcome in outcomes if not isinstance(outcome, int)}
        assert lost == list(range(lost[0], lost[-1] + 1)), outcomes  # only while the link was cut
        assert reasons <= {"deadline", "connection_lost", "not_listening"}
        # What nobody waits for any more does not wait in the daemon.
        assert daemon.status()["models"][0]["queue"] == 0
