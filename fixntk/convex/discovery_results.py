"""What gate discovery returns: a :class:`Discovery`, and for several λ a :class:`DiscoveryPath`.

See docs/mathematics.md, M11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from fixntk.convex.column_generation import FurtherGates
from fixntk.convex.program import ConvexProgram
from fixntk.convex.results_by_reg import ResultsByReg
from fixntk.convex.solution import Solution

# A discovery ended because the bound on its gap over all gates reached the tolerance.
BOUND = "bound"
# A discovery ended because no gate that was found violates a constraint of the dual.
NO_VIOLATION = "no violation"
# A discovery ended because the loss on held-out rows no longer fell.
HELD_OUT = "held-out loss"
# The budgets that can end a discovery, by the names of their arguments.
BUDGETS = ("max_rounds", "max_gates", "max_seconds")


@dataclass(frozen=True, eq=False)
class Discovery:
    """The result of gate discovery.

    Attributes
    ----------
    solution
        Solution of the convex program with the discovered gates; ``solution.predict(x, gates)``.
    gates, masks
        (P, d) and (n, P).
    violation
        Largest ‖Xᵀ D(g) R‖ / λ − 1 of any gate that the last search found, R the solution's residual and the norm the
        penalty's dual one; at most about 0 when none violates the dual.
    exact
        Whether that search went through every mask that a gate on no row's hyperplane can make. Then no gated network
        with such gates (which random ones and those of ReLU networks are) gets below ``lower_bound``, whatever its
        width.
    lower_bound
        Lower bound on the optimum over all gates when ``exact``, −∞ otherwise.
    rounds
        Number of rounds made.
    stopped
        Why it ended: ``"bound"``, the exact bound is within ``tol``; ``"no violation"``, the last search found no
        further gate that violates the dual; ``"held-out loss"``, which has not fallen for ``patience`` rounds;
        ``"max_rounds"``, ``"max_gates"``, ``"max_seconds"``, the budgets; empty where the callback ended it.
    held_out_losses
        (rounds,) mean loss on the held-out rows after each round; empty without such rows.
    further
        (k, d) ``gates`` that violate the dual, which the last search found and no program has yet, and their (n, k)
        ``masks``, on the host. A discovery at a smaller λ starts with them.

    See docs/mathematics.md, M11.
    """

    solution: Solution
    gates: Float[Array, "P d"]
    masks: Bool[Array, "n P"]
    violation: float
    exact: bool
    lower_bound: float
    rounds: int
    stopped: str
    held_out_losses: Float[np.ndarray, " rounds"]
    further: FurtherGates

    def __repr__(self) -> str:
        return f"Discovery({self.message}; objective {float(self.solution.primal):.4g})"

    @property
    def converged(self) -> bool:
        """Whether the last search found no further gate that violates the dual, or the bound is within ``tol``."""
        return self.stopped in (BOUND, NO_VIOLATION)

    @property
    def gap(self) -> float:
        """How far the objective can be above the optimum over all gates; infinite where the search was not exact."""
        return float(self.solution.primal) - self.lower_bound

    @property
    def message(self) -> str:
        """One sentence: the objective reached, why the search ended, and what is proved about it."""
        found = f"{self.gates.shape[0]} gates after {self.rounds} rounds"
        violated = f"a gate violates the dual by {self.violation:.1e}"
        if self.stopped == HELD_OUT:
            return f"{found}: the held-out loss was least, {np.min(self.held_out_losses):.4g}, where {violated}"
        if not self.converged:
            reason = f" ({self.stopped} reached)" if self.stopped else ""
            return f"discovery stopped early with {found}: {violated}{reason}"
        if self.exact:
            return f"{found}: within {self.gap:.1e} of the optimum over all gates"
        return f"{found}: a local search found no other that violates the dual; nothing is proved"


class DiscoveryPath(ResultsByReg[Discovery]):
    """Discoveries for several λ, a sequence.

    Attributes
    ----------
    regs
        (k,) λ of each.

    See docs/mathematics.md, M11.
    """

    _noun = "discoveries"


class Position(NamedTuple):
    """Where a path of discoveries stands.

    Attributes
    ----------
    program, gates
        The program at which the next λ starts, and its (P, d) gates: those in use, and further ones.
    init
        (P, d, c) weights of these gates; zero when None.
    found
        The discovery at the last λ; None before the first.
    number
        Number of λ so far.
    """

    program: ConvexProgram
    gates: Float[Array, "P d"]
    init: Float[Array, "P d c"] | None = None
    found: Discovery | None = None
    number: int = 0
