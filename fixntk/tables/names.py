"""What tables of all files have in common: names of columns, blanks that are dropped, and the error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# White space, and the NUL that NumPy's texts lose at their end.
BLANKS = "\0" + "".join(character for character in map(chr, range(0x3001)) if character.isspace())


class TableError(ValueError):
    """The table cannot be used; the message names the table and the reason."""


def count(number: int, thing: str) -> str:
    """A number of things, as in '1 row' and '2 rows'."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def check_names(path: str | Path, names: Sequence[str]) -> None:
    """Raise TableError if two columns have one name, or a column except the first, which may be an index, has none."""
    seen: set[str] = set()
    for position, name in enumerate(names):
        if not name and position:
            raise TableError(f"table {str(path)!r}: column {position + 1} has no name")
        if name in seen:
            raise TableError(f"table {str(path)!r} has two columns {name!r}")
        seen.add(name)
