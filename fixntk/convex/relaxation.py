"""Undoing the shrinkage: the program of the gates that a solution uses, which penalises large groups less.

See docs/mathematics.md, M11.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from fixntk._compilation import jit_for_host
from fixntk.convex.groups import with_masks
from fixntk.convex.program import ConvexProgram, as_group_weights, replace_fields
from fixntk.convex.solution import Solution, is_active
from fixntk.gram import select_masks


def relaxed_program(program: ConvexProgram, solution: Solution, *, power: float = 1.0) -> ConvexProgram:
    r"""The adaptive group lasso of a solution: its active gates alone, large groups penalised less.

    The group lasso shrinks the groups that it selects. Here group p has the penalty weight

    .. math:: τ_p = \bigl(\overline{\|W\|} / \|W_p\|\bigr)^q

    with W the solution's weights and the mean over its active groups; the other groups have empty masks, so that they
    stay zero. The program is an ordinary one: ``fx.solve(relaxed, init=solution)`` certifies its solution, whose gates
    are in the same order. At the same λ small groups shrink more than before: choose λ anew, along
    ``fx.solve_path(relaxed)``.

    Parameters
    ----------
    program
        The problem that was solved, without penalty weights.
    solution
        Its solution.
    power
        q ≥ 0: 0 keeps all groups alike, 1 makes one step of reweighting for the penalty λ Σ_p log ‖W_p‖.

    Raises
    ------
    TypeError
        If ``program`` is not a ConvexProgram.
    ValueError
        If the shape of the weights does not fit, all are zero, the program has penalty weights, or the power is
        negative.

    References
    ----------
    Zou, "The Adaptive Lasso and Its Oracle Properties", 2006; Wang and Leng, "A note on adaptive group lasso", 2008.

    Examples
    --------
    >>> import jax, fixntk as fx
    >>> x = jax.random.normal(jax.random.key(0), (50, 3))
    >>> gates = fx.sample_gates(jax.random.key(1), 20, 3)
    >>> program = fx.ConvexProgram(x, abs(x[:, 0]), fx.activation_masks(x, gates), reg=1.0)
    >>> solution = fx.solve(program, tol=1e-4)
    >>> relaxed = fx.solve(fx.relaxed_program(program, solution), init=solution, tol=1e-4)
    >>> bool(relaxed.converged), relaxed.predict(x, gates).shape
    (True, (50,))

    See docs/mathematics.md, M11.
    """
    if not isinstance(program, ConvexProgram):
        raise TypeError(f"program must be a ConvexProgram, got {type(program).__name__}")
    if program.penalty_weights is not None:
        raise ValueError("program must have no penalty_weights: they are replaced")
    if not power >= 0:
        raise ValueError(f"power must not be negative, got {power}")
    weights = as_group_weights(program, solution.weights)
    masks, penalty_weights, is_any = _relax(program, weights, power)
    if not bool(is_any):
        raise ValueError("solution must have a weight that is not zero: take a smaller reg")
    return replace_fields(with_masks(program, masks), penalty_weights=penalty_weights)


@jit_for_host
def _relax(program: ConvexProgram, weights: Array, power: Array) -> tuple[Array, Array, Array]:
    """Masks, empty where a group is not active, penalty weights, and whether any group is active."""
    norms = program.norm.values(weights)
    active = is_active(weights)
    mean = jnp.sum(jnp.where(active, norms, 0.0)) / jnp.maximum(jnp.sum(active, dtype=norms.dtype), 1)
    # The mean as unit makes the weights independent of the scale of the targets, and λ comparable with the old one.
    ratios = mean / jnp.where(active, norms, mean)
    penalty_weights = jnp.where(active, ratios**power, 1.0).astype(norms.dtype)
    # An empty mask makes the group's data zero, so that its weights are zero at the optimum whatever the penalty.
    masks = select_masks(program.masks, jnp.arange(program.num_gates)).astype(bool)
    return masks & active[None, :], penalty_weights, jnp.any(active)
