"""What :func:`fixntk.discover` takes: its arguments checked, held-out rows, and what ends it.

See docs/mathematics.md, M11.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_matrix, as_positive_int, check_same_columns, check_same_rows, is_traced, to_device
from fixntk._compilation import jit_for_host
from fixntk.convex.column_generation import Round
from fixntk.convex.discovery_results import Discovery
from fixntk.convex.groups import check_gates
from fixntk.convex.losses import Loss
from fixntk.convex.program import ConvexProgram
from fixntk.gates.masks import activation_masks
from fixntk.gates.samplers import Sampler
from fixntk.gram import masked_apply


class HeldOut(NamedTuple):
    """Held-out rows, their targets as the loss takes them, and the number of rounds to wait for a smaller loss."""

    x: Float[Array, "m d"]
    targets: Float[Array, "m c"]
    patience: int


class Limits(NamedTuple):
    """What ends a discovery: the bound on the gap, held-out rows, budgets, and the user."""

    goal: float
    held_out: HeldOut | None
    max_rounds: int
    max_gates: int | None
    max_seconds: float | None
    callback: Callable[[Discovery], bool | None] | None


def as_gates(program: ConvexProgram, gates: ArrayLike) -> Array:
    """The gates to start with: those that made the program's masks."""
    if not isinstance(program, ConvexProgram):
        raise TypeError(f"program must be a ConvexProgram, got {type(program).__name__}")
    if is_traced(program, gates):
        raise ValueError("discover cannot be traced: the number of gates it finds depends on the data")
    if program.penalty_weights is not None:
        raise ValueError("program must have no penalty_weights: gates that are discovered have none")
    if program.ridge is not None:
        raise ValueError("program must have no ridge: with one, gates in use violate the dual as well")
    return check_gates(program, gates)


def as_limits(
    goal: float,
    held_out: HeldOut | None,
    callback: Callable[[Discovery], bool | None] | None,
    max_rounds: int,
    max_gates: int | None,
    max_seconds: float | None,
) -> Limits:
    """What ends a discovery, checked."""
    return Limits(
        goal=goal,
        held_out=held_out,
        max_rounds=as_positive_int("max_rounds", max_rounds),
        max_gates=None if max_gates is None else as_positive_int("max_gates", max_gates),
        max_seconds=None if max_seconds is None else as_positive("max_seconds", max_seconds),
        callback=callback,
    )


def as_positive(name: str, value: Any) -> float:
    """A positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not value > 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def as_samplers(samplers: Sequence[Sampler]) -> tuple[Sampler, ...]:
    """Functions that draw candidates."""
    is_sequence = isinstance(samplers, Sequence) and not isinstance(samplers, str)
    if not is_sequence or not all(map(callable, samplers)):
        raise TypeError(f"samplers must be a list of functions (key, num_gates, x, y), got {samplers!r}")
    return tuple(samplers)


def as_held_out(program: ConvexProgram, held_out: tuple[ArrayLike, ArrayLike], patience: int) -> HeldOut:
    """Held-out rows that fit the program, with their targets as its loss takes them."""
    if not isinstance(held_out, tuple | list) or len(held_out) != 2:
        raise ValueError("held_out must be a pair (x, y)")
    x, y = as_matrix("held_out x", held_out[0]), program.loss.encode(held_out[1])
    check_same_columns("program.x", program.x, "held_out x", x)
    check_same_rows("held_out x", x, "held_out y", y)
    if y.shape[1:] != program.y.shape[1:]:
        raise ValueError(f"held_out y must have shape (rows, *{program.y.shape[1:]}), got {y.shape}")
    targets = np.asarray(y).reshape(x.shape[0], -1)
    return HeldOut(
        x.astype(program.x.dtype), to_device(targets.astype(program.x.dtype)), as_positive_int("patience", patience)
    )


def mean_held_out_loss(loss: Loss, held_out: HeldOut, found: Round) -> float:
    """The mean loss of held-out rows with a round's solution."""
    return float(_mean_loss(held_out.x, held_out.targets, *found.padded, found.solution.intercept, loss=loss))


@partial(jit_for_host, static_argnames=("loss",))
def _mean_loss(x: Array, targets: Array, gates: Array, weights: Array, intercept: Array | None, *, loss: Loss) -> Array:
    """The mean loss of rows."""
    outputs = masked_apply(activation_masks(x, gates), x, weights)
    if intercept is not None:
        outputs = outputs + intercept[None, :]
    return jnp.sum(loss.values(outputs, targets)) / x.shape[0]
