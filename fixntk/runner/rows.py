"""Rows of results: as JSON lines on disk, as plain values, and sorted by the task that they belong to.

``results.jsonl`` holds the rows of each finished task, one on each line, and after them a closing line::

    {"table": "iris", "seed": 0, "method": "ntk", "accuracy": 0.9}
    {"table": "iris", "seed": 0, "method": "fixed", "accuracy": 0.95}
    {"finished": {"table": "iris", "seed": 0}, "rows": 2, "crc32": 3735928559}

The checksum is that of the rows' lines followed by the task in JSON. A task without a closing line is not finished,
wherever the file ends. Numbers that are not finite are written as Python's ``json`` does: NaN, Infinity, -Infinity.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

from fixntk._files import replace_when_written
from fixntk.runner.config import ConfigError, Row

# Name of the file with a run's results.
RESULTS = "results.jsonl"
# Keys of a closing line.
_CLOSING_KEYS = {"finished", "rows", "crc32"}


class Block(NamedTuple):
    """The lines of a finished task.

    Attributes
    ----------
    start, stop
        Indices of its first line, and of the line after its closing line.
    task
        The keys of the task.
    rows
        Its rows.
    """

    start: int
    stop: int
    task: Row
    rows: list[Row]


def read_rows(directory: str | Path) -> list[Row]:
    """Return the rows of the finished tasks in a run's folder, with the error rows.

    Raises
    ------
    ConfigError
        If the file is damaged, or cannot be read.
    """
    return [row for block in read_results(Path(directory) / RESULTS).finished for row in block.rows]


class Results(NamedTuple):
    """Contents of a file of results.

    Attributes
    ----------
    finished
        The finished tasks.
    unfinished
        Rows after the last closing line.
    torn
        The bytes of an incomplete last line.
    """

    finished: list[Block]
    unfinished: list[Row]
    torn: bytes


def read_results(path: Path) -> Results:
    """Read a file of results; one that does not exist is empty. If a task is there twice, the first one counts.

    A run that was stopped leaves some whole rows of its last task and an incomplete line.

    Raises
    ------
    ConfigError
        If there is anything else between or after the finished tasks, or the file cannot be read; the message names the
        first such line.
    """
    lines, torn = read_lines(path)
    finished: dict[str, Block] = {}
    position = 0
    for block in find_blocks(lines):
        if block.start != position:
            raise _damage(path, lines[: block.start], position)
        finished.setdefault(_dumps(block.task), block)
        position = block.stop
    rows = [row for row in map(_parse, lines[position:]) if row is not None and not _closes(row)]
    if len(rows) < len(lines) - position:
        raise _damage(path, lines, position)
    return Results(list(finished.values()), rows, torn)


def read_lines(path: Path) -> tuple[list[bytes], bytes]:
    """Return the whole lines of a file, and the bytes after them; nothing if there is no file.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], b""
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    # Some programs end lines as Windows does.
    return [line.removesuffix(b"\r") for line in lines], torn


def find_blocks(lines: Sequence[bytes]) -> Iterator[Block]:
    """Yield the finished tasks whose lines are as they were written, whatever stands between them."""
    position = 0
    for k, closing in enumerate(map(_parse, lines)):
        if closing is None or set(closing) != _CLOSING_KEYS:
            continue
        task, num_rows, checksum = closing["finished"], closing["rows"], closing["crc32"]
        if not isinstance(task, dict) or not isinstance(num_rows, int) or not position <= k - num_rows < k:
            continue
        written = lines[k - num_rows : k]
        rows = [row for row in map(_parse, written) if row is not None]
        if len(rows) == num_rows and checksum == _checksum(written, task):
            yield Block(k - num_rows, k + 1, task, rows)
            position = k + 1


def append_task(file: RawIOBase, task: Row, rows: Iterable[Row]) -> None:
    """Write a task's rows and its closing line to an unbuffered file, and return when they are on disk.

    After an error, as on a full disk, the file is as it was.
    """
    data = encode_task(task, rows)
    size = os.fstat(file.fileno()).st_size
    try:
        # All lines together: usually one system call, so that a kill seldom leaves a part of them.
        while data:
            data = data[file.write(data) or 0 :]
        os.fsync(file.fileno())
    except BaseException:
        os.ftruncate(file.fileno(), size)
        raise


def write_blocks(path: Path, blocks: Iterable[Block]) -> None:
    """Write a file of results that holds these tasks."""
    with replace_when_written(path) as part:
        part.write_bytes(b"".join(encode_task(block.task, block.rows) for block in blocks))


def encode_task(task: Row, rows: Iterable[Row]) -> bytes:
    """The lines of a finished task."""
    lines = [_dumps(row).encode() for row in rows]
    closing = {"finished": task, "rows": len(lines), "crc32": _checksum(lines, task)}
    return b"".join(line + b"\n" for line in [*lines, _dumps(closing).encode()])


def _checksum(lines: Iterable[bytes], task: Any) -> int:
    return zlib.crc32(b"\n".join([*lines, _dumps(task).encode()]))


def _parse(line: bytes) -> Row | None:
    """The object in a line, None if there is none."""
    try:
        value = json.loads(line)
        # An escape such as \ud800 is half of a character, which no file can hold.
        if b"\\ud" in line.lower():
            _dumps(value).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _closes(row: Row) -> bool:
    """Whether a line closes a task, or did before it was damaged."""
    return "crc32" in row or isinstance(row.get("finished"), dict)


def _damage(path: Path, lines: Sequence[bytes], position: int) -> ConfigError:
    """The error for lines that neither belong to a finished task nor are the rows of one that was stopped."""
    rows = [_parse(line) for line in lines[position:]]
    if None in rows:
        k, problem = rows.index(None), "is not a JSON object"
    elif closing := next((row for row in rows if row is not None and _closes(row)), None):
        k, problem = rows.index(closing), "the rows before it are not those that were written"
    else:
        k, problem = 0, "belongs to no finished task"
    repair = f"fixntk report --repair {shlex.quote(str(path.parent))}"
    return ConfigError(f"{path}, line {position + 1 + k}: {problem}; `{repair}` keeps the tasks that are whole")


def rows_by_task(tasks: list[Row], rows: list[Row]) -> list[list[Row]]:
    """Return each task's rows, in the order of the tasks; rows of no task are left out."""
    # Tasks may differ in their keys; the largest set of keys, which is the most specific, is tried first.
    key_sets = sorted({tuple(sorted(task)) for task in tasks}, key=len, reverse=True)
    found: dict[str, list[Row]] = {_identity(task, sorted(task)): [] for task in tasks}
    for row in rows:
        identities = (_identity(row, keys) for keys in key_sets)
        if identity := next((one for one in identities if one in found), None):
            found[identity].append(row)
    return list(found.values())


def _identity(row: Row, keys: Iterable[str]) -> str:
    return _dumps({key: row.get(key) for key in keys})


def to_json(value: Any) -> Any:
    """Return plain JSON values: NumPy and JAX scalars and arrays and paths converted; NaN and infinity stay."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, str | Path):
        # Names of files may hold halves of characters, which no file of text can.
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def replace_non_finite(value: Any) -> Any:
    """Return plain JSON values with None for NaN and infinity, which other programs do not read."""
    if isinstance(value, dict):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Row:
    """Return the object in a JSON file.

    Raises
    ------
    ConfigError
        If the file is missing, or holds no JSON object.
    """
    try:
        value = _parse(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if value is None:
        raise ConfigError(f"{path}: is not a JSON object")
    return value


def write_json(path: Path, value: Row) -> None:
    """Write an object to a JSON file, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    with replace_when_written(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
