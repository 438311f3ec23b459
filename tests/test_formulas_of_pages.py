"""Formulas of the pages: all can be converted, and long ones are divided only where a line may end."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("math_core")

DOCS = Path(__file__).parent.parent / "docs"
# A folder of Sphinx's own, which nothing else imports from.
specification = importlib.util.spec_from_file_location("mathml", DOCS / "extensions/mathml.py")
mathml = importlib.util.module_from_spec(specification)
specification.loader.exec_module(mathml)


def formulas_of(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL))


def convert(formula):
    return mathml.LatexToMathML().convert_with_local_state(formula, displaystyle=False)


def test_every_formula_in_a_line_is_the_same_when_its_pieces_are_put_together():
    formulas = {formula for page in DOCS.rglob("*.md") if "_build" not in page.parts for formula in formulas_of(page)}
    assert len(formulas) > 400
    for formula in formulas:
        whole = convert(formula)
        pieces = mathml.pieces(whole)
        assert "".join(piece.removeprefix("<math>").removesuffix("</math>") for piece in pieces) == whole[6:-7]
        for piece in pieces:
            # Which XML does not know: &nbsp; and the like.
            ElementTree.fromstring(re.sub(r"&(?!lt;|gt;|amp;)\w+;", " ", piece))


@pytest.mark.parametrize(
    ("formula", "number"),
    [
        ("a=b", 2),
        (r"a\le b=c", 3),
        ("f(a=b)", 1),
        (r"\frac{a=b}{c}", 1),
        ("x_{a=b}+1", 1),
        (r"\lbrace a\lt b\rbrace", 1),
    ],
)
def test_a_formula_is_divided_after_relations_outside_of_brackets_fractions_and_indices(formula, number):
    assert len(mathml.pieces(convert(formula))) == number
