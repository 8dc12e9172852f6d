"""Two machines with a link between them that a test can cut: network namespaces of the kernel. It needs root."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator

SERVER_ADDRESS = "10.99.0.1"
_CLIENT_ADDRESS = "10.99.0.2"
_LINK = "mt-link"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


@functools.cache
def why_not() -> str | None:
    """Why there can be no such machines here, or None."""
    if shutil.which("ip") is None:
        return "the command ip (iproute2) is missing"
    try:
        with linked_machines():
            return None
    except (OSError, subprocess.SubprocessError) as error:
        detail = (
            error.stderr.decode(errors="replace").strip() if isinstance(error, subprocess.CalledProcessError) else ""
        )
        return f"nobody may make network namespaces here: {detail or error}"


class LinkedMachines:
    """The two machines.

    Args:
        server: the name of the server's namespace.
        client: the name of the client's namespace.

    Attributes:
        on_server, on_client: what to put before a command so that it runs there, under the same pid.
    """

    def __init__(self, server: str, client: str) -> None:
        self.on_server = ("ip", "netns", "exec", server)
        self.on_client = ("ip", "netns", "exec", client)
        self._server = server

    def cut(self) -> None:
        """Cuts the link without a word to either side: packets are lost, and connections stay as they are."""
        _run("ip", "-n", self._server, "link", "set", _LINK, "down")

    def heal(self) -> None:
        """Restores the link."""
        _run("ip", "-n", self._server, "link", "set", _LINK, "up")


@contextlib.contextmanager
def linked_machines() -> Iterator[LinkedMachines]:
    """Makes two machines, and removes them afterwards.

    Raises:
        OSError, subprocess.SubprocessError: it is not allowed.
    """
    server, client = f"mt-server-{os.getpid()}", f"mt-client-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        for name in (server, client):
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "del", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", server, "link", "add", "name", _LINK, "type", "veth", "peer", "name", _LINK, "netns", client)
        for name, address in ((server, SERVER_ADDRESS), (client, _CLIENT_ADDRESS)):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", _LINK)
            _run("ip", "-n", name, "link", "set", _LINK, "up")
        yield LinkedMachines(server, client)
