"""YAML as this project reads it: places, YAML 1.2's words and numbers, and bounds on hostile files."""

from __future__ import annotations

import math
from typing import Any

import pytest

from multitower.supervisor.config.source import ConfigError, Position
from multitower.supervisor.config.yaml_reader import MAX_DEPTH, MAX_NODES, Reader


def read(text: str) -> tuple[Any, list[str]]:
    reader = Reader("x.yaml")
    node = reader.read(text)
    return node.plain(), [str(problem) for problem in reader.problems]


def value_of(text: str) -> Any:
    value, problems = read(f"x: {text}\n")
    assert problems == []
    return value["x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("'null'", "null"),
        ('"true"', "true"),
        ("'1'", "1"),
        ("0777", 777),
        ("0o17", 15),
        ("0x1F", 31),
        ("-1", -1),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("-.inf", -math.inf),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("[a, 1]", ["a", 1]),
        ("{a: {b: c}}", {"a": {"b": "c"}}),
        ('"\\u00e9"', "é"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


def test_nan_is_a_float() -> None:
    assert math.isnan(value_of(".nan"))


def test_keys_and_values_have_positions() -> None:
    node = Reader("x.yaml").read("a: 1\nb:\n  - c: [2,\n      3]\n")
    assert node.find(("a",)) == Position("x.yaml", 1, 4)
    assert node.find(("a",), key=True) == Position("x.yaml", 1, 1)
    assert node.find(("b", 0, "c", 1)) == Position("x.yaml", 4, 7)
    assert node.find(("b", 0, "nowhere", 5)) == Position("x.yaml", 3, 5), "the innermost thing that was written"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &x {p: 1, q: 2}\nb: *x\n", {"p": 1, "q": 2}),
        ("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n", {"p": 1, "q": 3}),
        ("a: &x {p: 1, q: 2}\nb: {q: 3, <<: *x}\n", {"p": 1, "q": 3}),
        ("a: &x {p: 1}\nb: {<<: [{p: 5, r: 6}, *x]}\n", {"p": 5, "r": 6}),
    ],
)
def test_aliases_and_merge_keys_are_resolved(text: str, value: object) -> None:
    read_value, problems = read(text)
    assert problems == []
    assert read_value["b"] == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3:1: a: is given twice; the first is on line 1"),
        ("a: {b: 1, b: 1}\n", "x.yaml:1:11: a.b: is given twice; the first is on line 1"),
        ("<<: {a: 1}\n<<: {b: 1}\n", "x.yaml:2:1: '<<': is given twice"),
        ("a:\n  <<: 5\n", "x.yaml:2:3: a: << takes a mapping"),
        ("1: a\n", "x.yaml:1:1: a key must be text, and 1 is not"),
        ("? [a, b]\n: c\n", "x.yaml:1:3: a key must be text, and a list or mapping is not"),
        ("true: c\n", "a key must be text, and True is not"),
        ("a: !!python/object:os.system x\n", "x.yaml:1:4: a: has the tag"),
        ("a: !secret x\n", "has the tag '!secret'"),
        (f"a: {'9' * 5000}\n", "is too large for a number"),
        (f"a: 0x{'f' * 5000}\n", "is too large for a number"),
        ("a: 1e999\n", "x.yaml:1:4: a: '1e999' is too large for a number"),
        ('a: "\\ud800"\n', "half a surrogate pair"),
    ],
)
def test_some_problems_do_not_prevent_reading_the_rest(text: str, problem: str) -> None:
    value, problems = read(text + "last: here\n")
    assert len(problems) == 1
    assert problem in problems[0]
    assert value["last"] == "here"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a:\n\t- 1\n", "x.yaml:2:1: is not valid YAML: .*indent with spaces"),
        ("a: [1, 2\n", r"x.yaml:2:1: is not valid YAML: the '\[' at 1:4 is not closed by '\]' before the end of the"),
        ("a: {b: 1\nc: 2\n", r"x.yaml:2:2: is not valid YAML: the '{' at 1:4 is not closed by '}' before this ':'"),
        ("a: b: c\n", "x.yaml:1:5: is not valid YAML: a ':' follows what cannot be a key: .*lack quotes"),
        ("a:\n    b: 1\n   c: 2\n", r"x.yaml:3:4: is not valid YAML: the indentation \(3 spaces\) fits no line above"),
        ("a:\n  - b\n - c\n", r"x.yaml:3:2: is not valid YAML: the indentation \(1 space\) fits no line above it"),
        ("- a\nb: 1\n", "x.yaml:2:1: is not valid YAML: a line of a list must begin with '- '"),
        ("a: 'x\n", "is not valid YAML: the text in quotes at 1:4 has no quote at its end"),
        ("a: @x\n", "x.yaml:1:4: is not valid YAML: a value cannot begin with '@': put it in quotes"),
        ("a: }\n", "x.yaml:1:4: is not valid YAML: a '}' closes nothing"),
        ('a: "b" c\n', "x.yaml:1:8: is not valid YAML: something follows the value: put the whole value in quotes"),
        ('"a" b\n', "is not valid YAML: something follows the value"),
        ('a: "\\q"\n', "x.yaml:1:6: is not valid YAML: a '.' in double quotes begins no escape that YAML knows"),
        ("a: *b\n", r"x.yaml:1:4: a: '\*b' names no anchor"),
        ("a: &b [*b]\n", "names no anchor that is complete"),
        ("a: 1\n---\nb: 1\n", "x.yaml:2:1: holds a second YAML document"),
        ("%YAML 1.1\n---\na: 1\n", "another YAML than 1.2"),
        ("a: \x07\n", r"x.yaml:1:4: holds the character U\+0007"),
        ("# é\nb: \x00\n", r"x.yaml:2:4: holds the character U\+0000"),
        ('a: "\\Uffffffff"\n', "is not valid YAML"),
        ("[" * (MAX_DEPTH + 2), f"nested more than {MAX_DEPTH} deep"),
        ("a: " * 3, "is not valid YAML"),
        ("[" + "0, " * MAX_NODES + "]", f"holds more than {MAX_NODES} values"),
    ],
)
def test_what_cannot_be_read_is_reported_with_its_position(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        read(text)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("link", ["[{0}, {0}]", "{{<<: {0}, x: {0}}}", "{{<<: [{0}, {0}]}}"])
def test_nested_aliases_cannot_exhaust_memory(link: str) -> None:
    lines = ["a0: &a0 {k: v}", *(f"a{n}: &a{n} {link.format(f'*a{n - 1}')}" for n in range(1, 60))]
    with pytest.raises(ConfigError, match="aliases written out"):
        read("\n".join(lines))


def test_an_empty_text_is_none() -> None:
    assert read("") == (None, [])
    assert read("# only a comment\n---\n...\n") == (None, [])


def test_positions_in_an_override_have_no_lines() -> None:
    node = Reader("--set x", positions=False).read("[a]")
    assert str(node.find((0,))) == "--set x"
