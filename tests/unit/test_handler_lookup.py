"""Handlers that do not exist are found without an import; what may exist is no problem."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from multitower.handler_lookup import why_missing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lookup_plain.py").write_text("raise SystemExit\nclass Model: ...\nclass Other: ...\n")
    (tmp_path / "lookup_wrong.py").write_text("class Model:\n  def\n")
    (tmp_path / "lookup_package").mkdir()
    (tmp_path / "lookup_package" / "__init__.py").write_text("raise SystemExit\n")
    (tmp_path / "lookup_namespace").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("handler", "cause"),
    [
        ("lookup_none:Model", "there is no module 'lookup_none' in the folders that were searched: {folder} (the conf"),
        ("lookup_none.models:Model", "there is no module 'lookup_none'"),
        ("lookup_plain:Modl", "{folder}/lookup_plain.py has no class 'Modl' (did you mean 'Model'?)"),
        ("lookup_plain:Thumbnailer", "{folder}/lookup_plain.py has no class 'Thumbnailer', only Model, Other"),
        ("lookup_wrong:Model", "{folder}/lookup_wrong.py, line 2, is no Python: "),
    ],
)
def test_what_is_missing_is_named(handler: str, cause: str, folder: Path) -> None:
    found = why_missing(str(folder), handler)
    assert found is not None
    assert cause.format(folder=folder) in found


def test_the_folders_that_python_searches_are_listed(folder: Path) -> None:
    found = why_missing(str(folder), "lookup_none:Model")
    assert found is not None
    assert str(Path(pytest.__file__).parents[1]) in found
    assert found.endswith("The daemon may find it if its PYTHONPATH names others: run check with the same PYTHONPATH")


@pytest.mark.parametrize(
    "handler",
    [
        "lookup_plain:Model",
        "lookup_plain:Model.Inner",
        "lookup_package.models:Model",
        "lookup_package:models.Model",  # a submodule, which something else may import
        "lookup_namespace:Model",
        "lookup_namespace.models:Model",
        "json:JSONDecoder",
        "math:Model",
    ],
)
def test_what_may_exist_is_no_problem_and_nothing_is_imported(handler: str, folder: Path) -> None:
    assert why_missing(str(folder), handler) is None
    assert not any(name.startswith("lookup_") for name in sys.modules)


@pytest.mark.parametrize(
    "text",
    [
        "from models import *\n",
        "def __getattr__(name): ...\n",
        "globals().update(made())\n",
        "import sys\nsys._getframe().f_globals.update(made())\n",
        "import sys\nsys.modules[__name__] = made()\n",
        "from models import Base as Model\n",
        "Model = made()\n",
        "# coding: latin-1\n# caf\xe9\nfor Model in made(): ...\n",
    ],
)
def test_a_module_may_get_its_class_by_other_means_than_a_class_statement(text: str, tmp_path: Path) -> None:
    (tmp_path / "lookup_made.py").write_bytes(text.encode("latin-1"))
    assert why_missing(str(tmp_path), "lookup_made:Model") is None


def test_a_module_that_an_import_hook_finds_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hook:
        """As an editable installation puts in."""

        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            return importlib.machinery.ModuleSpec(name, None) if name == "lookup_hooked" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Hook])
    assert why_missing(str(tmp_path), "lookup_hooked:Model") is None
