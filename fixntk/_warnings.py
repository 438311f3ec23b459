"""Warnings of the library."""


class ConvergenceWarning(UserWarning):
    """A solver stopped before the relative gap reached the tolerance; the Solution says where and why."""
