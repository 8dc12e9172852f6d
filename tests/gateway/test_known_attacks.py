"""What has gone wrong in other inference servers, tried on every interface of one daemon with `security`.

The kinds are those of Triton's CVEs of 2025 and 2026: authentication bypassed by an alternate path (CVE-2026-24206 and
-24207), a request for very many outputs (-24146), integer overflow in sizes (-24173), path traversal in the repository
API (-24208 and -24209), and internal names in errors (CVE-2025-23319). An empty secret is the sixth. Each row of a
table is one attempt; after each, the interface must serve a good request.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import foreign
import psutil
import pytest
from asker import NO_ANSWER, NOT_ANSWERED_S, Asker
from attacked_daemon import GRPC, HTTP, INTERFACES, MT1, SERVICES, Locked
from gateway_grpc import PREDICTION, TRITON, grpc, message
from made_security import Keys, make_keys, make_security
from running import STEP_S, Running, copy_handlers

from multitower import wire
from multitower.bearer_tokens import new_token
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.source import ConfigError

CONFIG = """
listen: ["{endpoint}", "tcp://127.0.0.1:*"]
devices: {cpu: 1}
spares: 0
security: {curve: {secret_key: server.key_secret}, principals: principals.yaml}
gateway: {http: "127.0.0.1:*", grpc: "127.0.0.1:*", operate: true}
models:
- {name: mine, handler: 'handlers:DeclaredReckoner', batching: {max_batch_size: 4}}
- {name: theirs, handler: 'handlers:DeclaredReckoner', batching: {max_batch_size: 4}}
- {name: broken, handler: 'handlers:Broken'}
"""


MANY = 100_000
"""Outputs of a request; more than fit into a header of MT1."""

REFUSED = frozenset({"malformed", "shape_invalid", "size_mismatch", "too_large", "output_unknown", "input_unknown"})
UNKNOWN = frozenset({"model_unknown", "version_unknown", "malformed", "path_unknown", "unsupported", "not_found"})
NOBODY = frozenset({"unauthenticated"})

INTERNAL = re.compile(
    r"mt-[0-9]+-[0-9]+-[0-9a-f]{32}|/proc/|/dev/|memfd|gateway\.sock|control\.sock|Traceback|\.rs\b|0x[0-9a-f]{6}"
)
"""What no answer may have: names of regions and sockets, paths, addresses in memory, the code."""

pytestmark = pytest.mark.skipif(bool(foreign.gateway_missing()), reason=str(foreign.gateway_missing()))


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    folder = tmp_path_factory.mktemp("attacked")
    roles = {"everything": ["infer", "observe", "operate"], "infers": ["infer"]}
    keys = {name: make_keys() for name in roles}
    tokens = {name: new_token(name) for name in roles}
    server = make_security(
        folder,
        [
            {"name": name, "roles": roles[name], "public_key": keys[name].public, "token_hash": str(tokens[name][1])}
            for name in roles
        ],
    )
    with Running(folder, CONFIG) as daemon:
        with daemon.client() as client:
            daemon.wait(lambda: client.server_ready()["slots_ready"] == 1)
        made = Locked(daemon, server.public, keys, {name: token for name, (token, _) in tokens.items()})
        yield made
        made.services.channel.close()
        slot = daemon.slot()
        assert (slot["state"], slot["restarts"], slot["incarnation"]) == ("ready", 0, 1), "no attempt cost a worker"


@pytest.fixture(autouse=True)
def served(locked: Locked, request: pytest.FixtureRequest) -> Iterator[None]:
    """After each attempt its interface serves, and no answer has told anything of the inside."""
    seen = len(locked.answers)
    yield
    interface = request.node.callspec.params.get("interface") if hasattr(request.node, "callspec") else None
    if interface is not None:
        locked.check_serves(interface)
    inside = (str(locked.daemon.runtime_dir), str(locked.daemon.config.parent))
    for answer in locked.answers[seen:]:
        assert not INTERNAL.search(answer), answer[:2000]
        assert not any(path in answer for path in inside), answer[:2000]


# An alternate path: nobody gets by another way what needs a credential.

INFER_BODY = json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [5]}]}).encode()
SERVING_BODY = b'{"instances": [[5]]}'

PATHS: dict[str, tuple[str, ...]] = {
    "http": (
        "/v2/models/mine/infer",
        "/v2/models/mine/versions/1/infer",
        "//v2/models/mine/infer",
        "/v2//models/mine/infer",
        "/v2/models/mine/infer/",
        "/v2/models/mine/infer?x=/v2/health/live",
        "/v2/health/live/../../models/mine/infer",
        "/v2/health/live/%2e%2e/%2e%2e/models/mine/infer",
        "/v2/health/live;/../../models/mine/infer",
        "/%76%32/models/mine/infer",
        "/v2/models/mine%2finfer",
        "/V2/models/mine/infer",
        "/healthz/../v2/models/mine/infer",
        "/healthz/",
        "/v2/health/live/",
        "/v2/repository/models/mine/unload",
        "/v2/health/../repository/models/mine/unload",
        "http://127.0.0.1/v2/models/mine/infer",
        "/v2/logging",
        "/v2/systemsharedmemory/status",
        "/metrics",
        "/status.json",
        "/./status.json",
    ),
    "http-serving": (
        "/v1/models/mine:predict",
        "/v1/models/mine/versions/1:predict",
        "//v1/models/mine:predict",
        "/v1/models/mine%3apredict",
        "/%76%31/models/mine:predict",
        "/v2/health/live/../../../v1/models/mine:predict",
        "/v1/models/mine",
        "/v1/models/mine/metadata",
        "/monitoring/prometheus/metrics",
    ),
}


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "PUT"])
@pytest.mark.parametrize("interface", HTTP)
def test_no_other_path_of_http_gets_around_the_credentials(locked: Locked, interface: str, method: str) -> None:
    body = (INFER_BODY if interface == "http" else SERVING_BODY) if method == "POST" else b""
    for address in ("http", "grpc"):  # the port for gRPC speaks HTTP/1.1 with nobody, or with `security`
        for path in PATHS[interface]:
            for headers in ({}, {"X_HTTP_Method_Override": "GET", "X_Original_URL": "/healthz", "Authorization": ""}):
                try:
                    reason = locked.http(method, path, body, name=None, address=address, **headers)
                except (http.client.HTTPException, ConnectionError):
                    continue  # it does not speak to us
                assert reason != "ok", (address, path)
                assert method == "HEAD" or address == "grpc" or reason in (*NOBODY, "401", "400"), (path, reason)


@pytest.mark.parametrize("interface", GRPC)
def test_no_other_path_of_grpc_gets_around_the_credentials(locked: Locked, interface: str) -> None:
    service = SERVICES[interface]
    assert locked.infer(interface, name=None) == "unauthenticated"
    methods = {
        TRITON: ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"),
        PREDICTION: ("GetModelMetadata", "Classify", "Regress", "MultiInference"),
    }[service]
    for method in methods:
        assert locked.grpc(service, method, b"", name=None) == "unauthenticated", method
    if service == TRITON:
        for order in ("RepositoryModelLoad", "RepositoryModelUnload"):
            assert locked.grpc(service, order, b"", name=None) == "unauthenticated"
    else:
        for method in ("HandleReloadConfigRequest", "GetModelStatus"):
            reason = locked.grpc("tensorflow.serving.ModelService", method, b"", name=None)
            assert reason == "unauthenticated", method
    package, _, last = service.rpartition(".")
    for path in (
        f"//{service}/ModelReady",
        f"/{service.lower()}/ModelReady",
        f"/{service}/../{service}/ModelReady",
        f"/grpc.health.v1.Health/../{service}/ModelReady",
        f"/{package}.{last}/modelready",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ):
        call = locked.services.channel.unary_unary(path)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=STEP_S)
        assert caught.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED), path


HOPS: tuple[tuple[bytes, ...], ...] = ((b"anonymous",), (b"0123456789abcdef",), (b"gateway",), (b"a", b"b"))


@pytest.mark.parametrize("interface", MT1)
def test_no_frame_in_front_gets_around_the_credentials(locked: Locked, interface: str) -> None:
    """The gateway names in an address frame the client that it asks for; from other senders the frame has no effect."""
    name = "infers"
    for hop in HOPS:
        reason = locked.mt1(interface, wire.STATUS, {}, name=name, hop=hop)
        # Over ipc the process is the daemon's own user, with or without the frame.
        allowed = {"tcp": {"forbidden"}, "ipc": {"ok"}, "control": {"unauthenticated"}}[interface]
        assert reason in allowed, hop
    answers = {
        locked.mt1(interface, wire.AUTHENTICATE, {"certificate_name": "everything", "from": "x"}, name=name, hop=hop)
        for hop in ((), *HOPS)
    }
    assert answers <= {"kind_unknown", "unauthenticated", "forbidden"}, "nobody but the gateway gets a handle"


def test_no_other_mechanism_of_zmtp_gets_around_the_keys(locked: Locked) -> None:
    """NULL, PLAIN, and the versions of ZMTP that have no mechanism at all."""
    host, _, port = locked.tcp.removeprefix("tcp://").rpartition(":")
    status = b"\x01\x00\x01\x0aMT1:status\x01\x011\x00\x02{}"
    for greeting in (
        b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32) + status,
        b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"PLAIN".ljust(20, b"\0") + bytes(32) + b"\x04\x0a\x05HELLO\x01a\x01b",
        b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x00" + status,
        b"\x01\x00" + status,
    ):
        with socket.create_connection((host, int(port)), timeout=STEP_S) as connection:
            connection.sendall(greeting)
            received = b""
            try:
                while data := connection.recv(4096):
                    received += data
            except ConnectionError:
                pass
        assert b"MT1:" not in received
        assert len(received) <= 64, "no more than a greeting"
    locked.check_serves("tcp")


# Very many outputs.


def outputs_of(count: int) -> list[str]:
    return [f"y{number}" for number in range(count)]


@pytest.mark.parametrize("interface", [each for each in INTERFACES if each != "http-serving"])
def test_a_request_for_very_many_outputs_is_refused(locked: Locked, interface: str) -> None:
    gateway = psutil.Process(locked.daemon.status()["daemon"]["gateway"]["pid"])
    daemon = psutil.Process(locked.daemon.process.pid)
    before = [process.memory_info().rss for process in (daemon, gateway)]
    expected = {"kind_unknown", "too_large"} if interface == "control" else REFUSED
    for outputs in (outputs_of(MANY), outputs_of(20_000), ["y"] * MANY, ["y"] * 20_000):
        assert locked.infer(interface, outputs=outputs) in expected, len(outputs)
        assert len(locked.answers[-1]) < 20_000, "the answer does not repeat them"
    grown = [process.memory_info().rss - was for process, was in zip((daemon, gateway), before, strict=True)]
    assert max(grown) < 100 << 20, grown


def test_very_many_inputs_of_a_row_are_refused(locked: Locked) -> None:
    """TensorFlow Serving's REST interface cannot name outputs; a row names inputs."""
    row = {f"x{number}": [5] for number in range(MANY)}
    reason = locked.http("POST", "/v1/models/mine:predict", json.dumps({"instances": [row]}).encode())
    assert reason in REFUSED
    assert len(locked.answers[-1]) < 20_000
    locked.check_serves("http-serving")


# Sizes that overflow.

SHAPES = (
    (2**63 - 1, 1),
    (2**62, 4),  # 2**64 elements: 0 in 64 bits
    (2**32, 2**32),
    (2**61, 1),  # elements of 8 bytes: 0 bytes in 64 bits
    (2**31, 2**31, 4),
    (-1, 1),
    (-1, -1),
    (-(2**63), 1),
    (0, 2**63 - 1),
    tuple([2] * 64),
    tuple([1] * 2000),
)


@pytest.mark.parametrize("interface", [each for each in INTERFACES if each != "http-serving"])
def test_sizes_that_overflow_are_refused(locked: Locked, interface: str) -> None:
    expected = {"kind_unknown"} if interface == "control" else REFUSED
    for shape in SHAPES:
        assert locked.infer(interface, shape=shape) in expected, (shape[:3], locked.answers[-1])


@pytest.mark.parametrize("interface", MT1)
def test_sizes_beyond_any_integer_are_refused_in_a_header(locked: Locked, interface: str) -> None:
    expected = {"kind_unknown"} if interface == "control" else REFUSED
    for size in (2**63, 2**64, 2**64 + 1, 10**30):
        assert locked.infer(interface, shape=(size, 1)) in expected
        region = {
            "shared_memory_region": f"mt-1-1-{'0' * 32}",
            "shared_memory_byte_size": 8,
            "shared_memory_offset": size,
        }
        header = {
            "model_name": "mine",
            "inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1]} | {"parameters": region}],
        }
        assert locked.mt1(interface, wire.INFER, header) in expected


@pytest.mark.parametrize("interface", HTTP)
def test_lengths_that_overflow_are_refused(locked: Locked, interface: str) -> None:
    path = "/v2/models/mine/infer" if interface == "http" else "/v1/models/mine:predict"
    for number in ("18446744073709551616", "18446744073709551615", "9223372036854775808", "-1", "0x10", "1e3"):
        # A length that is one is waited for, or refused as too large; never believed.
        if number != "9223372036854775808":
            assert locked.http("POST", path, b"", Content_Length=number) in {"400", "too_large", "malformed"}, number
        if interface == "http":
            reason = locked.http("POST", path, INFER_BODY, Inference_Header_Content_Length=number)
            assert reason in REFUSED, number
            sized = {"name": "x", "datatype": "INT64", "shape": [1, 1]}
            for written in (number, f'"{number}"'):
                header = json.dumps({"inputs": [sized | {"parameters": {"binary_data_size": "SIZE"}}]})
                header = header.replace('"SIZE"', written)
                length = str(len(header))
                body = header.encode() + bytes(8)
                reason = locked.http("POST", path, body, Inference_Header_Content_Length=length)
                assert reason in REFUSED, written


# Paths in the names of models.

NAMES = (
    "..",
    "../..",
    "../../../../etc/passwd",
    "/etc/passwd",
    "mine/../theirs",
    "mine/../../x",
    "./mine",
    "mine\0",
    "",
)
ENCODED = (
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "%2fetc%2fpasswd",
    "mine%00",
    "mine%2f..%2ftheirs",
    "..%5c..",
    "../theirs/..",
)


@pytest.mark.parametrize("interface", INTERFACES)
def test_the_name_of_a_model_is_no_path(locked: Locked, interface: str) -> None:
    expected = UNKNOWN | ({"kind_unknown"} if interface == "control" else set())
    names = ENCODED if interface in HTTP else NAMES
    for name in names:
        assert locked.infer(interface, model=name) in {*expected, "404", "400"}, name
        assert "root:" not in locked.answers[-1]
    if interface not in ("control", "grpc-serving"):  # whose versions are numbers
        for version in ("..", "../1", "/etc") if interface not in HTTP else ("%2e%2e", "..%2f1", "%2fetc"):
            assert locked.infer(interface, version=version) in {*UNKNOWN, "404", "400"}, version


def order(locked: Locked, interface: str, name: str) -> str:
    """Gives an order to load a model."""
    if interface in MT1:
        return locked.mt1(interface, wire.LOAD, {"model_name": name})
    if interface == "http":
        return locked.http("POST", f"/v2/repository/models/{name}/load", b"{}")
    if interface == "grpc":
        return locked.grpc(
            TRITON, "RepositoryModelLoad", message("inference.RepositoryModelLoadRequest", model_name=name)
        )
    request = message("tensorflow.serving.ReloadConfigRequest")
    request.config.model_config_list.config.add(name=name, base_path=name)
    return locked.grpc("tensorflow.serving.ModelService", "HandleReloadConfigRequest", request)


@pytest.mark.parametrize("interface", [each for each in INTERFACES if each != "http-serving"])
def test_a_repository_has_no_way_out(locked: Locked, interface: str) -> None:
    refused = {*UNKNOWN, "404", "400"} | ({"config_refused"} if interface == "grpc-serving" else set())
    for name in ENCODED if interface == "http" else NAMES:
        assert order(locked, interface, name) in refused, name


def test_no_file_is_written_by_an_order(locked: Locked) -> None:
    """Triton's load takes files, and a configuration; ours refuses both."""
    folder = locked.daemon.config.parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    files = {"file:../../written": "eA==", "config": '{"name": "mine"}'}
    for key, value in files.items():
        body = json.dumps({"parameters": {key: value}}).encode()
        assert locked.http("POST", "/v2/repository/models/mine/load", body) != "ok"
        request = message("inference.RepositoryModelLoadRequest", model_name="mine")
        request.parameters[key].string_param = value
        assert locked.grpc(TRITON, "RepositoryModelLoad", request) != "ok"
    # TensorFlow Serving's reload may name models of ours; where their files are is our configuration's business.
    request = message("tensorflow.serving.ReloadConfigRequest")
    for name in ("mine", "theirs", "broken"):
        request.config.model_config_list.config.add(name=name, base_path="/etc")
    locked.grpc("tensorflow.serving.ModelService", "HandleReloadConfigRequest", request)
    locked.check_serves("grpc-serving")
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} == set()


# Internal names in errors. `served` looks at every answer of this file; these are errors of the inside.


@pytest.mark.parametrize("interface", INTERFACES)
def test_errors_name_nothing_of_the_inside(locked: Locked, interface: str) -> None:
    seen = len(locked.answers)
    for model in ("broken", "none-such"):
        assert locked.infer(interface, model=model) != "ok"
    assert locked.infer(interface, name="infers", model="none-such") != "ok"
    if interface in MT1:
        sized = {"name": "x", "datatype": "INT64", "shape": [1, 1]}
        region = {"shared_memory_region": "x", "shared_memory_byte_size": 8}
        for name in ("mt-1-1-" + "0" * 32, "weights", "../mem"):
            region["shared_memory_region"] = name
            header = {"model_name": "mine", "inputs": [sized | {"parameters": region}]}
            reason = locked.mt1(interface, wire.INFER, header)
            assert reason in {"malformed", "kind_unknown"}
            assert name not in locked.answers.pop() or name == "weights"
    elif interface == "http":
        for path in ("/v2/systemsharedmemory/region/x/register", "/v2/cudasharedmemory/region/x/register"):
            assert locked.http("POST", path, b'{"key": "/x", "offset": 0, "byte_size": 8}') != "ok"
    assert len(locked.answers) > seen


# An empty secret opens nothing.


@pytest.mark.parametrize("interface", [*HTTP, *GRPC])
def test_an_empty_token_is_none(locked: Locked, interface: str) -> None:
    secret = locked.tokens["everything"].partition(".")[2]
    for shown in ("", "Bearer", "Bearer ", "Bearer .", "Bearer everything", "Bearer everything.", f"Bearer .{secret}"):
        if interface in GRPC:
            method = "ModelReady" if interface == "grpc" else "GetModelMetadata"
            assert locked.grpc(SERVICES[interface], method, b"", name=None, shown=shown) == "unauthenticated", shown
        else:
            path = "/v2/models/mine" if interface == "http" else "/v1/models/mine"
            assert locked.http("GET", path, name=None, Authorization=shown) == "unauthenticated", shown


def test_keys_of_zeros_open_nothing(locked: Locked) -> None:
    zeros = Keys("0" * 40, "0" * 40)
    with closing(Asker(locked.tcp, zeros, locked.server)) as asker:
        assert asker.ask(wire.SERVER_LIVE, {}, timeout_s=NOT_ANSWERED_S) == NO_ANSWER
    locked.check_serves("tcp")


@pytest.mark.parametrize("name", ["server.key_secret", "principals.yaml"])
@pytest.mark.parametrize("content", ["", "\n", "principals:\n- {name: x, roles: [infer], token_hash: ''}\n"])
def test_an_empty_secret_is_a_start_failure(
    locked: Locked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    make_security(tmp_path, [{"name": "x", "roles": ["infer"]}])
    (tmp_path / "config.yaml").write_text(locked.daemon.config.read_text())
    copy_handlers(tmp_path)
    monkeypatch.chdir(tmp_path)
    load("config.yaml", environment={})
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=re.escape(name)):
        load("config.yaml", environment={})
