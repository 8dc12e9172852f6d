"""The table of model formats: each has a module in worker/formats that keeps its promises."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import multitower
from multitower.format_registry import (
    FILE_FORMATS,
    FORMATS,
    HANDLER,
    SAVED_MODEL,
    ModelFormat,
    expected_format,
    recognize,
)
from multitower.spec import ModelSpec

MODULES = Path(multitower.__file__).parent / "worker" / "formats"


def functions(name: str) -> dict[str, list[str]]:
    """The functions at the top of a format's module, and their parameters. Read, since TensorFlow may be missing."""
    tree = ast.parse((MODULES / f"{name}.py").read_text())
    return {node.name: [each.arg for each in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("model_format", FORMATS, ids=lambda each: each.name)
def test_each_format_has_a_module_that_loads_it(model_format: ModelFormat) -> None:
    found = functions(model_format.name)
    assert len(found["load"]) == 2
    assert ("load_towers" in found) == model_format.has_towers
    if model_format.has_towers:
        assert found["load_towers"] == ["spec", "placements"]


def test_names_platforms_and_suffixes_are_unique() -> None:
    suffixes = [suffix for each in FILE_FORMATS for suffix in each.suffixes]
    for values in ([each.name for each in FORMATS], [each.platform for each in FORMATS], suffixes):
        assert len(set(values)) == len(values)
    assert all(suffix.startswith(".") and suffix.count(".") == 1 for suffix in suffixes), "as `splitext` splits"


@pytest.mark.parametrize(
    ("path", "platform"),
    [
        ("/models/digits", "tensorflow_savedmodel"),
        ("/models/digits.v2", "tensorflow_savedmodel"),
        ("/models/digits.keras", "keras"),
        ("/models/digits.h5", "keras"),
        ("/models/digits.hdf5", "keras"),
        ("/models.pb/digits", "tensorflow_savedmodel"),
        ("/models/frozen.pb", "tensorflow_graphdef"),
        ("/models/frozen.v1.pbtxt", "tensorflow_graphdef"),
        (None, "python"),
    ],
)
def test_what_is_not_there_has_the_format_that_its_suffix_promises(path: str | None, platform: str) -> None:
    assert recognize(path).platform == platform
    assert ModelSpec(name="m", path=path).format.platform == platform
    assert expected_format(path) is recognize(path)
    if path is not None:
        assert recognize(Path(path)) is recognize(path)


@pytest.mark.parametrize("name", ["resnet.pb", "m.h5", "v.keras", "graph.pbtxt", "plain"])
def test_a_folder_is_a_saved_model_whatever_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert recognize(tmp_path / name) is SAVED_MODEL


def test_contents_outweigh_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "misleading.pb").write_bytes(b"\x89HDF\r\n\x1a\n...")
    assert recognize(tmp_path / "misleading.pb").platform == "keras"
    assert expected_format(tmp_path / "misleading.pb").platform == "tensorflow_graphdef"
    (tmp_path / "damaged.h5").write_bytes(b"nothing known")
    assert recognize(tmp_path / "damaged.h5").platform == "keras", "loading it says what is wrong"


def test_only_handlers_are_served_without_tensorflow() -> None:
    assert [each for each in FORMATS if not each.uses_tensorflow] == [HANDLER]
    assert SAVED_MODEL.suffixes == ()
