"""The row that each check of a claim gives, and the error measures that the checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float


@dataclass(frozen=True)
class Check:
    """One claim, and whether it holds on the data.

    Attributes
    ----------
    number
        The section of docs/mathematics.md that states the claim, for example "M7".
    data
        Name of the data that it was checked on.
    claim
        In words.
    figure
        The number that was measured, None where the claim was not checked.
    tolerance
        The range in which the figure must lie, in words.
    holds
        Whether the figure lies in that range; None where the claim was not checked.
    note
        Why it was not checked, or further numbers.
    """

    number: str
    data: str
    claim: str
    figure: float | None
    tolerance: str
    holds: bool | None
    note: str = ""


@dataclass(frozen=True)
class Data:
    """Data to check claims on, in float64.

    Attributes
    ----------
    name
        Short; each row of the table shows it.
    x
        (n, d) inputs; the last column may be a bias.
    y
        (n,) or (n, c) targets.
    """

    name: str
    x: Float[Array, "n d"]
    y: Float[Array, " n"] | Float[Array, "n c"]


def check_at_most(number: str, data: Data, claim: str, figure: float, bound: float, note: str = "") -> Check:
    """A claim that holds if the figure is at most the bound."""
    return Check(number, data.name, claim, figure, f"≤ {bound:g}", bool(figure <= bound), note)


def check_not_negative(number: str, data: Data, claim: str, figure: float, note: str) -> Check:
    """A claim that holds if the figure is at least zero."""
    return Check(number, data.name, claim, figure, "≥ 0", bool(figure >= 0), note)


def check_near(number: str, data: Data, claim: str, figure: float, expected: float, tolerance: float) -> Check:
    """A claim that holds if the figure is at most the tolerance away from the expected number."""
    holds = bool(abs(figure - expected) <= tolerance)
    return Check(number, data.name, claim, figure, f"{expected:g} ± {tolerance:g}", holds)


def skipped_check(number: str, data: Data, claim: str, reason: str) -> Check:
    """A claim that cannot be checked here, usually because an optional package is not installed."""
    return Check(number, data.name, claim, None, "", None, reason)


def run_check(check: Callable[..., Iterator[Check]], data: Data, *arguments: object) -> Iterator[Check]:
    """Yield the rows of one check; an exception inside it becomes a failed row, so that the other checks still run."""
    try:
        yield from check(data, *arguments)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        claim = (check.__doc__ or check.__name__).splitlines()[0]
        yield Check("", data.name, claim, None, "", False, f"{type(error).__name__}: {error}")


def relative_distance(actual: ArrayLike, expected: ArrayLike) -> float:
    """Frobenius norm of the difference of two arrays, divided by the norm of the expected one."""
    return float(np.linalg.norm(np.asarray(actual) - np.asarray(expected)) / np.linalg.norm(np.asarray(expected)))


def slope_of_log_error(error: Callable[[int, int], float], sizes: list[int], num_repeats: int) -> float:
    """Slope of the log root mean square error over the log size: −½ where errors fall as size^(−½).

    ``error`` takes a size and a seed; each size has ``num_repeats`` seeds of its own.
    """
    means = [np.sqrt(np.mean([error(size, 100 * size + seed) ** 2 for seed in range(num_repeats)])) for size in sizes]
    return float(np.polyfit(np.log(sizes), np.log(means), 1)[0])
