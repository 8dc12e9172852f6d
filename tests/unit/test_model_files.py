"""Fingerprints of model files: no change of the files passes, and equal contents are recognised."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from version_folders import version

from multitower.model_files import (
    SMALL_FILE,
    compare_fingerprints,
    content_digest,
    fingerprint,
    hash_whole_file,
    is_content_known,
    model_files,
)
from multitower.spec import ModelSpec

LARGE = b"w" * (SMALL_FILE + 1)


def of(path: Path, number: str | None = None) -> ModelSpec:
    return ModelSpec(name="m", path=str(path), version=number)


def names(spec: ModelSpec) -> list[str]:
    return [file.name for file in model_files(spec)]


def copy_times(source: Path, target: Path) -> None:
    status = source.stat()
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def rewrite_in_place(path: Path) -> None:
    """Writes other bytes of the same length, and gives the file its former times."""
    before = path.stat()
    path.write_bytes(b"v" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def move_other_folder_over(weights: Path) -> None:
    """Replaces the model's folder by another one with the same names, sizes and times."""
    folder = weights.parents[1]
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    (other / "variables" / weights.name).write_bytes(b"v" * weights.stat().st_size)
    copy_times(weights, other / "variables" / weights.name)
    for name in ("saved_model.pb", "variables"):
        copy_times(folder / name, other / name)
    shutil.rmtree(folder)
    other.rename(folder)


@pytest.mark.parametrize("change", [rewrite_in_place, move_other_folder_over])
@pytest.mark.parametrize("content", [b"small", LARGE], ids=["small", "large"])
def test_no_change_passes_with_equal_names_sizes_and_times(
    tmp_path: Path, change: Callable[[Path], None], content: bytes
) -> None:
    model = version(tmp_path, "m", content)
    before, digest = fingerprint(of(model)), content_digest(of(model))
    assert fingerprint(of(model)) == before
    change(model / "variables" / "variables.data")
    assert fingerprint(of(model)) != before
    assert compare_fingerprints(before, fingerprint(of(model))) is (False if content == b"small" else None)
    assert content_digest(of(model)) != digest


def test_a_link_that_leads_elsewhere_is_noticed(tmp_path: Path) -> None:
    old, new = version(tmp_path / "old", "1", b"a"), version(tmp_path / "new", "1", b"b")
    copy_times(old / "variables" / "variables.data", new / "variables" / "variables.data")
    (tmp_path / "m").symlink_to("old")
    before = fingerprint(of(tmp_path / "m", "1"))
    (tmp_path / "m").unlink()
    (tmp_path / "m").symlink_to("new")
    assert compare_fingerprints(before, fingerprint(of(tmp_path / "m", "1"))) is False


def test_a_volume_of_kubernetes_is_noticed_when_its_data_link_is_renamed(tmp_path: Path) -> None:
    for number, content in (("..1", b"a"), ("..2", b"b")):
        version(tmp_path, number, content)
    (tmp_path / "..data").symlink_to("..1")
    for name in ("saved_model.pb", "variables"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    before = fingerprint(of(tmp_path))
    assert names(of(tmp_path)) == ["saved_model.pb", "variables/variables.data"]
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert compare_fingerprints(before, fingerprint(of(tmp_path))) is False


def test_equal_contents_are_recognised_after_a_touch_and_a_copy(tmp_path: Path) -> None:
    for content, known in ((b"small", True), (LARGE, None)):
        model = version(tmp_path, f"m{len(content)}", content)
        before = fingerprint(of(model))
        assert is_content_known(before) is bool(known)
        os.utime(model / "variables" / "variables.data")
        touched = fingerprint(of(model))
        assert touched != before
        assert compare_fingerprints(before, touched) is known
        shutil.copytree(model, tmp_path / f"copy{len(content)}")
        copy = of(tmp_path / f"copy{len(content)}")
        assert compare_fingerprints(before, fingerprint(copy)) is known
        assert content_digest(copy) == content_digest(of(model))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: (model / "assets").mkdir() or (model / "assets" / "words").touch(),
        lambda model: (model / "variables" / "variables.data").rename(model / "variables" / "other.data"),
        lambda model: (model / "variables" / "variables.data").unlink(),
        lambda model: (model / "keras_metadata.pb").write_bytes(b"k"),
    ],
    ids=["added", "renamed", "removed", "added beside the graph"],
)
def test_files_that_come_and_go_differ_for_certain(tmp_path: Path, change: Callable[[Path], None]) -> None:
    model = version(tmp_path, "m", LARGE)
    before = fingerprint(of(model))
    change(model)
    assert compare_fingerprints(before, fingerprint(of(model))) is False


def test_files_that_tensorflow_does_not_read_do_not_matter(tmp_path: Path) -> None:
    model = version(tmp_path, "m")
    before = fingerprint(of(model))
    (model / "train.log").write_text("epoch 1")
    (model / "backup").mkdir()
    assert fingerprint(of(model)) == before


def test_a_model_that_is_gone_has_no_fingerprint(tmp_path: Path) -> None:
    model = version(tmp_path, "1")
    (model / "saved_model.pb").unlink()
    assert fingerprint(of(tmp_path, "1")) == ""
    assert fingerprint(of(tmp_path, "2")) == ""
    assert compare_fingerprints("", fingerprint(of(version(tmp_path, "3")))) is False


def test_a_model_in_one_file_has_a_fingerprint_too(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(LARGE)
    before = fingerprint(of(path))
    rewrite_in_place(path)
    assert compare_fingerprints(before, fingerprint(of(path))) is None


def test_libraries_of_custom_operations_are_files_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "op.so").write_bytes(b"code")
    spec = dataclasses.replace(of(version(tmp_path, "m")), custom_ops=(str(tmp_path / "op.so"),))
    before = fingerprint(spec)
    (tmp_path / "op.so").write_bytes(b"edoc")
    assert compare_fingerprints(before, fingerprint(spec)) is False


def test_a_folder_that_contains_itself_ends(tmp_path: Path) -> None:
    model = version(tmp_path, "m")
    (model / "variables" / "again").symlink_to(model / "variables")
    assert names(of(model)) == ["saved_model.pb", "variables/variables.data"]


def test_hashing_reports_how_much_it_has_read(tmp_path: Path) -> None:
    model = version(tmp_path, "m", b"w" * (3 << 20))
    read: list[int] = []
    content_digest(of(model), lambda file: hash_whole_file(file, read.append))
    assert sum(read) == (3 << 20) + len(b"graph")
    assert max(read) <= 1 << 20


# Handlers.


def handler(folder: Path, name: str = "h:H") -> ModelSpec:
    return ModelSpec(name="m", handler=name, module_folder=str(folder))


def test_a_handler_is_its_module_and_what_that_imports_from_its_folder(tmp_path: Path) -> None:
    sources = {
        "h.py": "import os, numpy\nfrom helpers.text import clean\ndef f():\n    import late",
        "helpers/__init__.py": "",
        "helpers/text.py": "from . import words\nimport shared",
        "helpers/words.py": "",
        "helpers/words.txt": "",
        "shared.py": "import h",
        "late.py": "",
        "late/data.py": "",
        "other.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    expected = ["h.py", "helpers/__init__.py", "helpers/text.py", "helpers/words.py", "late.py", "shared.py"]
    assert names(handler(tmp_path)) == expected
    before = fingerprint(handler(tmp_path))
    (tmp_path / "other.py").write_text("changed")
    assert fingerprint(handler(tmp_path)) == before
    (tmp_path / "shared.py").write_text("import h, other")
    assert compare_fingerprints(before, fingerprint(handler(tmp_path))) is False
    assert "other.py" in names(handler(tmp_path)), "it is imported now"


def test_a_handler_with_errors_or_from_elsewhere_has_a_fingerprint_of_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "h.py").write_text("import x from y")
    assert names(handler(tmp_path)) == ["h.py"]
    assert fingerprint(handler(tmp_path, "collections:OrderedDict")) == ""
