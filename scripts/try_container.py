"""Builds the image of deploy/container/ without an engine, and runs it as its manifests do.

    sudo python scripts/try_container.py FOLDER [EXTRA]

FOLDER gets a Debian 12 made by debootstrap, which takes the role of the base image, and buildah's storage (3 GB). EXTRA
is the Dockerfile's argument: `server` by default, which is enough for the handler that is served here.

The image's files are then run in namespaces, as user 10001 without capabilities, with a read-only root and as the first
process: without a writable /tmp; and with one, where the probes, a request and SIGTERM are tried.
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

CONFIG: Final = """
listen: [tcp://0.0.0.0:5555]
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

# $1: the image's files; $2: the folder of the configuration; $3: whether /tmp can be written; then the command.
INSIDE: Final = """
files=$1 config=$2 tmp=$3; shift 3
ip link set lo up
mount --make-rprivate /
mount --bind "$files" "$files"
mount --bind "$config" "$files/etc/multitower"
mount -t proc proc "$files/proc"
mount --rbind /dev "$files/dev"
mount -o remount,bind,ro "$files"
mount -o remount,bind,ro "$files/etc/multitower"
[ "$tmp" = no ] || mount -t tmpfs -o mode=1777,size=256m tmpfs "$files/tmp"
cd /
exec chroot "$files" "$@"
"""
AS_USER: Final = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
    *("--bounding-set=-all", "--inh-caps=-all", "env", "--chdir=/etc/multitower", "-i", "PYTHONDONTWRITEBYTECODE=1"),
    *("PATH=/opt/multitower/bin:/usr/local/bin:/usr/bin:/bin",),
)
SERVE: Final = ("multitower", "serve", "/etc/multitower/config.yaml")


class Container:
    """The image's files in namespaces, with a first process. A context manager, which ends it.

    Args:
        files: the folder of the image's files.
        config: the folder that is mounted at /etc/multitower.
        command: the first process.
        writable_tmp: whether /tmp is a tmpfs; otherwise it is as read-only as the rest.
    """

    def __init__(self, files: Path, config: Path, command: Sequence[str], *, writable_tmp: bool) -> None:
        inside = ["sh", "-ec", INSIDE, "sh", str(files), str(config), "yes" if writable_tmp else "no"]
        namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        self._files = files
        self._process = subprocess.Popen([*namespaces, *inside, *AS_USER, *command], stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

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

    def wait(self) -> tuple[int, str]:
        """Waits until the first process has ended; returns its exit code and its log."""
        _, log = self._process.communicate(timeout=READY_S)
        return self._process.returncode, log


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


def try_without_tmp(files: Path, config: Path) -> None:
    """Starts the daemon where nothing can be written."""
    with Container(files, config, SERVE, writable_tmp=False) as container:
        code, log = container.wait()
    expect(code == 75 and "no folder for temporary files" in log, "without a writable /tmp: code 75, and why", log)


def try_daemon(files: Path, config: Path) -> None:
    """Starts the daemon, asks it, and stops it."""
    with Container(files, config, SERVE, writable_tmp=True) as container:
        deadline = time.monotonic() + READY_S
        while (asked := container.execute("multitower-probe", "ready")).returncode and time.monotonic() < deadline:
            time.sleep(0.5)
        expect(asked.returncode == 0, "multitower-probe ready", asked)
        asked = container.execute("multitower-probe", "live")
        expect(asked.returncode == 0, "multitower-probe live", asked)
        program = (
            "import numpy; from multitower import Client; "
            "print(Client().infer('double', {'x': numpy.float32([[1, 2]])})['y'].tolist())"
        )
        asked = container.execute("python", "-c", program)
        expect(asked.stdout.strip() == "[[2.0, 4.0]]", "a request", asked)
        asked = container.execute("cat", "/proc/1/status")
        lines = asked.stdout.splitlines()
        fine = f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}" in lines and "CapEff:\t0000000000000000" in lines
        expect(fine, "the first process has the user and no capability", asked)
        os.kill(container.first_process(), signal.SIGTERM)
        code, log = container.wait()
    expect(code == 0, "SIGTERM: it drains, ends what handlers started, and exits with 0", log)


def main(arguments: Sequence[str]) -> None:
    """Builds and runs the image."""
    folder = Path(arguments[0]).resolve()
    files = build(folder, arguments[1] if len(arguments) > 1 else "server")
    config = folder / "config"
    config.mkdir(exist_ok=True)
    (config / "config.yaml").write_text(CONFIG)
    (config / "handlers.py").write_text(HANDLER)
    try_without_tmp(files, config)
    try_daemon(files, config)


if __name__ == "__main__":
    main(sys.argv[1:])
