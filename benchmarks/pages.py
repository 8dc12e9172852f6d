"""What open pages cost: the CPU time of the daemon and of the gateway while browsers show the live page.

    python benchmarks/pages.py [--pages 10] [--seconds 30] [--slots 16] [--models 50]

The more slots and models a daemon has, the larger its status is. A page is a connection that asks for `/status.json`
when a second of the clock begins, as the page's script does, and accepts gzip as browsers do. The figures are shares
of a core, without and with pages, of processes that do nothing else. A third line is for pages that ask at moments of
their own, as those of computers whose clocks differ.
"""

from __future__ import annotations

import argparse
import http.client
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import serving

from multitower import Client
from multitower.compiled import compiled, describe

POLL_S = 1.0
"""Seconds from one question of a page to the next."""


@contextmanager
def open_pages(address: str, count: int, *, together: bool) -> Iterator[list[int]]:
    """Lets pages ask; yields the sizes of the answers.

    Args:
        address: of the gateway.
        count: how many pages.
        together: whether they ask at the same moments.
    """
    end = threading.Event()
    sizes: list[int] = []

    def show(number: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        phase = 0.0 if together else number / count * POLL_S
        while not end.wait(POLL_S - (time.time() - phase) % POLL_S):
            connection.request("GET", "/status.json", headers={"accept-encoding": "gzip"})
            sizes.append(len(connection.getresponse().read()))
        connection.close()

    pages = [threading.Thread(target=show, args=(number,)) for number in range(count)]
    for page in pages:
        page.start()
    try:
        yield sizes
    finally:
        end.set()
        for page in pages:
            page.join()


def shares(pids: dict[str, int], seconds: float) -> dict[str, float]:
    """The share of a core that each process takes during some seconds, in percent."""
    before = {name: serving.cpu_seconds([pid]) for name, pid in pids.items()}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return {name: (serving.cpu_seconds([pid]) - before[name]) / took * 100 for name, pid in pids.items()}


def show(what: str, found: dict[str, float], idle: dict[str, float] | None) -> None:
    """Prints a line."""
    cells = [f"{name} {share:5.2f} %" for name, share in found.items()]
    more = f"   more than idle: {sum(found.values()) - sum(idle.values()):5.2f} %" if idle is not None else ""
    print(f"  {what:42}{'   '.join(cells)}{more}", flush=True)


def main() -> None:
    """Measures without pages, with pages that ask together, and with pages that do not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pages", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each measurement")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--models", type=int, default=50)
    options = parser.parse_args()
    models = {f"model_{number}": "handler: 'handlers:Echo', batching: {}" for number in range(options.models)}
    more = "spares: 0\ngateway: {http: '127.0.0.1:*'}"
    with (
        tempfile.TemporaryDirectory(prefix="mt-") as folder,
        serving.daemon(Path(folder), "pages", workers=options.slots, models=models, more=more) as daemon,
    ):
        with Client(daemon.endpoint, timeout=60) as client:
            status = client.status()
        (address,) = status["daemon"]["gateway"]["http"]
        pids = {"daemon": daemon.pid, "gateway": status["daemon"]["gateway"]["pid"]}
        assert psutil.pid_exists(pids["gateway"])
        print(f"multitower {describe(compiled())}, {options.slots} slots, {options.models} models; shares of a core")
        idle = shares(pids, options.seconds)
        show("no page", idle, None)
        for together, how in ((True, "together"), (False, "at moments of their own")):
            with open_pages(address, options.pages, together=together) as sizes:
                time.sleep(2 * POLL_S)
                show(f"{options.pages} pages that ask {how}", shares(pids, options.seconds), idle)
        print(f"  an answer has {sizes[-1] / 1e3:.0f} kB, compressed")


if __name__ == "__main__":
    main()
