"""What the command line and the tools tell the user to do: it can be done, and it is printed as it is written."""

from __future__ import annotations

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
DOCUMENTATION_FILE = re.compile(r"\bdocs/[\w.-]+\.md")


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


def test_no_text_for_users_names_a_file_of_the_documentation() -> None:
    for path in SOURCES:
        code = re.sub(r'("""|\'\'\').*?\1|#[^\n]*', "", path.read_text(), flags=re.DOTALL)
        assert DOCUMENTATION_FILE.findall(code) == [], path
    for name, text in helps():
        assert DOCUMENTATION_FILE.findall(text) == [], name


def test_no_text_installs_multitower_from_an_index() -> None:
    for path in SOURCES:
        assert re.findall(r"pip install [^`\n]*multitower(?:\[|['\"`\s]|$)", path.read_text()) == [], path


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
