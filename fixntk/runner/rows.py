"""Rows of results: as JSON lines on disk, as plain values, and sorted by the task that they belong to."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any

from fixntk._files import replace_when_written
from fixntk.runner.config import ConfigError, Row


def read_rows(directory: str | Path) -> list[Row]:
    """Return the rows of ``results.jsonl``, with the error rows and without an incomplete last line.

    Raises
    ------
    ConfigError
        If a whole line is not a JSON object.
    """
    return _read_results(Path(directory) / "results.jsonl")[0]


def append_rows(file: RawIOBase, rows: Iterable[Row]) -> None:
    """Write a task's rows to an unbuffered file, and return when they are on disk."""
    # All rows together: usually one system call, so that a kill seldom leaves a part of them.
    data = b"".join(map(_line, rows))
    while data:
        data = data[file.write(data) or 0 :]
    os.fsync(file.fileno())


def keep_finished(results: Path, tasks: list[Row]) -> tuple[list[Row], bool]:
    """Remove from the file the rows of tasks that will be run again.

    These are the error rows, a last line that a kill left incomplete, and the other rows of that line's task.

    Returns
    -------
    rows, was_torn
        The rows that stay, and whether the last line was incomplete.
    """
    rows, torn = _read_results(results)
    kept = [row for row in rows if "error" not in row]
    if torn:
        kept = _drop_torn_task(kept, torn, tasks)
    if torn or len(kept) < len(rows):
        with replace_when_written(results) as part:
            part.write_bytes(b"".join(map(_line, kept)))
    return kept, bool(torn)


def _drop_torn_task(rows: list[Row], torn: bytes, tasks: list[Row]) -> list[Row]:
    """Drop the task of the last row if the torn line may belong to the same task, which is then incomplete."""
    for task, of_task in zip(tasks, rows_by_task(tasks, rows), strict=True):
        # Every line of a task begins with the task's keys.
        start = _dumps(task)[:-1].encode()
        if of_task and of_task[-1] is rows[-1] and start[: len(torn)] == torn[: len(start)]:
            return [row for row in rows if all(row is not one for one in of_task)]
    return rows


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
    """Return plain JSON values: NumPy and JAX scalars and arrays converted, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def read_json(path: Path) -> Row:
    """Return the object in a JSON file.

    Raises
    ------
    ConfigError
        If the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is missing or not JSON: {error}") from error


def write_json(path: Path, value: Row) -> None:
    """Write an object to a JSON file, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with replace_when_written(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _line(row: Row) -> bytes:
    return (_dumps(row) + "\n").encode()


def _read_results(path: Path) -> tuple[list[Row], bytes]:
    """Return the rows, and the bytes after the end of the last whole line."""
    *lines, torn = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {number}: is not a JSON object")
        rows.append(row)
    return rows, torn
