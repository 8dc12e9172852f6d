"""Builds the image of deploy/container/ without an engine, and runs it as its manifests do.

    sudo python scripts/try_container.py FOLDER [EXTRA]

FOLDER gets a Debian 12 made by debootstrap, which takes the role of the base image, and buildah's storage (4 GB, with
TensorFlow 16 GB). EXTRA is the Dockerfile's argument: `server` by default, which is enough for the handler that is
served here. With `tensorflow`, this program's own Python needs TensorFlow, too, to save a model.

The image's files are then run in namespaces, as user 10001 without capabilities, with a read-only root and as the first
process: without a writable /tmp; and with one, where the probes, requests over MT1 and HTTP, and SIGTERM are tried. The
shipped config.yaml is run on CPU devices, without its model or, with TensorFlow, with one; so is `model-server`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import new_debian
from new_debian import run

ROOT: Final = Path(__file__).resolve().parents[1]
BASE: Final = "localhost/debian:bookworm"
IMAGE: Final = "localhost/multitower"
USER: Final = "10001"
READY_S: Final = 120.0
MAX_LOG: Final = 1 << 24

CONFIG: Final = """
listen: [tcp://0.0.0.0:5555]
gateway: {http: 0.0.0.0:8000, grpc: 0.0.0.0:8001}
insecure: true
devices: {cpu: 2}
models:
  - {name: double, handler: "handlers:Double"}
"""
HANDLER: Final = """
import subprocess

class Double:
    def load(self, devices, parameters):
        self.helper = subprocess.Popen(["sleep", "1000"], start_new_session=True)

    def infer(self, inputs):
        return {"y": inputs["x"] * 2}
"""

SAVE_MODEL: Final = """
import sys, tensorflow as tf
model = tf.Module()
serve = tf.function(lambda x: {"y": x * 2}, input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
tf.saved_model.save(model, sys.argv[1], signatures={"serving_default": serve})
"""
ASK_MT1: Final = """
import numpy; from multitower import Client
print(Client().infer("double", {"x": numpy.float32([[1, 2]])})["y"].tolist())
"""
ASK_HTTP: Final = """
import sys, urllib.request
url, *body = sys.argv[1:]
print(urllib.request.urlopen(url, body[0].encode() if body else None, timeout=60).read().decode())
"""
LIVE: Final = "http://127.0.0.1:8000/v2/health/live"
READY: Final = "http://127.0.0.1:8000/v2/health/ready"

# $1: the image's files; $2: the folder of the configuration; $3: that of the models; $4: whether the folders that
# docs/containers.md names can be written; then the command.
INSIDE: Final = """
files=$1 config=$2 models=$3 writable=$4; shift 4
ip link set lo up
mount --make-rprivate /
mkdir -p "$files/models"
mount --bind "$files" "$files"
mount --bind "$config" "$files/etc/multitower"
mount --bind "$models" "$files/models"
mount -t proc proc "$files/proc"
mount --rbind /dev "$files/dev"
mount -o remount,bind,ro "$files"
mount -o remount,bind,ro "$files/etc/multitower"
mount -o remount,bind,ro "$files/models"
if [ "$writable" = yes ]; then
    mount -t tmpfs -o mode=1777,size=256m tmpfs "$files/tmp"
    mount -t tmpfs -o uid=10001,gid=10001,mode=0750 tmpfs "$files/run/multitower"
    mount -t tmpfs -o uid=10001,gid=10001,mode=0750 tmpfs "$files/var/cache/multitower"
fi
cd /
exec chroot "$files" "$@"
"""
AS_USER: Final = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
    *("--bounding-set=-all", "--inh-caps=-all", "env", "--chdir=/etc/multitower", "-i", "PYTHONDONTWRITEBYTECODE=1"),
    *("PATH=/opt/multitower/bin:/usr/local/bin:/usr/bin:/bin",),
)
ON_CPUS: Final = "MULTITOWER_DEVICES={cpu: 2}"
SERVE: Final = ("multitower", "serve", "/etc/multitower/config.yaml")
MODEL_SERVER: Final = (
    *("multitower", "model-server", "--host=0.0.0.0", "--insecure", "--rest_api_port=8501"),
    *("--model_name=digits", "--model_base_path=/models/digits"),
)


class Container:
    """The image's files in namespaces, with a first process. A context manager, which ends it.

    Args:
        files: the folder of the image's files.
        config: the folder that is mounted at /etc/multitower.
        models: the folder that is mounted at /models.
        command: the first process, with variables of its environment before it.
        writable: whether /tmp, /run/multitower and /var/cache/multitower are tmpfs; otherwise they are as read-only as
            the rest.
    """

    def __init__(
        self, files: Path, config: Path, models: Path, command: Sequence[str], *, writable: bool = True
    ) -> None:
        inside = ["sh", "-ec", INSIDE, "sh", str(files), str(config), str(models), "yes" if writable else "no"]
        namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        self._files = files
        self._log = os.memfd_create("log")
        self._process = subprocess.Popen([*namespaces, *inside, *AS_USER, *command], stderr=self._log)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._log)

    def first_process(self) -> int:
        """The process id of the first process, as seen from here."""
        pid = self._process.pid
        deadline = time.monotonic() + READY_S
        while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            if time.monotonic() > deadline:
                raise RuntimeError("the container has no first process")
            time.sleep(0.05)
        return int(children[0])

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the container, as `docker exec` does."""
        enter = ["nsenter", "--target", str(self.first_process()), "--net", "--pid", "--mount"]
        words = [*enter, "chroot", str(self._files), *AS_USER, *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=READY_S, check=False)

    def until(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command again and again until it succeeds, or the first process ends, or time is up."""
        deadline = time.monotonic() + READY_S
        while (asked := self.execute(*command)).returncode and time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise SystemExit(f"the first process has ended:\n{self.log()}")
            time.sleep(0.5)
        return asked

    def log(self) -> str:
        """What the container has written to standard error."""
        return os.pread(self._log, MAX_LOG, 0).decode(errors="replace")

    def stop(self) -> tuple[int, str]:
        """Sends SIGTERM to the first process, and waits for its end; returns its exit code and its log."""
        os.kill(self.first_process(), signal.SIGTERM)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Waits until the first process has ended; returns its exit code and its log."""
        return self._process.wait(READY_S), self.log()


def build(folder: Path, extra: str) -> Path:
    """Builds the image, and returns the folder of its files."""
    new_debian.make(folder / "debian")
    buildah = ("buildah", "--root", folder / "storage", "--runroot", folder / "run")
    settings = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
    if BASE not in run(*buildah, "images", "--format", "{{.Name}}:{{.Tag}}", **settings).split():
        container = run(*buildah, "from", "scratch", **settings).strip()
        run(*buildah, "add", "--quiet", container, folder / "debian", "/", **settings)
        run(*buildah, "commit", "--quiet", "--rm", container, BASE, **settings)
    dockerfile = ROOT / "deploy" / "container" / "Dockerfile"
    arguments = ("--build-arg", f"BASE={BASE}", "--build-arg", f"EXTRA={extra}", "--network", "host", "--layers")
    options = ("--format", "docker", "--file", dockerfile, "--ignorefile", f"{dockerfile}.dockerignore", "--tag", IMAGE)
    run(*buildah, "build", *options, *arguments, ROOT, **settings)
    container = run(*buildah, "from", IMAGE, **settings).strip()
    return Path(run(*buildah, "mount", container, **settings).strip())


def expect(fine: bool, what: str, found: object) -> None:
    """Prints what was tried.

    Raises:
        SystemExit: it is not as it should be.
    """
    print(f"{'ok    ' if fine else 'FAILED'} {what}", flush=True)
    if not fine:
        raise SystemExit(str(found))


def try_without_tmp(files: Path, config: Path, models: Path) -> None:
    """Starts the daemon where nothing can be written."""
    with Container(files, config, models, SERVE, writable=False) as container:
        code, log = container.wait()
    expect(code == 75 and "no folder for temporary files" in log, "without a writable /tmp: code 75, and why", log)


def try_daemon(files: Path, config: Path, models: Path) -> None:
    """Starts the daemon with a handler, asks it, and stops it."""
    with Container(files, config, models, SERVE) as container:
        asked = container.until("multitower-probe", "ready")
        expect(asked.returncode == 0, "multitower-probe ready", asked)
        for question in ("live", "serving"):
            asked = container.execute("multitower-probe", question)
            expect(asked.returncode == 0, f"multitower-probe {question}", asked)
        asked = container.execute("python", "-c", ASK_MT1)
        expect(asked.stdout.strip() == "[[2.0, 4.0]]", "a request over MT1", asked)
        for url in (LIVE, READY):
            asked = container.execute("python", "-c", ASK_HTTP, url)
            expect(asked.returncode == 0, f"GET {url}", asked)
        body = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}'
        asked = container.execute("python", "-c", ASK_HTTP, "http://127.0.0.1:8000/v2/models/double/infer", body)
        expect('"data":[2.0,4.0]' in asked.stdout.replace(" ", ""), "a request over HTTP", asked)
        asked = container.execute("cat", "/proc/1/status")
        lines = asked.stdout.splitlines()
        fine = f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}" in lines and "CapEff:\t0000000000000000" in lines
        expect(fine, "the first process has the user and no capability", asked)
        code, log = container.stop()
    expect(code == 0, "SIGTERM: it drains, ends what handlers started, and exits with 0", log)


def try_shipped_configuration(files: Path, models: Path, *, has_model: bool) -> None:
    """Starts the daemon with the config.yaml of deploy/container, on CPU devices."""
    with Container(files, ROOT / "deploy" / "container", models, (ON_CPUS, *SERVE)) as container:
        asked = container.until("python", "-c", ASK_HTTP, LIVE)
        expect(asked.returncode == 0, f"config.yaml as it is shipped: GET {LIVE}", asked)
        asked = container.execute("test", "-S", "/run/multitower/front.sock")
        expect(asked.returncode == 0, "its ipc endpoint is there", asked)
        if has_model:
            asked = container.until("multitower-probe", "ready")
            expect(asked.returncode == 0, "its model is served", asked)
        else:
            asked = container.execute("multitower", "status", "--json")
            expect('"waiting"' in asked.stdout, "it waits for its model, which is not mounted", asked)
        code, log = container.stop()
    expect(code == 0, "SIGTERM: it exits with 0", log)


def try_model_server(files: Path, config: Path, models: Path) -> None:
    """Serves a model as tensorflow_model_server's image does."""
    with Container(files, config, models, MODEL_SERVER) as container:
        container.until("multitower-probe", "ready")
        url = "http://127.0.0.1:8501/v1/models/digits:predict"
        asked = container.execute("python", "-c", ASK_HTTP, url, '{"instances": [[1, 2]]}')
        expect("predictions" in asked.stdout, "model-server: a request over TensorFlow Serving's REST", asked)
        code, log = container.stop()
    expect(code == 0 and "Exporting HTTP/REST API at:localhost:8501 ..." in log, "it prints when it is ready", log)


def main(arguments: Sequence[str]) -> None:
    """Builds and runs the image."""
    folder = Path(arguments[0]).resolve()
    extra = arguments[1] if len(arguments) > 1 else "server"
    files = build(folder, extra)
    config, models = folder / "config", folder / "models"
    config.mkdir(exist_ok=True)
    models.mkdir(exist_ok=True)
    (config / "config.yaml").write_text(CONFIG)
    (config / "handlers.py").write_text(HANDLER)
    try_without_tmp(files, config, models)
    try_daemon(files, config, models)
    if extra != "server":
        run(sys.executable, "-c", SAVE_MODEL, models / "digits" / "1")
    try_shipped_configuration(files, models, has_model=extra != "server")
    if extra != "server":
        try_model_server(files, config, models)


if __name__ == "__main__":
    main(sys.argv[1:])
