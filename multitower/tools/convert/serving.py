"""What TensorFlow Serving's models.config and batching parameters mean as a configuration of ours.

The fields are those of `tensorflow_serving/config/model_server_config.proto` and of `BatchingParameters` in
`tensorflow_serving/servables/tensorflow/session_bundle_config.proto`. What has no counterpart is told in a note, which
stands as a comment where it belongs and goes to whoever called; nothing is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from multitower.supervisor.config.fields import MAX_INT
from multitower.supervisor.config.units import MAX_DURATION_S, format_duration
from multitower.supervisor.config.values import NAME_PATTERN
from multitower.supervisor.config.versions import MAX_VERSION
from multitower.tools.convert import yaml_text
from multitower.tools.convert.text_format import Field, Message, Word
from multitower.wire import MAX_NAME_BYTES

DEFAULT_MAX_BATCH_SIZE: Final = 1000
"""TensorFlow Serving's, where a batching file does not say."""

_GUIDE: Final = "docs/from-tensorflow-serving.md"
_REMOTE: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PAD: Final = "pad_variable_length_inputs"
_Noting = Callable[[Field | None, str], None]
"""Notes something, of a field or of the whole that is being read."""

_IGNORED: Final = {
    "logging_config": "requests are not logged",
    "metric_labels": "metrics have no labels of their own",
}


@dataclass(frozen=True, slots=True)
class Note:
    """What could not be carried over, or not as it was.

    Attributes:
        file: the name of the file that it stands in.
        line: where in it, from 1.
        text: what it is, and what to do about it.
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
        yaml: the file's text.
        notes: what could not be carried over; all of it stands in `yaml` too.
        models: how many models it serves; those that it cannot are in `yaml` as comments.
    """

    yaml: str
    notes: tuple[Note, ...]
    models: int


@dataclass(slots=True)
class _Model:
    """One model; `refused` says that it can only be a comment. `versions` is what stands behind that key."""

    name: str = ""
    path: str = ""
    versions: str | None = None
    listed: list[int] | None = None
    labels: dict[str, int] = field(default_factory=dict)
    refused: bool = False
    notes: list[Note] = field(default_factory=list)


@dataclass(slots=True)
class _Batching:
    """The batching parameters; they are for all models."""

    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    allowed_batch_sizes: list[int] = field(default_factory=list)
    max_delay_s: float = 0.0
    max_size: int | None = None
    pad: bool = False
    notes: list[Note] = field(default_factory=list)


def convert(
    models: Message, batching: Message | None = None, *, models_file: str = "models.config", batching_file: str = ""
) -> Conversion:
    """The configuration that serves what TensorFlow Serving serves with these files.

    Args:
        models: a `ModelServerConfig`.
        batching: `BatchingParameters`, or None where batching was not enabled.
        models_file: the name of the file that `models` was read from, for notes.
        batching_file: that of `batching`.
    """
    general: list[Note] = []
    read = list(_models(models, general, models_file))
    parameters = _batching(batching, batching_file) if batching is not None else None
    batched = [*parameters.notes] if parameters is not None else []
    sources = models_file if parameters is None else f"{models_file} and {batching_file}"
    lines = [
        yaml_text.comment(f"Made by `multitower convert-config` from {sources}."),
        f"# `multitower check FILE` checks it; {_GUIDE} tells what is different.",
        *(yaml_text.comment(str(note)) for note in (*general, *batched)),
        "",
        "# Every GPU of the machine; devices: {cpu: 1} where there is none.",
        "devices: all",
        "",
    ]
    served = sum(not model.refused for model in read)
    lines.append("models:" if served else "models: []")
    for model in read:
        lines += _lines(model, parameters)
    notes = (*general, *batched, *(note for model in read for note in model.notes))
    return Conversion("\n".join(lines) + "\n", notes, served)


def _lines(model: _Model, batching: _Batching | None) -> Iterator[str]:
    yield from (f"  {yaml_text.comment(str(note))}" for note in model.notes)
    entry = [f"  - name: {yaml_text.text(model.name)}", f"    path: {yaml_text.text(model.path)}"]
    if model.versions is not None:
        entry.append(f"    versions: {model.versions}")
    if model.labels:
        labels = ", ".join(f"{yaml_text.text(label)}: {version}" for label, version in model.labels.items())
        entry.append(f"    version_labels: {{{labels}}}")
    if batching is not None:
        entry += ["    batching:", f"      max_batch_size: {batching.max_batch_size}"]
        if batching.allowed_batch_sizes:
            entry.append(f"      allowed_batch_sizes: [{', '.join(map(str, batching.allowed_batch_sizes))}]")
        if batching.pad:
            entry.append(f"      {_PAD}: true")
        entry.append(f"      max_queue_delay: {format_duration(batching.max_delay_s)}")
        if batching.max_size is not None:
            entry.append(f"    queue: {{max_size: {batching.max_size}}}")
    yield from (f"  #{line.removeprefix('  ')}" if model.refused else line for line in entry)


def _models(config: Message, general: list[Note], file: str) -> Iterator[_Model]:
    names: set[str] = set()
    for part in config.fields:
        if part.name != "model_config_list" or not isinstance(part.value, Message):
            what = "models that come from elsewhere" if part.name == "custom_model_config" else "an unknown field"
            general.append(Note(file, part.line, f"{part.name} was not carried over: {what}"))
            continue
        for entry in part.value.fields:
            if entry.name == "config" and isinstance(entry.value, Message):
                yield _model(entry, entry.value, names, file)
            else:
                general.append(Note(file, entry.line, f"{entry.name} was not carried over: an unknown field"))


def _model(entry: Field, config: Message, names: set[str], file: str) -> _Model:
    model = _Model()
    policy: tuple[Message, Field] | None = None
    line = entry.line

    def note(at: Field | None, text: str) -> None:
        model.notes.append(Note(file, at.line if at is not None else line, text))

    def refuse(at: Field | None, text: str) -> None:
        note(at, text)
        model.refused = True

    labels: list[tuple[Field, object, object]] = []
    for part in _counting(config, "version_labels", note):
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
            labels.append((part, _only(value, "key"), _only(value, "value")))
            _tell_strange(value, part, ("key", "value"), note)
        else:
            why = _IGNORED.get(part.name, "an unknown field, or not of the type that it has")
            note(part, f"{part.name} was not carried over: {why}")
    _settle_path(model, note, refuse)
    if policy is not None:
        _settle_versions(model, *policy, note)
    _settle_labels(model, labels, note)
    _settle_name(model, names, note)
    return model


def _settle_path(model: _Model, note: _Noting, refuse: _Noting) -> None:
    if model.path.startswith("file://"):
        model.path = model.path.removeprefix("file://")
    remote = _REMOTE.match(model.path)
    if not model.path:
        refuse(None, "the model has no base_path: left out")
    elif remote is not None:
        refuse(
            None, f"models are read from this machine only, not from {remote[1]}://: copy it, and set path; left out"
        )
    elif not model.path.startswith("/"):
        note(None, f"base_path {model.path!r} is relative: here it starts at the folder of the YAML file")


def _settle_versions(model: _Model, policy: Message, at: Field, note: _Noting) -> None:
    for choice in policy.fields[:-1]:
        note(choice, f"{choice.name} in model_version_policy does not count: another one follows")
    for choice in policy.fields[-1:]:
        inner = choice.value if isinstance(choice.value, Message) else Message(())
        known = {"latest": ("num_versions",), "all": (), "specific": ("versions",)}.get(choice.name)
        if known is None:
            note(choice, f"{choice.name} in model_version_policy was not carried over: an unknown field")
            continue
        _tell_strange(inner, choice, known, note)
        if choice.name == "latest":
            count = _only(inner, "num_versions")
            if isinstance(count, int) and 1 < count <= MAX_INT:
                model.versions = f"{{latest: {count}}}"
            elif count not in (None, 0, 1):
                note(choice, f"num_versions {count} was not carried over: the latest version is served")
        elif choice.name == "all":
            model.versions = "all"
        else:
            _settle_listed(model, inner, choice, note)
    if not policy.fields:
        note(at, "model_version_policy is empty: the latest version is served")


def _settle_listed(model: _Model, specific: Message, at: Field, note: _Noting) -> None:
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


def _settle_labels(model: _Model, labels: Sequence[tuple[Field, object, object]], note: _Noting) -> None:
    for at, label, version in labels:
        told = f"the label {label}: {version} was not carried over"
        if not isinstance(label, str) or not 0 < len(label.encode()) <= MAX_NAME_BYTES or not _is_version(version):
            note(at, f"{told}: a label has a text of 1 to {MAX_NAME_BYTES} bytes and the number of a version")
        elif model.listed is not None and version not in model.listed:
            note(at, f"{told}: that version is not served")
        else:
            assert isinstance(version, int)  # it is a version
            model.labels[label] = version


def _is_version(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_VERSION


def _settle_name(model: _Model, names: set[str], note: _Noting) -> None:
    wanted = model.name
    name = wanted if re.fullmatch(NAME_PATTERN, wanted) else re.sub(r"[^A-Za-z0-9_.-]", "_", wanted)[:120]
    if not re.fullmatch(NAME_PATTERN, name):
        name = "_".join(filter(None, ("model", name.lstrip(".-"))))
    number = 2
    base = name
    while name in names:
        name = f"{base[:120]}_{number}"
        number += 1
    names.add(name)
    if name != wanted:
        why = "is taken by a model above" if re.fullmatch(NAME_PATTERN, wanted) else "is no name here"
        note(None, f"the name {wanted!r} {why}: it became {name!r}, and clients must ask for that")
    model.name = name


def _batching(config: Message, file: str) -> _Batching:
    batching = _Batching()
    executed: int | None = None
    enqueued: tuple[Field, int] | None = None
    given = False

    def note(at: Field | None, text: str) -> None:
        batching.notes.append(Note(file, at.line if at is not None else 1, text))

    for part in _counting(config, "allowed_batch_sizes", note):
        value = _unwrapped(part.value)
        count = value if isinstance(value, int) and 1 <= value <= MAX_INT else None
        if part.name == "max_batch_size" and count is not None:
            batching.max_batch_size, given = count, True
        elif part.name == "max_execution_batch_size" and count is not None:
            executed = count
            note(part, "max_execution_batch_size became max_batch_size: larger requests are always split")
        elif part.name == "enable_large_batch_splitting" and isinstance(value, Word):
            if not _truth(value):
                note(part, "enable_large_batch_splitting is false, but requests over max_batch_size are split here")
        elif part.name == "batch_timeout_micros" and isinstance(value, int) and 0 <= value <= MAX_DURATION_S * 1e6:
            batching.max_delay_s = value / 1e6
        elif part.name == "max_enqueued_batches" and count is not None:
            enqueued = part, count
        elif part.name == "allowed_batch_sizes" and count is not None:
            batching.allowed_batch_sizes.append(count)
        elif part.name == _PAD and (isinstance(value, Word) or value in (0, 1)):
            batching.pad = _truth(value)
        elif part.name == "num_batch_threads":
            note(part, f"num_batch_threads ({value}) was not carried over: devices and workers_per_device say it")
        elif part.name == "thread_pool_name":
            note(part, "thread_pool_name was not carried over: a worker runs one batch at a time")
        else:
            why = "an unknown field, or not of a value that it can have"
            note(part, f"{part.name} was not carried over: {why}")
    if executed is not None:
        batching.max_batch_size, given = min(executed, batching.max_batch_size if given else executed), True
    _settle_sizes(batching, config, given, note)
    if enqueued is not None:
        part, batches = enqueued
        batching.max_size = min(batches * batching.max_batch_size, MAX_INT)
        note(
            part,
            f"max_enqueued_batches ({batches}) became queue.max_size: {batching.max_size}, which counts requests: as "
            "many as there are rows in these batches",
        )
    return batching


def _settle_sizes(batching: _Batching, config: Message, given: bool, note: _Noting) -> None:
    """The sizes must ascend, and end with the largest batch."""
    if not batching.allowed_batch_sizes:
        return
    at = next(part for part in config.fields if part.name == "allowed_batch_sizes")
    sizes = sorted(set(batching.allowed_batch_sizes))
    if sizes != batching.allowed_batch_sizes:
        note(at, f"allowed_batch_sizes {batching.allowed_batch_sizes} were put in order")
    if not given:
        batching.max_batch_size = sizes[-1]
    elif sizes[-1] != batching.max_batch_size:
        fitting = [size for size in sizes if size < batching.max_batch_size]
        sizes = [*fitting, batching.max_batch_size]
        note(at, f"allowed_batch_sizes must end with max_batch_size, {batching.max_batch_size}: they became {sizes}")
    batching.allowed_batch_sizes = sizes


def _counting(config: Message, several: str, note: _Noting) -> list[Field]:
    """The fields that count: of each name but `several` the last; the others are told."""
    last = {part.name: part for part in config.fields}
    for part in config.fields:
        if part.name != several and last[part.name] is not part:
            note(part, f"{part.name} does not count: it is given again later")
    return [part for part in config.fields if part.name == several or last[part.name] is part]


def _tell_strange(message: Message, around: Field, known: Sequence[str], note: _Noting) -> None:
    """Tells of fields that are not among the known ones."""
    for part in message.fields:
        if part.name not in known:
            note(part, f"{part.name} in {around.name} was not carried over: an unknown field")


def _unwrapped(value: object) -> object:
    """The value within a wrapper such as `Int64Value`; `{}` holds the type's zero, of which nobody has use here."""
    if isinstance(value, Message):
        return _only(value, "value") if all(part.name == "value" for part in value.fields) else value
    return value


def _only(message: Message, name: str) -> object:
    """The last value of that field, as protobuf has it; None where there is none."""
    values: Sequence[object] = [part.value for part in message.fields if part.name == name]
    return values[-1] if values else None


def _truth(value: object) -> bool:
    return value in ("true", "True", "t", 1)
