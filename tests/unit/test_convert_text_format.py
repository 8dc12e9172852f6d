"""The parser of protobuf's text format: any style is parsed, and mistakes are reported with their position."""

from __future__ import annotations

import math

import pytest
from google.protobuf import struct_pb2, text_format, wrappers_pb2
from hypothesis import given
from hypothesis import strategies as st

from multitower.tools.convert.text_format import MAX_DEPTH, Field, Message, TextFormatError, Value, Word, parse

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
WORDS = NAMES.map(Word)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))
SCALARS = st.one_of(TEXTS, WORDS, NUMBERS)
GAPS = st.sampled_from([" ", "\n", "\t ", " # a comment: {\n", "\r\n"])
Tree = list[tuple[str, object]]
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.lists(st.tuples(NAMES, SCALARS), max_size=4),
    lambda inner: st.lists(st.tuples(NAMES, st.one_of(SCALARS, inner)), max_size=4),
    max_leaves=12,
)


def plain(message: Message) -> Tree:
    return [
        (field.name, plain(field.value) if isinstance(field.value, Message) else field.value)
        for field in message.fields
    ]


@st.composite
def written(draw: st.DrawFn, tree: Tree) -> str:
    """Writes the tree in one of the styles that the format allows."""
    text = ""
    for name, value in tree:
        text += draw(GAPS) + name + draw(st.sampled_from(["", " "]))
        if isinstance(value, list):
            opening, closing = draw(st.sampled_from([("{", "}"), ("<", ">")]))
            text += (
                draw(st.sampled_from(["", ":"])) + draw(GAPS) + opening + draw(written(value)) + draw(GAPS) + closing
            )
        else:
            scalar = draw(scalars(value))
            text += ":" + draw(GAPS) + (f"[{scalar}]" if draw(st.booleans()) else scalar)
        text += draw(st.sampled_from([" ", ",", ";", "\n"]))
    return text


@st.composite
def scalars(draw: st.DrawFn, value: object) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, str):
        cut = draw(st.integers(0, len(value)))
        return draw(GAPS).join([quoted(value[:cut], draw(st.sampled_from("'\""))), quoted(value[cut:], '"')])
    if isinstance(value, int):
        sign = "-" if value < 0 else ""
        return sign + draw(st.sampled_from([f"{abs(value)}", f"{abs(value):#x}", f"0{abs(value):o}"]))
    return repr(value) + draw(st.sampled_from(["", "f", "F"]))


def quoted(text: str, quote: str) -> str:
    escapes = {"\\": "\\\\", "\n": "\\n", quote: f"\\{quote}"}
    return quote + "".join(escapes.get(character, character) for character in text) + quote


@given(st.data())
def test_messages_in_any_style_are_parsed(data: st.DataObject) -> None:
    tree = data.draw(TREES)
    text = data.draw(written(tree))
    assert plain(parse(text)) == tree


@given(st.binary(max_size=30))
def test_strings_are_unescaped_as_by_protobuf(data: bytes) -> None:
    text = text_format.MessageToString(wrappers_pb2.BytesValue(value=data))
    try:
        wanted = data.decode()
    except UnicodeDecodeError:
        with pytest.raises(TextFormatError, match="not UTF-8"):
            parse(text)
    else:
        assert plain(parse(text)) == ([("value", wanted)] if data else [])


def test_fields_have_their_line_numbers() -> None:
    message = struct_pb2.ListValue(values=[struct_pb2.Value(number_value=1.5), struct_pb2.Value(string_value="é")])
    text = text_format.MessageToString(message)
    assert plain(parse(text)) == [("values", [("number_value", 1.5)]), ("values", [("string_value", "é")])]
    assert [field.line for field in parse(text).fields] == [1, 4]


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused_with_a_position(text: str) -> None:
    refused: TextFormatError | None = None
    try:
        parse(text)
    except TextFormatError as error:
        refused = error
    assert refused is None or (1 <= refused.line <= text.count("\n") + 1 and refused.column >= 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x: -7", -7),
        ("x: - 7", -7),
        ("x: 0x1F", 31),
        ("x: 017", 15),
        ("x: 0", 0),
        ("x: -1.5e3", -1500.0),
        ("x: .5f", 0.5),
        ("x: 7f", 7.0),
        ("x: true", Word("true")),
        ("x: -inf", Word("-inf")),
        ("x: TENSORFLOW", Word("TENSORFLOW")),
        (r"x: 'a\tb\x41\101\u00e9\U0001F600\?'", "a\tbAAé😀?"),
        ('x: "it\'s" \' "both"\'', 'it\'s "both"'),
    ],
)
def test_scalar_values(text: str, value: Value) -> None:
    assert parse(text) == Message((Field("x", value, 1),))
    assert type(parse(text).fields[0].value) is type(value)


def test_a_list_yields_its_field_once_for_each_value() -> None:
    assert plain(parse("a: [1, 2] b [{c: 3}, <c: 4>] d: []")) == [
        ("a", 1),
        ("a", 2),
        ("b", [("c", 3)]),
        ("b", [("c", 4)]),
    ]


def test_names_in_brackets_are_parsed() -> None:
    assert plain(parse("[a.b/c.D-e2] { x: 1 }")) == [("[a.b/c.D-e2]", [("x", 1)])]


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a {\n  b: 1\n", 3, 1, "a field or '}' is expected, not the end of the file"),
        ("a: {\n b: 1 >", 2, 7, "a field or '}' is expected, not '>'"),
        ("a 1", 1, 3, "':' is expected, not '1'"),
        ("a: }", 1, 4, "a value is expected, not '}'"),
        ("a: 'b\n'", 1, 4, "does not end on its line"),
        ("a: '\\q'", 1, 5, r"\q is not an escape"),
        ("a: '\\xff'", 1, 4, "not UTF-8"),
        ("a: '\\400'", 1, 5, "not an escape"),
        ("a: '\\ud800'", 1, 5, "not an escape"),
        ("a: 089", 1, 4, "octal"),
        ("a: 12x", 1, 4, "this is not a number"),
        ("a: [1, 2", 1, 9, "',' or ']' is expected"),
        ("a [1]", 1, 5, "a ':' is missing"),
        ("a: 1 $", 1, 6, "unexpected '$'"),
        ("}", 1, 1, "a field is expected, not '}'"),
        ("[a.b", 1, 5, "']' is expected"),
        ("[.b]", 1, 2, "a name is expected"),
        ("a: " + "9" * 401, 1, 4, "400 digits"),
        ("a {" * (MAX_DEPTH + 1), 1, 3 * MAX_DEPTH + 3, "blocks within each other"),
    ],
)
def test_mistakes_are_reported_with_line_and_column(text: str, line: int, column: int, words: str) -> None:
    with pytest.raises(TextFormatError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_huge_numbers_are_infinite_as_in_protobuf() -> None:
    (field,) = parse("a: 1e999").fields
    assert field.value == math.inf
