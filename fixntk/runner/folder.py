"""The folder of a run: one process at a time writes it, and what stands in it is read with care."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import shlex
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from fixntk._files import PART_SUFFIX
from fixntk.runner.config import ConfigError, Row
from fixntk.runner.environment import environment
from fixntk.runner.rows import (
    RESULTS,
    Block,
    find_blocks,
    read_json,
    read_lines,
    read_results,
    rows_by_task,
    write_blocks,
    write_json,
)

# Files that say that a process writes the folder, and which one.
_LOCK = ".lock"
_HOLDER = ".lock.json"
# Copy of the results before a repair.
_DAMAGED = "results.damaged.jsonl"


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Make a run's folder if it does not exist, and keep other processes from running in it.

    The lock ends with the process that holds it, however it ends.

    Raises
    ------
    ConfigError
        If another process holds the lock; the message says which one. Or if the folder cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be made: {error.strerror}") from error
    held = filelock.FileLock(directory / _LOCK, blocking=False)
    with refuse_os_errors(directory):
        try:
            held.acquire()
        except filelock.Timeout as error:
            raise ConfigError(
                f"{directory} is in use by {_read_holder(directory)}: wait until it ends, or take another --out"
            ) from error
    holder = directory / _HOLDER
    try:
        with refuse_os_errors(directory):
            since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
            write_json(holder, {"pid": os.getpid(), "host": platform.node(), "since": since})
            _remove_parts(directory)
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        held.release()


def _read_holder(directory: Path) -> str:
    """The process that holds the lock, in words."""
    try:
        holder = read_json(directory / _HOLDER)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ConfigError, KeyError):
        # It has the lock and has not yet written who it is.
        return "another process"


def _remove_parts(directory: Path) -> None:
    """Remove the files that a killed process left half written."""
    for path in [*directory.glob(f"*{PART_SUFFIX}"), *directory.glob(f"figures/*{PART_SUFFIX}")]:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def refuse_os_errors(directory: Path) -> Iterator[None]:
    """Raise ConfigError in one line where the system refuses to read or write, as on a full disk."""
    try:
        yield
    except OSError as error:
        # The second name is that of the file to be replaced.
        name = error.filename2 or error.filename or directory
        raise ConfigError(f"{name}: {error.strerror or error}{_keeps_what_is_finished(directory)}") from error


def _keeps_what_is_finished(directory: Path) -> str:
    try:
        has_results = bool((directory / RESULTS).stat().st_size)
    except OSError:
        has_results = False
    return "; what is finished is kept, and the same command with --resume does the rest" if has_results else ""


def prepare(directory: Path, description: Row, tasks: list[Row], *, resume: bool) -> tuple[list[Block], bool]:
    """Prepare a locked folder for a run; return the finished tasks to keep, and whether an unfinished one was dropped.

    Tasks that failed, and the lines after the last closing line, are removed from the results.

    Raises
    ------
    ConfigError
        If there are results and ``resume`` is false, or they are of another config, damaged or without closing lines.
    """
    path = directory / RESULTS
    results = read_results(path)
    if not any(results):
        write_json(directory / "config.json", description)
        return [], False
    if not resume:
        raise ConfigError(
            f"{directory} already has results: pass --resume to go on with the same config, or another --out"
        )
    _check_same_config(directory / "config.json", description)
    if sum(map(bool, rows_by_task(tasks, results.unfinished))) > 1:
        raise ConfigError(
            f"{path} does not say which of its last tasks are finished, as an earlier fixntk wrote it: take another "
            f"--out, or drop these rows with `fixntk report --repair {shlex.quote(str(directory))}`"
        )
    kept = [block for block in results.finished if not any("error" in row for row in block.rows)]
    was_cut = bool(results.unfinished or results.torn)
    if was_cut or len(kept) < len(results.finished):
        write_blocks(path, kept)
    return kept, was_cut


def _check_same_config(path: Path, description: Row) -> None:
    """Raise ConfigError, naming each key that differs, if the config of an earlier run is another one."""
    try:
        earlier, now = _flatten(read_json(path)), _flatten(description)
    except ConfigError as error:
        raise ConfigError(f"{error}, so that nothing says what the results are of: take another --out") from error
    # As text, since NaN is not equal to itself.
    differing = [key for key in {**earlier, **now} if repr(earlier.get(key)) != repr(now.get(key))]
    if differing:
        pairs = "; ".join(f"{key} was {earlier.get(key)!r}, now {now.get(key)!r}" for key in differing)
        raise ConfigError(f"{path} is of another config, so --resume cannot go on: {pairs}")


def _flatten(value: Row, prefix: str = "") -> Row:
    """Flatten nested mappings into one, with dots in its keys."""
    flat: Row = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat


def repair(directory: Path) -> str:
    """Keep the tasks of damaged results that are whole, and return in words what was done.

    The results as they were are copied beside it.

    Raises
    ------
    ConfigError
        If another process holds the folder's lock, or it cannot be read or written.
    """
    results = directory / RESULTS
    if not results.exists():
        raise ConfigError(f"{directory}: is not the folder of a run: it has no {RESULTS}")
    with lock(directory), refuse_os_errors(directory):
        lines, torn = read_lines(results)
        blocks = list(find_blocks(lines))
        num_dropped = len(lines) + bool(torn) - sum(block.stop - block.start for block in blocks)
        if not num_dropped:
            return f"nothing to repair in {results}"
        copy = _free_name(directory / _DAMAGED)
        shutil.copyfile(results, copy)
        write_blocks(results, blocks)
    return (
        f"kept {len(blocks)} tasks and dropped {num_dropped} other lines; all lines are in {copy}; "
        "the command of the run with --resume does the rest"
    )


def _free_name(path: Path) -> Path:
    """The path, or where it exists the first of the same name with a number that does not."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not candidate.exists())


def record_environment(directory: Path, source: Path | None, command: str | None, *, resumed: bool) -> None:
    """Write environment.json; the environments of earlier parts of a resumed run are kept if they differ."""
    now: Row = {**environment(source), "command": command}
    before = read_environment(directory) if resumed else {}
    if before:
        earlier = before.pop("earlier", [])
        differs = any(before.get(key) != now[key] for key in now if key not in ("started", "command"))
        if differs:
            earlier = [*earlier, before]
        now |= {"earlier": earlier} if earlier else {}
    write_json(directory / "environment.json", now)


def read_environment(directory: Path) -> dict[str, Any]:
    """The run's environment, without what is missing or damaged: a finished run has its report without it."""
    try:
        found = read_json(directory / "environment.json")
    except ConfigError:
        return {}
    earlier = found.pop("earlier", [])
    if isinstance(earlier, list) and earlier and all(isinstance(part, dict) for part in earlier):
        found["earlier"] = earlier
    return found
