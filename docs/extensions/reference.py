"""What the reference shows of docstrings: M-numbers as links, and no lines about a tuple's fields that say nothing."""

import re
from collections import namedtuple
from typing import Any

from sphinx.application import Sphinx

# The type of the members that a named tuple has for its fields, each documented as "Alias for field number 0".
_TUPLE_FIELD = type(namedtuple("Point", "x").x)


def skip_tuple_fields(app: Sphinx, kind: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which the section Attributes of their docstring describes."""
    return True if isinstance(member, _TUPLE_FIELD) else None


def link_sections(app: Sphinx, kind: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Turn "See docs/mathematics.md, M5 and M7." into links to these sections."""
    for number, line in enumerate(lines):
        before, found, sections = line.partition("See docs/mathematics.md, ")
        if found:
            links = re.sub(r"\bM(\d+)\b", r":ref:`M\1 <m\1>`", sections)
            lines[number] = f"{before}See the mathematics, {links}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it."""
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("autodoc-process-docstring", link_sections)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
