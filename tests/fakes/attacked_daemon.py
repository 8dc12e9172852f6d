"""A daemon with `security` and a gateway, which tests ask over every interface: what it refuses, and what it tells."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import foreign
from asker import Asker
from gateway_grpc import PREDICTION, TRITON, Services, grpc, message
from made_security import Keys
from running import STEP_S, Running

from multitower import wire

MT1 = ("tcp", "ipc", "control")
HTTP = ("http", "http-serving")
GRPC = ("grpc", "grpc-serving")
INTERFACES = (*MT1, *HTTP, *GRPC)
SERVICES = {"grpc": TRITON, "grpc-serving": PREDICTION}


class Locked:
    """A daemon with `security`, its clients, and everything that it has answered to them."""

    def __init__(self, daemon: Running, server: str, keys: dict[str, Keys], tokens: dict[str, str]) -> None:
        self.daemon, self.server, self.keys, self.tokens = daemon, server, keys, tokens
        listening = daemon.wait_line("daemon started")["listen"].split(",")
        (self.tcp,) = (endpoint for endpoint in listening if endpoint.startswith("tcp://"))
        self.control = f"ipc://{daemon.runtime_dir}/control.sock"
        self.addresses = foreign.addresses(daemon)
        self.services = Services(self.addresses["grpc"])
        self.answers: list[str] = []

    def endpoint(self, interface: str) -> str:
        return {"tcp": self.tcp, "ipc": self.daemon.endpoint, "control": self.control}[interface]

    def mt1(
        self,
        interface: str,
        kind: bytes,
        header: dict[str, Any],
        *tensors: bytes,
        name: str | None = "everything",
        hop: tuple[bytes, ...] = (),
        timeout_s: float = STEP_S,
    ) -> str:
        """Asks, over tcp with somebody's key; returns the reason of the refusal, or "ok"."""
        keys = self.keys[name] if name is not None and interface == "tcp" else None
        with closing(Asker(self.endpoint(interface), keys, self.server, hop)) as asker:
            reason = asker.ask(kind, header, *tensors, timeout_s=timeout_s)
            if kind != wire.STATUS or reason != "ok":  # which names sockets and processes, to those who may see it
                self.answers.append(asker.message)
            return reason

    def http(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        name: str | None = "everything",
        address: str = "http",
        **headers: str,
    ) -> str:
        """Likewise over HTTP/1.1; the path is sent as it is. Where no reason is stated, the status is returned."""
        shown = {} if name is None else {"Authorization": f"Bearer {self.tokens[name]}"}
        host, _, port = self.addresses[address].rpartition(":")
        with closing(http.client.HTTPConnection(host, int(port), timeout=STEP_S)) as connection:
            connection.putrequest(method, path, skip_accept_encoding=True)
            given = {"Content-Length": str(len(body)), **shown}
            given |= {key.replace("_", "-"): value for key, value in headers.items()}
            for each in given.items():
                connection.putheader(*each)
            connection.endheaders(body)
            answer = connection.getresponse()
            self.answers.append(answer.read().decode(errors="replace"))
            if answer.status < 300:
                return "ok"
            return answer.headers.get("multitower-reason") or str(answer.status)

    def grpc(
        self, service: str, method: str, request: Any, *, name: str | None = "everything", shown: str | None = None
    ) -> str:
        """Likewise over gRPC; `shown` is sent instead of a token."""
        text = shown if name is None else f"Bearer {self.tokens[name]}"
        metadata = () if text is None else (("authorization", text),)
        try:
            answer = self.services.method(service, method)(request, metadata=metadata, timeout=STEP_S)
        except grpc.RpcError as error:
            self.answers.append(str(error.details()))
            return str(dict(error.trailing_metadata()).get("multitower-reason") or error.code())
        self.answers.append(str(answer))
        return "ok"

    def infer(
        self,
        interface: str,
        *,
        model: str = "mine",
        version: str | None = None,
        shape: Sequence[int] = (1, 1),
        outputs: Sequence[str] = (),
        name: str | None = "everything",
    ) -> str:
        """Asks for an inference of one number, stating a shape."""
        if interface in MT1:
            header: dict[str, Any] = {"model_name": model}
            header["inputs"] = [{"name": "x", "datatype": "INT64", "shape": list(shape)}]
            header |= {} if version is None else {"model_version": version}
            header |= {"outputs": [{"name": output} for output in outputs]} if outputs else {}
            return self.mt1(interface, wire.INFER, header, (5).to_bytes(8, "little"), name=name)
        below = "" if version is None else f"/versions/{version}"
        if interface == "http":
            asked: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "INT64", "shape": list(shape), "data": [5]}]}
            asked |= {"outputs": [{"name": output} for output in outputs]} if outputs else {}
            return self.http("POST", f"/v2/models/{model}{below}/infer", json.dumps(asked).encode(), name=name)
        if interface == "http-serving":
            body = json.dumps({"instances": [[5]]}).encode()
            return self.http("POST", f"/v1/models/{model}{below}:predict", body, name=name)
        if interface == "grpc":
            request = message("inference.ModelInferRequest", model_name=model, model_version=version or "")
            given = request.inputs.add(name="x", datatype="INT64", shape=list(shape))
            given.contents.int64_contents.append(5)
            for output in outputs:
                request.outputs.add(name=output)
            return self.grpc(TRITON, "ModelInfer", request, name=name)
        predict = message("tensorflow.serving.PredictRequest")
        predict.model_spec.name = model
        predict.inputs["x"].dtype = 9  # DT_INT64
        for size in shape:
            predict.inputs["x"].tensor_shape.dim.add(size=size)
        predict.inputs["x"].int64_val.append(5)
        predict.output_filter.extend(outputs)
        return self.grpc(PREDICTION, "Predict", predict, name=name)

    def check_serves(self, interface: str) -> None:
        """A good request is answered, by a worker where the interface has inferences."""
        good = self.mt1(interface, wire.STATUS, {}) if interface == "control" else self.infer(interface)
        assert good == "ok", self.answers[-1]
