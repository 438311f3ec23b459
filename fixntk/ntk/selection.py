"""Which parameters count: leaves of a pytree selected by their path or by a predicate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax

Select = str | Sequence[str] | Callable[[str, Any], Any]

# Number of paths that an error lists.
_NUM_PATHS_SHOWN = 8


def selected_leaves(params: Any, select: Select | None) -> tuple[bool, ...]:
    """For each leaf of params, in the order of ``jax.tree.leaves``, whether it is selected.

    Parameters
    ----------
    params
        Pytree of arrays.
    select
        A path such as ``"head"`` or ``"layers/2/kernel"``: that leaf, or every leaf below it. It may hold the
        wildcards ``*``, ``?`` and ``[…]`` (``*`` matches ``/`` too). Several paths: the leaves that one of them
        selects. A predicate: the leaves for which ``select(path, leaf)`` is true. None: all of them.

    Raises
    ------
    TypeError
        If ``select`` is none of these.
    ValueError
        If it selects nothing.
    """
    named = list(zip(paths_of(params), jax.tree.leaves(params), strict=True))
    if select is None:
        return (True,) * len(named)
    if callable(select):
        selected = tuple(bool(select(path, leaf)) for path, leaf in named)
    else:
        patterns = [select] if isinstance(select, str) else select
        if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
            raise TypeError(f"select must be a path, a list of paths or a function of path and leaf, got {select!r}")
        selected = tuple(any(_matches(path, pattern) for pattern in patterns) for path, _ in named)
    if not any(selected):
        shown = ", ".join(repr(path) for path, _ in named[:_NUM_PATHS_SHOWN])
        more = f" and {len(named) - _NUM_PATHS_SHOWN} more" if len(named) > _NUM_PATHS_SHOWN else ""
        raise ValueError(f"select={select!r} selects none of the parameters: their paths are {shown}{more}")
    return selected


def paths_of(params: Any) -> list[str]:
    """The path of each leaf of params, such as ``"layers/2/kernel"``."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]


def _matches(path: str, pattern: str) -> bool:
    pattern = pattern.strip("/")
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")
