"""TensorFlow Serving's files become a valid configuration, and every field without counterpart gets a note."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.models import Batching
from multitower.supervisor.config.version_folders import Policy
from multitower.tools.convert import yaml_text
from multitower.tools.convert.serving import Conversion, convert
from multitower.tools.convert.text_format import Field, Message, parse


@pytest.fixture(autouse=True)
def models(tmp_path: Path) -> Path:
    for model, version in (("digits", "1"), ("digits", "42"), ("words", "7")):
        (tmp_path / model / version).mkdir(parents=True)
        (tmp_path / model / version / "saved_model.pb").touch()
    return tmp_path


def converted(models: str, batching: str | None = None) -> Conversion:
    return convert(parse(models), parse(batching) if batching is not None else None, batching_file="batching.txt")


def loaded(conversion: Conversion, folder: Path) -> Config:
    path = folder / "converted.yaml"
    path.write_text(conversion.yaml)
    for note in conversion.notes:
        assert yaml_text.comment(str(note)) in conversion.yaml, "each note is a comment as well"
    return load(path, environment={})


def one(folder: Path, more: str = "") -> str:
    return f"model_config_list {{ config {{ name: 'digits' base_path: '{folder}/digits' {more} }} }}"


def test_models_and_batching_parameters_are_converted(models: Path) -> None:
    text = f"""
    model_config_list: {{
      config: {{ name: "digits", base_path: "{models}/digits", model_platform: "tensorflow" }},
      config: {{ name: "words", base_path: "file://{models}/words/" model_type: TENSORFLOW
                model_version_policy: {{ latest: {{ num_versions: 1 }} }} }},
    }}
    """
    batching = """
    max_batch_size { value: 16 }
    batch_timeout_micros { value: 1500 }
    allowed_batch_sizes: 4
    allowed_batch_sizes: 16
    """
    conversion = converted(text, batching)
    assert conversion.notes == ()
    assert conversion.models == 2
    config = loaded(conversion, models)
    assert [(model.name, model.path) for model in config.models] == [
        ("digits", models / "digits"),
        ("words", models / "words"),
    ]
    for model in config.models:
        assert model.batching is not None
        assert model.batching.max_batch_size == 16
        assert model.batching.allowed_batch_sizes == (4, 16)
        assert model.batching.max_queue_delay == 0.0015


def test_without_a_batching_file_the_defaults_apply(models: Path) -> None:
    (model,) = loaded(converted(one(models)), models).models
    assert model.batching == Batching()


@pytest.mark.parametrize(
    ("more", "path", "words"),
    [
        ("model_version_policy { latest { num_versions: -1 } }", "digits", ["num_versions -1 was not"]),
        ("model_version_policy { specific { versions: -1 versions: 42 } }", "digits", ["the version -1 was not"]),
        ("model_version_policy { specific { } }", "digits", ["lists no version"]),
        ("model_version_policy { }", "digits", ["is empty"]),
        (
            "model_version_policy { all { } latest { num_versions: 1 } }",
            "digits",
            ["all in model_version_policy is ignored"],
        ),
        ("name: 'digits'", "digits", ["name is ignored: it is set again later"]),
        ("model_version_policy { newest { } }", "digits", ["newest in model_version_policy"]),
        ("version_labels { key: 'stable' }", "digits", ["the label stable: None was not carried over"]),
        ("version_labels { key: '' value: 42 }", "digits", ["the label : 42 was not carried over"]),
        (
            "model_version_policy { specific { versions: 42 } } version_labels { key: 'old' value: 1 }",
            "digits",
            ["the label old: 1 was not carried over: that version is not served"],
        ),
        ("logging_config { sampling_config { sampling_rate: 1 } }", "digits", ["logging_config was not carried over"]),
        ("model_plaform: 'tensorflow'", "digits", ["model_plaform was not carried over: an unknown field"]),
    ],
)
def test_a_field_without_counterpart_gets_a_note_with_its_line(
    models: Path, more: str, path: str, words: list[str]
) -> None:
    conversion = converted("\n\n" + one(models, more))
    (model,) = loaded(conversion, models).models
    assert model.path == models / path
    assert len(conversion.notes) == bool(words)
    for word in words:
        assert word in conversion.notes[0].text
        assert str(conversion.notes[0]).startswith("models.config:3: ")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", Policy()),
        ("latest { }", Policy()),
        ("latest { num_versions: 0 }", Policy()),
        ("latest { num_versions: 1 }", Policy()),
        ("latest { num_versions: 2 }", Policy("latest", 2)),
        ("all { }", Policy("all")),
        ("specific { versions: 42 }", Policy("specific", listed=(42,))),
        ("specific { versions: 42 versions: 7 versions: 42 }", Policy("specific", listed=(42, 7))),
        ("specific { versions: [42, 7] }", Policy("specific", listed=(42, 7))),
    ],
)
def test_version_policies_are_converted(models: Path, policy: str, expected: Policy) -> None:
    conversion = converted(one(models, f"model_version_policy {{ {policy} }}" if policy else ""))
    assert conversion.notes == ()
    assert loaded(conversion, models).models[0].versions == expected


def test_labels_are_converted_whatever_their_text(models: Path) -> None:
    labels = {"stable": 42, "true": 1, "7": 7, 'a "b"': 42}
    text = "".join(f"version_labels {{ key: '{label}' value: {version} }}" for label, version in labels.items())
    conversion = converted(one(models, f"version_labels {{ key: 'stable' value: 1 }} {text}"))
    assert conversion.notes == ()
    assert loaded(conversion, models).models[0].version_labels == labels


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("name: 'm' base_path: 'gs://bucket/m'", "not from gs://"),
        ("name: 'm'", "no base_path"),
        ("name: 'm' base_path: '/m' model_platform: 'custom'", "the platform 'custom'"),
        ("name: 'm' base_path: '/m' model_type: OTHER", "the model_type OTHER"),
    ],
)
def test_a_model_that_cannot_be_served_becomes_a_comment(models: Path, config: str, words: str) -> None:
    served = f"config {{ name: 'digits' base_path: '{models}/digits' }}"
    conversion = converted(f"model_config_list {{ config {{ {config} }} {served} }}", "max_batch_size { value: 8 }")
    assert conversion.models == 1
    assert [model.name for model in loaded(conversion, models).models] == ["digits"]
    assert words in conversion.notes[0].text
    assert "left out" in conversion.notes[0].text
    lines = conversion.yaml.splitlines()
    assert "  #- name: m" in lines
    alone = converted(f"model_config_list {{ config {{ {config} }} }}")
    assert alone.models == 0
    assert YAML(typ="safe").load(alone.yaml)["models"] == []


def test_unknown_fields_outside_of_models_get_notes() -> None:
    conversion = converted(
        "custom_model_config { [type.googleapis.com/a.B] { x: 1 } }\nwhat: 1 model_config_list { x: 1 }"
    )
    assert [str(note).split(" was")[0] for note in conversion.notes] == [
        "models.config:1: custom_model_config",
        "models.config:2: what",
        "models.config:2: x",
    ]


def test_invalid_and_repeated_names_are_changed_with_a_note(models: Path) -> None:
    names = ["a b", "a_b", "", "a b", "-x", "."]
    configs = " ".join(f"config {{ name: {name!r} base_path: '{models}/digits' }}" for name in names)
    conversion = converted(f"model_config_list {{ {configs} }}")
    assert [model.name for model in loaded(conversion, models).models] == [
        "a_b",
        "a_b_2",
        "model",
        "a_b_3",
        "model_x",
        "model_2",
    ]
    assert len(conversion.notes) == 6
    assert "is used by a model above" in conversion.notes[1].text


@pytest.mark.parametrize(
    ("batching", "expected", "words"),
    [
        ("", (32, (), 0.0, 1000), []),
        ("max_batch_size { value: 8 } max_enqueued_batches { value: 10 }", (8, (), 0.0, 80), ["queue.max_size: 80"]),
        ("max_enqueued_batches { value: 1000000000 }", (32, (), 0.0, 2**31 - 1), ["queue.max_size: 2147483647"]),
        ("allowed_batch_sizes: [2, 4]", (4, (2, 4), 0.0, 1000), []),
        ("allowed_batch_sizes: [4, 2, 4]", (4, (2, 4), 0.0, 1000), ["were sorted"]),
        (
            "max_batch_size { value: 6 } allowed_batch_sizes: [2, 4, 8]",
            (6, (2, 4, 6), 0.0, 1000),
            ["must end with max_batch_size, 6: they became [2, 4, 6]"],
        ),
        (
            "max_batch_size { value: 64 } max_execution_batch_size { value: 16 } allowed_batch_sizes: [8, 16] "
            "enable_large_batch_splitting { value: true }",
            (16, (8, 16), 0.0, 1000),
            ["max_execution_batch_size became max_batch_size"],
        ),
        (
            "enable_large_batch_splitting { value: False }",
            (32, (), 0.0, 1000),
            ["requests over max_batch_size are split"],
        ),
        ("num_batch_threads { value: 4 }", (32, (), 0.0, 1000), ["num_batch_threads (4)"]),
        ("thread_pool_name { value: 'x' }", (32, (), 0.0, 1000), ["thread_pool_name"]),
        ("max_batch_size { value: 4 } max_batch_size { value: 8 }", (8, (), 0.0, 1000), ["is ignored"]),
        ("max_batch_size { value: 0 }", (32, (), 0.0, 1000), ["max_batch_size was not carried over"]),
        ("batch_timeout_micros { value: 1 }", (32, (), 1e-6, 1000), []),
        ("batch_timeout_micros { value: -1 }", (32, (), 0.0, 1000), ["batch_timeout_micros was not"]),
        ("max_batch_sise { value: 8 }", (32, (), 0.0, 1000), ["max_batch_sise was not carried over"]),
        ("pad_variable_length_inputs: false", (32, (), 0.0, 1000), []),
        ("pad_variable_length_inputs: true", (32, (), 0.0, 1000), []),
        ("pad_variable_length_inputs: 7", (32, (), 0.0, 1000), ["pad_variable_length_inputs was not carried over"]),
    ],
)
def test_batching_parameters_are_converted(
    models: Path, batching: str, expected: tuple[int, tuple[int, ...], float, int], words: list[str]
) -> None:
    conversion = converted(one(models), batching)
    (model,) = loaded(conversion, models).models
    assert model.batching is not None
    found = model.batching.max_batch_size, model.batching.allowed_batch_sizes, model.batching.max_queue_delay
    assert (*found, model.queue.max_size) == expected
    assert model.batching.pad_variable_length_inputs is batching.endswith(": true")
    assert [word in note.text for word, note in zip(words, conversion.notes, strict=True)] == [True] * len(words)
    assert all(str(note).startswith("batching.txt:1: ") for note in conversion.notes)


@pytest.mark.parametrize(
    ("batching", "lines"),
    [
        ("", []),
        ("num_batch_threads { value: 4 }", []),
        ("batch_timeout_micros { value: 0 }", []),
        ("batch_timeout_micros { value: 2000 }", ["batching:", "max_queue_delay: 2ms"]),
        ("max_batch_size { value: 8 }", ["batching:", "max_batch_size: 8"]),
        ("allowed_batch_sizes: [2, 4]", ["batching:", "max_batch_size: 4", "allowed_batch_sizes: [2, 4]"]),
        ("max_enqueued_batches { value: 10 }", ["queue: {max_size: 320}"]),
    ],
)
def test_only_what_the_batching_file_sets_is_written(models: Path, batching: str, lines: list[str]) -> None:
    written = [line.strip() for line in converted(one(models), batching).yaml.splitlines()]
    entry = written[next(number for number, line in enumerate(written) if line.startswith("path:")) + 1 :]
    assert entry == lines


@given(st.text(max_size=40))
def test_any_text_survives_as_a_yaml_scalar_and_as_a_comment(value: str) -> None:
    value = value.encode("utf-8", "replace").decode()
    document = f"{yaml_text.comment(value)}\nkey: {yaml_text.text(value)}\n"
    assert YAML(typ="safe", pure=True).load(io.StringIO(document)) == {"key": value}


STRANGE = {
    "ROOT": "strange_0: 1",
    "LIST": "strange_1 { }",
    "CONFIG": "strange_2: 'x'",
    "POLICY": "strange_3 { }",
    "LATEST": "strange_4: [1]",
    "LABEL": "strange_5: true",
    "BATCHING": "strange_6: 1.5",
}
TREE = """ROOT model_config_list { LIST config { CONFIG name: 'm' base_path: '/m'
version_labels { key: 'a' LABEL value: 1 } model_version_policy { POLICY latest { LATEST num_versions: 1 } } } }"""


@given(st.sets(st.sampled_from(sorted(STRANGE))))
def test_every_unknown_field_gets_a_note_at_any_depth(places: set[str]) -> None:
    models, batching = TREE, "BATCHING max_batch_size { value: 8 }"
    for place, text in STRANGE.items():
        models, batching = (part.replace(place, text if place in places else "") for part in (models, batching))
    noted = [note.text.split(" ")[0] for note in converted(models, batching).notes]
    assert sorted(name for name in noted if name.startswith("strange")) == sorted(
        STRANGE[place].split(":")[0].split(" ")[0] for place in places
    )


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("name: 7 base_path: '/m'", "name was not carried over"),
        ("name: 'm' base_path { }", "base_path was not carried over"),
        ("name: 'm' base_path: '/m' model_platform: 1", "model_platform was not carried over"),
        ("name: 'm' base_path: '/m' model_version_policy: 1", "model_version_policy was not carried over"),
        ("name: 'm' base_path: '/m' version_labels: 'stable'", "version_labels was not carried over"),
    ],
)
def test_a_field_of_the_wrong_type_gets_a_note(field: str, words: str) -> None:
    notes = converted(f"model_config_list {{ config {{ {field} }} }}").notes
    assert any(note.text.startswith(words) for note in notes)


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_field_values_give_valid_yaml_with_one_model(name: str, path: str) -> None:
    fields = tuple(
        Field(key, value.encode("utf-8", "replace").decode(), 1) for key, value in (("name", name), ("base_path", path))
    )
    config = Message((Field("model_config_list", Message((Field("config", Message(fields), 1),)), 1),))
    conversion = convert(config)
    data = YAML(typ="safe", pure=True).load(conversion.yaml)
    assert len(data["models"]) == conversion.models
    if conversion.models:
        assert data["models"][0]["path"] == fields[1].value.removeprefix("file://")


def test_the_guide_shows_what_the_command_prints() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "from-tensorflow-serving.md").read_text()
    models, batching = re.findall(r"```proto\n(.*?)```", guide, re.DOTALL)
    (shown,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert convert(parse(models), parse(batching), batching_file="batching_parameters.txt").yaml == shown
