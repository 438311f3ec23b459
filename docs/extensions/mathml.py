"""Formulas as MathML, which browsers show without a script and without a network.

The font of the formulas is part of the pages: what a browser would choose for itself often lacks the sizes of brackets
and sums.
"""

import importlib.resources
import logging
import re
from html import unescape
from pathlib import Path
from typing import Any

from docutils import nodes
from fontTools import subset
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger
from sphinx.util.osutil import ensuredir

# Latin, accents, Greek, punctuation, letterlike symbols, arrows, operators, brackets and the alphabets of mathematics.
_BLOCKS = ((0x20, 0x100), (0x2C6, 0x400), (0x2000, 0x2300), (0x2308, 0x230C), (0x27E6, 0x27EC), (0x1D400, 0x1D800))
_CHARACTERS = [code for first, end in _BLOCKS for code in range(first, end)]
# A formula in a line of text with more characters than this can be broken after its relations.
_LONGEST_WHOLE = 24
_RELATIONS = "=≤≥<>←→∈≈∼⪯⪰"

_convert = LatexToMathML(fancy_error=False).convert_with_local_state


def pieces(mathml: str) -> list[str]:
    """A formula divided after the relations that stand outside all brackets, as browsers break lines at none.

    Parameters
    ----------
    mathml
        One ``<math>`` element, as math-core writes it.
    """
    inner = mathml.removeprefix("<math>").removesuffix("</math>")
    found, start, open_brackets, open_elements = [], 0, 0, 0
    for match in re.finditer(r"<(/?)(\w+)[^>]*?(/?)>([^<]*)", inner):
        closes, name, is_empty, text = match.groups()
        open_elements += 0 if is_empty else -1 if closes else 1
        if name == "mo" and not closes and open_elements == 1:
            open_brackets += (text in "([{⟨") - (text in ")]}⟩")
            if open_brackets == 0 and unescape(text) in _RELATIONS:
                end = match.end() + len("</mo>")
                found.append(inner[start:end])
                start = end
    return [f"<math>{piece}</math>" for piece in [*found, inner[start:]] if piece]


def _mathml(node: nodes.Element, displaystyle: bool) -> str:
    try:
        # Docstrings write the symbol, which math-core knows by its name only.
        return _convert(node.astext().replace("⊤", r"\top "), displaystyle=displaystyle)
    except LatexError as error:
        getLogger(__name__).warning("formula %r: %s", node.astext(), error, location=node)
        raise nodes.SkipNode from error


def visit_inline(translator: Any, node: nodes.Element) -> None:
    """Write a formula in a line of text."""
    mathml = _mathml(node, False)
    is_long = len(re.sub(r"<[^>]*>", "", mathml)) > _LONGEST_WHOLE
    translator.body.append("".join(pieces(mathml)) if is_long else mathml)
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.Element) -> None:
    """Write a formula of its own; where it is too wide for the window it scrolls, by keys as well."""
    translator.body.append(f'<div class="formula" tabindex="0">{_mathml(node, True)}</div>\n')
    raise nodes.SkipNode


def write_font(app: Sphinx, exception: Exception | None) -> None:
    """Write the part of STIX Two Math that the formulas need (SIL Open Font Licence) to the pages."""
    if exception or app.builder.format != "html":
        return
    path = Path(app.outdir) / "_static" / "formulas.woff"
    if path.exists():
        return
    ensuredir(path.parent)
    # It lists all glyphs that it keeps.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    options = subset.Options(flavor="woff", notdef_outline=True)
    source = importlib.resources.files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
    with importlib.resources.as_file(source) as file:
        font = subset.load_font(file, options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=_CHARACTERS)
    subsetter.subset(font)
    subset.save_font(font, path, options)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("build-finished", write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
