"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Ending of the names of files that are being written.
PART_SUFFIX = ".part"
# Number of random bytes in such a name.
_NUM_RANDOM_BYTES = 4


@contextmanager
def replace_when_written(path: Path) -> Iterator[Path]:
    """Yield the path of a new file next to ``path``, which it replaces when the block ends without an error.

    After an error the new file is removed and ``path`` is unchanged. Several processes may write the same file: each
    has a new file of its own, and the last to end wins.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(_NUM_RANDOM_BYTES)}{PART_SUFFIX}")
    try:
        yield part
        _flush_to_disk(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _flush_to_disk(path: Path) -> None:
    """Wait until the file is on disk: after a power failure a renamed file could otherwise be empty."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
