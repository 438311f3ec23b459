"""Rows that change nothing bring programs of near sizes to one, so that another number of rows compiles nothing."""

from __future__ import annotations

import jax
import numpy as np
from jax import Array

from fixntk._checks import to_device
from fixntk.convex.program import ConvexProgram, is_quadratic, replace_fields

# Programs of more rows are solved for longer than they compile, and would be copied.
_MOST_ROWS = 8192
# Up to this number of rows every size is its own.
_LEAST_STEP = 8
# At most one row in this number is added, but for small programs.
_STEPS_PER_SIZE = 16


def next_power_of_two(count: int) -> int:
    """The least power of two that is no less than a positive number."""
    return 1 << (count - 1).bit_length()


def padded_count(num_rows: int) -> int:
    """Number of rows after padding: at most a sixteenth more, or 7 rows; above 8,192 rows the same."""
    if not _LEAST_STEP < num_rows <= _MOST_ROWS:
        return num_rows
    # The largest power of two that is no more than a sixteenth of the rows.
    step = 1 << max(num_rows // _STEPS_PER_SIZE, 1).bit_length() - 1
    step = max(step, _LEAST_STEP)
    return -(-num_rows // step) * step


def with_padded_rows(program: ConvexProgram) -> ConvexProgram:
    """A program of the same objective, gap and solutions, whose number of rows recurs.

    Under the squared loss, whose sample weights are absorbed already, the further rows are zeros. Under other losses
    they have the weight zero, and all others the weight that they have, so that programs with and without further rows
    are of one kind. Rows that are divided over devices stay as they are.
    """
    num_rows = program.x.shape[0]
    if num_rows > _MOST_ROWS or len(program.x.sharding.device_set) > 1:
        return program
    more = padded_count(num_rows) - num_rows
    if is_quadratic(program):
        y, weighted = _append(program.y, more), None
    else:
        # Any loss has a value at a target that occurs.
        y = _append(program.y, more, np.asarray(program.y)[-1:])
        ones = np.ones(num_rows, program.x.dtype)
        weighted = _append(ones if program.sample_weight is None else program.sample_weight, more)
    column = None if program.column is None else _append(program.column, more)
    x, masks = _append(program.x, more), _append(program.masks, more)
    return replace_fields(program, x=x, y=y, masks=masks, column=column, sample_weight=weighted)


def _append(rows: Array | np.ndarray, count: int, row: np.ndarray | int = 0) -> Array:
    """(n, …) rows followed by ``count`` copies of a further one, zeros by default, on the same device.

    NumPy joins them, as JAX would compile a program for each number of rows.
    """
    if not count:
        return to_device(rows)
    host = np.asarray(rows)
    joined = np.concatenate([host, np.broadcast_to(np.asarray(row, host.dtype), (count, *host.shape[1:]))])
    if isinstance(rows, Array) and rows.committed:
        return jax.device_put(joined, rows.sharding)
    return to_device(joined)
