"""`multitower demo`: a complete tour of multitower on this machine's CPU, in a minute; `make demo` runs it."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from multitower.cli.seconds import Seconds
from multitower.durations import exact_duration
from multitower.supervisor.loop.log import escape_controls
from multitower.temporary_folder import temporary_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from multitower.client.threads import Client
    from multitower.tools.demo.steps import CheckedLoad, HeldOut

_BAR: Final = 40


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the model, the configuration and the log here, and use a model that is there already.",
)
@click.option(
    "--seconds", type=Seconds(1, 600), default=5.0, show_default=True, help="Seconds of load before the kill."
)
@click.option("--serve", is_flag=True, help="Only serve the digits model, until Ctrl-C.")
def demo(folder: Path | None, seconds: float, serve: bool) -> None:
    """Train a model, serve it on two CPU workers, kill one under load.

    Prints the accuracy beside that of TensorFlow called directly, the throughput, each worker's share, how many
    requests the killed worker cost (none), and how long its slot was away. Leaves no process running. Exit code 1 when
    a request was lost or an answer was wrong.
    """
    from rich.console import Console

    from multitower.tools.demo import steps
    from multitower.tools.errors import ToolError

    # SIGTERM ends the demo by SystemExit, so that its daemon is ended first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # No markup: messages and paths may contain brackets. Lines are not folded where the output is no terminal.
    console = Console(highlight=False, soft_wrap=True, markup=False)
    with contextlib.ExitStack() as cleanup:
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="multitower-demo-", dir=temporary_folder())
            folder = Path(cleanup.enter_context(temporary))
        folder = folder.resolve()
        try:
            if steps.has_model(folder):
                console.print(f"Using the model in {folder}")
            else:
                console.print("Training a digit classifier on scikit-learn's 1797 images ...")
                console.print(f"  saved as a SavedModel after {steps.train_model(folder):.1f} s")
            code = _serve(folder, console) if serve else _show(folder, seconds, console)
        except ToolError as error:
            console.print(str(error), style="red")
            code = 1
    sys.exit(code)


def _serve(folder: Path, console: Console) -> int:
    from multitower.tools.daemon import serve_in_foreground
    from multitower.tools.demo import steps
    from multitower.wire import DEFAULT_ENDPOINT

    console.print(f"Serving on {DEFAULT_ENDPOINT}, the clients' default. Ctrl-C ends it.")
    console.print("  in another terminal:  multitower status")
    return serve_in_foreground(steps.write_config(folder))


def _show(folder: Path, seconds: float, console: Console) -> int:
    """Runs all steps; returns the exit code."""
    import time

    from multitower.client.threads import Client
    from multitower.tools.daemon import OwnDaemon
    from multitower.tools.demo import steps

    held_out = steps.read_held_out(folder)
    config = steps.write_config(folder)
    console.print("Starting the daemon with this configuration:\n")
    console.print("".join(f"  {line}\n" for line in config.read_text().splitlines()))
    started = time.monotonic()
    with (
        OwnDaemon(config, log=folder / "daemon.log", ready_s=steps.READY_S) as daemon,
        Client(daemon.endpoint) as client,
    ):
        ready_s = time.monotonic() - started
        console.print(f"  all workers ready after {ready_s:.1f} s\n")
        same = _classify(client, held_out, console)
        load = _measure_load(client, held_out, seconds, console)

        pid = steps.wait_for_spare(client)
        console.print(f"Killing worker {pid} of slot 0 with SIGKILL, under the same load ...")
        kill = steps.kill_worker(client, held_out, pid)
        console.print(f"  {kill.lost} of {kill.sent:,} requests lost", style="bold")
        if kill.first_error is not None:
            console.print(f"  the first error: {escape_controls(str(kill.first_error))}")
        console.print(f"  the slot served again after {kill.away_s:.2f} s, through the spare", style="bold")
        console.print(f"  (the start of the daemon took {ready_s:.1f} s)\n")
        pids = steps.process_ids(client)
    left = steps.running(pids)
    console.print(f"The daemon has ended with exit code {daemon.exit_code}; processes left: {len(left)}")
    good = same and load.lost == kill.lost == 0 and not left and daemon.exit_code == 0
    return 0 if good else 1


def _classify(client: Client, held_out: HeldOut, console: Console) -> bool:
    """Prints the accuracy; returns whether every answer is that of TensorFlow called directly."""
    from multitower.tools.demo import steps

    console.print(f"Classifying {len(held_out.images)} held-out images through the client ...")
    accuracy = steps.classify(client, held_out)
    differing = f"{accuracy.differing} answers differ" if accuracy.differing else "every answer is the same"
    text = f"accuracy {accuracy.served:.2%}; TensorFlow called directly: {accuracy.direct:.2%}; {differing}"
    console.print(f"  {text}\n")
    return not accuracy.differing


def _measure_load(client: Client, held_out: HeldOut, seconds: float, console: Console) -> CheckedLoad:
    """Runs the load and draws each slot's share of the rows meanwhile."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn

    from multitower.tools.demo import steps

    console.print(
        f"A closed loop of {steps.OUTSTANDING} outstanding requests for {exact_duration(seconds)}; each worker's share:"
    )
    columns = (TextColumn("  slot {task.description}"), BarColumn(_BAR), TextColumn("{task.completed:>8,.0f} rows"))
    with Progress(*columns, console=console) as progress:
        tasks: dict[int, TaskID] = {}

        def draw(rows: Mapping[int, int]) -> None:
            for slot, count in rows.items():
                if slot not in tasks:
                    tasks[slot] = progress.add_task(str(slot))
                progress.update(tasks[slot], completed=count, total=max(sum(rows.values()), 1))

        load, shares = steps.measure_load(client, held_out, seconds, draw)
    text = f"{load.rate:,.0f} images/s, one image a request, {steps.OUTSTANDING} outstanding; {load.lost} lost"
    console.print(f"  {text}")
    console.print(f"  shares: {', '.join(f'{share:.1%}' for share in shares)}\n")
    return load
