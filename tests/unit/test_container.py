"""deploy/container/ matches the code: times, users, folders, commands, configurations, and the files of the image."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.units import parse_duration
from multitower.supervisor.workers import exits
from multitower.wire import DEFAULT_ENDPOINT

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "deploy" / "container"
PAGE = (ROOT / "docs" / "containers.md").read_text()
PROBE = "multitower-probe"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(YAML(typ="safe", pure=True).load_all(path.read_text()))


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each with what follows it on one line."""
    text = re.sub(r"^\s*#.*\n", "", (CONTAINER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, " ".join(rest.split())) for name, rest in re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)]


DOCKERFILE = instructions()
(COMPOSE,) = documents(CONTAINER / "compose.yaml")
SERVICE = COMPOSE["services"]["multitower"]
KUBERNETES = {document["kind"]: document for document in documents(CONTAINER / "kubernetes.yaml")}
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
(IN_POD,) = POD["containers"]


def only(name: str) -> str:
    (value,) = [rest for instruction, rest in DOCKERFILE if instruction == name]
    return value


def test_the_image_runs_the_daemon_as_its_first_process() -> None:
    command = [*json.loads(only("ENTRYPOINT")), *json.loads(only("CMD"))]
    assert command == ["multitower", "serve", "/etc/multitower/config.yaml"]
    assert only("STOPSIGNAL") == "SIGTERM"
    assert not {"tini", "dumb-init"} & set(shlex.split(" ".join(rest for _, rest in DOCKERFILE)))


def test_every_file_that_the_image_copies_exists_and_is_not_ignored() -> None:
    lines = (CONTAINER / "Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    taken = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    copied = [
        source
        for name, rest in DOCKERFILE
        if name == "COPY" and "--from" not in rest
        for source in [word for word in rest.split() if not word.startswith("--")][:-1]
    ]
    assert set(copied) == taken
    for source in copied:
        assert (ROOT / source).exists(), source
    assert any(fnmatch.fnmatch("multitower/worker", pattern) for pattern in patterns[1:])


def test_one_user_owns_the_folders_and_is_not_root() -> None:
    user, group = only("USER").split(":")
    assert user == group
    assert int(user) > 0
    text = " ".join(rest for _, rest in DOCKERFILE)
    assert f"--uid {user} --gid {group}" in text
    assert f"install -d -o {user} -g {group} -m 0750 /run/multitower /var/cache/multitower" in text
    security = POD["securityContext"]
    assert security["runAsNonRoot"]
    assert {security[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}
    assert f"uid={user},gid={group}" in COMPOSE["volumes"]["sockets"]["driver_opts"]["o"]
    assert f"User {user}" in PAGE


def test_the_root_is_read_only_and_what_must_be_writable_is_mounted() -> None:
    assert SERVICE["read_only"]
    assert IN_POD["securityContext"]["readOnlyRootFilesystem"]
    assert IN_POD["securityContext"]["capabilities"]["drop"] == SERVICE["cap_drop"] == ["ALL"]
    in_pod = {mount["mountPath"] for mount in IN_POD["volumeMounts"] if not mount.get("readOnly")}
    assert {"/tmp", "/var/cache/multitower", "/dev/shm"} == in_pod
    assert {mount["name"] for mount in IN_POD["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    writable = {volume.split(":")[1] for volume in SERVICE["volumes"] if not volume.endswith(":ro")}
    assert writable | {SERVICE["tmpfs"][0].split(":")[0]} == {"/tmp", "/run/multitower", "/var/cache/multitower"}
    assert "CUDA_CACHE_PATH=/var/cache/multitower" in " ".join(rest for name, rest in DOCKERFILE if name == "ENV")


def test_the_time_to_stop_is_longer_than_a_drain() -> None:
    needed = parse_duration(Config.model_fields["drain_timeout"].default) + exits.STOP_S + 5
    assert parse_duration(SERVICE["stop_grace_period"]) >= needed
    program, wait = IN_POD["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"  # no SIGTERM: that of the kubelet would be the second one, which ends the drain
    assert POD["terminationGracePeriodSeconds"] >= needed + int(wait)


def test_probes_ask_what_the_program_answers_within_their_time() -> None:
    source = (CONTAINER / "probe.py").read_text()
    (asked_s,) = re.findall(r"^TIMEOUT_S = ([\d.]+)$", source, re.MULTILINE)
    assert any(PROBE in rest and "probe.py" in rest for name, rest in DOCKERFILE if name == "COPY")
    assert f'["{PROBE}", "ready"]' in only("HEALTHCHECK")
    assert IN_POD["readinessProbe"]["exec"]["command"] == [PROBE, "serving"]
    assert IN_POD["readinessProbe"]["timeoutSeconds"] > float(asked_s)
    for probe in ("startupProbe", "livenessProbe"):
        assert IN_POD[probe]["httpGet"] == {"path": "/v2/health/live", "port": "http"}
    startup = IN_POD["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == 600
    assert "--start-period=10m" in only("HEALTHCHECK")


@pytest.mark.parametrize("where", ["config.yaml", "kubernetes.yaml"])
def test_the_configurations_load_and_serve_where_probes_ask(where: str, tmp_path: Path) -> None:
    text = (
        (CONTAINER / where).read_text()
        if where == "config.yaml"
        else KUBERNETES["ConfigMap"]["data"][Path(IN_POD["args"][1]).name]
    )
    model = tmp_path / "models" / "digits" / "1"
    model.mkdir(parents=True)
    (model / "saved_model.pb").touch()
    file = tmp_path / "config.yaml"
    file.write_text(text.replace("path: /models", f"path: {tmp_path}/models"))
    config = load(file, environment={})
    port = DEFAULT_ENDPOINT.rpartition(":")[2]
    assert f"tcp://0.0.0.0:{port}" in config.listen
    assert config.gateway is not None
    ports = [port, *(address.removeprefix("0.0.0.0:") for address in config.gateway.addresses)]
    assert only("EXPOSE").split() == ports == [str(each["containerPort"]) for each in IN_POD["ports"]]
    assert SERVICE["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]


def test_names_within_the_manifests_agree() -> None:
    labels = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert KUBERNETES["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert KUBERNETES["Service"]["spec"]["selector"] == labels
    assert KUBERNETES["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    names = [port["name"] for port in IN_POD["ports"]]
    assert [port["targetPort"] for port in KUBERNETES["Service"]["spec"]["ports"]] == names
    assert [port["port"] for port in KUBERNETES["NetworkPolicy"]["spec"]["ingress"][0]["ports"]] == names
    assert any(volume.get("configMap", {}).get("name") == "multitower" for volume in POD["volumes"])
    assert IN_POD["image"] == SERVICE["image"]
    context = (CONTAINER / SERVICE["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / SERVICE["build"]["dockerfile"]).is_file()
