"""Fingerprints of a training's arguments, by which a checkpoint is told from those of other trainings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from fixntk._compilation import describe_computation
from fixntk._files import digest


def fingerprint(update: Callable[..., Any], trained: Any, optimizer_state: Any, **arguments: Any) -> dict[str, str]:
    """A text for each argument, which differs for other values; pytrees of arrays, text, numbers or None.

    The optimiser is a function, of which :func:`fixntk._compilation.describe_computation` tells what it computes.

    Parameters
    ----------
    update
        The optimiser's update, of gradients, state and parameters.
    trained, optimizer_state
        The parameters at the start, and the optimiser's state.
    arguments
        All other arguments, by name.
    """
    optimizer = digest((describe_computation(update, trained, optimizer_state, trained), optimizer_state))
    versions = f"jax {jax.__version__}, optax {optax.__version__}"
    return {"versions": versions, "optimizer": optimizer, **{name: digest(arguments[name]) for name in arguments}}
