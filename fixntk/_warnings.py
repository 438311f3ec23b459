"""Warnings of the library."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class ConvergenceWarning(UserWarning):
    """A solver stopped before the relative gap reached the tolerance; the Solution says where and why."""


@contextmanager
def ignore_convergence_warnings() -> Iterator[None]:
    """Without warnings of solvers that stop early, for callers that look at ``converged`` themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
