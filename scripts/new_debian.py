"""A Debian 12 as debootstrap makes it, with this machine's network: for try_readme.py and try_container.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

COMMAND_S: Final = 1800.0

NETWORK_FILES: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
NETWORK_VARIABLES: Final = re.compile(r"(?i)(pip_\w+|\w+_proxy|ssl_cert_file|requests_ca_bundle)")


def run(*command: str | Path, **environment: str) -> str:
    """Runs a command on this machine, and returns what it prints; standard error is shown.

    Raises:
        CalledProcessError: it failed.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words, check=True, timeout=COMMAND_S, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    return done.stdout


def make(system: Path, *packages: str) -> None:
    """Makes the system, unless the folder has one already; its name servers, proxies and pip are those of this machine.

    Args:
        system: the folder.
        packages: what Debian packages it has besides the minimal ones.
    """
    if not (system / "etc" / "os-release").exists():
        mirror = [os.environ["DEBIAN_MIRROR"]] if "DEBIAN_MIRROR" in os.environ else []
        include = "--include=" + ",".join(("ca-certificates", *packages))
        run("debootstrap", "--variant=minbase", include, "bookworm", system, *mirror)
    for name in NETWORK_FILES:
        if Path(name).is_file():
            shutil.copyfile(name, system / name[1:])
    for source in Path("/etc/apt/apt.conf.d").glob("*"):
        if re.search(r"Acquire::https?::Proxy", source.read_text(errors="replace")):
            shutil.copyfile(source, system / str(source)[1:])
