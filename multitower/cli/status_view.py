"""What `multitower status` prints for people: the lines for a status and a width. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from multitower.cli.events_view import latest_event_lines
from multitower.cli.layout import Cell, Column, Line, Span, lay_out, wrap
from multitower.cli.tables import (
    SUSPECTED,
    cell,
    memory_growth_cells,
    percent_cell,
    size_cell,
    slot_state_cell,
    state_cell,
    version_cell,
)
from multitower.compiled import describe
from multitower.durations import rounded_duration
from multitower.supervisor.loop.log import escape_controls

_SLOT_COLUMNS: Final = (
    Column("Slot"),
    Column("State"),
    Column("In state", right=True, label="in state"),
    Column("Device", label="device"),
    Column("Depth", right=True, label="depth"),
    Column("In its batch", right=True, label="in its batch for", optional=True),
    Column("Rows/s", right=True, label="rows/s"),
    Column("Batch p50", right=True, label="batch p50"),
    Column("Batch p99", right=True, label="batch p99"),
    Column("Age", right=True, label="worker's age"),
    Column("Restarts", right=True, label="restarts"),
    Column("Last death", right=True, label="last death", optional=True),
    Column("Last restart", right=True, label="last restart", optional=True),
    Column("Memory", right=True, label="memory"),
    Column("CPU", right=True),
    Column("Device memory", right=True, label="device memory", optional=True),
    Column("Device busy", right=True, label="device busy", optional=True),
    Column("Pid", right=True, label="pid"),
    Column("Rows answered", right=True, label="rows answered"),
    Column("Condition", prose=True, label="condition:", optional=True),
    Column("Loading", prose=True, label="loading:", optional=True),
    Column("Last error", prose=True, label="last error:", optional=True),
)
_GATEWAY_COLUMNS: Final = (
    Column("Gateway"),
    Column("State"),
    Column("In state", right=True, label="in state"),
    Column("HTTP", label="HTTP", optional=True),
    Column("gRPC", label="gRPC", optional=True),
    Column("Connections", right=True, label="connections"),
    Column("Outstanding", right=True, label="outstanding"),
    Column("Requests", right=True, label="requests"),
    Column("Errors", right=True, label="errors"),
    Column("Restarts", right=True, label="restarts"),
    Column("Last death", right=True, label="last death", optional=True),
    Column("Pid", right=True, label="pid"),
    Column("Cause", prose=True, label="cause:", optional=True),
)
_MODEL_COLUMNS: Final = (
    Column("Model"),
    Column("State"),
    Column("Version", label="version"),
    Column("Slots", right=True, label="slots"),
    Column("Queue", right=True, label="queue"),
    Column("Oldest", right=True, label="oldest in the queue", optional=True),
    Column("Latency p50", right=True, label="latency p50"),
    Column("Latency p99", right=True, label="latency p99"),
    Column("Answered", right=True, label="answered"),
    Column("Failed", right=True, label="failed"),
    Column("Refused", right=True, label="refused"),
    Column("Rows a batch", right=True, label="rows a batch"),
    Column("Host memory", right=True, label="host memory"),
    Column("Device memory", right=True, label="device memory", optional=True),
    Column("Note", prose=True, label="note:", optional=True),
)
_PROBLEM_COLUMNS: Final = (
    Column("Model"),
    Column("What"),
    Column("Reason"),
    Column("Last minute", right=True, label="last minute"),
    Column("Since the start", right=True, label="since the start"),
)
_TOWER_COLUMNS: Final = (
    Column("Slot"),
    Column("Tower"),
    Column("Depth", right=True, label="depth"),
    Column("Batches", right=True, label="batches"),
    Column("Rows answered", right=True, label="rows answered"),
    Column("Model", label="model"),
    Column("Nodes", label="nodes"),
    Column("Not on its device", label="not on its device"),
)

LONG_BATCH_S: Final = 2.0
"""From how long on the table of slots shows for how long a batch has been executed."""


def status_lines(status: Mapping[str, Any], width: int | None, *, problems_first: bool = False) -> list[Line]:
    """Returns the lines for a status, an empty one last.

    Args:
        status: the reply to `MT1:status`; keys that an older daemon does not send may be missing.
        width: of the terminal; None for one without an end.
        problems_first: what failed and the latest events stand before the models, as where the end may be cut.
    """
    daemon, slots, models = status["daemon"], status["slots"], status["models"]
    lines: list[Line] = [[Span(text)] for text in _daemon_texts(daemon, width)]
    lines.append([])
    lines += [*slot_lines(slots, width), []]
    towers = _tower_rows(slots)
    if towers:
        lines += [*lay_out(_TOWER_COLUMNS, towers, width), []]
    gateway = daemon.get("gateway")
    if gateway is not None:
        lines += [*lay_out(_GATEWAY_COLUMNS, [_gateway_row(gateway)], width), []]
    lines_of_models = [*model_lines(models, len(slots), width), []]
    problem_lines = [*_problem_lines(daemon, models, width), *latest_event_lines(daemon.get("events") or (), width)]
    lines += [*problem_lines, *lines_of_models] if problems_first else [*lines_of_models, *problem_lines]
    return lines


# The daemon.


def _daemon_texts(daemon: Mapping[str, Any], width: int | None) -> Iterable[str]:
    spares = ", ".join(spare["state"] for spare in daemon["spares"]) or "none"
    texts = [
        f"multitower {daemon['version']} ({describe(daemon['compiled'])}), pid {daemon['pid']}: "
        f"{daemon['state']} for {rounded_duration(daemon['uptime_s'])}, "
        f"{daemon['slots_ready']}/{daemon['slots_total']} slots ready, {size_cell(daemon['rss_bytes'])}",
        f"listens on {', '.join(daemon['listen'])}; spares: {spares}",
        *_config_texts(daemon.get("config")),
    ]
    if daemon.get("insecure"):
        texts.append("insecure: other machines may use it without credentials or encryption (insecure: true)")
    connections = daemon.get("connections")
    if connections is not None and connections["paused"]:
        full = connections["open"] >= connections["max"]
        cause = f"the maximum is {connections['max']:,}" if full else "few file descriptors are left"
        texts.append(f"no more connections are accepted: {connections['open']:,} are open, and {cause}")
    counts = [
        f"{words}: {daemon[key]:,}"
        for key, words in (
            ("rejected", "requests refused"),
            ("late", "answers too late"),
            ("replies_dropped", "replies not read by their clients"),
        )
        if daemon[key]
    ]
    if counts:
        texts.append(f"since the start, {'; '.join(counts)}")
    for entry in daemon.get("waiting") or ():
        name = "" if entry["name"] == entry["kind"] else f" {entry['name']}"  # `devices` have no other name
        texts.append(f"waiting for {entry['kind']}{name}: {entry['cause']}")
    quarantine = daemon.get("quarantine") or ()
    if quarantine:
        refused = sum(entry["refused"] for entry in quarantine)
        texts.append(f"in quarantine, as they crashed a worker: {len(quarantine)}; equal ones refused: {refused:,}")
    for text in texts:
        yield from wrap(_escaped(text), width, indent=2)


def _config_texts(config: Mapping[str, Any] | None) -> Iterable[str]:
    if config is None:
        return
    reload = config["last_reload"]
    if reload is None:
        yield f"configuration {config['path']}, not reloaded since the start"
        return
    outcome, age = reload["outcome"].replace("_", " "), rounded_duration(reload["age_s"])
    if reload["outcome"] == "in_progress":
        yield f"configuration {config['path']}, being reloaded for {age}"
        return
    cause = f": {reload['cause']}" if reload["cause"] else ""
    yield f"configuration {config['path']}, last reload {age} ago: {outcome}{cause}"


# Slots.


def slot_lines(slots: Iterable[Mapping[str, Any]], width: int | None) -> list[Line]:
    """Returns the table of slots, for a terminal of this width; None for one without an end."""
    return lay_out(_SLOT_COLUMNS, map(_slot_row, slots), width)


def slot_cells(slot: Mapping[str, Any]) -> dict[Column, Cell | None]:
    """Returns what the table of slots has about one, by column."""
    return dict(zip(_SLOT_COLUMNS, _slot_row(slot), strict=True))


def _slot_row(slot: Mapping[str, Any]) -> list[Cell | None]:
    batch = slot.get("batch_ms") or {}
    devices = slot.get("devices") or ()
    rate = slot.get("rows_per_s")
    values = (
        slot["slot"],
        slot_state_cell(slot),
        _duration(slot.get("state_for_s")),
        slot["device"].replace(",", "\n"),
        slot["depth"],
        _in_batch(slot),
        f"{rate:,.0f}" if rate is not None else None,
        _milliseconds(batch.get("p50")),
        _milliseconds(batch.get("p99")),
        _duration(slot.get("worker_age_s")),
        slot["restarts"],
        _ago(slot.get("last_death_age_s")),
        _ago(slot.get("last_restart_age_s")),
        size_cell(slot.get("rss_bytes")),
        percent_cell(slot.get("cpu_percent")),
        _of_devices([size_cell(device["memory_bytes"]) for device in devices]),
        _of_devices([_utilization(device) for device in devices]),
        slot["pid"],
        f"{slot['completed']:,}",
        _condition(slot),
        _loading(slot),
        _last_error(slot),
    )
    return [cell(value) for value in values]


def _condition(slot: Mapping[str, Any]) -> str | None:
    """How the worker seems to be, with the cause; the state shows by itself that there is none."""
    condition = slot.get("condition")
    return f"{condition}: {slot['condition_cause']}" if condition in SUSPECTED else None


def _in_batch(slot: Mapping[str, Any]) -> str | None:
    """For how long the worker has been executing its batch, where that is long for anybody to wait."""
    seconds = slot.get("batch_running_s") or 0.0
    return rounded_duration(seconds) if seconds >= LONG_BATCH_S else None


def _of_devices(values: Sequence[str | None]) -> str | None:
    return "\n".join(value or "-" for value in values) if any(values) else None


def _utilization(device: Mapping[str, Any]) -> str | None:
    return "gone" if device["present"] is False else percent_cell(device["utilization_percent"])


def _loading(slot: Mapping[str, Any]) -> str | None:
    texts = []
    if slot.get("step"):
        texts.append(_step(slot))
    replacement = slot.get("replacement")
    if replacement is not None:
        what = _step(replacement) if replacement["step"] else "started"
        age = rounded_duration(replacement["age_s"])
        texts.append(f"a worker that takes over, pid {replacement['pid']}, {age} old: {what}")
    return "; ".join(texts) or None


def _step(process: Mapping[str, Any]) -> str:
    since = process.get("step_for_s")
    return str(process["step"]) if since is None else f"{process['step']}, for {rounded_duration(since)}"


def _last_error(slot: Mapping[str, Any]) -> str | None:
    error, age, restart_s = slot["last_error"], slot.get("last_error_age_s"), slot.get("next_restart_s")
    if error is None or age is None:
        return error or None
    after = "" if restart_s is None else f"; next restart in {rounded_duration(restart_s)}"
    return f"{error}, {rounded_duration(age)} ago{after}"


# The gateway.


def _gateway_row(gateway: Mapping[str, Any]) -> list[Cell | None]:
    values = (
        "gateway",
        state_cell(gateway["state"]),
        _duration(gateway["state_for_s"]),
        "\n".join(gateway["http"]) or None,
        "\n".join(gateway["grpc"]) or None,
        f"{gateway['connections']:,}",
        f"{gateway['outstanding']:,}",
        f"{gateway['requests']:,}",
        f"{gateway['errors']:,}",
        gateway["restarts"],
        _ago(gateway["last_death_age_s"]),
        gateway["pid"],
        gateway["cause"],
    )
    return [cell(value) for value in values]


# Towers of slots with several devices.


def _tower_rows(slots: Sequence[Mapping[str, Any]]) -> list[list[Cell | None]]:
    """A row for each model of each tower, with the nodes of the model that run elsewhere."""
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
    return [[cell(value) for value in row] for row in rows]


def _join_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


# Models.


def model_lines(models: Iterable[Mapping[str, Any]], slots: int, width: int | None) -> list[Line]:
    """Returns the table of models, for a terminal of this width; None for one without an end.

    Args:
        models: the models.
        slots: how many slots there are.
        width: of the terminal.
    """
    return lay_out(_MODEL_COLUMNS, (_model_row(model, slots) for model in models), width)


def model_cells(model: Mapping[str, Any], slots: int) -> dict[Column, Cell | None]:
    """Returns what the table of models has about one, by column; see `model_lines`."""
    return dict(zip(_MODEL_COLUMNS, _model_row(model, slots), strict=True))


def _model_row(model: Mapping[str, Any], slots: int) -> list[Cell | None]:
    latency = model.get("latency_ms") or {}
    refused = model.get("refused")
    values = (
        model["name"],
        state_cell(model["state"]),
        version_cell(model),
        f"{model['slots_ready']}/{model.get('slots_total', slots)}",
        model["queue"],
        _duration(model.get("queue_oldest_s")),
        _milliseconds(latency.get("p50")),
        _milliseconds(latency.get("p99")),
        f"{model['completed']:,}",
        f"{model['failed']:,}",
        f"{sum(refused['total'].values()):,}" if refused is not None else None,
        f"{model.get('batch_rows', model['rows']) / model['batches']:.1f}" if model["batches"] else None,
        *memory_growth_cells(model),
        "; ".join(_notes(model)) or None,
    )
    return [cell(value) for value in values]


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


# Errors and refusals.


def _problem_lines(daemon: Mapping[str, Any], models: Sequence[Mapping[str, Any]], width: int | None) -> list[Line]:
    """What failed or was refused in the last minute, by model and reason, the most frequent first."""
    if daemon.get("refused") is None:
        return []
    rows = sorted(_problems(daemon["refused"], models), key=lambda row: -row[3])
    if not rows:
        return [[Span("no request failed or was refused in the last minute")], []]
    return [
        [Span("failed and refused requests:")],
        *lay_out(
            _PROBLEM_COLUMNS,
            [[cell(value) for value in (*row[:3], f"{row[3]:,}", f"{row[4]:,}")] for row in rows],
            width,
        ),
        [],
    ]


_Problem = tuple[str | None, str, str, int, int]


def _problems(refused: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> Iterable[_Problem]:
    """Rows of the model, what happened, the reason, and how often in the last minute and since the start."""
    unattributed = {when: dict(refused[when]) for when in ("last_minute", "total")}
    seen: set[str] = set()
    for model in models:
        name = model["name"]
        for reason, count in model["errors"]["last_minute"].items():
            version = f" version {model['version']}" if model["version"] is not None else ""
            yield f"{name}{version}", "failed", reason, count, model["errors"]["total"][reason]
        if name in seen:
            continue  # each version has what was refused of the whole model
        seen.add(name)
        for when, rest in unattributed.items():
            for reason, count in model["refused"][when].items():
                rest[reason] = rest.get(reason, 0) - count
        for reason, count in model["refused"]["last_minute"].items():
            yield name, "refused", reason, count, model["refused"]["total"][reason]
    for reason, rest in unattributed["last_minute"].items():
        # The last minute of the daemon and that of a model may begin some seconds apart; the totals are exact.
        total = unattributed["total"][reason]
        if (count := min(rest, total)) > 0:
            yield None, "refused", reason, count, total


# Values.


def _milliseconds(value: float | None) -> str | None:
    return None if value is None else f"{value:,.1f} ms"


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else rounded_duration(seconds)


def _ago(seconds: float | None) -> str | None:
    return None if seconds is None else f"{rounded_duration(seconds)} ago"


def _escaped(text: str) -> str:
    return escape_controls(text, keep_lines=True)
