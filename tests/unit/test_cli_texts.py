"""What the command line and the tools tell the user to do: it can be done, and it is printed as it is written."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import PAGES, ROOT

from multitower.cli import SERVER_PACKAGES
from multitower.cli.commands import COMMANDS, multitower
from multitower.tools import documentation
from multitower.tools.demo import steps
from multitower.tools.errors import ToolError

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SOURCES = [
    path
    for folder in ("multitower", "supervisor", "worker")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not {"supervisor", "worker"} & set(path.relative_to(ROOT).parts[1:2])  # links to the folders beside it
]
ONLY_IN_A_CHECKOUT = re.compile(
    r"(?<![\w./])(?:benchmarks|clients|configs|deploy|docs|examples|scripts|tests)/\w|\b(?:README|CONTRIBUTING|CHANGELOG)\b"
)
"""Files that an installed wheel does not have."""

FROM_AN_INDEX = re.compile(
    r"(?:pip|pipx|uv|uvx)\b[^`\n]*?(?<![\w./-])multitower(?=\[|['\"`\s,;.]|$)|multitower\[", re.MULTILINE
)
"""A command or an extra that takes the package multitower from an index, where that name is not ours."""


def titles() -> set[str]:
    return {page.read_text().partition("\n")[0].removeprefix("# ").replace("`", "") for page in PAGES}


def helps() -> Iterator[tuple[str, str]]:
    for name in COMMANDS:
        yield name, CliRunner().invoke(multitower, [name, "--help"]).output


def test_the_pages_that_are_named_to_users_exist() -> None:
    pattern = re.compile(r"""documentation\.page\(\s*['"](.+?)['"]|the page '(.+?)' of multitower's documentation""")
    named = {call or text for path in SOURCES for call, text in pattern.findall(path.read_text()) if "{" not in text}
    assert {"Migrating from TensorFlow Serving", "Frozen graphs", "Handlers"} <= named
    assert named <= titles()
    assert documentation.page("Models") == "the page 'Models' of multitower's documentation"


def printed(path: Path) -> Iterator[str]:
    """The texts in a module that are not docstrings, and so may be printed."""
    tree = ast.parse(path.read_text())
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


def test_no_text_for_users_names_a_file_that_a_wheel_lacks() -> None:
    for path in SOURCES:
        found = [text for text in printed(path) if ONLY_IN_A_CHECKOUT.search(text)]
        assert found == [], path
    for name, text in helps():
        assert ONLY_IN_A_CHECKOUT.findall(text) == [], name
    assert ONLY_IN_A_CHECKOUT.search("see docs/models.md")
    assert ONLY_IN_A_CHECKOUT.search("an example is configs/gpus.yaml")


def test_no_text_installs_multitower_from_an_index() -> None:
    """The name is not ours there: its sources, or a wheel made of them, are installed."""
    others = [path for folder in ("configs", "deploy", "examples", "scripts") for path in (ROOT / folder).rglob("*.*")]
    for path in [*SOURCES, *PAGES, *filter(Path.is_file, others)]:
        if path.name != "CHANGELOG.md" and path.suffix in (".py", ".md", ".yaml", ".service"):
            assert FROM_AN_INDEX.findall(path.read_text()) == [], path
    wrong = (
        "pip install multitower",
        "pip install 'multitower[server]'",
        "uv add multitower",
        "it needs multitower[gpu]",
    )
    assert [text for text in wrong if not FROM_AN_INDEX.search(text)] == []
    right = ("pip install '.[server]'", "pip install dist/multitower-0.1.0.whl", "/opt/multitower/bin/pip install .")
    assert [text for text in right if FROM_AN_INDEX.search(text)] == []


def test_the_command_line_names_every_package_that_it_needs() -> None:
    assert sorted(SERVER_PACKAGES.values()) == sorted(re.split("[><=~]", entry)[0] for entry in EXTRAS["server"])


def test_the_demo_prints_an_error_without_reading_markup_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = "pip install 'tensorflow[and-cuda]' [/red] [bold]"

    def fail(folder: Path) -> float:
        raise ToolError(message)

    monkeypatch.setattr(steps, "train_model", fail)
    done = CliRunner().invoke(multitower, ["demo", "--folder", str(tmp_path / "[red]")])
    assert done.exit_code == 1
    assert message in done.output
