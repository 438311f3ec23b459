"""Sizes of files and functions, as docs/house.md promises them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_LINES = 400
# Without the docstring.
MOST_LINES_OF_A_FUNCTION = 60
FOLDERS = ("fixntk", "experiments", "benchmarks", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def lines_of(function):
    """Number of lines without the docstring's."""
    count = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return count
    docstring = function.body[0]
    return count - (docstring.end_lineno - docstring.lineno + 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_LINES
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert {each.name: lines_of(each) for each in functions if lines_of(each) > MOST_LINES_OF_A_FUNCTION} == {}


def test_lines_are_counted_without_the_docstring():
    of_text, bare = ast.parse(
        'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n\ndef g():\n    return 2\n'
    ).body
    assert (lines_of(of_text), lines_of(bare)) == (2, 2)
