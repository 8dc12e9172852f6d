"""Requests to a gateway whose daemon has `security`: a row for each path of HTTP and each method of gRPC."""

from __future__ import annotations

import http.client
from dataclasses import dataclass

from gateway_grpc import POOL, TRITON, Services, grpc, message
from google.protobuf import json_format
from running import STEP_S

from multitower import wire

ASKED = ("mine", "theirs", "none-such")
UNKNOWN = ("none-such",)
FREE, REFUSED, FORBIDDEN, CLOSED = "allowed", "unauthenticated", "forbidden", "closed"


@dataclass(frozen=True)
class HttpRow:
    """A request over HTTP.

    Attributes:
        method, path, body: `MODEL` in them is replaced.
        kind: what the daemon decides about.
        from_metadata: models for which the gateway refuses it by their metadata, before the daemon decides.
        model: whether it names a model.
    """

    method: str
    path: str
    kind: bytes
    body: str = ""
    from_metadata: tuple[str, ...] = ()

    @property
    def model(self) -> bool:
        return "MODEL" in self.path


INFER_BODY = """{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]},
    {"name": "n", "datatype": "INT64", "shape": [1], "data": [1]}]}"""
INSTANCES, EXAMPLE = '{"instances": [{"x": [1, 2, 3], "n": 1}]}', '{"examples": [{"x": [1.0, 2.0, 3.0], "n": 1}]}'
PATHS = (
    HttpRow("GET", "/", wire.SERVER_LIVE),
    HttpRow("GET", "/healthz", wire.SERVER_LIVE),
    HttpRow("GET", "/readyz", wire.SERVER_READY),
    HttpRow("GET", "/v2/health/live", wire.SERVER_LIVE),
    HttpRow("GET", "/v2/health/ready", wire.SERVER_READY),
    HttpRow("GET", "/v2", wire.SERVER_METADATA),
    HttpRow("GET", "/v2/models/MODEL", wire.MODEL_METADATA),
    HttpRow("GET", "/v2/models/MODEL/versions/1/ready", wire.MODEL_READY),
    HttpRow("GET", "/v2/models/MODEL/ready", wire.MODEL_READY),
    HttpRow("GET", "/v2/models/MODEL/config", wire.MODEL_CONFIG),
    HttpRow("GET", "/v2/models/MODEL/stats", wire.STATISTICS),
    HttpRow("GET", "/v2/models/stats", wire.STATISTICS),
    HttpRow("POST", "/v2/models/MODEL/infer", wire.INFER, INFER_BODY),
    HttpRow("POST", "/v2/models/MODEL/versions/1/infer", wire.INFER, INFER_BODY),
    HttpRow("POST", "/v2/repository/index", wire.STATUS),
    HttpRow("POST", "/v2/repository/models/MODEL-of-nobody/load", wire.LOAD),
    HttpRow("POST", "/v2/repository/models/MODEL-of-nobody/unload", wire.UNLOAD),
    HttpRow("GET", "/v1/models/MODEL", wire.STATUS),
    HttpRow("GET", "/v1/models/MODEL/labels/stable", wire.STATUS),
    HttpRow("GET", "/v1/models/MODEL/metadata", wire.MODEL_METADATA),
    HttpRow("POST", "/v1/models/MODEL:predict", wire.INFER, INSTANCES, UNKNOWN),
    HttpRow("POST", "/v1/models/MODEL:classify", wire.INFER, EXAMPLE, ASKED),
    HttpRow("POST", "/v1/models/MODEL:regress", wire.INFER, EXAMPLE, ASKED),
    HttpRow("GET", "/status.json", wire.STATUS),
    HttpRow("GET", "/status.json?events=20", wire.STATUS),
    HttpRow("GET", "/status.json?slot=0", wire.STATUS),
    HttpRow("GET", "/metrics", wire.METRICS),
    HttpRow("GET", "/monitoring/prometheus/metrics", wire.METRICS),
)

INFER_ROW = next(row for row in PATHS if row.path == "/v2/models/MODEL/infer")


@dataclass(frozen=True)
class GrpcRow:
    """A request over gRPC.

    Attributes:
        service, name: of the method.
        kind: what the daemon decides about.
        request: the message, as JSON has it; `MODEL` in it is replaced.
        from_metadata: models for which the gateway refuses it by their metadata, before the daemon decides.
        model: whether it names a model.
    """

    service: str
    name: str
    kind: bytes
    request: str = "{}"
    from_metadata: tuple[str, ...] = ()

    @property
    def model(self) -> bool:
        return "MODEL" in self.request


HEALTH, REFLECTION = "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"
PREDICTION, SERVING_MODELS = "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"
NAME, MODEL_NAME = '{"name": "MODEL"}', '{"modelName": "MODEL"}'
INFER_MESSAGE = """{"modelName": "MODEL", "inputs": [
    {"name": "x", "datatype": "FP32", "shape": ["1", "1"], "contents": {"fp32Contents": [1]}}]}"""
SPEC = '"modelSpec": {"name": "MODEL", "signatureName": "serving_default"}'
EXAMPLES = '"input": {"exampleList": {"examples": [{}]}}'
NOT_MODEL = '{"modelName": "MODEL-of-nobody"}'
METHODS = (
    GrpcRow(HEALTH, "Check", wire.SERVER_READY),
    GrpcRow(HEALTH, "Watch", wire.SERVER_READY),
    GrpcRow(REFLECTION, "ServerReflectionInfo", wire.SERVER_METADATA, '{"listServices": "*"}'),
    GrpcRow(TRITON, "ServerLive", wire.SERVER_LIVE),
    GrpcRow(TRITON, "ServerReady", wire.SERVER_READY),
    GrpcRow(TRITON, "ServerMetadata", wire.SERVER_METADATA),
    GrpcRow(TRITON, "ModelReady", wire.MODEL_READY, NAME),
    GrpcRow(TRITON, "ModelMetadata", wire.MODEL_METADATA, NAME),
    GrpcRow(TRITON, "ModelConfig", wire.MODEL_CONFIG, NAME),
    GrpcRow(TRITON, "ModelStatistics", wire.STATISTICS, NAME),
    GrpcRow(TRITON, "ModelStatistics", wire.STATISTICS),
    GrpcRow(TRITON, "ModelInfer", wire.INFER, INFER_MESSAGE),
    GrpcRow(TRITON, "ModelInfer", wire.INFER, MODEL_NAME),
    GrpcRow(TRITON, "ModelStreamInfer", wire.INFER, INFER_MESSAGE),
    GrpcRow(TRITON, "RepositoryIndex", wire.STATUS),
    GrpcRow(TRITON, "RepositoryModelLoad", wire.LOAD, NOT_MODEL),
    GrpcRow(TRITON, "RepositoryModelUnload", wire.UNLOAD, NOT_MODEL),
    GrpcRow(PREDICTION, "Predict", wire.INFER, f"{{{SPEC}}}", UNKNOWN),
    GrpcRow(PREDICTION, "Classify", wire.INFER, f"{{{SPEC}, {EXAMPLES}}}", ASKED),
    GrpcRow(PREDICTION, "Regress", wire.INFER, f"{{{SPEC}, {EXAMPLES}}}", ASKED),
    GrpcRow(PREDICTION, "GetModelMetadata", wire.MODEL_METADATA, f'{{{SPEC}, "metadataField": ["signature_def"]}}'),
    GrpcRow(SERVING_MODELS, "GetModelStatus", wire.STATUS, f"{{{SPEC}}}"),
    # A configuration that cannot be applied: what it would load and unload is `load` and `unload`.
    GrpcRow(
        SERVING_MODELS, "HandleReloadConfigRequest", wire.RELOAD, '{"config": {"modelConfigList": {"config": [{}]}}}'
    ),
)


def answer(
    address: str, row: HttpRow, model: str, token: str | None, source: str = ""
) -> tuple[int, dict[str, str], bytes]:
    """Sends a request over a connection of its own; returns the status, the headers and the body of the answer.

    Args:
        address: of the gateway.
        row: what to ask.
        model: that it concerns.
        token: the credential; None for none.
        source: the address to ask from; empty for any.
    """
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=STEP_S, source_address=(source, 0))
    try:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        body = row.body.encode() if row.method == "POST" else None
        connection.request(row.method, row.path.replace("MODEL", model), body, headers)
        response = connection.getresponse()
        kept = {name.lower(): value for name, value in response.getheaders() if name.lower() != "date"}
        return response.status, kept, response.read()
    finally:
        connection.close()


def ask(address: str, row: HttpRow, model: str, token: str | None) -> tuple[str, int]:
    """Sends a request; returns what the answer means, and its status."""
    status, headers, content = answer(address, row, model, token)
    outcome = {401: REFUSED, 403: FORBIDDEN}.get(status, FREE)
    if outcome != FREE:
        assert headers["multitower-reason"] == outcome, content
        assert (headers.get("www-authenticate") == "Bearer") == (outcome == REFUSED)
        assert model not in _without_own_name(content.decode(), token), "no answer to who may not tells a name"
    return outcome, status


def _without_own_name(text: str, token: str | None) -> str:
    """A text without the name of the principal who asks, which may be told, and may be like that of a model."""
    name = (token or "").partition(".")[0]
    return text.replace(name, "") if name else text


def call(services: Services, row: GrpcRow, model: str, token: str | None) -> str:
    """Calls a method; returns what the answer means."""
    found = POOL.FindServiceByName(row.service).FindMethodByName(row.name)
    request = json_format.Parse(row.request.replace("MODEL", model), message(found.input_type.full_name))
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    method = services.method(row.service, row.name)
    sent = iter([request]) if found.client_streaming else request
    try:
        answer = method(sent, timeout=STEP_S, metadata=metadata)
        if row.name == "ModelStreamInfer":
            (only,) = answer
            return FORBIDDEN if "may not do" in only.error_message else FREE
        if row.name == "Watch":
            next(iter(answer))
            answer.cancel()
        elif found.server_streaming:
            list(answer)
    except grpc.RpcError as error:
        outcome = {"UNAUTHENTICATED": REFUSED, "PERMISSION_DENIED": FORBIDDEN}.get(error.code().name, FREE)
        reason = dict(error.trailing_metadata()).get("multitower-reason")
        # No answer to who may not tells a name.
        clean = outcome == FREE or (reason == outcome and model not in _without_own_name(error.details(), token))
        return outcome if clean else f"{outcome}: {error.details()} {reason}"
    return FREE
