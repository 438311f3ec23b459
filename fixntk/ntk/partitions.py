"""Entries of a parameter divided into rectangles, so that two uses have a rectangle in common or no entry of it.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Most rectangles of one use. Each is a product of its own in the compiled program.
_MAX_CELLS = 64

# Chosen indices along the groups, the inputs and the outputs of a use.
Indices = tuple[np.ndarray, np.ndarray, np.ndarray]
_AXES = ((1, 2), (0, 2), (0, 1))


class Cell(NamedTuple):
    """A rectangle of a use: its number among the uses, its indices, and the numbers of its entries (G, I, J).

    ``is_swapped`` says that the inputs of the first cell with the same entries are the outputs here.
    """

    use: int
    indices: Indices
    entries: np.ndarray
    is_swapped: bool


def common_cells(uses: Sequence[np.ndarray], size: int) -> list[list[Cell]] | None:
    """Divide uses of a parameter's entries into cells, and return those with the same entries together.

    Parameters
    ----------
    uses
        For each use the numbers of its entries as an array (G, I, J), none of them twice.
    size
        Number of entries of the parameter.

    Returns
    -------
    Lists of cells, each with the same entries in the same order, but for an exchange of the last two axes; lists share
    no entry. None if there would be too many cells, or if the same entries are arranged in different rectangles.
    """
    labels, count = np.zeros(size, int), 1
    for entries in uses:
        # Entries of this use get new labels, so that entries with one label are in the same uses.
        count = _relabel(labels, entries, labels[entries], count)
    is_final = False
    while not is_final:
        is_final = True
        for entries in uses:
            cells = _cell_numbers(labels[entries])
            if cells.max(initial=0) >= _MAX_CELLS:
                return None
            if cells.any() and cells.max() + 1 > len(np.unique(labels[entries])):
                count = _relabel(labels, entries, cells, count)
                is_final = False
    together: dict[int, list[Cell]] = {}
    for number, entries in enumerate(uses):
        for cell in _cells(number, entries, _cell_numbers(labels[entries])):
            others = together.setdefault(int(labels[cell.entries.flat[0]]), [])
            aligned = _aligned(cell, others[0].entries) if others else cell
            if aligned is None:
                return None
            others.append(aligned)
    return list(together.values())


def _relabel(labels: np.ndarray, entries: np.ndarray, codes: np.ndarray, count: int) -> int:
    """Replace the labels of some entries by new ones from ``count`` on, one for each code; return the next new one."""
    if codes.size == 0:
        return count
    is_present = np.bincount(codes.ravel()) > 0
    labels[entries] = (count - 1 + np.cumsum(is_present))[codes]
    return count + int(is_present.sum())


def _cell_numbers(labels: np.ndarray) -> np.ndarray:
    """Numbers of cells (G, I, J), in the coarsest division of the axes in which cells have one label each."""
    if labels.size == 0 or (labels == labels.flat[0]).all():
        return np.zeros(labels.shape, int)
    number = np.zeros((1, 1, 1), int)
    for axis in range(3):
        rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        different, classes = np.unique(rows, axis=0, return_inverse=True)
        number = number * len(different) + np.expand_dims(classes.reshape(-1), _AXES[axis])
    return number


def _cells(use: int, entries: np.ndarray, numbers: np.ndarray) -> list[Cell]:
    found = []
    for number in range(numbers.max(initial=-1) + 1):
        first, second, third = (np.flatnonzero((numbers == number).any(axis=others)) for others in _AXES)
        found.append(Cell(use, (first, second, third), entries[np.ix_(first, second, third)], False))
    return found


def _aligned(cell: Cell, entries: np.ndarray) -> Cell | None:
    """A cell with its indices reordered, so that its entries are those given or have their last axes swapped."""
    if np.array_equal(cell.entries, entries):
        return cell
    for is_swapped in (False, True):
        wanted = entries.swapaxes(1, 2) if is_swapped else entries
        if cell.entries.shape != wanted.shape:
            continue
        # The least entry of a row is the same in whatever order its entries are.
        orders = [
            np.argsort(cell.entries.min(axis=others))[np.argsort(np.argsort(wanted.min(axis=others)))]
            for others in _AXES
        ]
        if np.array_equal(cell.entries[np.ix_(*orders)], wanted):
            first, second, third = (indices[order] for indices, order in zip(cell.indices, orders, strict=True))
            return Cell(cell.use, (first, second, third), wanted, is_swapped)
    return None


def all_in_order(indices: Indices, shape: Sequence[int]) -> bool:
    """Whether indices are all of an array, in their order."""
    return all(np.array_equal(each, np.arange(size)) for each, size in zip(indices, shape, strict=True))


def is_range(numbers: np.ndarray) -> bool:
    """Whether numbers are consecutive and ascending."""
    return bool(numbers.size) and np.array_equal(numbers, np.arange(numbers[0], numbers[0] + numbers.size))


def rectangle(is_own: np.ndarray) -> Indices | None:
    """Indices of the rectangle of an array's true entries, None if these are no rectangle."""
    first, second, third = (np.flatnonzero(is_own.any(axis=others)) for others in _AXES)
    return (first, second, third) if is_own[np.ix_(first, second, third)].all() else None
