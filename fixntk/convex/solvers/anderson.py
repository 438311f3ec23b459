"""Iterative reweighting extrapolated: Anderson acceleration on the logarithms of the kernel weights, shrinking ε.

A reweighting step moves log η; the last few such moves show which combination of them would have stood still. The
kernel ridge problem is solved there as well, and that is taken unless it is worse. Groups count by their kernel weight,
so that those which vanish do not hold up the others. ε follows the gap down to its last value.

Anderson (1965); Walker and Ni (2011).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from fixntk._numerics import matmul, tiny_of
from fixntk.convex.method import Method
from fixntk.convex.program import ConvexProgram
from fixntk.convex.solvers import irls

# Number of steps that are remembered.
_MEMORY = 6
# Largest extrapolation of the logarithm of a kernel weight.
_LONGEST_STEP = 20.0
# The smoothing by ε costs at most this share of the present gap.
_EPSILON_SHARE = 1e-3


class AndersonState(NamedTuple):
    """State of the extrapolated reweighting.

    Attributes
    ----------
    inner
        That of the reweighting, with the present ε.
    least_epsilon
        ε at the end.
    points, moves
        (6, P) the last log η and how reweighting moved them, the newest last.
    known
        How many of these there are.
    """

    inner: irls.IRLSState
    least_epsilon: Float[Array, ""]
    points: Float[Array, "6 P"]
    moves: Float[Array, "6 P"]
    known: Int[Array, ""]

    @property
    def weights(self) -> Float[Array, "P d c"]:
        """Group weights of the ridge solution."""
        return self.inner.weights

    @property
    def kernel_weights(self) -> Float[Array, " P"]:
        """Kernel weights η."""
        return self.inner.kernel_weights

    @property
    def primal(self) -> Float[Array, ""]:
        """P(W)."""
        return self.inner.primal

    @property
    def gap(self) -> Float[Array, ""]:
        """Duality gap."""
        return self.inner.gap

    @property
    def objective(self) -> Float[Array, ""]:
        """The ε-smoothed objective."""
        return self.inner.objective

    @property
    def failed(self) -> Bool[Array, ""]:
        """Whether no jitter made K(η) + λI positive definite."""
        return self.inner.failed


def init(program: ConvexProgram, kernel_weights: Array, epsilon: Array | None) -> AndersonState:
    """Iteration 0: the kernel ridge solution of the start's weights."""
    assert epsilon is not None
    largest = jnp.maximum(irls.default_epsilon(program, 1.0), epsilon)
    nothing = jnp.zeros((_MEMORY, program.num_gates), program.x.dtype)
    return AndersonState(
        irls.init(program, kernel_weights, largest), epsilon, nothing, nothing, jnp.zeros((), jnp.int32)
    )


def step(program: ConvexProgram, state: AndersonState) -> AndersonState:
    """A reweighting step and an extrapolated one: two masked Grams, two Choleskys."""
    at_zero = program.primal_at_zero()
    # ε falls with the gap: a large one early on keeps groups from being shut down before they are needed.
    share = _EPSILON_SHARE * state.gap / jnp.where(at_zero > 0, at_zero, 1.0)
    allowed = irls.default_epsilon(program, share)
    epsilon = jnp.maximum(jnp.minimum(state.inner.epsilon, allowed), state.least_epsilon)
    plain = irls.step(program, state.inner._replace(epsilon=epsilon))
    # In logarithms, as reweighting multiplies and kernel weights stay positive.
    tiny = tiny_of(epsilon)
    before, after = (jnp.log(jnp.maximum(one.kernel_weights, tiny)) for one in (state.inner, plain))
    points = jnp.concatenate([state.points[1:], before[None]])
    moves = jnp.concatenate([state.moves[1:], (after - before)[None]])
    known = jnp.minimum(state.known + 1, _MEMORY)

    combined = _combine(points, moves, known, jnp.sqrt(plain.kernel_weights))
    moved = jnp.clip(combined, after - _LONGEST_STEP, after + _LONGEST_STEP)
    extrapolated = irls.init(program, jnp.exp(moved), epsilon)
    # The plain step never raises the objective, so that taking the better of both never does either.
    is_better = ~extrapolated.failed & (extrapolated.objective < plain.objective)
    inner = jax.tree.map(lambda new, old: jnp.where(is_better, new, old), extrapolated, plain)
    # The extrapolation failed: clear the history.
    return AndersonState(inner, state.least_epsilon, points, moves, jnp.where(is_better | (known < 3), known, 0))


def _combine(points: Array, moves: Array, known: Array, importance: Array) -> Array:
    """Log η where the least combination of moves leads, the newest point plus its move where little is known."""
    # Type II: the shares γ minimise ‖move − Σ γ_j Δmove_j‖, weighted by √η so that groups near zero count little.
    is_known = (jnp.arange(_MEMORY - 1, dtype=known.dtype) >= _MEMORY - known)[:, None]
    bends = jnp.where(is_known, jnp.diff(moves, axis=0), 0.0)
    steps = jnp.where(is_known, jnp.diff(points, axis=0), 0.0) + bends
    rounding = 100 * float(jnp.finfo(points.dtype).eps)
    shares = jnp.linalg.lstsq((importance[None, :] * bends).T, importance * moves[-1], rcond=rounding)[0]
    return points[-1] + moves[-1] - matmul(steps.T, shares)


METHOD = Method(
    name="anderson",
    init=init,
    steps=lambda _: (step,),
    supports=partial(irls.check_program, "anderson"),
    max_iter=300,
    starts_at="kernel_weights",
    bytes_needed=irls.bytes_needed,
    memory_remedy=irls.MEMORY_REMEDY,
)
