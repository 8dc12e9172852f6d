"""`multitower status`: the state of a running daemon, its slots and its models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from multitower.cli.connection import asks_daemon
from multitower.cli.tables import (
    memory_growth_cells,
    percent_cell,
    print_table,
    size_cell,
    state_cell,
    version_cell,
)
from multitower.compiled import describe
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower import Client


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, for programs.")
@asks_daemon
def status(client: Client, as_json: bool) -> int:
    """Show the daemon, its slots and its models.

    Exit codes: 0 when every slot that has a model is ready; 1 when every model is served, but a slot is not ready; 69
    when a model has no ready worker and is not unloaded, when the daemon is stopping, or when no daemon answers.
    """
    state = client.status()
    if as_json:
        click.echo(json.dumps(state, indent=2))
    else:
        _print_daemon(state["daemon"])
        _print_slots(state["slots"])
        _print_use(state["slots"])
        _print_towers(state["slots"])
        _print_quarantine(state["daemon"].get("quarantine") or ())
        _print_models(state["models"], len(state["slots"]))
    daemon = state["daemon"]
    if not daemon["ready"]:
        return Exit.UNAVAILABLE
    return Exit.OK if daemon["slots_ready"] == daemon["slots_total"] else Exit.DEGRADED


def _print_daemon(daemon: Mapping[str, Any]) -> None:
    spares = ", ".join(spare["state"] for spare in daemon["spares"]) or "none"
    click.echo(
        f"multitower {daemon['version']} ({describe(daemon['compiled'])}), pid {daemon['pid']}: "
        f"{daemon['state']} for {_duration(daemon['uptime_s'])}, "
        f"{daemon['slots_ready']}/{daemon['slots_total']} slots ready, {size_cell(daemon['rss_bytes'])}"
    )
    click.echo(f"listens on {', '.join(daemon['listen'])}; spares: {spares}")
    connections = daemon.get("connections")
    if connections is not None and connections["paused"]:
        full = connections["open"] >= connections["max"]
        cause = f"the maximum is {connections['max']:,}" if full else "few file descriptors are left"
        click.echo(f"no more connections are accepted: {connections['open']:,} are open, and {cause}")
    counts = [
        f"{daemon[key]:,} {words}"
        for key, words in (
            ("rejected", "requests refused"),
            ("late", "answers too late"),
            ("replies_dropped", "replies not read by their clients"),
        )
        if daemon[key]
    ]
    if counts:
        click.echo("; ".join(counts))
    for entry in daemon.get("waiting") or ():
        click.echo(f"waiting for {entry['kind']} {entry['name']}: {entry['cause']}")
    click.echo()


def _print_slots(slots: Sequence[Mapping[str, Any]]) -> None:
    print_table(
        ("Slot", "State", "Device", ">Pid", ">Restarts", ">Depth", ">Rows answered", "Last error"),
        (
            (
                slot["slot"],
                state_cell(slot["state"]),
                slot["device"].replace(",", "\n"),
                slot["pid"],
                slot["restarts"],
                slot["depth"],
                f"{slot['completed']:,}",
                slot["last_error"] or "",
            )
            for slot in slots
        ),
    )


def _print_use(slots: Sequence[Mapping[str, Any]]) -> None:
    """How fast each slot is, and what it uses of the machine."""
    rows = []
    for slot in slots:
        batch = slot.get("batch_ms") or {}
        devices = slot.get("devices") or ()
        rows.append(
            (
                slot["slot"],
                *(f"{batch[name]:,.1f} ms" if batch.get(name) is not None else None for name in ("p50", "p99")),
                f"{slot['rows_per_s']:,.0f}" if slot.get("rows_per_s") is not None else None,
                size_cell(slot.get("rss_bytes")),
                percent_cell(slot.get("cpu_percent")),
                "\n".join(size_cell(device["memory_bytes"]) or "-" for device in devices) or None,
                "\n".join(_utilization(device) or "-" for device in devices) or None,
            )
        )
    print_table(("Slot", ">Batch p50", ">p99", ">Rows/s", ">Memory", ">CPU", ">Device memory", ">Device busy"), rows)


def _utilization(device: Mapping[str, Any]) -> str | None:
    return "gone" if device["present"] is False else percent_cell(device["utilization_percent"])


def _print_towers(slots: Sequence[Mapping[str, Any]]) -> None:
    """The towers of slots with several devices, and which nodes of their models run elsewhere."""
    rows = [
        (
            slot["slot"],
            model["device"],
            # Counts of the whole tower, so only beside its first model.
            *((tower["depth"], f"{tower['batches']:,}", f"{tower['completed']:,}") if not index else ("", "", "")),
            model["name"],
            _join_counts(model["nodes"]) if model["nodes"] is not None else "unknown: no warm-up run",
            _join_counts(model["fallbacks"]) if model["nodes"] is not None else None,
        )
        for slot in slots
        for tower in slot.get("towers", ())
        for index, model in enumerate(tower["models"])
    ]
    if rows:
        headings = ("Slot", "Tower", ">Depth", ">Batches", ">Rows answered", "Model", "Nodes", "Not on its device")
        print_table(headings, rows)


def _join_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _print_quarantine(quarantine: Sequence[Mapping[str, Any]]) -> None:
    if quarantine:
        refused = sum(entry["refused"] for entry in quarantine)
        text = f"{len(quarantine)} requests that crashed a worker; {refused:,} equal ones were refused"
        click.echo(f"in quarantine: {text}\n")


def _print_models(models: Sequence[Mapping[str, Any]], slots: int) -> None:
    print_table(
        (
            *("Model", "State", "Version", ">Slots", ">Queue", ">Answered", ">Failed", ">Rows a batch"),
            *(">Host memory", ">Device memory", "Note"),
        ),
        (
            (
                model["name"],
                state_cell(model["state"]),
                version_cell(model),
                f"{model['slots_ready']}/{model.get('slots_total', slots)}",
                model["queue"],
                f"{model['completed']:,}",
                f"{model['failed']:,}",
                f"{model['rows'] / model['batches']:.1f}" if model["batches"] else None,
                *memory_growth_cells(model),
                "; ".join(_notes(model)),
            )
            for model in models
        ),
    )


def _notes(model: Mapping[str, Any]) -> Iterable[str]:
    note = model["cause"] or model["unbatched_because"]
    if note:
        yield note
    elif model.get("unverified_because"):
        yield f"batching is unverified: {model['unverified_because']}"
    for name, other in model.get("signatures", {}).items():
        if other["unbatched_because"]:
            yield f"signature {name}: {other['unbatched_because']}"
        elif other["unverified_because"]:
            yield f"signature {name}: batching is unverified: {other['unverified_because']}"
    for label, version in model["labels_not_served"].items():
        yield f"the label {label} is version {version}, which is not served"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
