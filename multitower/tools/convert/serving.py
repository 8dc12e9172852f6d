"""Translates TensorFlow Serving's models.config and batching parameters to a configuration of multitower.

The fields are those of `tensorflow_serving/config/model_server_config.proto` and of `BatchingParameters` in
`tensorflow_serving/servables/tensorflow/session_bundle_config.proto`. Each field without a counterpart gets a note,
which is returned and stands as a comment in the YAML. No field is dropped silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from multitower.supervisor.config.fields import MAX_INT
from multitower.supervisor.config.models import Batching
from multitower.supervisor.config.units import MAX_DURATION_S, format_duration
from multitower.supervisor.config.values import NAME_PATTERN
from multitower.supervisor.config.versions import MAX_VERSION
from multitower.tools import documentation
from multitower.tools.convert import yaml_text
from multitower.tools.convert.text_format import Field, Message, Word
from multitower.wire import MAX_NAME_BYTES

_REMOTE: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PAD: Final = "pad_variable_length_inputs"
_AddNote = Callable[[Field | None, str], None]
"""Adds a note on a field, or with None on the whole message."""

_IGNORED: Final = {
    "logging_config": "requests are not logged",
    "metric_labels": "metrics have no labels of their own",
}


@dataclass(frozen=True, slots=True)
class Note:
    """A note on a field that was not carried over, or was changed.

    Attributes:
        file: the name of the file with the field.
        line: the field's line, from 1.
        text: what happened to the field, and what to do about it.
    """

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Conversion:
    """A configuration made of TensorFlow Serving's files.

    Attributes:
        yaml: the text of the configuration file.
        notes: notes on fields; all of them are comments in `yaml` as well.
        models: the number of models served; models that cannot be served are comments in `yaml`.
    """

    yaml: str
    notes: tuple[Note, ...]
    models: int


@dataclass(slots=True)
class _Model:
    """One model. `versions` is the YAML value of that key; a model that is `refused` becomes a comment."""

    name: str = ""
    path: str = ""
    versions: str | None = None
    listed: list[int] | None = None
    labels: dict[str, int] = field(default_factory=dict)
    refused: bool = False
    notes: list[Note] = field(default_factory=list)


@dataclass(slots=True)
class _Batching:
    """The batching parameters, which apply to all models."""

    max_batch_size: int | None = None
    allowed_batch_sizes: list[int] = field(default_factory=list)
    max_delay_s: float = 0.0
    max_size: int | None = None
    pad: bool = False
    notes: list[Note] = field(default_factory=list)


def convert(
    models: Message, batching: Message | None = None, *, models_file: str = "models.config", batching_file: str = ""
) -> Conversion:
    """Converts what TensorFlow Serving serves with these files to a configuration.

    Args:
        models: a `ModelServerConfig`.
        batching: `BatchingParameters`, or None if batching was not enabled.
        models_file: the name of the file that `models` was read from, for notes.
        batching_file: the name of the file that `batching` was read from.
    """
    general: list[Note] = []
    converted = list(_convert_models(models, general, models_file))
    parameters = _convert_batching(batching, batching_file) if batching is not None else None
    batching_notes = [*parameters.notes] if parameters is not None else []
    sources = models_file if parameters is None else f"{models_file} and {batching_file}"
    lines = [
        yaml_text.comment(f"Made by `multitower convert-config` from {sources}."),
        "# Check it with `multitower check FILE`.",
        yaml_text.comment(f"Differences: see {documentation.page('Migrating from TensorFlow Serving')}."),
        *(yaml_text.comment(str(note)) for note in (*general, *batching_notes)),
        "",
        "# Every GPU of the machine; devices: {cpu: 1} if there is none.",
        "devices: all",
        "",
    ]
    served = sum(not model.refused for model in converted)
    lines.append("models:" if served else "models: []")
    for model in converted:
        lines += _model_lines(model, parameters)
    notes = (*general, *batching_notes, *(note for model in converted for note in model.notes))
    return Conversion("\n".join(lines) + "\n", notes, served)


def _model_lines(model: _Model, batching: _Batching | None) -> Iterator[str]:
    yield from (f"  {yaml_text.comment(str(note))}" for note in model.notes)
    entry = [f"  - name: {yaml_text.text(model.name)}", f"    path: {yaml_text.text(model.path)}"]
    if model.versions is not None:
        entry.append(f"    versions: {model.versions}")
    if model.labels:
        labels = ", ".join(f"{yaml_text.text(label)}: {version}" for label, version in model.labels.items())
        entry.append(f"    version_labels: {{{labels}}}")
    if batching is not None:
        keys = list(_batching_keys(batching))
        entry += ["    batching:", *(f"      {key}" for key in keys)] if keys else []
        if batching.max_size is not None:
            entry.append(f"    queue: {{max_size: {batching.max_size}}}")
    yield from (f"  #{line.removeprefix('  ')}" if model.refused else line for line in entry)


def _batching_keys(batching: _Batching) -> Iterator[str]:
    """The keys that the file sets; multitower's defaults are meant for the others."""
    if batching.max_batch_size is not None:
        yield f"max_batch_size: {batching.max_batch_size}"
    if batching.allowed_batch_sizes:
        yield f"allowed_batch_sizes: [{', '.join(map(str, batching.allowed_batch_sizes))}]"
    if batching.pad:
        yield f"{_PAD}: true"
    if batching.max_delay_s:
        yield f"max_queue_delay: {format_duration(batching.max_delay_s)}"


def _convert_models(config: Message, general: list[Note], file: str) -> Iterator[_Model]:
    names: set[str] = set()
    for part in config.fields:
        if part.name != "model_config_list" or not isinstance(part.value, Message):
            what = "models that come from elsewhere" if part.name == "custom_model_config" else "an unknown field"
            general.append(Note(file, part.line, f"{part.name} was not carried over: {what}"))
            continue
        for entry in part.value.fields:
            if entry.name == "config" and isinstance(entry.value, Message):
                yield _convert_model(entry, entry.value, names, file)
            else:
                general.append(Note(file, entry.line, f"{entry.name} was not carried over: an unknown field"))


def _convert_model(entry: Field, config: Message, names: set[str], file: str) -> _Model:
    model = _Model()
    policy: tuple[Message, Field] | None = None
    line = entry.line

    def note(at: Field | None, text: str) -> None:
        model.notes.append(Note(file, at.line if at is not None else line, text))

    def refuse(at: Field | None, text: str) -> None:
        note(at, text)
        model.refused = True

    labels: list[tuple[Field, object, object]] = []
    for part in _effective_fields(config, "version_labels", note):
        value = part.value
        if part.name == "name" and isinstance(value, str):
            model.name = value
        elif part.name == "base_path" and isinstance(value, str):
            model.path = value
        elif part.name == "model_platform" and isinstance(value, str):
            if value not in ("tensorflow", ""):
                refuse(part, f"the platform {value!r} cannot be served, only tensorflow: left out")
        elif part.name == "model_type":
            if value not in ("TENSORFLOW", "MODEL_TYPE_UNSPECIFIED", 0, 1):
                refuse(part, f"the model_type {value} cannot be served, only TENSORFLOW: left out")
        elif part.name == "model_version_policy" and isinstance(value, Message):
            policy = value, part
        elif part.name == "version_labels" and isinstance(value, Message):
            labels.append((part, _last_value(value, "key"), _last_value(value, "value")))
            _note_unknown_fields(value, part, ("key", "value"), note)
        else:
            why = _IGNORED.get(part.name, "an unknown field, or a value of the wrong type")
            note(part, f"{part.name} was not carried over: {why}")
    _check_path(model, note, refuse)
    if policy is not None:
        _set_versions(model, *policy, note)
    _set_labels(model, labels, note)
    _set_name(model, names, note)
    return model


def _check_path(model: _Model, note: _AddNote, refuse: _AddNote) -> None:
    if model.path.startswith("file://"):
        model.path = model.path.removeprefix("file://")
    remote = _REMOTE.match(model.path)
    if not model.path:
        refuse(None, "the model has no base_path: left out")
    elif remote is not None:
        refuse(
            None,
            f"models are read from this machine only, not from {remote[1]}://: copy the model and set path; left out",
        )
    elif not model.path.startswith("/"):
        note(None, f"base_path {model.path!r} is relative: here it is relative to the folder of the YAML file")


def _set_versions(model: _Model, policy: Message, at: Field, note: _AddNote) -> None:
    for choice in policy.fields[:-1]:
        note(choice, f"{choice.name} in model_version_policy is ignored: another one follows")
    for choice in policy.fields[-1:]:
        inner = choice.value if isinstance(choice.value, Message) else Message(())
        known = {"latest": ("num_versions",), "all": (), "specific": ("versions",)}.get(choice.name)
        if known is None:
            note(choice, f"{choice.name} in model_version_policy was not carried over: an unknown field")
            continue
        _note_unknown_fields(inner, choice, known, note)
        if choice.name == "latest":
            count = _last_value(inner, "num_versions")
            if isinstance(count, int) and 1 < count <= MAX_INT:
                model.versions = f"{{latest: {count}}}"
            elif count not in (None, 0, 1):
                note(choice, f"num_versions {count} was not carried over: the latest version is served")
        elif choice.name == "all":
            model.versions = "all"
        else:
            _set_listed_versions(model, inner, choice, note)
    if not policy.fields:
        note(at, "model_version_policy is empty: the latest version is served")


def _set_listed_versions(model: _Model, specific: Message, at: Field, note: _AddNote) -> None:
    found = dict.fromkeys(part.value for part in specific.fields if part.name == "versions")
    listed = [version for version in found if isinstance(version, int) and _is_version(version)]
    for version in found:
        if version not in listed:
            note(at, f"the version {version} was not carried over: versions are numbers from 0")
    if listed:
        model.listed = listed
        model.versions = f"{{specific: [{', '.join(map(str, listed))}]}}"
    else:
        note(at, "specific lists no version: the latest is served")


def _set_labels(model: _Model, labels: Sequence[tuple[Field, object, object]], note: _AddNote) -> None:
    for at, label, version in labels:
        skipped = f"the label {label}: {version} was not carried over"
        if not isinstance(label, str) or not 0 < len(label.encode()) <= MAX_NAME_BYTES or not _is_version(version):
            note(at, f"{skipped}: a label needs a text of 1 to {MAX_NAME_BYTES} bytes and the number of a version")
        elif model.listed is not None and version not in model.listed:
            note(at, f"{skipped}: that version is not served")
        else:
            assert isinstance(version, int)  # it is a version
            model.labels[label] = version


def _is_version(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_VERSION


def _set_name(model: _Model, names: set[str], note: _AddNote) -> None:
    original = model.name
    name = original if re.fullmatch(NAME_PATTERN, original) else re.sub(r"[^A-Za-z0-9_.-]", "_", original)[:120]
    if not re.fullmatch(NAME_PATTERN, name):
        name = "_".join(filter(None, ("model", name.lstrip(".-"))))
    number = 2
    base = name
    while name in names:
        name = f"{base[:120]}_{number}"
        number += 1
    names.add(name)
    if name != original:
        why = "is used by a model above" if re.fullmatch(NAME_PATTERN, original) else "is not a valid name here"
        note(None, f"the name {original!r} {why}: it became {name!r}, which clients must use")
    model.name = name


def _convert_batching(config: Message, file: str) -> _Batching:
    batching = _Batching()
    executed: int | None = None
    enqueued: tuple[Field, int] | None = None

    def note(at: Field | None, text: str) -> None:
        batching.notes.append(Note(file, at.line if at is not None else 1, text))

    for part in _effective_fields(config, "allowed_batch_sizes", note):
        value = _unwrap(part.value)
        count = value if isinstance(value, int) and 1 <= value <= MAX_INT else None
        if part.name == "max_batch_size" and count is not None:
            batching.max_batch_size = count
        elif part.name == "max_execution_batch_size" and count is not None:
            executed = count
            note(part, "max_execution_batch_size became max_batch_size: larger requests are always split")
        elif part.name == "enable_large_batch_splitting" and isinstance(value, Word):
            if not _is_true(value):
                note(part, "enable_large_batch_splitting is false, but requests over max_batch_size are split here")
        elif part.name == "batch_timeout_micros" and isinstance(value, int) and 0 <= value <= MAX_DURATION_S * 1e6:
            batching.max_delay_s = value / 1e6
        elif part.name == "max_enqueued_batches" and count is not None:
            enqueued = part, count
        elif part.name == "allowed_batch_sizes" and count is not None:
            batching.allowed_batch_sizes.append(count)
        elif part.name == _PAD and (isinstance(value, Word) or value in (0, 1)):
            batching.pad = _is_true(value)
        elif part.name == "num_batch_threads":
            note(
                part,
                f"num_batch_threads ({value}) was not carried over: see devices and workers_per_device",
            )
        elif part.name == "thread_pool_name":
            note(part, "thread_pool_name was not carried over: a worker runs one batch at a time")
        else:
            why = "an unknown field, or an invalid value"
            note(part, f"{part.name} was not carried over: {why}")
    if executed is not None:
        batching.max_batch_size = min(executed, batching.max_batch_size or executed)
    _set_batch_sizes(batching, config, note)
    if enqueued is not None:
        part, batches = enqueued
        batching.max_size = min(batches * (batching.max_batch_size or Batching().max_batch_size), MAX_INT)
        note(
            part,
            f"max_enqueued_batches ({batches}) became queue.max_size: {batching.max_size}, which counts requests: as "
            "many as there are rows in these batches",
        )
    return batching


def _set_batch_sizes(batching: _Batching, config: Message, note: _AddNote) -> None:
    """Sets sizes that ascend and end with the largest batch, as a configuration requires."""
    if not batching.allowed_batch_sizes:
        return
    at = next(part for part in config.fields if part.name == "allowed_batch_sizes")
    sizes = sorted(set(batching.allowed_batch_sizes))
    if sizes != batching.allowed_batch_sizes:
        note(at, f"allowed_batch_sizes {batching.allowed_batch_sizes} were sorted")
    if batching.max_batch_size is None:
        batching.max_batch_size = sizes[-1]
    elif sizes[-1] != batching.max_batch_size:
        fitting = [size for size in sizes if size < batching.max_batch_size]
        sizes = [*fitting, batching.max_batch_size]
        note(at, f"allowed_batch_sizes must end with max_batch_size, {batching.max_batch_size}: they became {sizes}")
    batching.allowed_batch_sizes = sizes


def _effective_fields(config: Message, repeated: str, note: _AddNote) -> list[Field]:
    """The fields that take effect: of each name the last one, but all of `repeated`. Others get a note."""
    last = {part.name: part for part in config.fields}
    for part in config.fields:
        if part.name != repeated and last[part.name] is not part:
            note(part, f"{part.name} is ignored: it is set again later")
    return [part for part in config.fields if part.name == repeated or last[part.name] is part]


def _note_unknown_fields(message: Message, parent: Field, known: Sequence[str], note: _AddNote) -> None:
    """Adds a note on each field of a message that is unknown."""
    for part in message.fields:
        if part.name not in known:
            note(part, f"{part.name} in {parent.name} was not carried over: an unknown field")


def _unwrap(value: object) -> object:
    """The value in a wrapper such as `Int64Value`; None for an empty one, whose zero no field here accepts."""
    if isinstance(value, Message):
        return _last_value(value, "value") if all(part.name == "value" for part in value.fields) else value
    return value


def _last_value(message: Message, name: str) -> object:
    """The value of the last field of that name, which is the one that counts in protobuf; None without one."""
    values: Sequence[object] = [part.value for part in message.fields if part.name == name]
    return values[-1] if values else None


def _is_true(value: object) -> bool:
    return value in ("true", "True", "t", 1)
