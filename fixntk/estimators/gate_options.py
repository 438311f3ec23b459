"""Where an estimator's gates come from: random hyperplanes, a sampler, an array, or the caller's function."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from fixntk._checks import as_matrix
from fixntk.estimators.preprocessing import padded_width
from fixntk.gates.masks import sample_gates
from fixntk.gates.samplers import SAMPLERS

# What ``gates`` may be besides the names of samplers, an array and a function.
RANDOM = "random"
DISCOVERED = "discovered"
TRAINED = "trained"
# Sources of gates that start from random ones, which are not candidates themselves.
STARTING_AT_RANDOM = (DISCOVERED, TRAINED)
AUTO = "auto"


class GateOptions(NamedTuple):
    """Options for drawing gates.

    Attributes
    ----------
    source
        ``"random"``: N(0, I); ``"discovered"``, ``"trained"`` and ``"auto"``: the same, to begin with; a name of
        :data:`fixntk.gates.samplers.SAMPLERS`; (P, d') gates; or a function ``(key, num_gates, x, y) -> (P, d')``.
    num_gates
        Number of gates P, where the source does not decide it.
    num_columns
        d', the number of columns of the scaled inputs without the padding, the bias column included.
    seed
        For JAX's random key.
    """

    source: Any
    num_gates: Any
    num_columns: int
    seed: int

    @property
    def name(self) -> str:
        """The name that the source is; empty for an array, which has no truth value in comparisons, or a function."""
        return self.source if isinstance(self.source, str) else ""


def check_source(source: Any, *others: str) -> None:
    """Raise ValueError unless gates can come from a source.

    ``others`` are names besides those of the samplers and "random".
    """
    names = (RANDOM, *others, *SAMPLERS)
    if isinstance(source, str) and source not in names:
        raise ValueError(f"gates must be one of {', '.join(map(repr, names))}, an array or a function, got {source!r}")


def draw_gates(
    options: GateOptions, x: Float[np.ndarray, "n d"], targets: Float[np.ndarray, "n c"]
) -> Float[Array, "P w"]:
    """Gates for scaled rows, without padding, and their targets; zero in the columns of the padding.

    Raises
    ------
    ValueError
        If gates that are given or returned do not have the inputs' columns, are not finite, or are zero.
    """
    key = jax.random.key(options.seed)
    source = SAMPLERS.get(options.source, options.source) if isinstance(options.source, str) else options.source
    if isinstance(source, str):
        gates = sample_gates(key, options.num_gates, options.num_columns)
    elif callable(source):
        found = source(key, options.num_gates, jnp.asarray(x), jnp.asarray(_as_one_target(targets)))
        gates = as_matrix("gates", found)
    else:
        gates = as_matrix("gates", source)
    if gates.shape[1] != options.num_columns:
        raise ValueError(
            f"gates must have {options.num_columns} columns, those of the scaled inputs with their bias column, got"
            f" shape {gates.shape}"
        )
    if not bool(jnp.all(jnp.any(gates != 0, axis=1))):
        raise ValueError("gates must not be zero: such a gate is active on every row")
    return jnp.pad(gates, ((0, 0), (0, padded_width(options.num_columns) - options.num_columns)))


def _as_one_target(targets: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    """A number for each row: the target, for several classes the class, else the first principal component."""
    if targets.shape[1] == 1:
        return targets[:, 0]
    if np.all(np.abs(targets) == 1):
        return np.argmax(targets, axis=1).astype(targets.dtype)
    centred = targets - targets.mean(axis=0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
