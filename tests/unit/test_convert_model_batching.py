"""Batching parameters of single models, in batching_params.pbtxt beside the model's files, are converted."""

from __future__ import annotations

from pathlib import Path

import pytest

from multitower.supervisor.config.loading import load
from multitower.supervisor.config.models import Batching, ModelConfig
from multitower.supervisor.config.source import ConfigError
from multitower.tools.convert.serving import Conversion, FlagSettings, convert
from multitower.tools.convert.text_format import parse
from multitower.tools.model_server.settings import ModelServer


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A model with the versions 2 and 10."""
    for version in ("2", "10"):
        (tmp_path / "digits" / version).mkdir(parents=True)
        (tmp_path / "digits" / version / "saved_model.pb").touch()
    return tmp_path / "digits"


def write(folder: Path, text: str) -> None:
    (folder / "batching_params.pbtxt").write_text(text)


def converted(path: Path, policy: str = "", batching: str | None = None) -> Conversion:
    models = f"model_config_list {{ config {{ name: 'digits' base_path: '{path}' {policy} }} }}"
    common = parse(batching) if batching is not None else None
    return convert(parse(models), common, batching_file="common.txt", flags=FlagSettings(model_batching=True))


def model_of(conversion: Conversion, folder: Path) -> ModelConfig:
    (folder / "converted.yaml").write_text(conversion.yaml)
    (model,) = load(folder / "converted.yaml", environment={}).models
    return model


def test_the_file_of_the_highest_version_counts_and_the_common_file_does_not(digits: Path, tmp_path: Path) -> None:
    write(digits / "2", "max_batch_size { value: 4 }")
    write(
        digits / "10", "max_batch_size { value: 64 } max_enqueued_batches { value: 2 } num_batch_threads { value: 8 }"
    )
    conversion = converted(digits, batching="max_batch_size { value: 16 }")
    model = model_of(conversion, tmp_path)
    assert (model.batching, model.queue.max_size) == (Batching(max_batch_size=64), 128)
    texts = [note.text for note in conversion.notes]
    assert texts[0] == "these batching parameters have no effect: each model has its own in batching_params.pbtxt"
    assert any("num_batch_threads (8) was not carried over" in text for text in texts)


@pytest.mark.parametrize(
    ("policy", "size"),
    [
        ("", 64),
        ("model_version_policy { all {} }", 64),
        ("model_version_policy { latest { num_versions: 2 } }", 64),
        ("model_version_policy { specific { versions: 2 } }", 4),
    ],
)
def test_only_versions_that_are_served_count(digits: Path, tmp_path: Path, policy: str, size: int) -> None:
    write(digits / "2", "max_batch_size { value: 4 }")
    write(digits / "10", "max_batch_size { value: 64 }")
    assert model_of(converted(digits, policy), tmp_path).batching == Batching(max_batch_size=size)


def test_other_versions_with_another_file_get_a_note(digits: Path) -> None:
    write(digits / "10", "max_batch_size { value: 64 }")
    (note,) = converted(digits, "model_version_policy { all {} }").notes
    assert note.text == "the batching parameters of version 10 apply to all versions; those of 2 differ"


def test_a_model_without_the_file_is_not_batched(digits: Path, tmp_path: Path) -> None:
    assert model_of(converted(digits), tmp_path).batching == Batching(max_batch_size=0)


def test_a_saved_model_without_version_folders_has_the_file_beside_it(digits: Path, tmp_path: Path) -> None:
    write(digits / "2", "allowed_batch_sizes: 2 allowed_batch_sizes: 8")
    model = model_of(converted(digits / "2"), tmp_path)
    assert model.batching == Batching(max_batch_size=8, allowed_batch_sizes=(2, 8))


def test_a_model_that_is_not_there_yet_gets_a_note(tmp_path: Path) -> None:
    (note,) = converted(tmp_path / "later").notes
    assert "cannot be read (No such file or directory): requests run unbatched until the next reload" in note.text


def test_a_malformed_file_is_an_error_with_its_position(digits: Path) -> None:
    write(digits / "10", "max_batch_size {\n  value: }")
    with pytest.raises(ConfigError, match=r"digits/10/batching_params\.pbtxt:2:"):
        converted(digits)


@pytest.mark.parametrize(("enabled", "size"), [(True, 64), (None, None), (False, 0)])
def test_model_server_reads_the_file_with_batching_enabled(
    digits: Path, enabled: bool | None, size: int | None
) -> None:
    write(digits / "10", "max_batch_size { value: 64 }")
    values = {"model_base_path": str(digits), "enable_batching": enabled, "enable_per_model_batching_parameters": True}
    server = ModelServer(
        values, host="127.0.0.1", insecure=False, devices="{cpu: 1}", listen="tcp://127.0.0.1:*", folder=digits.parent
    )
    (model,) = server.read().models
    assert model.batching == (Batching() if size is None else Batching(max_batch_size=size))
