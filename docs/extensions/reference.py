"""What the reference shows of docstrings: M-numbers as links, and no lines about a tuple's fields that say nothing."""

import re
from collections import namedtuple
from typing import Any

from sphinx.application import Sphinx

# The type of the members that a named tuple has for its fields, each documented as "Alias for field number 0".
_TUPLE_FIELD = type(namedtuple("Point", "x").x)
# References to the mathematics of docstrings that numpydoc is reading, by the names of their objects.
_references: dict[str, str] = {}


def skip_tuple_fields(app: Sphinx, kind: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which the section Attributes of their docstring describes."""
    return True if isinstance(member, _TUPLE_FIELD) else None


def set_reference_apart(app: Sphinx, kind: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Take the last line, "See docs/mathematics.md, M7.", from the docstring, before numpydoc reads its sections.

    It stands after the last section, for whose entry numpydoc would take it.
    """
    last = next((number for number in reversed(range(len(lines))) if lines[number].strip()), 0)
    if lines and lines[last].startswith("See docs/mathematics.md, "):
        _references[name] = lines.pop(last)


def link_sections(app: Sphinx, kind: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Put the reference back as a last paragraph, in which "M5 and M7" are links to these sections."""
    if name in _references:
        lines += ["", _references.pop(name), ""]
    for number, line in enumerate(lines):
        before, found, sections = line.partition("See docs/mathematics.md, ")
        if found:
            links = re.sub(r"\bM(\d+)\b", r":ref:`M\1 <m\1>`", sections)
            lines[number] = f"{before}See the mathematics, {links}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it."""
    app.connect("autodoc-skip-member", skip_tuple_fields)
    # numpydoc has the priority 500, and comes between the two.
    app.connect("autodoc-process-docstring", set_reference_apart, priority=400)
    app.connect("autodoc-process-docstring", link_sections, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
