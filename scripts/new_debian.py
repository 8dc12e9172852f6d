"""A Debian 12 as debootstrap makes it, with this machine's network: for try_readme.py and try_container.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

COMMAND_S: Final = 1800.0
MIRROR: Final = "http://deb.debian.org/debian"
SECURITY_MIRROR: Final = "http://deb.debian.org/debian-security"

CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
NETWORK_FILES: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", CERTIFICATES)
NETWORK_VARIABLES: Final = re.compile(
    r"(?i)(pip_(?!find_links|cache_dir)\w+|\w+_proxy|ssl_cert_file|requests_ca_bundle)"
)


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

    Its packages come from Debian 12, its updates and its security updates, as Debian's installer and container images
    configure it; debootstrap itself leaves the last two out. The variables DEBIAN_MIRROR and DEBIAN_SECURITY_MIRROR
    name other mirrors.

    Args:
        system: the folder.
        packages: what Debian packages it has besides the minimal ones.
    """
    mirror = os.environ.get("DEBIAN_MIRROR", MIRROR)
    security = os.environ.get("DEBIAN_SECURITY_MIRROR", SECURITY_MIRROR)
    if not (system / "etc" / "os-release").exists():
        include = "--include=" + ",".join(("ca-certificates", *packages))
        run("debootstrap", "--variant=minbase", include, "bookworm", system, mirror)
    suites = [(mirror, "bookworm"), (mirror, "bookworm-updates"), (security, "bookworm-security")]
    lines = [f"deb {address} {suite} main\n" for address, suite in suites]
    (system / "etc" / "apt" / "sources.list").write_text("".join(lines))
    for name in NETWORK_FILES:
        if Path(name).is_file():
            shutil.copyfile(name, system / name[1:])
    if Path(CERTIFICATES).is_file():  # also after an upgrade of ca-certificates, which makes that file anew
        shutil.copyfile(CERTIFICATES, system / "usr/local/share/ca-certificates/as-on-this-machine.crt")
    for source in Path("/etc/apt/apt.conf.d").glob("*"):
        if re.search(r"Acquire::https?::Proxy", source.read_text(errors="replace")):
            shutil.copyfile(source, system / str(source)[1:])
