"""Rows of an argument that may be larger than memory: one or several .npy files, read tile by tile.

Tiles go over the ends of shards, so that all but the last have the same number of rows. A thread reads the next tile
while the caller computes with this one.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")
Content = TypeVar("Content")

# Kinds of NumPy's dtypes that are real numbers: bool, signed and unsigned integers, floating-point.
_REAL_KINDS = "biuf"


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """The rows of an argument over all of its shards.

    Attributes
    ----------
    name
        The argument's name, for error messages.
    shards
        (n_k, …) arrays of one dtype, in memory or mapped into it.
    ends
        Number of rows up to the end of each shard.
    """

    name: str
    shards: tuple[np.ndarray, ...]
    ends: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Rows({self.name}: {self.dtype}{list(self.shape)} in {len(self.shards)} shards)"

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, …), over all shards."""
        return self.ends[-1], *self.shards[0].shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """That of every shard."""
        return self.shards[0].dtype

    def read(self, begin: int, end: int, dtype: Any) -> np.ndarray:
        """A copy of the rows from ``begin`` on in memory, with rows of zeros after the last row.

        Raises
        ------
        ValueError
            If a row holds NaN or infinity, also in ``dtype``; the message has its number.
        """
        tile = np.zeros((end - begin, *self.shape[1:]), dtype)
        stop = min(end, self.shape[0])
        position = begin
        k = bisect_right(self.ends, begin)
        while position < stop:
            start = self.ends[k] - len(self.shards[k])
            upto = min(stop, self.ends[k])
            # Numbers out of the dtype's range become infinite, which is refused below.
            with np.errstate(over="ignore"):
                tile[position - begin : upto - begin] = self.shards[k][position - start : upto - start]
            position, k = upto, k + 1
        self._check_finite(tile, begin)
        return tile

    def check_files(self) -> None:
        """Raise ValueError where a mapped file has become shorter: reading it would end the process."""
        for shard in self.shards:
            path = shard.filename if isinstance(shard, np.memmap) else None
            if isinstance(shard, np.memmap) and path and os.path.getsize(path) < shard.offset + shard.nbytes:
                raise ValueError(
                    f"{self.name}: {path} has {os.path.getsize(path)} bytes, and had"
                    f" {shard.offset + shard.nbytes} when it was opened: write it again"
                )

    def _check_finite(self, tile: np.ndarray, begin: int) -> None:
        if np.isfinite(tile).all():
            return
        is_bad = ~np.isfinite(tile.reshape(len(tile), -1)).all(axis=1)
        row = begin + int(np.argmax(is_bad))
        k = bisect_right(self.ends, row)
        within = row - (self.ends[k] - len(self.shards[k]))
        where = "" if len(self.shards) == 1 else f", row {within} of shard {k}"
        raise ValueError(
            f"{self.name} holds NaN, infinity or a number beyond {tile.dtype} in row {row}{where} (counted from 0):"
            " remove the row, or replace the value"
        )


def open_rows(name: str, given: Any, ndim: tuple[int, ...]) -> Rows:
    """The rows of an array, of a .npy file, which is mapped into memory, or of a list of these.

    Raises
    ------
    TypeError
        If it is anything else, or holds no real numbers.
    ValueError
        If a file is truncated or no .npy file, shards differ in dtype or in the shape of a row, a shard has another
        number of dimensions than ``ndim``, or there are no rows.
    """
    if isinstance(given, list | tuple):
        shards = tuple(_open(f"{name}[{k}]", shard) for k, shard in enumerate(given))
        if not shards:
            raise ValueError(f"{name} is an empty list: pass at least one array or .npy file")
    else:
        shards = (_open(name, given),)
    first = shards[0]
    for k, shard in enumerate(shards):
        shown = f"{name}[{k}]" if len(shards) > 1 else name
        if shard.ndim not in ndim:
            expected = " or ".join(map(str, ndim))
            raise ValueError(f"{shown} must have {expected} dimensions, got shape {shard.shape}")
        if shard.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"{name} must have shards of one width, got shape {first.shape} for {name}[0] and {shard.shape} for"
                f" {shown}: drop or add columns"
            )
        if shard.dtype != first.dtype:
            raise ValueError(
                f"{name} must have shards of one dtype, got {first.dtype} for {name}[0] and {shard.dtype} for"
                f" {shown}: convert one of them with astype"
            )
    ends = tuple(accumulate(len(shard) for shard in shards))
    if ends[-1] == 0 or 0 in first.shape[1:]:
        raise ValueError(f"{name} is empty: shape {(ends[-1], *first.shape[1:])}")
    return Rows(name, shards, ends)


def _open(name: str, value: Any) -> np.ndarray:
    if isinstance(value, str | os.PathLike):
        try:
            value = np.load(value, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{name}: {os.fspath(value)} is truncated or no .npy file of numbers ({error}): write it again with"
                " numpy.save"
            ) from error
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise TypeError(
            f"{name} must be an array, the path of a .npy file, or a list of these, got {type(value).__name__}"
        )
    # np.asarray would make a plain array of a mapped one, whose file could no longer be looked at.
    array = value if isinstance(value, np.memmap) else np.asarray(value)
    if array.dtype.kind not in _REAL_KINDS:
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array


def check_same_shards(x: Rows, y: Rows) -> None:
    """Raise ValueError unless x and y, or weights, have the same rows: shard by shard if there are as many shards."""
    if x.shape[0] != y.shape[0]:
        counts = f"{x.shape[0]} and {y.shape[0]}"
        raise ValueError(f"x and {y.name} must have the same number of rows over all shards, got {counts}")
    if len(x.shards) != len(y.shards):
        return
    for k, (inputs, targets) in enumerate(zip(x.shards, y.shards, strict=True)):
        if len(inputs) != len(targets):
            raise ValueError(
                f"x[{k}] and {y.name}[{k}] must have the same number of rows, got {len(inputs)} and {len(targets)}:"
                " are the shards in one order?"
            )


def read_ahead(read: Callable[[Item], Content], items: Sequence[Item]) -> Iterator[Content]:
    """Yield ``read`` of each item, in order, while a thread reads the next one.

    An error of ``read`` is raised where its result is due.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fixntk reader") as pool:
        coming = pool.submit(read, items[0])
        for item in [*items[1:], None]:
            content = coming.result()
            if item is not None:
                coming = pool.submit(read, item)
            yield content


def tile_bounds(num_rows: int, tile: int) -> list[tuple[int, int]]:
    """(begin, end) of tiles that cover all rows, all of ``tile`` rows: the last may end after the last row."""
    return [(begin, begin + tile) for begin in range(0, num_rows, tile)]
