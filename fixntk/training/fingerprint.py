"""Fingerprints of a training's arguments, by which a checkpoint is told from those of other trainings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr

from fixntk._checks import entries_of, is_key

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def fingerprint(update: Callable[..., Any], trained: Any, optimizer_state: Any, **arguments: Any) -> dict[str, str]:
    """A text for each argument, which differs for other values; pytrees of arrays, text, numbers or None.

    The optimiser is a function, of which :func:`describe_computation` tells what it computes.

    Parameters
    ----------
    update
        The optimiser's update, of gradients, state and parameters.
    trained, optimizer_state
        The parameters at the start, and the optimiser's state.
    arguments
        All other arguments, by name.
    """
    optimizer = _digest((describe_computation(update, trained, optimizer_state, trained), optimizer_state))
    versions = f"jax {jax.__version__}, optax {optax.__version__}"
    return {"versions": versions, "optimizer": optimizer, **{name: _digest(arguments[name]) for name in arguments}}


def describe_computation(function: Callable[..., Any], *operands: Any) -> tuple[str, list[Any]]:
    """What a function computes of such operands: its program as text, and the constants that it closes over."""
    computation = jax.make_jaxpr(function)(*operands)
    # Line breaks depend on the terminal, and addresses of functions on the process.
    return " ".join(_ADDRESS.sub("", str(computation)).split()), _constants(computation)


def _constants(computation: ClosedJaxpr | Jaxpr) -> list[Any]:
    """Values that a computation closes over, those of the functions that it calls too."""
    found, body = [], computation
    if isinstance(computation, ClosedJaxpr):
        found, body = list(computation.consts), computation.jaxpr
    for equation in body.eqns:
        # Some primitives have their functions without constants of their own, as jax.checkpoint has, but what these
        # functions call may have some.
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_computation):
            if _is_computation(inner):
                found += _constants(inner)
    return found


def _is_computation(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _digest(tree: Any) -> str:
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and is_key(leaf):
            digest.update(str(leaf.dtype).encode())
        array = entries_of(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
