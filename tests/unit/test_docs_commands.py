"""Every command line in the documentation, and in the commands' own help, is one that the programs take."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

import click
import pytest
from pages import PAGES, ROOT, Block, blocks, command_lines, headings, name_of, programs, quoted

from multitower.cli.commands import COMMANDS, multitower
from multitower.supervisor.config.config import Config
from multitower.supervisor.config.overrides import PREFIX

SHELL = [block for page in PAGES for block in blocks(page) if block.language in ("sh", "console")]
QUOTED = [
    pytest.param(text, id=f"{name_of(page)}:{line}")
    for page in PAGES
    for line, text in quoted(page)
    if re.match(r"(multitower [a-z-]|make [a-z])", text)
]
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*(=.*)?$|…")
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
CONTEXT = click.Context(multitower, info_name="multitower", **multitower.context_settings)


def command_of(name: str) -> click.Command:
    command = multitower.get_command(CONTEXT, name)
    assert command is not None, f"there is no command {name}"
    return command


def check_multitower(words: list[str], complete: bool = True) -> None:
    """Parses the words after `multitower` as the program does, but opens no file and runs nothing.

    Args:
        words: the command and what follows it.
        complete: arguments that the command needs must be there.
    """
    if words and words[0].startswith("-"):
        words = ["", *words]
        command: click.Command = multitower
    else:
        command = command_of(words[0])
    if isinstance(command, click.Group) and command is not multitower:
        inner = command.commands.get(words[1]) if len(words) > 1 else None
        assert inner is not None or not complete, f"there is no command {words[:2]}"
        if inner is None:
            return
        command, words = inner, words[1:]
    context = click.Context(command, info_name=words[0], parent=CONTEXT)
    values, rest, _ = command.make_parser(context).parse_args(list(words[1:]))
    assert not rest or command is multitower, f"too many arguments: {rest}"
    for parameter in command.params:
        value = values.get(parameter.name or "")
        given = isinstance(value, str) or (isinstance(value, list | tuple) and value)
        if not given:
            assert not (complete and parameter.required), f"{parameter.name} is missing"
        elif not isinstance(parameter.type, click.Path | click.File) and not PLACEHOLDER.match(str(value)):
            parameter.type_cast_value(context, value)


def check_line(line: str, shown: Collection[str] = ()) -> None:
    """Checks a line of a shell block: each program of the project is called in a way that it accepts.

    Args:
        line: the line.
        shown: names of Python programs that the page itself shows.
    """
    for part in re.split(r"\s*(?:\s\||\s&&|;)\s", line):
        words = shlex.split(re.sub(r"\s[<>]\s*\S+", "", part))
        while words and (found := re.fullmatch(r"([A-Z_]+)=.*", words[0])):
            check_variable(found[1])
            words = words[1:]
        if words:
            check_program(words[0].rpartition("/")[2], words[1:], shown)


def check_program(program: str, words: list[str], shown: Collection[str]) -> None:
    if program == "multitower":
        check_multitower(words)
    elif program == "make":
        assert {word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)} <= TARGETS, words
    elif program in ("python", "python3"):
        check_python(words, shown)
    elif program == "pip" and words[0] == "install":
        for found in re.findall(r"(?:^|\s)(?:\.|multitower)\[([\w,]+)\]", " ".join(words)):
            assert set(found.split(",")) <= EXTRAS, found


def check_python(words: list[str], shown: Collection[str]) -> None:
    if words[:1] == ["-m"]:
        assert importlib.util.find_spec(words[1]) is not None, words[1]
    elif words and not words[0].startswith("-") and words[0] not in shown:
        assert (ROOT / words[0]).is_file(), words[0]
        source = (ROOT / words[0]).read_text()
        for option in re.findall(r"(?:^|\s)(--[\w-]+)", " ".join(words[1:])):
            assert f'"{option}"' in source or option in source, f"{words[0]} has no {option}"


def check_variable(name: str) -> None:
    """A variable of the environment is a key of the configuration, or stands in some program of the project."""
    key = name.removeprefix(PREFIX).lower().partition("__")[0]
    if not name.startswith(PREFIX) or key in Config.model_fields:
        return
    folders = ("multitower", "tests", "benchmarks")
    sources = (path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert any(f'"{name}"' in source for source in sources), f"nothing reads {name}"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_of_a_block_are_possible(block: Block) -> None:
    for line in command_lines(block.text):
        check_line(line, programs(block.page))


@pytest.mark.parametrize("text", QUOTED)
def test_commands_in_the_text_are_possible(text: str) -> None:
    program, *words = shlex.split(text)
    if program == "make":
        assert words[0] in TARGETS
    else:
        check_multitower(words, complete=False)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_variables_of_the_environment_are_read_by_something(page: Path) -> None:
    for name in set(re.findall(r"\bMULTITOWER_[A-Z_]*[A-Z]\b", page.read_text())):
        check_variable(name)


def helps() -> Iterator[tuple[str, str]]:
    for name in COMMANDS:
        command = command_of(name)
        yield name, command.get_help(click.Context(command, info_name=name, parent=CONTEXT, max_content_width=1000))
    yield "", multitower.get_help(CONTEXT)


@pytest.mark.parametrize(("name", "text"), list(helps()))
def test_commands_and_files_in_the_help_exist(name: str, text: str) -> None:
    for line in re.findall(r"^ {4,}((?:echo .* \| )?multitower .*)$", text, re.MULTILINE):
        check_line(line)
    for command in re.findall(r"`multitower ([^`]*)`", text):
        if not command.startswith("COMMAND"):
            check_multitower(shlex.split(command), complete=False)
    titles = {headings(page)[0].replace("`", "") for page in PAGES}
    assert set(re.findall(r"page '([^']+)' of", " ".join(text.split()))) <= titles
    for path in re.findall(r"\b(?:docs|configs|deploy|examples)/[\w./-]*\w", text):
        assert (ROOT / path).exists(), f"the help of {name or 'multitower'} names {path}"


def test_the_check_of_command_lines_finds_mistakes() -> None:
    for wrong in ("multitower sreve x.yaml", "multitower status --jsno", "multitower check", "make demmo"):
        with pytest.raises((AssertionError, click.UsageError)):
            check_line(wrong)
    for right in ("multitower serve x.yaml --set a=b", "MULTITOWER_SPARES=0 multitower restart 2"):
        check_line(right)
