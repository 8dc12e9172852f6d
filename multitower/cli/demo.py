"""`multitower demo`: the whole of multitower in a minute, on this machine's CPU; also what `make demo` runs.

It trains a small model, starts a real daemon on two CPU workers and a spare, classifies images through the client,
kills a worker under load, counts what was lost, and ends the daemon. `--serve` leaves out all but the daemon.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

if TYPE_CHECKING:
    from rich.console import Console

    from multitower import Client

WORKERS = 2
READY_S = 120.0
BACK_S = 60.0
END_S = 45.0

CONFIGURATION = """\
listen: [{endpoint}]
devices: {{cpu: {workers}}}   # on a machine with GPUs: all
models:
  - name: digits
    path: models/digits
spares: 1
"""


class DemoError(Exception):
    """The demo cannot go on; the message is for people."""


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the model, the configuration and the log here, and use what is there already.",
)
@click.option("--seconds", type=click.FloatRange(1, 600), default=5.0, show_default=True, help="Of load.")
@click.option("--serve", is_flag=True, help="Only serve the digits model, until Ctrl-C.")
def demo(folder: Path | None, seconds: float, serve: bool) -> None:
    """Train a model, serve it on two CPU workers, kill one under load.

    Prints the accuracy beside TensorFlow's own, the throughput, each worker's share, how many requests the killed
    worker cost (none), and how long its slot was away. Leaves nothing running. Exit code 1 when something is lost.
    """
    from rich.console import Console

    # Whatever ends the demo, it ends its daemon first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Wide enough for whole lines where the output is no terminal, as in CI.
    console = Console(highlight=False, soft_wrap=True)
    with contextlib.ExitStack() as cleanup:
        if folder is None:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="multitower-demo-")))
        folder = folder.resolve()
        try:
            _prepare(folder, console)
            if serve:
                sys.exit(_serve(folder, console))
            good = _show(folder, seconds, console)
        except DemoError as error:
            console.print(f"[red]{error}[/red]")
            sys.exit(1)
    sys.exit(0 if good else 1)


def _prepare(folder: Path, console: Console) -> None:
    """Makes the model, unless the folder has it."""
    held_out = folder / "held_out.npz"
    if held_out.exists():
        console.print(f"Using the model in {folder}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    console.print("Training a digit classifier on scikit-learn's 1797 images ...")
    begun = time.monotonic()
    program = [sys.executable, "-m", "multitower.tools.demo.model", str(folder)]
    done = subprocess.run(program, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(
            f"{done.stderr}\nThe model could not be trained. The demo needs TensorFlow and scikit-learn: "
            "pip install 'multitower[demo]'"
        )
    console.print(f"  saved as a SavedModel after {time.monotonic() - begun:.1f} s")


def _serve(folder: Path, console: Console) -> int:
    """Runs the daemon in the foreground, in the place of this process."""
    from multitower.wire import DEFAULT_ENDPOINT

    config = _configure(folder, DEFAULT_ENDPOINT)
    console.print(f"Serving on {DEFAULT_ENDPOINT}; the client's default. Ctrl-C ends it.")
    console.print("  another terminal:  multitower status")
    command = _serve_command(config)
    # Without --folder the model lies in a temporary folder that this process has to remove afterwards.
    daemon = subprocess.Popen(command)
    try:
        while True:
            try:
                return daemon.wait()
            except KeyboardInterrupt:
                continue  # the daemon got it as well, and drains
    finally:
        # A signal to this process alone, which ends it.
        if daemon.poll() is None:
            daemon.terminate()
            daemon.wait()


def _serve_command(config: Path) -> list[str]:
    return [sys.executable, "-m", "multitower", "serve", str(config)]


def _configure(folder: Path, endpoint: str) -> Path:
    config = folder / "digits.yaml"
    config.write_text(CONFIGURATION.format(endpoint=endpoint, workers=WORKERS))
    return config


def _show(folder: Path, seconds: float, console: Console) -> bool:
    """The demo proper; whether all went well."""
    from multitower import Client
    from multitower.tools.load_generator import Load

    with np.load(folder / "held_out.npz") as held_out:
        images, labels, direct = held_out["x"], held_out["labels"], held_out["direct"]
    with _daemon(folder, console) as (daemon, endpoint), Client(endpoint) as client:
        ready_s = _wait_until_ready(client, daemon, folder)
        console.print(f"  {WORKERS} workers ready after {ready_s:.1f} s\n")

        same = _classify(client, images, labels, direct, console)

        load = Load(client, images, direct)
        load.start()
        shares = _watch_shares(client, seconds, console)
        load.stop()
        console.print(f"  {load.rate:,.0f} images/s, one image a request, 64 outstanding; {load.lost} lost")
        console.print(f"  shares: {', '.join(f'{share:.1%}' for share in shares)}\n")

        killed = Load(client, images, direct)
        killed.start()
        away_s = _kill_one(client, console)
        killed.stop()
        console.print(f"  [bold]{killed.lost} of {killed.sent:,} requests lost[/bold]")
        if killed.first_error is not None:
            console.print(f"  the first error: {killed.first_error}")
        console.print(
            f"  the slot served again after [bold]{away_s:.2f} s[/bold], through the spare "
            f"(the start of the daemon took {ready_s:.1f} s)\n"
        )
        pids = _pids(client.status())
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    console.print(f"The daemon has ended with exit code {daemon.returncode}; processes left: {len(left)}")
    return same and load.lost == killed.lost == 0 and not left and daemon.returncode == 0


@contextlib.contextmanager
def _daemon(folder: Path, console: Console) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A daemon of its own, on a socket of its own; it is ended in any case."""
    with tempfile.TemporaryDirectory(prefix="mt-") as sockets:  # short: ipc paths are limited to 107 bytes
        endpoint = f"ipc://{sockets}/front.sock"
        config = _configure(folder, endpoint)
        console.print("Starting the daemon with this configuration:\n")
        console.print("".join(f"  {line}\n" for line in config.read_text().splitlines()), markup=False)
        log = folder / "daemon.log"
        with log.open("wb") as output:
            daemon = subprocess.Popen(_serve_command(config), stdout=output, stderr=output)
        try:
            yield daemon, endpoint
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(END_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait_until_ready(client: Client, daemon: subprocess.Popen[bytes], folder: Path) -> float:
    from multitower import MultitowerError

    begun = time.monotonic()
    while time.monotonic() - begun < READY_S:
        try:
            state = client.server_ready()
            if state["slots_ready"] == state["slots_total"]:
                return time.monotonic() - begun
        except MultitowerError:
            pass  # it does not listen yet; should it never do so, the time is over or it has ended
        if daemon.poll() is not None:
            break
        time.sleep(0.05)
    raise DemoError(f"{(folder / 'daemon.log').read_text()}\nThe daemon did not become ready; its log is above.")


def _classify(client: Client, images: np.ndarray, labels: np.ndarray, direct: np.ndarray, console: Console) -> bool:
    """All held-out images, one a request, beside TensorFlow called directly."""
    console.print(f"Classifying {len(images)} held-out images through the client ...")
    futures = [client.submit("digits", {"x": image[np.newaxis]}) for image in images]
    served = np.concatenate([future.result()["probabilities"] for future in futures])
    ours, theirs = served.argmax(axis=1), direct.argmax(axis=1)
    same = bool((ours == theirs).all())
    console.print(
        f"  accuracy {np.mean(ours == labels):.2%}; TensorFlow called directly: {np.mean(theirs == labels):.2%}; "
        f"{'every answer is the same' if same else f'{np.sum(ours != theirs)} answers differ'}\n"
    )
    return same


def _watch_shares(client: Client, seconds: float, console: Console) -> list[float]:
    """Shows each worker's rows as they are answered, for `seconds`; returns each one's share."""
    from rich.progress import BarColumn, Progress, TextColumn

    console.print(f"A closed loop of 64 outstanding requests for {seconds:g} s; each worker's share:")
    before = _completed(client)
    columns = (TextColumn("  slot {task.description}"), BarColumn(40), TextColumn("{task.completed:>8,.0f} rows"))
    with Progress(*columns, console=console) as progress:
        tasks = [progress.add_task(str(slot), total=1) for slot in before]
        until = time.monotonic() + seconds
        while True:
            time.sleep(0.2)
            rows = [now - then for now, then in zip(_completed(client).values(), before.values(), strict=True)]
            for task, count in zip(tasks, rows, strict=True):
                progress.update(task, completed=count, total=max(sum(rows), 1))
            if time.monotonic() >= until:
                break
    return [count / max(sum(rows), 1) for count in rows]


def _completed(client: Client) -> dict[int, int]:
    return {slot["slot"]: slot["completed"] for slot in client.status()["slots"]}


def _kill_one(client: Client, console: Console) -> float:
    """SIGKILL to the worker of slot 0 while it works; the seconds until the slot serves again."""
    pid = _status_with_a_spare(client)["slots"][0]["pid"]
    console.print(f"Killing worker {pid} of slot 0 with SIGKILL, under the same load ...")
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    while time.monotonic() - killed < BACK_S:
        slot = client.status()["slots"][0]
        if slot["state"] == "ready" and slot["pid"] != pid:
            away = time.monotonic() - killed
            time.sleep(0.5)  # a little more of the load runs on all workers again
            return away
        time.sleep(0.005)
    raise DemoError(f"slot 0 did not come back within {BACK_S:g} s: {slot['last_error']}")


def _status_with_a_spare(client: Client) -> dict[str, Any]:
    begun = time.monotonic()
    while time.monotonic() - begun < READY_S:
        status = client.status()
        if any(spare["state"] == "idle" for spare in status["daemon"]["spares"]):
            return status
        time.sleep(0.05)
    raise DemoError("the spare did not come up")


def _pids(status: dict[str, Any]) -> list[int]:
    return [
        status["daemon"]["pid"],
        *(slot["pid"] for slot in status["slots"] if slot["pid"] is not None),
        *(spare["pid"] for spare in status["daemon"]["spares"]),
    ]
