"""Translates TensorFlow Serving's models.config and batching parameters to a configuration of multitower.

The fields are those of `tensorflow_serving/config/model_server_config.proto` and of `BatchingParameters` in
`tensorflow_serving/servables/tensorflow/session_bundle_config.proto`. Each field without a counterpart gets a note,
which is returned and stands as a comment in the YAML. No field is dropped silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from multitower.supervisor.config.section_types import MAX_INT
from multitower.supervisor.config.units import format_duration
from multitower.supervisor.config.value_syntax import NAME_PATTERN
from multitower.supervisor.config.version_folders import Policy
from multitower.supervisor.config.versions import MAX_VERSION
from multitower.tools import documentation
from multitower.tools.convert import yaml_text
from multitower.tools.convert.batching import BatchingParameters, batching_keys, convert_batching
from multitower.tools.convert.fields import AddNote, Note, effective_fields, last_value, note_unknown_fields
from multitower.tools.convert.model_batching import FILE, read_model_batching
from multitower.tools.convert.text_format import Field, Message
from multitower.wire import MAX_NAME_BYTES

_REMOTE: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_IGNORED: Final = {
    "logging_config": "requests are not logged",
    "metric_labels": "metrics have no labels of their own",
}


@dataclass(frozen=True, slots=True)
class FlagSettings:
    """What flags of tensorflow_model_server add to its files.

    Attributes:
        keys: the lines of the configuration above its models.
        folder: the folder that relative base_paths start at; None for that of the YAML file.
        timeout_s: the time limit of requests in seconds; None for multitower's default.
        tags: the tags of the MetaGraph that is served; empty for multitower's rule.
        batched: whether requests may share batches.
        model_batching: whether the batching parameters of each model are those in the folders of its versions.
    """

    keys: Sequence[str] = ("# Every GPU of the machine; devices: {cpu: 1} if there is none.", "devices: all")
    folder: Path | None = None
    timeout_s: float | None = None
    tags: Sequence[str] = ()
    batched: bool = True
    model_batching: bool = False


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

    @property
    def policy(self) -> Policy:
        """Which versions are served; of `latest` only the highest counts here."""
        if self.listed:
            return Policy("specific", listed=tuple(self.listed))
        return Policy("all" if self.versions == "all" else "latest")


def convert(
    models: Message,
    batching: Message | None = None,
    *,
    models_file: str = "models.config",
    batching_file: str = "",
    flags: FlagSettings = FlagSettings(),
) -> Conversion:
    """Converts what TensorFlow Serving serves with these files to a configuration.

    Args:
        models: a `ModelServerConfig`.
        batching: `BatchingParameters`, or None if batching was not enabled.
        models_file: the name of the file that `models` was read from, for notes.
        batching_file: the name of the file that `batching` was read from.
        flags: what flags set beside the files.

    Raises:
        ConfigError: the batching parameters of a model cannot be read.
    """
    general: list[Note] = []
    converted = list(_convert_models(models, general, models_file, flags.folder))
    parameters = convert_batching(batching, batching_file) if batching is not None else None
    own: dict[str, BatchingParameters] = {}
    if flags.batched and flags.model_batching:
        if parameters is not None:
            text = f"these batching parameters have no effect: each model has its own in {FILE}"
            parameters.notes = [Note(batching_file, 1, text)]
        for model in converted:
            if not model.refused:
                own[model.name] = read_model_batching(Path(model.path), model.policy)
                model.notes += own[model.name].notes
    batching_notes = [*parameters.notes] if parameters is not None else []
    sources = models_file if parameters is None else f"{models_file} and {batching_file}"
    lines = [
        yaml_text.comment(f"Made by `multitower convert-config` from {sources}."),
        "# Check it with `multitower check FILE`.",
        yaml_text.comment(f"Differences: see {documentation.page('Migrating from TensorFlow Serving')}."),
        *(yaml_text.comment(str(note)) for note in (*general, *batching_notes)),
        "",
        *flags.keys,
        "",
    ]
    served = sum(not model.refused for model in converted)
    lines.append("models:" if served else "models: []")
    for model in converted:
        lines += _model_lines(model, own.get(model.name, parameters), flags)
    notes = (*general, *batching_notes, *(note for model in converted for note in model.notes))
    return Conversion("\n".join(lines) + "\n", notes, served)


def _model_lines(model: _Model, batching: BatchingParameters | None, flags: FlagSettings) -> Iterator[str]:
    yield from (f"  {yaml_text.comment(str(note))}" for note in model.notes)
    entry = [f"  - name: {yaml_text.text(model.name)}", f"    path: {yaml_text.text(model.path)}"]
    if model.versions is not None:
        entry.append(f"    versions: {model.versions}")
    if model.labels:
        labels = ", ".join(f"{yaml_text.text(label)}: {version}" for label, version in model.labels.items())
        entry.append(f"    version_labels: {{{labels}}}")
    if flags.tags:
        entry.append(f"    tags: [{', '.join(map(yaml_text.text, flags.tags))}]")
    queue: list[str] = []
    if not flags.batched:
        entry.append("    batching: {max_batch_size: 0}")
    elif batching is not None:
        keys = list(batching_keys(batching))
        entry += ["    batching:", *(f"      {key}" for key in keys)] if keys else []
        queue += [f"max_size: {batching.max_size}"] if batching.max_size is not None else []
    queue += [f"timeout: {format_duration(flags.timeout_s)}"] if flags.timeout_s is not None else []
    if queue:
        entry.append(f"    queue: {{{', '.join(queue)}}}")
    yield from (f"  #{line.removeprefix('  ')}" if model.refused else line for line in entry)


def _convert_models(config: Message, general: list[Note], file: str, folder: Path | None) -> Iterator[_Model]:
    names: set[str] = set()
    for part in config.fields:
        if part.name != "model_config_list" or not isinstance(part.value, Message):
            what = "models that come from elsewhere" if part.name == "custom_model_config" else "an unknown field"
            general.append(Note(file, part.line, f"{part.name} was not carried over: {what}"))
            continue
        for entry in part.value.fields:
            if entry.name == "config" and isinstance(entry.value, Message):
                yield _convert_model(entry, entry.value, names, file, folder)
            else:
                general.append(Note(file, entry.line, f"{entry.name} was not carried over: an unknown field"))


def _convert_model(entry: Field, config: Message, names: set[str], file: str, folder: Path | None) -> _Model:
    model = _Model()
    policy: tuple[Message, Field] | None = None
    line = entry.line

    def note(at: Field | None, text: str) -> None:
        model.notes.append(Note(file, at.line if at is not None else line, text))

    def refuse(at: Field | None, text: str) -> None:
        note(at, text)
        model.refused = True

    labels: list[tuple[Field, object, object]] = []
    for part in effective_fields(config, "version_labels", note):
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
            labels.append((part, last_value(value, "key"), last_value(value, "value")))
            note_unknown_fields(value, part, ("key", "value"), note)
        else:
            why = _IGNORED.get(part.name, "an unknown field, or a value of the wrong type")
            note(part, f"{part.name} was not carried over: {why}")
    _check_path(model, folder, note, refuse)
    if policy is not None:
        _set_versions(model, *policy, note)
    _set_labels(model, labels, note)
    _set_name(model, names, note)
    return model


def _check_path(model: _Model, folder: Path | None, note: AddNote, refuse: AddNote) -> None:
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
    elif folder is not None:
        model.path = str(folder / model.path)
    elif not model.path.startswith("/"):
        note(None, f"base_path {model.path!r} is relative: here it is relative to the folder of the YAML file")


def _set_versions(model: _Model, policy: Message, at: Field, note: AddNote) -> None:
    for choice in policy.fields[:-1]:
        note(choice, f"{choice.name} in model_version_policy is ignored: another one follows")
    for choice in policy.fields[-1:]:
        inner = choice.value if isinstance(choice.value, Message) else Message(())
        known = {"latest": ("num_versions",), "all": (), "specific": ("versions",)}.get(choice.name)
        if known is None:
            note(choice, f"{choice.name} in model_version_policy was not carried over: an unknown field")
            continue
        note_unknown_fields(inner, choice, known, note)
        if choice.name == "latest":
            count = last_value(inner, "num_versions")
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


def _set_listed_versions(model: _Model, specific: Message, at: Field, note: AddNote) -> None:
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


def _set_labels(model: _Model, labels: Sequence[tuple[Field, object, object]], note: AddNote) -> None:
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


def _set_name(model: _Model, names: set[str], note: AddNote) -> None:
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
