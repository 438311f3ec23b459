"""Text as Markdown that shows it as it is: no character of it becomes markup or HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal
from urllib.parse import quote

# What a piece of a paragraph is.
Kind = Literal["code", "bold", "literal"]

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# Characters that are markup anywhere; between two letters, as in λ_max, an underscore is none.
_SPECIAL = re.compile(r"[\\`*\[\]|$~#{]|(?<![^\W_])_|_(?![^\W_])")
# What begins a list, a rule, an underlined heading, or a comment, a break or a target of MyST at the start of a line.
_SPECIAL_AT_START = re.compile(r"^([ \t]*)([-+](?=[\s+-]|$)|[=%]|:(?=::)|\((?=[^()\n]*\)=))", re.MULTILINE)
_NUMBER_AT_START = re.compile(r"^([ \t]*\d+)([.)])(?=\s|$)", re.MULTILINE)


def escape(text: str) -> str:
    """Text in one line, such as a heading, a caption or a cell."""
    return _escape_characters(" ".join(text.split()))


def paragraph(pieces: Iterable[tuple[Kind, str]]) -> str:
    """A paragraph of code, bold and literal text."""
    text = "".join(_WRITERS[kind](piece) for kind, piece in pieces)
    # Spaces at the end of a line would break it.
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = _SPECIAL_AT_START.sub(r"\1\\\2", text)
    return _NUMBER_AT_START.sub(r"\1\\\2", text)


def bold(text: str) -> str:
    """Bold text, in one line."""
    escaped = escape(text)
    return f"**{escaped}**" if escaped else ""


def code(text: str) -> str:
    """A span of code, in one line."""
    line = " ".join(text.split())
    if not line:
        return ""
    # More backticks than stand together in the text; spaces keep them apart.
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def table(headings: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> str:
    """A table; a column has its heading, and whether it holds numbers, which are aligned to the right."""
    rule = ["--:" if is_number else "---" for _, is_number in headings]
    names = [escape(name) for name, _ in headings]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [names, rule, *(map(escape, row) for row in rows)])


def escape_address(address: str) -> str:
    """A relative address of a link."""
    return quote(address)


def _escape_characters(text: str) -> str:
    escaped = _SPECIAL.sub(lambda found: "\\" + found.group(), text)
    return re.sub("[&<>]", lambda found: _ENTITIES[found.group()], escaped)


_WRITERS: Mapping[Kind, Callable[[str], str]] = {"code": code, "bold": bold, "literal": _escape_characters}
