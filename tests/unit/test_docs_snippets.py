"""The snippets of the documentation are right: configurations load, Python compiles, JSON can be read.

A block of YAML is a file of principals, a configuration, or some of its keys: where it has no `models`, they are added
to the smallest configuration there is. Models that it names are made as empty ones, in a temporary folder.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from made_security import make_security, write_certificate
from pages import PAGES, Block, blocks

from multitower.supervisor.config.config import Config
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.principals import read_principals
from multitower.supervisor.config.yaml_reader import Reader

MODELS = "models: [{name: digits, path: models/digits}]\n"


def of(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def parsed(text: str) -> dict[str, Any]:
    found = Reader("snippet.yaml").read(text).plain()
    assert isinstance(found, dict), "a block of YAML is a mapping of the configuration's keys"
    return found


def make_model(path: Path, versions: object) -> None:
    """As much of a model as the check of a configuration looks for."""
    if path.suffix:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return
    numbers = versions["specific"] if isinstance(versions, dict) and "specific" in versions else [1]
    for number in numbers:
        (path / str(number)).mkdir(parents=True, exist_ok=True)
        (path / str(number) / "saved_model.pb").touch()


def loaded(text: str, folder: Path) -> Config:
    """The configuration of a snippet, with the models that it names made in `folder`."""
    if "models" not in parsed(text):
        text += MODELS
    make_security(folder)
    write_certificate(folder)
    for path in sorted({str(model["path"]) for model in parsed(text)["models"] if "path" in model}):
        if path.startswith("/"):
            text = text.replace(f"path: {path}", f"path: {folder}{path}")
    for model in parsed(text)["models"]:
        for key in ("path", "warmup"):
            if key in model:
                make_model(folder / model[key], model.get("versions"))
        for library in model.get("custom_ops", []):
            make_model(folder / library, None)
    file = folder / "multitower.yaml"
    file.write_text(text)
    return load(file, environment={})


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_configurations_load(block: Block, tmp_path: Path) -> None:
    if "principals" in parsed(block.text):
        file = tmp_path / "principals.yaml"
        file.write_text(block.text)
        file.chmod(0o644)
        assert read_principals(file).by_name
        return
    config = loaded(block.text, tmp_path)
    for model in config.models:
        assert model.path is None or model.path.is_relative_to(tmp_path)


def test_a_wrong_configuration_is_found(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="unknown key"):
        loaded("spare: 2\n", tmp_path)


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_compiles_and_imports_what_there_is(block: Block) -> None:
    # Within a function, `await` and `return` may stand at the top.
    tree = ast.parse("async def snippet():\n" + textwrap.indent(block.text, "    "))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "multitower":
            module = importlib.import_module(str(node.module))
            assert {alias.name for alias in node.names} <= set(dir(module))


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_can_be_read(block: Block) -> None:
    json.loads(block.text)


def test_every_block_says_what_it_is() -> None:
    """So that none escapes these tests; `console` shows commands with what they print, `text` is for all else."""
    known = {"sh", "console", "yaml", "python", "json", "java", "xml", "proto", "text"}
    for page in PAGES:
        for block in blocks(page):
            assert block.language in known, f"{block} has the language {block.language!r}"
            if block.language == "console":
                assert re.search(r"^\$ ", block.text, re.MULTILINE), f"{block} shows no command"
