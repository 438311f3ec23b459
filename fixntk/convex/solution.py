"""What every solver returns: weights, kernel, certificate, history, and why it stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from fixntk._checks import as_matrix, describe_fields, is_traced
from fixntk.convex.groups import check_gates
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import ConvexProgram
from fixntk.convex.streamed.program import StreamedProgram
from fixntk.gates.masks import activation_masks
from fixntk.gram import masked_apply
from fixntk.networks.convert import from_group_weights
from fixntk.networks.models import GatedReLUNetwork

# A group counts as active if its norm is above this share of the largest; iterative reweighting has no exact zeros.
ACTIVE_SHARE = 1e-4


class History(NamedTuple):
    """One entry for the start and one for each iteration.

    Attributes
    ----------
    primal
        Objective P(W).
    gap
        Duality gap, absolute.
    num_active
        Number of active groups.
    seconds
        Time since the start, compilation and callbacks not included; measured at checkpoints some iterations apart and
        spread evenly between them. NaN under ``jit`` and ``vmap``.
    objective
        What the method itself lowers: the ε-smoothed objective for IRLS, the primal for FISTA.

    See docs/mathematics.md, M7.
    """

    primal: Float[Array, " k"]
    gap: Float[Array, " k"]
    num_active: Float[Array, " k"]
    seconds: Float[Array, " k"]
    objective: Float[Array, " k"]

    def __repr__(self) -> str:
        return describe_fields("History", **self._asdict())


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """A solution of a :class:`ConvexProgram` or a :class:`StreamedProgram` with its certificate.

    Attributes
    ----------
    weights
        (P, d, c) group weights W.
    intercept
        (c,) b; None for a program without one.
    kernel_weights
        (P,) kernel weights η: W is the kernel ridge solution of K(η) for IRLS and Anderson, η_p = ‖W_p‖/τ_p for the
        others; the two agree at the optimum, where the program is multiple kernel learning.
    primal, dual
        Objective of W, and the lower bound on the optimum that comes with it.
    gap, relative_gap
        primal − dual, evaluated without cancellation, and its share of the objective of W = 0 (½‖Y‖²).
    iterations
        Number of iterations made.
    converged
        Whether the relative gap is at most the tolerance; nothing else counts.
    failed
        Whether arithmetic broke down (a kernel matrix that no jitter makes positive definite).
    history
        Per iteration; padded with NaN to ``max_iter + 1`` under ``jit`` and ``vmap``.
    method, tol
        As asked for.
    squeeze
        Whether the targets, and so the predictions, have shape (n,).

    See docs/mathematics.md, M5 and M7.
    """

    # Under vmap there are axes before these. JAX's transformations put other things into a pytree, and the estimators
    # NumPy arrays, hence Any.
    weights: Float[Array, "*batch P d c"] | Any
    intercept: Float[Array, "*batch c"] | Any | None
    kernel_weights: Float[Array, "*batch P"] | Any
    primal: Float[Array, "*batch"] | Any
    dual: Float[Array, "*batch"] | Any
    gap: Float[Array, "*batch"] | Any
    relative_gap: Float[Array, "*batch"] | Any
    iterations: Int[Array, "*batch"] | Any
    converged: Bool[Array, "*batch"] | Any
    failed: Bool[Array, "*batch"] | Any
    history: History
    method: str = field(metadata={"static": True})
    tol: float = field(metadata={"static": True})
    squeeze: bool = field(metadata={"static": True})

    def __repr__(self) -> str:
        # Under jit, vmap and eval_shape there are no numbers to show.
        if is_traced(self) or isinstance(self.gap, jax.ShapeDtypeStruct):
            return f"Solution({self.method}: weights {self.weights.dtype}{list(self.weights.shape)}, traced)"
        if self.gap.ndim:
            return f"Solution({self.method}: {self.gap.size} solutions, {int(jnp.sum(self.converged))} converged)"
        end = "converged" if bool(self.converged) else "stopped early"
        gap = f"relative gap {float(self.relative_gap):.1e} in {int(self.iterations)} iterations"
        num_active = int(jnp.sum(self.active))
        return f"Solution({self.method}: {end}, {gap}, {num_active} of {self.weights.shape[0]} gates active)"

    @property
    def active(self) -> Bool[Array, " P"]:
        """Which groups count as active: a norm above 1e-4 of the largest."""
        return is_active(self.weights)

    @property
    def message(self) -> str:
        """One sentence that says why the solver stopped; not under ``jit`` and ``vmap``."""
        state = f"relative gap {float(self.relative_gap):.2e} after {int(self.iterations)} iterations"
        if bool(self.converged) and float(self.gap) == 0 and not bool(jnp.any(self.weights)):
            return f"{self.method}: reg is at or above max_reg, so W = 0 is the solution"
        if bool(self.converged):
            return f"{self.method} converged: {state}, within tol={self.tol:.1e}"
        wider = "" if self.weights.dtype == jnp.float64 else ", or use float64"
        if not bool(jnp.isfinite(self.relative_gap)):
            end = "there is no certificate: is reg positive?"
        elif bool(self.failed):
            end = f"limited by {self.weights.dtype} rounding error; raise tol or reg{wider}"
        else:
            end = f"more iterations (max_iter) or a larger tol would reach it{wider}"
        return f"{self.method} stopped early: {state}, above tol={self.tol:.1e}; {end}"

    def predict(self, x: ArrayLike, gates: ArrayLike) -> Array:
        """Outputs b + Σ_p 1{x·g_p ≥ 0} x·W_p on new inputs; for classification their signs or largest decide.

        Parameters
        ----------
        x
            (n, d) inputs.
        gates
            (P, d) gates that made the program's masks, in the same order.

        Returns
        -------
        (n,) or (n, c), like the targets.

        Raises
        ------
        ValueError
            If the shapes of x or gates do not fit the weights.
        """
        x, gates = as_matrix("x", x), as_matrix("gates", gates)
        if gates.shape != self.weights.shape[:2]:
            raise ValueError(f"gates must have shape {self.weights.shape[:2]}, got {gates.shape}")
        outputs = masked_apply(activation_masks(x, gates), x, self.weights.astype(x.dtype))
        outputs = outputs if self.intercept is None else outputs + self.intercept[None, :]
        return outputs[:, 0] if self.squeeze else outputs

    def to_network(self, gates: ArrayLike, program: ConvexProgram | StreamedProgram | None = None) -> GatedReLUNetwork:
        """The gated network with these outputs; for one output also with the same objective.

        Parameters
        ----------
        gates
            (P, d) gates that made the program's masks, in the same order.
        program
            The program that was solved, to check that they did.

        Returns
        -------
        One neuron for each active group, for c outputs one for each singular pair of it; every group's under ``jit``
        and ``vmap``. See :func:`fixntk.from_group_weights` for what the objective is.

        Raises
        ------
        ValueError
            If the shape of gates does not fit the weights, or they do not give the program's masks.
        """
        if isinstance(program, StreamedProgram):
            gates = program.check_gates(gates)
        elif program is not None:
            gates = check_gates(program, gates)
        return from_group_weights(gates, self.weights, self.intercept, squeeze=self.squeeze)


def is_active(weights: Array) -> Bool[Array, " P"]:
    """Which groups of (P, d, c) weights have a norm above 1e-4 of the largest."""
    norms = group_norms(weights)
    return norms > ACTIVE_SHARE * jnp.max(norms)
