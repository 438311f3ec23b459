"""CSV files as strings, with any character between the columns, compressed or not."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import pandas as pd

from fixntk._tiling import free_on_host
from fixntk.tables.names import BLANKS, TableError, check_names, count

# Characters between columns in the order in which they are tried; others are those that csv.Sniffer finds.
_DELIMITERS = ",\t;|"
# Characters that csv.Sniffer may find but that are parts of words and numbers.
_NO_DELIMITERS = "\"'.-_+\r\n\0"
# Number of characters that csv.Sniffer reads, as its time can grow with the square of the length.
_SNIFFED_LENGTH = 2000
# Number of lines that it reads.
_SNIFFED_LINES = 20
# Bytes of memory for each byte of a table's text: every field becomes a string.
_MEMORY_PER_BYTE = 120
# Bytes that are read at a time.
_CHUNK_BYTES = 2**20
# First bytes of a file compressed by gzip.
_GZIP_START = b"\x1f\x8b"
# Bytes that are no characters of Windows-1252.
_NOT_IN_CP1252 = b"\x81\x8d\x8f\x90\x9d"
# A whole number in this range, a year, can be the name of a column unless the column's own numbers are around it.
_YEARS = range(1000, 3000)


def read_csv(path: str | Path, wanted: Collection[str], least_columns: int) -> tuple[pd.DataFrame, list[str]]:
    """Read a CSV file with a header as strings without blanks around them, and say what was assumed.

    The character between columns is a comma if that gives a table with the wanted columns; otherwise the first of tab,
    semicolon and | that does, or else what csv.Sniffer finds. The name of the first column may be empty.

    The text is UTF-16 where it begins with a mark of it, otherwise UTF-8. One that is not valid UTF-8 is taken for
    Windows-1252, which has the letters of Latin-1, and a line says so.

    Where all rows have one field more than the header, as R's ``write.table`` writes them, the first one is an index;
    but the last one is left out if it is always empty, as where lines end in a delimiter, and so is every empty column
    without a name. Single quotes around fields are taken off where csv.Sniffer finds them in the first lines and there
    are no double ones.

    Parameters
    ----------
    path
        Possibly compressed by gzip, whatever its name.
    wanted
        Names of columns.
    least_columns
        Smallest number of columns.

    Raises
    ------
    TableError
        If the file cannot be read, is empty or ragged, has no header of distinct names, or needs more memory than there
        is.
    """
    text, lines = _read_text(path)
    found: list[tuple[int, pd.DataFrame | TableError]] = []
    # A short header comes last: rows that are longer may also be those of another delimiter.
    for is_short, quote, delimiter in itertools.product((False, True), _quotes(text), list(_candidates(text))):
        try:
            frame, told = _read_table(path, text, delimiter, quote, is_short=is_short)
        except TableError as error:
            found.append((_header_line(text).count(delimiter), error))
            continue
        if frame.shape[1] >= least_columns and set(wanted) <= set(frame.columns):
            return frame, [*lines, *told]
        found.append((frame.shape[1] - 1, frame))
    # The error reported is that of the delimiter that gives most columns, a table before a ragged one.
    _, best = max(found, key=lambda item: (item[0] > 0 and isinstance(item[1], pd.DataFrame), item[0]))
    if isinstance(best, TableError):
        raise best
    return best, lines


def _read_text(path: str | Path) -> tuple[str, list[str]]:
    """The text of a file, as far as memory suffices for its table; and a line where its encoding was assumed."""
    free = free_on_host()
    content = bytearray()
    try:
        with open(path, "rb") as file:
            is_compressed = file.peek(len(_GZIP_START))[: len(_GZIP_START)] == _GZIP_START
            with gzip.open(file) if is_compressed else file as source:
                # In chunks, because a small file may decompress to a very large one.
                while chunk := source.read(_CHUNK_BYTES):
                    content += chunk
                    if len(content) * _MEMORY_PER_BYTE > free.num_bytes:
                        raise TableError(
                            f"table {str(path)!r}: its first {len(content) >> 20} MiB of text already need more memory"
                            f" than {free.limit} leaves: take fewer rows"
                        )
        return _decode(content)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise TableError(f"table {str(path)!r} cannot be read: {reason}") from error


def _decode(content: bytearray) -> tuple[str, list[str]]:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16"), []
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        # Text has no zeros, and Windows-1252 gives no character to five bytes, so that most other files are refused.
        if b"\0" in content or any(byte in content for byte in _NOT_IN_CP1252):
            raise
        return content.decode("cp1252"), [f"not valid UTF-8 (byte {error.start + 1}), read as Windows-1252"]


def _header_line(text: str) -> str:
    return next(iter(text[:_SNIFFED_LENGTH].splitlines()), "")


def _candidates(text: str) -> Iterator[str]:
    """Characters that may be between the columns."""
    yield from _DELIMITERS
    if not any(delimiter in _header_line(text) for delimiter in _DELIMITERS):
        dialect = _sniff(_first_lines(text))
        # What it finds may be a letter of a word.
        if dialect and len(found := dialect.delimiter) == 1 and not found.isalnum() and found not in _NO_DELIMITERS:
            yield found


def _quotes(text: str) -> Iterator[str]:
    """Characters that may be around fields."""
    sample = _first_lines(text)
    dialect = _sniff(sample) if "'" in sample and '"' not in sample else None
    if dialect is not None and dialect.quotechar == "'":
        yield "'"
    yield '"'


def _first_lines(text: str) -> str:
    return "\n".join(text[:_SNIFFED_LENGTH].splitlines()[:_SNIFFED_LINES])


def _sniff(sample: str) -> type[csv.Dialect] | None:
    try:
        return csv.Sniffer().sniff(sample)
    except csv.Error:
        return None


def _read_table(
    path: str | Path, text: str, delimiter: str, quote: str, *, is_short: bool
) -> tuple[pd.DataFrame, list[str]]:
    """A table of these characters, whose header lacks the name of a column if ``is_short``; lines on what it lacks."""
    # Strict, as a quote without an end would hide all rows that follow it.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quotechar=quote, strict=True)
    header: list[str] = []
    columns: list[list[str]] = []
    try:
        for row in filter(None, reader):
            fields = [field.strip(BLANKS) for field in row]
            if not header:
                header = fields
                columns = [[] for _ in range(len(fields) + (is_short and len(fields) > 1))]
            elif len(fields) != len(columns):
                counts = f"{count(len(fields), 'field')}, the header has {len(header)}"
                raise TableError(f"table {str(path)!r}: line {reader.line_num} has {counts}")
            else:
                # By columns: millions of rows that are lists would keep Python's garbage collector busy.
                for column, field in zip(columns, fields, strict=True):
                    column.append(field)
    except csv.Error as error:
        raise TableError(f"table {str(path)!r} cannot be read: line {reader.line_num}: {error}") from error
    if not columns or not columns[0]:
        raise TableError(f"table {str(path)!r} {'has a header and no rows' if header else 'is empty'}")
    lines = _drop_nameless(header, columns)
    check_names(path, header)
    frame = pd.DataFrame(dict(enumerate(columns)), dtype=object)
    frame.columns = pd.Index(header)
    for name in header:
        if pd.notna(pd.to_numeric(name, errors="coerce")) and not _is_year(name, frame[name]):
            raise TableError(f"table {str(path)!r} has no header: its first row has the number {name!r}")
    return frame, lines


def _drop_nameless(header: list[str], columns: list[list[str]]) -> list[str]:
    """Leave out, in place, empty columns without a name, and an index that the header lacks; say so."""
    if len(header) < len(columns) and not any(columns[-1]):
        header.append("")
    # A header that lacks the name of the index has the names of the columns behind it.
    shift = len(columns) - len(header)
    empty = [place for place in range(len(header)) if not header[place] and not any(columns[place + shift])]
    lines = []
    if empty and len(empty) < len(header):
        for place in reversed(empty):
            del header[place], columns[place + shift]
        lines.append(f"{count(len(empty), 'empty column')} without a name left out")
    if len(header) < len(columns):
        columns.pop(0)
        lines.append("column 1, which the header lacks: left out, an index of the rows")
    return lines


def _is_year(name: str, column: pd.Series) -> bool:
    """Whether a number is the name of a column: a year that is not among the numbers below it."""
    if not (name.isascii() and name.isdigit() and int(name) in _YEARS):
        return False
    numbers = pd.to_numeric(column, errors="coerce")
    return not numbers.min() <= int(name) <= numbers.max()
