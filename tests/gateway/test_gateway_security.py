"""HTTP and gRPC of a daemon with `security`, over TLS: curl, Python's ssl and grpcio against one daemon."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import foreign
import made_certificates
import pytest
from descriptors import accepted_connections
from foreign import curl
from gateway_grpc import TRITON, Services, grpc, message
from made_certificates import Authority
from made_security import write_principals
from running import STEP_S, Running

from multitower.bearer_tokens import new_token

CONFIG = """
listen: ["{endpoint}"]
devices: {cpu: 1}
spares: 0
security: {principals: principals.yaml}
gateway:
  http: ["127.0.0.1:*", "unix:http.sock"]
  grpc: "127.0.0.1:*"
  operate: true
  max_connections: 100
  tls: {certificate: server.pem, private_key: server.key, client_ca: ca.pem}
models:
  - {name: mine, handler: "handlers:Echo"}
  - {name: theirs, handler: "handlers:Echo"}
  - {name: declared, handler: "handlers:Declared", batching: {max_batch_size: 4}}
"""

HOST = "127.0.0.1"
DAY_S = 86_400
TOKENS = {name: new_token(name) for name in ("everything", "mine", "leaves", "seldom", "fails")}
PRINCIPALS: dict[str, dict[str, Any]] = {
    "everything": {"roles": ["infer", "observe", "operate"]},
    "mine": {"roles": ["infer", "observe"], "models": ["mine"]},
    "leaves": {"roles": ["infer", "observe"]},
    "certified": {"roles": ["infer"]},
    "seldom": {"roles": ["infer"], "rate": 0.01},
    "fails": {"roles": ["infer"], "rate": 0.01},
}
REQUEST = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2.5]}]}

pytestmark = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))


def rows(*without: str) -> list[dict[str, Any]]:
    """The principals of the file, without some."""
    made = []
    for name, row in PRINCIPALS.items():
        if name not in without:
            tokens = {"token_hash": str(TOKENS[name][1])} if name in TOKENS else {}
            made.append({"name": name, **row, **tokens})
    return made


class Locked:
    """A daemon with `security`, and how its gateway is asked."""

    def __init__(self, daemon: Running, authority: Authority, folder: Path) -> None:
        self.daemon, self.authority, self.folder = daemon, authority, folder
        addresses = foreign.addresses(daemon)
        self.http, self.grpc = addresses["http"], addresses["grpc"]
        self.port = int(self.http.rpartition(":")[2])

    def curl(
        self, path: str, *arguments: str, token: str | None = None, body: bytes | None = None
    ) -> tuple[int, bytes]:
        """Asks over HTTP; `token` is the name of its principal."""
        shown = [] if token is None else ["-H", f"Authorization: Bearer {TOKENS[token][0]}"]
        return curl("--cacert", str(self.authority.ca), *shown, *arguments, f"https://{self.http}{path}", body=body)

    def connect(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """A connection that has shaken hands."""
        raw = socket.create_connection((HOST, self.port), timeout=STEP_S)
        return (context or self.authority.client_context()).wrap_socket(raw, server_hostname="localhost")

    def services(self) -> Services:
        """The services of gRPC."""
        services = Services(self.grpc)
        services.channel.close()
        root = grpc.ssl_channel_credentials(self.authority.ca.read_bytes())
        services.channel = grpc.secure_channel(self.grpc, root)
        return services

    def set_principals(self, *without: str) -> float:
        """Writes the file of principals without some, and reloads; returns when the daemon had done that."""
        after = len(self.daemon.lines)
        write_principals(self.folder / "principals.yaml", rows(*without))
        self.daemon.signal(signal.SIGHUP)
        self.daemon.wait_line("audit: reload", STEP_S, after=after)
        return time.monotonic()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    folder = tmp_path_factory.mktemp("locked")
    authority = Authority(folder)
    authority.issue("server")
    write_principals(folder / "principals.yaml", rows())
    with Running(folder, CONFIG) as daemon:
        daemon.wait_ready()
        yield Locked(daemon, authority, folder)
        written = daemon.text()
        for token, _ in TOKENS.values():
            assert token not in written
            assert token.partition(".")[2] not in written, "no part of the log has a token"


def headers_of(answer: bytes) -> dict[str, str]:
    lines = answer.decode().partition("\r\n\r\n")[0].splitlines()[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


class TestHttp:
    def test_without_credentials_only_liveness_readiness_and_the_page_are_answered(self, locked: Locked) -> None:
        for path, status in [
            ("/healthz", 200),
            ("/readyz", 200),
            ("/v2/health/live", 200),
            ("/v2/health/ready", 200),
            ("/", 200),
            ("/v2", 401),
            ("/v2/models/mine", 401),
            ("/v2/models/none-such", 401),
            ("/v1/models/mine", 401),
            ("/metrics", 401),
            ("/status.json", 401),
            ("/nowhere", 401),
        ]:
            found, _ = locked.curl(path)
            assert found == status, path
        status, answer = locked.curl("/v2/models/mine", "--include", "--http1.1")
        assert headers_of(answer)["www-authenticate"] == "Bearer"
        assert headers_of(answer)["multitower-reason"] == "unauthenticated"
        assert json.loads(locked.curl("/readyz")[1]) == {"ready": True}

    def test_a_token_lets_in_and_the_daemon_says_to_what(self, locked: Locked) -> None:
        body = json.dumps(REQUEST).encode()
        serving = json.dumps({"instances": [1.0]}).encode()
        for token, path, sent, expected in [
            ("everything", "/v2/models/theirs/infer", body, 200),
            ("mine", "/v2/models/mine/infer", body, 200),
            ("mine", "/v2/models/theirs/infer", body, 403),
            ("mine", "/v2/models/none-such/infer", body, 403),
            ("mine", "/v1/models/theirs:predict", serving, 403),
            ("everything", "/v2/models/none-such/infer", body, 404),
            ("mine", "/v2/models/mine", None, 200),
            ("mine", "/v2/models/theirs", None, 403),
            ("mine", "/metrics", None, 403),
            ("mine", "/status.json", None, 403),
            ("everything", "/metrics", None, 200),
            ("everything", "/status.json", None, 200),
            ("mine", "/v2/repository/models/mine/load", b"{}", 403),
            ("everything", "/v2/repository/models/mine/load", b"{}", 200),
            ("everything", "/v2/repository/index", b"", 200),
        ]:
            status, answer = locked.curl(path, token=token, body=sent)
            assert status == expected, f"{token} {path}: {answer!r}"
        _, theirs = locked.curl("/v2/models/theirs/infer", token="mine", body=body)
        _, none_such = locked.curl("/v2/models/none-such/infer", token="mine", body=body)
        assert theirs == none_such, "the answer does not tell whether there is such a model"

    def test_what_the_gateway_asks_by_itself_leaves_the_rate_to_the_client(self, locked: Locked) -> None:
        serving = json.dumps({"instances": [{"x": [1.0, 2.0, 3.0], "n": 4}]}).encode()
        found = [locked.curl("/v1/models/declared:predict", token="seldom", body=serving)[0] for _ in range(2)]
        assert found == [200, 429], "the question for the metadata does not count, the request does"
        found = [locked.curl("/v2/models/none-such", token="fails")[0] for _ in range(2)]
        assert found[0] == 404
        assert found[1] in (429, 503), "questions that fail count: the gateway asks for each of them"

    def test_a_wrong_token_is_refused(self, locked: Locked) -> None:
        for token in ("everything.wrong", "none-such.wrong", "x" * 4000, TOKENS["everything"][0][:-1]):
            status, answer = locked.curl("/v2", "-H", f"Authorization: Bearer {token}")
            assert status == 401
            assert token.encode() not in answer

    def test_a_certificate_names_its_principal(self, locked: Locked) -> None:
        body = json.dumps(REQUEST).encode()
        for subject, expected in [("/O=example/CN=certified", 200), ("/CN=none-such", 401), ("/O=certified", 401)]:
            certificate, key = locked.authority.issue("client", subject)
            shown = ["--cert", str(certificate), "--key", str(key)]
            status, answer = locked.curl("/v2/models/mine/infer", *shown, body=body)
            assert status == expected, f"{subject}: {answer!r}"

    def test_http2_and_http1_are_agreed_on(self, locked: Locked) -> None:
        for offered, version in [("--http2", b"2"), ("--http1.1", b"1.1")]:
            # curl writes the status behind what it is asked to write.
            _, answer = locked.curl("/healthz", offered, "--output", "/dev/null", "--write-out", "%{http_version}\n200")
            assert answer == version

    def test_plain_http_is_told_to_use_tls(self, locked: Locked) -> None:
        status, answer = curl(f"http://{locked.http}/healthz")
        assert (status, json.loads(answer)) == (400, {"error": "this address speaks TLS: use https://"})

    def test_a_unix_socket_needs_credentials_too_and_no_tls(self, locked: Locked) -> None:
        """Although the processes at both of its ends are the daemon's own user's."""
        over = ["--unix-socket", str(locked.folder / "http.sock")]
        shown = ["-H", f"Authorization: Bearer {TOKENS['mine'][0]}"]
        for path, arguments, status in [
            ("/v2/health/live", [], 200),
            ("/v2/models/mine", [], 401),
            ("/status.json", [], 401),
            ("/v2/repository/models/mine/load", ["-X", "POST"], 401),
            ("/v2/models/mine", shown, 200),
            ("/v2/models/theirs", shown, 403),
            ("/v2/repository/models/mine/load", [*shown, "-X", "POST"], 403),
        ]:
            assert curl(*over, *arguments, f"http://localhost{path}")[0] == status, path


class TestTls:
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_versions_of_tls(self, locked: Locked, version: ssl.TLSVersion) -> None:
        context = locked.authority.client_context()
        context.minimum_version = context.maximum_version = version
        with locked.connect(context) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")

    def test_a_certificate_of_another_authority_is_refused(self, locked: Locked, tmp_path: Path) -> None:
        stranger = Authority(tmp_path).issue("stranger", "/CN=certified")

        def ask() -> None:
            with locked.connect(locked.authority.client_context(stranger)) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: m\r\n\r\n")
                connection.recv(1)  # with TLS 1.3 the handshake is over before

        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask()

    def test_replaced_certificates_are_used_without_an_interruption(self, locked: Locked) -> None:
        def shown() -> Any:
            with locked.connect() as connection:
                return connection.getpeercert(binary_form=True)

        before, after = shown(), len(locked.daemon.lines)
        with locked.connect() as kept:
            certificate, key = locked.authority.issue("next")
            made_certificates.replace(locked.folder / "server.pem", certificate)
            locked.daemon.wait_line("the files of the certificate have changed, but cannot be used", after=after)
            assert shown() == before, "the key does not fit yet"
            made_certificates.replace(locked.folder / "server.key", key)
            locked.daemon.wait_line("the certificate was read again", after=after)
            assert shown() != before
            kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: m\r\n\r\n")
            assert kept.recv(100).startswith(b"HTTP/1.1 200 OK")

    def test_connections_end_whose_certificates_are_of_an_authority_that_was_removed(
        self, locked: Locked, tmp_path: Path
    ) -> None:
        """Both clients are the same principal; nothing is reloaded."""
        own, other = locked.authority.ca.read_text(), Authority(tmp_path)
        pairs = [locked.authority.issue("stays", "/CN=certified"), other.issue("leaves", "/CN=certified")]
        contexts = [locked.authority.client_context(pair) for pair in pairs]

        def use(authorities: str) -> None:
            after = len(locked.daemon.lines)
            (locked.folder / "ca.pem").write_text(authorities)
            locked.daemon.wait_line("the certificate was read again", after=after)

        def ready(connection: ssl.SSLSocket) -> bytes:
            connection.sendall(b"GET /v2/models/mine/ready HTTP/1.1\r\nHost: m\r\n\r\n")
            return connection.recv(1000)

        use(own + other.ca.read_text())
        try:
            with locked.connect(contexts[0]) as stays, locked.connect(contexts[1]) as leaves:
                assert all(ready(each).startswith(b"HTTP/1.1 200 OK") for each in (stays, leaves))
                use(own)
                assert leaves.recv(1) == b"", "it is closed"
                assert ready(stays).startswith(b"HTTP/1.1 200 OK")
        finally:
            (locked.folder / "ca.pem").write_text(own)

    def test_the_expiry_of_the_certificate_is_logged_and_in_the_metrics(self, locked: Locked) -> None:
        """It is that of the first certificate of the file that expires; a date that is near is told at once."""
        name, now = b"\nmultitower_gateway_certificate_not_after_seconds ", time.time()

        def days_left() -> int | None:
            _, text = locked.curl("/metrics", "--insecure", token="everything")
            value = text.partition(name)[2].partition(b"\n")[0]
            return round((float(value) - now) / DAY_S) if value else None

        def use(pair: tuple[Path, Path], days: int, line: str | None) -> dict[str, Any]:
            after = len(locked.daemon.lines)
            for file, path in zip(("server.key", "server.pem"), reversed(pair), strict=True):
                made_certificates.replace(locked.folder / file, path)
            locked.daemon.wait_line("the certificate was read again", after=after)
            found = {} if line is None else locked.daemon.wait_line(line, after=after)
            locked.daemon.wait(lambda: days_left() == days, STEP_S)
            return found

        began, ended = (time.strftime("%Y%m%d%H%M%SZ", time.gmtime(now - days * DAY_S)) for days in (90, 3))
        use(locked.authority.issue("long", days=100), 100, None)
        line = use(locked.authority.issue("short", days=10), 10, "the certificate expires soon")
        assert line["days_left"] in (9, 10), line  # 10 within the second in which it was issued
        issued = (now, time.time())
        assert line["not_after"] in [time.strftime("%Y-%m-%d", time.gmtime(at + 10 * DAY_S)) for at in issued]
        assert line["certificate"] == str(locked.folder / "server.pem")
        line = use(locked.authority.issue_expired("expired", began, ended), -3, "the certificate has expired")
        assert line["level"] == "warning"
        assert line["days_ago"] == 3, line
        use(locked.authority.issue("last"), 2, None)

    def test_silent_garbled_and_slow_clients_take_no_places_and_leave_nothing(self, locked: Locked) -> None:
        gateway = locked.daemon.status()["daemon"]["gateway"]["pid"]
        hello = ssl_hello()
        sent = [b"", hello[:1], hello[: len(hello) // 2], hello, b"GET / HTTP/1.1\r\n", b"\0garbage" * 10]
        silent = []
        try:
            for number in range(300):  # three times as many as there are places
                connection = socket.create_connection((HOST, locked.port), timeout=STEP_S)
                connection.sendall(sent[number % len(sent)])
                silent.append(connection)
            assert locked.curl("/v2", token="everything")[0] == 200
        finally:
            for connection in silent:
                connection.close()
        locked.daemon.wait(lambda: accepted_connections(gateway, locked.port) == 0, STEP_S)
        line = locked.daemon.wait_line("TLS handshakes have failed")
        assert line["count"] >= 1


def ssl_hello() -> bytes:
    """The first message of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


class TestGrpc:
    def test_metadata_has_the_token(self, locked: Locked) -> None:
        services = locked.services()
        infer = services.method(TRITON, "ModelInfer")

        def code(token: str | None, model: str) -> Any:
            request = message("inference.ModelInferRequest", model_name=model)
            request.inputs.add(name="x", datatype="FP32", shape=[1, 1]).contents.fp32_contents.append(2.5)
            shown = () if token is None else (("authorization", f"Bearer {token}"),)
            try:
                infer(request, metadata=shown, timeout=STEP_S)
            except grpc.RpcError as error:
                reasons = dict(error.trailing_metadata())
                assert reasons["multitower-reason"] in ("unauthenticated", "forbidden", "model_unknown")
                return error.code()
            return grpc.StatusCode.OK

        everything, mine = TOKENS["everything"][0], TOKENS["mine"][0]
        assert code(None, "mine") is grpc.StatusCode.UNAUTHENTICATED
        assert code("mine.wrong", "mine") is grpc.StatusCode.UNAUTHENTICATED
        assert code(mine, "mine") is grpc.StatusCode.OK
        assert code(mine, "theirs") is grpc.StatusCode.PERMISSION_DENIED
        assert code(mine, "none-such") is grpc.StatusCode.PERMISSION_DENIED
        assert code(everything, "none-such") is grpc.StatusCode.NOT_FOUND
        live = services.method(TRITON, "ServerLive")(message("inference.ServerLiveRequest"), timeout=STEP_S)
        assert live.live
        services.channel.close()

    def test_credentials_of_grpcio_are_taken(self, locked: Locked) -> None:
        root = grpc.ssl_channel_credentials(locked.authority.ca.read_bytes())
        token = grpc.access_token_call_credentials(TOKENS["everything"][0])
        services = locked.services()
        services.channel.close()
        services.channel = grpc.secure_channel(locked.grpc, grpc.composite_channel_credentials(root, token))
        request = message("inference.ModelReadyRequest", name="mine")
        assert services.method(TRITON, "ModelReady")(request, timeout=STEP_S).ready
        services.channel.close()


def test_a_principal_that_is_removed_is_out_within_a_second_and_others_notice_nothing(locked: Locked) -> None:
    context = locked.authority.client_context()
    bearer = {name: {"Authorization": f"Bearer {token}"} for name, (token, _) in TOKENS.items()}

    def ready(connection: http.client.HTTPSConnection, name: str) -> int:
        connection.request("GET", "/v2/models/mine/ready", headers=bearer[name])
        answer = connection.getresponse()
        answer.read()
        return answer.status

    stays = http.client.HTTPSConnection("localhost", locked.port, context=context, timeout=STEP_S)
    leaves = http.client.HTTPSConnection("localhost", locked.port, context=context, timeout=STEP_S)
    services = locked.services()
    model_ready = services.method(TRITON, "ModelReady")
    request = message("inference.ModelReadyRequest", name="mine")
    shown = (("authorization", bearer["leaves"]["Authorization"]),)
    stream = services.method(TRITON, "ModelStreamInfer")(iter_until_closed(), metadata=shown)
    try:
        assert ready(stays, "everything") == ready(leaves, "leaves") == 200
        assert model_ready(request, metadata=shown, timeout=STEP_S).ready
        with ThreadPoolExecutor(1) as pool:
            over = threading.Event()

            def ask_until_over() -> list[tuple[int, float]]:
                answers = []
                while not over.is_set():
                    began = time.monotonic()
                    answers.append((ready(stays, "everything"), time.monotonic() - began))
                return answers

            asking = pool.submit(ask_until_over)
            try:
                revoked_at = locked.set_principals("leaves")
                assert leaves.sock is not None
                assert leaves.sock.recv(1) == b"", "it is closed"
                closed_after = time.monotonic() - revoked_at
                with pytest.raises(grpc.RpcError):
                    next(stream)
                ended_after = time.monotonic() - revoked_at
            finally:
                over.set()
            statuses, times = zip(*asking.result(STEP_S), strict=True)
            assert set(statuses) == {200}
        # A second, and what a busy machine needs beside it: the longest time that the others' requests took meanwhile.
        assert max(closed_after, ended_after) < 1 + max(times)
        assert locked.curl("/v2", token="leaves")[0] == 401
        with pytest.raises(grpc.RpcError) as caught:
            model_ready(request, metadata=shown, timeout=STEP_S, wait_for_ready=True)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        locked.set_principals()
        stays.close()
        leaves.close()
        services.channel.close()
    until = time.monotonic() + STEP_S
    while locked.curl("/v2", token="leaves")[0] != 200:
        assert time.monotonic() < until, "it is let in again"


def iter_until_closed() -> Iterator[Any]:
    """Requests of a stream that stays open without any."""
    threading.Event().wait(STEP_S)
    yield from ()


def test_who_gave_an_order_over_http_is_known(locked: Locked) -> None:
    after = len(locked.daemon.lines)
    assert locked.curl("/v2/repository/models/mine/load", token="everything", body=b"{}")[0] == 200
    line = locked.daemon.wait_line("", after=after, principal="everything")
    assert line["from"].startswith(f"{HOST}:")
