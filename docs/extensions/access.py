"""What Sphinx leaves out of its pages for readers who use a keyboard or a screen reader."""

import re
from typing import Any

from sphinx.application import Sphinx

# Captions of tables of contents have no level; code and tables that are too wide cannot be scrolled by keys.
_REPLACEMENTS = (
    ('role="heading">', 'role="heading" aria-level="2">'),
    ("<pre>", '<pre tabindex="0">'),
    # The summary of a hidden cell has words of its own.
    (' aria-label="Toggle hidden content"', ""),
    ('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper'),
)
# The arguments of a long signature, which Sphinx writes as definitions without terms.
_ARGUMENTS = re.compile(r"<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>")


def _as_lines(arguments: re.Match[str]) -> str:
    lines = arguments[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f"<span>{lines}</span>"


def complete(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Add what is missing to the page and to the tree of pages beside it."""
    for part in ("body", "furo_navigation_tree"):
        for before, after in _REPLACEMENTS:
            if part in context:
                context[part] = context[part].replace(before, after)
    if "body" in context:
        context["body"] = _ARGUMENTS.sub(_as_lines, context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it; the theme's own handler comes first."""
    app.connect("html-page-context", complete, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
