"""A daemon with `security` on an address that another machine reaches, and clients there: Python, Java and HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foreign
import linked_machines
import pytest
from installed import find_program
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


JAVA_PROGRAM = Path(__file__).parents[1] / "fakes" / "java" / "AskAgain.java"
JAVA_CLIENT = Path(__file__).parents[2] / "clients" / "java" / "target"


@dataclass(frozen=True)
class Served:
    """A daemon with `security` on one machine, and what clients on the other one need.

    Attributes:
        machines: the two machines.
        daemon: the daemon.
        server_key: its public key.
        other_key: the public key of another daemon.
        known: the file with the secret key of a principal.
        stranger: that of somebody else.
        token: the principal's.
        certificate: the gateway's.
    """

    machines: LinkedMachines
    daemon: Running
    server_key: str
    other_key: str
    known: Path
    stranger: Path
    token: str
    certificate: Path

    @property
    def trusted(self) -> tuple[str, ...]:
        """The arguments of curl that trusts the gateway."""
        return ("--cacert", str(self.certificate), URL)

    def http(self, *arguments: str) -> str:
        """The status of a request over HTTP; empty if there was no answer."""
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [7]}]})
        command = ["curl", "-sS", "--noproxy", "*", "--max-time", "5", "--data-binary", body, "-o", os.devnull]
        command += ["-w", "%{http_code}", "--connect-to", f"localhost:{HTTP_PORT}:{SERVER_ADDRESS}:{HTTP_PORT}"]
        command = [*self.machines.on_client, *command, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_S, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    def answers_http(self) -> bool:
        return self.http("-H", f"Authorization: Bearer {self.token}", *self.trusted) == "200"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("two")
    known, stranger = make_keys(), make_keys()
    token, hashed = new_token("shop")
    principal = {"name": "shop", "public_key": known.public, "token_hash": str(hashed), "roles": ["infer"]}
    server = make_security(folder, [principal])
    certificate, _ = write_certificate(folder)
    files = [write_secret(folder / f"{name}.key_secret", keys) for name, keys in (("shop", known), ("x", stranger))]
    with (
        linked_machines.linked_machines() as machines,
        Running(folder, CONFIG, inside=machines.on_server) as daemon,
    ):
        made = Served(machines, daemon, server.public, stranger.public, files[0], files[1], token, certificate)
        daemon.wait_ready().wait(made.answers_http)
        yield made


class Asking:
    """A client on the other machine that asks until it is told to end.

    Args:
        machines: the two machines.
        command: the client, which prints a line for each request until its stdin ends.
    """

    def __init__(self, machines: LinkedMachines, command: Sequence[str]) -> None:
        whole = [*machines.on_client, *command]
        self._process = subprocess.Popen(whole, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.outcomes: list[list[Any]] = []

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=STEP_S)

    def read(self) -> list[Any]:
        """The next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the client has ended"
        return list(json.loads(line))

    def until(self, wanted: str | None) -> None:
        """Reads outcomes until one is an answer (None), or an error with this reason."""
        while True:
            self.outcomes.append(self.read())
            outcome = self.outcomes[-1][1]
            if outcome == wanted or (wanted is None and isinstance(outcome, int)):
                return

    def end(self) -> list[list[Any]]:
        """Ends the client, and returns all outcomes."""
        rest, _ = self._process.communicate(timeout=STEP_S)  # which closes its stdin
        self.outcomes += map(json.loads, rest.splitlines())
        return self.outcomes


def check_that_a_cut_loses_only_what_was_under_way(served: Served, asking: Asking) -> None:
    """Cuts the link below a client that asks, and heals it."""
    asking.until(None)
    served.machines.cut()
    try:
        asking.until("deadline")
        assert served.http("-H", f"Authorization: Bearer {served.token}", *served.trusted) == ""
    finally:
        served.machines.heal()
    asking.until(None)  # the same client
    asking.until(None)
    served.daemon.wait(served.answers_http)
    outcomes = asking.end()
    assert [number for number, _ in outcomes] == list(range(1, len(outcomes) + 1))  # one outcome each, in order
    answered = [number == outcome for number, outcome in outcomes if isinstance(outcome, int)]
    assert all(answered)
    lost = [number for number, outcome in outcomes if not isinstance(outcome, int)]
    reasons = {outcome for _, outcome in outcomes if not isinstance(outcome, int)}
    assert lost == list(range(lost[0], lost[-1] + 1)), outcomes  # only while the link was cut
    assert reasons <= {"deadline", "connection_lost", "not_listening"}
    # What nobody waits for any more does not wait in the daemon.
    assert served.daemon.status()["models"][0]["queue"] == 0


def test_clients_on_another_machine_need_their_keys_and_lose_only_what_was_lost(served: Served) -> None:
    good = {"key": str(served.known), "server_key": served.server_key}

    def one(options: dict[str, str]) -> str:
        command = [*served.machines.on_client, sys.executable, "-c", ONE, ENDPOINT, json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * STEP_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    # Without the right key nothing answers but a refusal.
    assert one(good) == "7"
    assert one({}) == "unauthenticated key_needed"
    assert one({**good, "key": str(served.stranger)}) == "unauthenticated key_refused"
    assert one({**good, "server_key": served.other_key}) == "unauthenticated server_key_wrong"
    assert served.http(*served.trusted) == "401"
    assert served.http("-H", f"Authorization: Bearer {new_token('shop')[0]}", *served.trusted) == "401"
    shown = ("-H", f"Authorization: Bearer {served.token}")
    assert served.http(*shown, URL) == ""  # curl does not trust the certificate
    assert served.http(*shown, URL.replace("https:", "http:")) != "200"

    with Asking(served.machines, [sys.executable, "-c", PROGRAM, ENDPOINT, json.dumps(good)]) as asking:
        check_that_a_cut_loses_only_what_was_under_way(served, asking)


def java() -> str:
    """The program java, whose client has been built; skips the test without, and fails it in CI."""
    program = find_program("java", "default-jdk-headless")
    if not (JAVA_CLIENT / "lib").is_dir():
        missing = "the Java client is not built: `mvn package` in clients/java"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return program


def test_a_java_client_on_another_machine_needs_its_keys_and_loses_only_what_was_lost(served: Served) -> None:
    # The classes, and not the jar, which Maven may be writing again.
    classes = f"{JAVA_CLIENT}/classes:{JAVA_CLIENT}/lib/*"
    command = [java(), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", classes, str(JAVA_PROGRAM)]
    keys = [str(served.known), str(served.stranger), served.server_key, served.other_key]
    with Asking(served.machines, [*command, ENDPOINT, *keys]) as asking:
        for kind, words in [
            ("key_needed", "admits only clients with a key"),
            ("key_refused", "does not admit this client's key"),
            ("server_key_wrong", "has another key than serverKey"),
        ]:
            reason, found, message = asking.read()
            assert (reason, found) == ("unauthenticated", kind), message
            assert words in message
        check_that_a_cut_loses_only_what_was_under_way(served, asking)
