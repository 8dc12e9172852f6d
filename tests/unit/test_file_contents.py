"""What a file holds is told from its first bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from multitower.file_contents import (
    is_file_of_saved_model,
    is_graph,
    is_hdf5,
    is_keras_archive,
    is_keras_model,
    is_text_graph,
)

HDF5 = b"\x89HDF\r\n\x1a\n"
NODE = b"\x0a\x01x\x12\x0bPlaceholder"
LONG_NODE = b"\x0a\x01x\x12\x05Const" + b"*" * 300


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (HDF5 + b"...", True),
        (b"\0" * 512 + HDF5, True),
        (b"\0" * 2048 + HDF5, True),
        (b"\0" * 100 + HDF5, False),
        (HDF5[:5], False),
        (b"", False),
    ],
    ids=["at the start", "behind 512 bytes", "behind 2048 bytes", "behind 100 bytes", "cut off", "empty"],
)
def test_hdf5_is_recognised_by_its_signature(contents: bytes, expected: bool, file: Path) -> None:
    file.write_bytes(contents)
    assert is_hdf5(file) is expected
    assert is_keras_model(file) is expected


@pytest.mark.parametrize(
    ("entries", "expected"),
    [(["metadata.json", "config.json", "model.weights.h5"], True), (["x.npy"], False), ([], False)],
    ids=["keras", "npz", "empty"],
)
def test_archives_of_keras_are_recognised_by_their_entries(entries: list[str], expected: bool, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name in entries:
            archive.writestr(name, "{}")
    assert is_keras_archive(file) is expected
    assert is_keras_model(file) is expected


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (b"\x0a" + bytes((len(NODE),)) + NODE, "binary"),
        (b"\x0a\xb4\x02" + LONG_NODE, "binary"),
        (b'node {\n  name: "x"\n}', "text"),
        (b"# frozen\n\n  node {", "text"),
        (b"versions { producer: 22 } node {", "text"),
        (b"saved_model_schema_version: 1", None),
        (b"\x08\x01\x12\x10\x0a\x0e", None),
        (b"\x0a\x05hello world", None),
        (b"\x0a", None),
        (b"\x0a\xff\xff\xff\xff\xff", None),
        (b"nodes: all", None),
        (b"\0" * 100, None),
        (b"", None),
    ],
)
def test_graphs_are_recognised_in_both_forms(contents: bytes, expected: str | None, file: Path) -> None:
    file.write_bytes(contents)
    assert is_graph(file) is (expected is not None)
    assert is_text_graph(file) is (expected == "text")


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (b"\x08\x01\x12\xff", True),
        (b"saved_model_schema_version: 1\nmeta_graphs {", True),
        (b"# text\nmeta_graphs {", True),
        (b"\x0a\x10\x0a\x01x", False),
        (b"node {", False),
        (b"", False),
    ],
)
def test_the_main_file_of_a_saved_model_is_recognised(contents: bytes, expected: bool, file: Path) -> None:
    file.write_bytes(contents)
    assert is_file_of_saved_model(file) is expected


def test_a_file_that_cannot_be_read_is_an_error(file: Path) -> None:
    for look in (is_hdf5, is_keras_archive, is_graph, is_file_of_saved_model):
        with pytest.raises(FileNotFoundError):
            look(file)
