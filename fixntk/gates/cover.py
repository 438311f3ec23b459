"""Cover's count of the cells of hyperplanes in general position.

See docs/mathematics.md, M4.
"""

from __future__ import annotations

from math import comb
from typing import Any

from fixntk._checks import as_int


def cover_count(num_rows: int, rank: int) -> int:
    """Number of cells of ``num_rows`` hyperplanes in general position in R^rank: 2 Σ_{k<r} C(n−1, k); 1 without any.

    Parameters
    ----------
    num_rows
        n ≥ 0, the number of hyperplanes: of rows that are not zero and not parallel to each other.
    rank
        r ≥ 0, the rank of these rows.

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If an argument is negative.

    References
    ----------
    Cover, "Geometrical and statistical properties of systems of linear inequalities with applications in pattern
    recognition", IEEE Transactions on Electronic Computers, 1965.

    See docs/mathematics.md, M4.
    """
    num_rows, rank = _as_count("num_rows", num_rows), _as_count("rank", rank)
    if num_rows == 0:
        return 1
    return 2 * sum(comb(num_rows - 1, k) for k in range(rank))


def _as_count(name: str, value: Any) -> int:
    count = as_int(name, value)
    if count < 0:
        raise ValueError(f"{name} must not be negative, got {count}")
    return count
