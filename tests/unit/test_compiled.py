"""What compiled modules must not contain, because interpreted code would run for each request."""

from __future__ import annotations

import ast
from pathlib import Path

from multitower.compiled import modules

ROOT = Path(__file__).parents[2] / "multitower"

SELDOM = {
    "Origin",  # once a connection
    "Limits",  # once a process
    "Mark",  # once in many small replies
    "Served",  # once a worker and version
    "Table",  # once a set of areas of shared memory
    "Waiting",  # once a status
    "WorkerArea",  # as Table
}
"""Named tuples that are not made for each request or batch."""


def compiled_nodes() -> list[ast.AST]:
    paths = [ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in modules(ROOT)]
    return [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]


def test_no_named_tuple_is_made_for_each_request() -> None:
    # Its constructor is interpreted wherever it is called from: 2,300 instructions, a class with slots needs 150.
    found = {
        node.name
        for node in compiled_nodes()
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "NamedTuple" for base in node.bases)
    }
    assert found <= SELDOM


def test_a_name_of_a_compiled_exception_stands_for_no_other_exception() -> None:
    # mypyc gives a name one type in a function: that of the first handler. Another exception raises a TypeError there.
    nodes = compiled_nodes()
    compiled = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    for function in nodes:
        if isinstance(function, ast.FunctionDef):
            caught: dict[str, set[str]] = {}
            for node in ast.walk(function):
                if isinstance(node, ast.ExceptHandler) and node.name and node.type:
                    caught.setdefault(node.name, set()).add(ast.unparse(node.type))
            for name, types in caught.items():
                assert len(types) == 1 or not types & compiled, f"{name} in {function.name}: {types}"
