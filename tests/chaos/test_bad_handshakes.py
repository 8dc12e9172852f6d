"""Thousands of connections that do not get in: garbage, wrong keys, silence. Who is let in is served meanwhile.

`MULTITOWER_CHAOS_HANDSHAKES` is the number of connections, of each kind a third: few in CI, 10,000 in a soak test.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import foreign
import psutil
import pytest
from amount import amount
from asker import Asker
from bad_handshakes import KINDS, Attack
from made_certificates import Authority
from made_security import make_keys, make_security, write_principals
from running import START_S, STEP_S, Running

from multitower import wire
from multitower.bearer_tokens import new_token

FULL = 10_000
HANDSHAKES = amount("MULTITOWER_CHAOS_HANDSHAKES", 300)
AT_ONCE = min(1200, HANDSHAKES)
PLACES = 600
"""Connections that may be open: with all of `FULL`, half as many as want to."""

INTERVAL_S = 0.01
"""From one good request to the next."""

ALONE_S = 2.0
MAX_GROWTH = 48 << 20

NEWCOMER_S = 15.0
"""Within which a new client is answered: about 2 s on a quiet machine, where connections are ended after 1 s."""

CONFIG = """
devices: {cpu: 1}
spares: 0
models: [{name: echo, handler: 'handlers:Echo', batching: {max_batch_size: 4}}]
"""

HEADER = {"model_name": "echo", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1]}]}
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2.5]}]})

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


class Load:
    """Requests of a client that is let in, one every `INTERVAL_S`, or at once where one took longer.

    Args:
        ask: sends one, and returns what was wrong with the answer; "" if nothing was.
    """

    def __init__(self, ask: Callable[[], str]) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self._ask = ask
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due + INTERVAL_S, time.monotonic() - 1.0)
            wrong = self._ask()
            if wrong:
                self.wrong.append(wrong)
            else:
                self.answered += 1

    def rate_while(self, call: Callable[[], None]) -> float:
        """Good answers per second while something is done."""
        before, began = self.answered, time.monotonic()
        call()
        return (self.answered - before) / (time.monotonic() - began)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


def check(
    attack: Attack, ask: Callable[[], str], newcomer: Callable[[], str], process: psutil.Process, what: str
) -> None:
    """Attacks under load; the load must not notice, and nothing may stay of the attack.

    Args:
        attack: the bad handshakes.
        ask: sends a good request on a connection that stays open; see `Load`.
        newcomer: does so on a new connection.
        process: the server.
        what: for the printed line.
    """
    admitted: list[float] = []

    def run(made: Attack) -> None:
        started = made.start()
        with started:
            while started.poll() is None:
                began = time.monotonic()
                assert newcomer() == ""
                admitted.append(time.monotonic() - began)
                time.sleep(0.2)
            assert started.stdout is not None
            said = started.stdout.read()
        assert started.returncode == 0, "the server has not ended each of them; see what the program has written"
        assert json.loads(said) == dict.fromkeys(KINDS, made.count // len(KINDS)), "the server ends each of them"

    # What the first ones take stays.
    first = Attack(**{**vars(attack), "count": min(attack.count, 90)})
    load = Load(ask)
    try:
        run(first)
        process_settled(process, limit=0)
        descriptors, memory = process.num_fds(), process.memory_info().rss
        alone = load.rate_while(lambda: time.sleep(ALONE_S))
        admitted.clear()
        began = time.monotonic()
        attacked = load.rate_while(lambda: run(attack))
        took = time.monotonic() - began
    finally:
        load.stop()
    assert load.wrong == []
    process_settled(process, descriptors)
    grown = process.memory_info().rss - memory
    print(  # noqa: T201  docs/reliability.md quotes such figures
        f"\n{attack.count} bad handshakes in {took:.0f} s ({what}): {attacked / alone:.2f} of the good answers, new "
        f"clients answered after {max(admitted):.2f} s at most, {grown / 1024:+.0f} KiB, "
        f"{process.num_fds() - descriptors:+d} descriptors"
    )
    assert grown < MAX_GROWTH
    assert attacked > (0.9 if attack.count >= FULL else 0.5) * alone
    assert max(admitted) < NEWCOMER_S


def process_settled(process: psutil.Process, limit: int) -> None:
    """Waits until the process has no more descriptors than that; with 0, until their number stays."""
    until = time.monotonic() + STEP_S
    before = -1
    while (found := process.num_fds()) > limit and (limit or found != before):
        assert time.monotonic() < until, f"{found} descriptors, not {limit}"
        before = found
        time.sleep(1.0)


def test_bad_handshakes_of_curve_cost_the_honest_nothing_and_leave_nothing_behind(tmp_path: Path) -> None:
    keys = make_keys()
    server = make_security(tmp_path, [{"name": "client", "roles": ["infer"], "public_key": keys.public}])
    config = f"""
listen: ["{{endpoint}}", "tcp://127.0.0.1:*"]
max_connections: {PLACES}
security: {{curve: {{secret_key: server.key_secret}}, principals: principals.yaml}}
{CONFIG}"""
    with Running(tmp_path, config) as daemon:
        daemon.wait_ready()
        listening = daemon.wait_line("daemon started")["listen"].split(",")
        (endpoint,) = (each for each in listening if each.startswith("tcp://"))
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")

        def ask(asker: Asker) -> str:
            reason = asker.ask(wire.INFER, HEADER, bytes(4))
            return "" if reason == "ok" else reason

        def newcomer() -> str:
            with closing(Asker(endpoint, keys, server.public)) as made:
                return ask(made)

        with closing(Asker(endpoint, keys, server.public)) as asker:
            attack = Attack(host, int(port), HANDSHAKES, AT_ONCE, server_key=server.public)
            check(attack, lambda: ask(asker), newcomer, psutil.Process(daemon.process.pid), "CURVE")
        failures = [line for line in daemon.lines if line["message"].startswith("authentication failed")]
        assert 0 < len(failures) < 100  # at a bounded rate


@pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))
def test_bad_handshakes_of_tls_cost_the_honest_nothing_and_leave_nothing_behind(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue("server")
    (tmp_path / "other").mkdir()
    certificate, key = Authority(tmp_path / "other").issue("stranger")
    token, hashed = new_token("client")
    write_principals(tmp_path / "principals.yaml", [{"name": "client", "roles": ["infer"], "token_hash": str(hashed)}])
    config = f"""
listen: ["{{endpoint}}"]
security: {{principals: principals.yaml}}
gateway:
  http: "127.0.0.1:*"
  max_connections: {PLACES}
  tls: {{certificate: server.pem, private_key: server.key, client_ca: ca.pem}}
{CONFIG}"""
    with Running(tmp_path, config) as daemon:
        row = daemon.wait_ready().status()["daemon"]["gateway"]
        port = int(row["http"][0].rpartition(":")[2])
        context = authority.client_context()

        def connect() -> http.client.HTTPSConnection:
            return http.client.HTTPSConnection("localhost", port, context=context, timeout=START_S)

        def ask(connection: http.client.HTTPSConnection) -> str:
            connection.request("POST", "/v2/models/echo/infer", BODY, {"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            said = answer.read()
            return "" if answer.status == 200 else f"{answer.status} {said!r}"

        def newcomer() -> str:
            with closing(connect()) as made:
                return ask(made)

        with closing(connect()) as connection:
            attack = Attack(
                "127.0.0.1",
                port,
                HANDSHAKES,
                AT_ONCE,
                authority=str(authority.ca),
                certificate=str(certificate),
                key=str(key),
            )
            check(attack, lambda: ask(connection), newcomer, psutil.Process(row["pid"]), "TLS")
        failed = [line for line in daemon.lines if line["message"].startswith("TLS handshakes have failed")]
        assert 0 < len(failed) < 100
