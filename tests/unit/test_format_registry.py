"""The table of model formats: each has a module in worker/formats that keeps its promises."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import multitower
from multitower.format_registry import FILE_FORMATS, FORMATS, HANDLER, SAVED_MODEL, ModelFormat, recognize
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
def test_a_format_is_recognised_by_the_suffix_of_its_files(path: str | None, platform: str) -> None:
    assert recognize(path).platform == platform
    assert ModelSpec(name="m", path=path).format.platform == platform
    if path is not None:
        assert recognize(Path(path)) is recognize(path)


def test_only_handlers_are_served_without_tensorflow() -> None:
    assert [each for each in FORMATS if not each.uses_tensorflow] == [HANDLER]
    assert SAVED_MODEL.suffixes == ()
