r"""Gates that move: a ReLU network that descends from discovered gates, certified after each round.

A round has two halves. Gradient descent moves the network's neurons, each of which is its own gate, across the
boundaries of their cells. Then the ReLU network's convex program is solved over the cells in which they arrived: its
optimum is at most the network's objective, and has a certificate.

See docs/mathematics.md, M10 and M11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_float_array, as_positive_int, check_same_columns, is_traced
from fixntk._numerics import ignore_convergence_warnings
from fixntk.convex import ConvexProgram, solve_relu
from fixntk.convex.groups import with_masks
from fixntk.convex.program import targets_of
from fixntk.convex.progress import keep_result, progress_bar
from fixntk.convex.relu import ReLUSolution, check_relu_program
from fixntk.convex.solve import solve_quietly
from fixntk.gates.masks import activation_masks, merge_duplicate_masks
from fixntk.networks.descent import descend
from fixntk.networks.models import ReLUNetwork
from fixntk.training.objective import network_objective

# Neurons of a smaller share of the largest are dropped.
_LEAST_NEURON = 1e-6
# Widths are padded to a multiple of this with neurons of zero, which stay zero, so that few are compiled.
_WIDTH_MULTIPLE = 64
# Largest distance of a row to a boundary that counts as rounding, in units of the bound on an inner product's error.
_ROUNDING = 2.0
# Distance to which a boundary is moved from such a row, in units of the bound on an inner product's error.
_MOVED_TO = 8.0
# Tolerance of the start. Gradient descent leaves it at once.
_START_TOL = 1e-3


class Polished(NamedTuple):
    """A ReLU network whose gates have moved to a lower objective.

    Attributes
    ----------
    network
        The network of the solution, without neurons of zero.
    solution
        The optimum of the ReLU network's convex program over the cells of ``gates``, with its certificate; None where
        no round lowered the objective.
    gates
        (P, d), one for each cell.
    objectives
        (k + 1,) the objective of the network at the start, and after each round that lowered it.

    See docs/mathematics.md, M11.
    """

    network: ReLUNetwork
    solution: ReLUSolution | None
    gates: Float[Array, "P d"]
    objectives: Float[np.ndarray, " k"]

    def __repr__(self) -> str:
        width, num_rounds = self.network.hidden.shape[0], len(self.objectives) - 1
        fall = f"objective {self.objectives[0]:.4g} to {self.objectives[-1]:.4g}"
        return f"Polished({fall} in {num_rounds} rounds; {width} neurons in {self.gates.shape[0]} cells)"


def polish(
    program: ConvexProgram,
    gates: ArrayLike,
    *,
    max_rounds: int = 3,
    num_steps: int = 1000,
    optimizer: optax.GradientTransformation | None = None,
    least_fall: float = 1e-3,
    tol: float | None = None,
    callback: Callable[[Polished], bool | None] | None = None,
    progress: bool = False,
) -> Polished:
    """Let gates move, as a ReLU network's do, from those of a gated one to a lower certified objective.

    The start is the gated program's solution over ``gates``, such as those of :func:`fixntk.discover`, written as a
    ReLU network by the cone decomposition. A round trains this network, and solves the ReLU network's convex program
    over the cells of its neurons (:func:`fixntk.solve_relu`). It is kept only if the certified objective is lower. The
    result is optimal over its own cells, within its gap, and no claim is made about others.

    Parameters
    ----------
    program
        Data, λ, weights of rows and intercept: one output, the squared loss, no ridge and no penalty weights. Its masks
        are not used.
    gates
        (P, d) gates to start from; no row of x may lie on the boundary of one.
    max_rounds
        Largest number of rounds.
    num_steps
        Number of gradient steps in a round.
    optimizer
        An optax optimiser, for inputs and targets that are scaled to root mean square one; Adam with a learning rate
        that falls from 0.03 to zero when None.
    least_fall
        The last round is one that lowers the objective by less than this share.
    tol
        Relative gap of each round's solution, as for :func:`fixntk.solve_relu`.
    callback
        Called with the :class:`Polished` after each round that lowered the objective; a true answer stops.
    progress
        Show a bar with rounds, objective and number of neurons.

    Raises
    ------
    ValueError
        If the program is not of the kind above, the gates have other columns than x or a row on their boundary, or a
        number is not positive.
    Interrupted
        A KeyboardInterrupt with the Polished of the last round as ``result``, on Ctrl-C with ``callback`` or
        ``progress``.

    See docs/mathematics.md, M11.
    """
    gates = _check(program, gates, least_fall)
    max_rounds, num_steps = as_positive_int("max_rounds", max_rounds), as_positive_int("num_steps", num_steps)
    found = _start(program, gates)
    kept = keep_result(lambda: found, is_watched=progress or callback is not None)
    with progress_bar("polish", total=max_rounds, unit="round", shown=progress) as show, kept:
        for number in range(1, max_rounds + 1):
            moved = _descend(program, found.network, optimizer, num_steps)
            before, found = found, _solve_cells(program, found, moved, tol)
            show(number, f"objective {found.objectives[-1]:.4g}, {found.network.hidden.shape[0]} neurons")
            if found is before or (callback is not None and callback(found)):
                break
            if found.objectives[-1] > (1 - least_fall) * found.objectives[-2]:
                break
    return found


def _check(program: ConvexProgram, gates: ArrayLike, least_fall: float) -> Float[Array, "P d"]:
    if not isinstance(program, ConvexProgram):
        raise TypeError(f"program must be a ConvexProgram, got {type(program).__name__}")
    if is_traced(program, gates):
        raise ValueError("polish cannot be traced by jit, vmap or grad: the number of its neurons is open")
    check_relu_program(program)
    if program.penalty_weights is not None:
        raise ValueError("program must have no penalty weights to be polished: they belong to gates, which move")
    gates = as_float_array("gates", gates, (2,)).astype(program.x.dtype)
    check_same_columns("x", program.x, "gates", gates)
    if not least_fall > 0:
        raise ValueError(f"least_fall must be positive, got {least_fall}")
    return gates


def _start(program: ConvexProgram, gates: Array) -> Polished:
    """The gated solution as a ReLU network."""
    of_gates = with_masks(program, activation_masks(program.x, gates))
    gated = solve_quietly(of_gates, tol=_START_TOL)
    with ignore_convergence_warnings():
        network = gated.to_network(gates, of_gates).to_relu(program.x)
    return Polished(network, None, gates, np.array([_objective(program, network)]))


def _objective(program: ConvexProgram, network: ReLUNetwork) -> float:
    weights = program.sample_weight
    return float(network_objective(network, program.x, program.y, program.reg, sample_weight=weights))


def _descend(
    program: ConvexProgram, network: ReLUNetwork, optimizer: optax.GradientTransformation | None, num_steps: int
) -> ReLUNetwork:
    """The network after gradient steps, as a stack of one."""
    stack = jax.tree.map(lambda leaf: leaf[None], _pad(network))
    weights = program.sample_weight
    if weights is None:
        weights = jnp.ones(program.x.shape[0], program.x.dtype)
    rows = program.x, targets_of(program), weights
    regs = jnp.asarray(program.reg, program.x.dtype)[None]
    found = descend(stack, *rows, regs, num_steps=num_steps, optimizer=optimizer)
    return jax.tree.map(lambda leaf: leaf[0], found)


def _pad(network: ReLUNetwork) -> ReLUNetwork:
    room = ((0, -network.hidden.shape[0] % _WIDTH_MULTIPLE), (0, 0))
    return replace(network, hidden=jnp.pad(network.hidden, room), output=jnp.pad(network.output, room))


def _solve_cells(program: ConvexProgram, before: Polished, network: ReLUNetwork, tol: float | None) -> Polished:
    """The optimum over the cells of a network's neurons if that is lower than before, else what was before."""
    hidden = _move_into_cells(np.asarray(program.x), np.asarray(network.pruned(_LEAST_NEURON).hidden))
    if not len(hidden):
        return before
    cells = merge_duplicate_masks(activation_masks(program.x, hidden), hidden)[0]
    with ignore_convergence_warnings():
        solution = solve_relu(with_masks(program, cells.masks), cells.gates, tol=tol)
    if not solution.primal < before.objectives[-1]:
        return before
    objectives = np.append(before.objectives, solution.primal)
    return Polished(solution.to_network().pruned(), solution, cells.gates, objectives)


def _move_into_cells(x: Float[np.ndarray, "n d"], hidden: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "k d"]:
    """Neurons as gates on whose boundary no row lies, up to rounding.

    Neurons of an optimum often lie where cells meet, and belong to each of them: such a one is moved by the least that
    brings the rows to its active side. Those that stay on a boundary, as rows depend on one another, are left out.
    """
    rows, moved = x.astype(np.float64), hidden.astype(np.float64)
    margins, bounds = rows @ moved.T, _rounding_of(x, moved)
    is_near = np.abs(margins) <= _ROUNDING * bounds
    for neuron in np.flatnonzero(is_near.any(axis=0)):
        near = is_near[:, neuron]
        wanted = _MOVED_TO * bounds[near, neuron] - margins[near, neuron]
        moved[neuron] += np.linalg.lstsq(rows[near], wanted, rcond=None)[0]
    gates = moved.astype(x.dtype)
    # A row without a common column is on the active side exactly.
    bounds = _rounding_of(x, gates)
    is_inside = (np.abs(rows @ gates.astype(np.float64).T) > _ROUNDING * bounds) | (bounds == 0)
    return gates[is_inside.all(axis=0)]


def _rounding_of(x: np.ndarray, gates: np.ndarray) -> Float[np.ndarray, "n P"]:
    """Bounds on the errors of inner products in the precision of x: d ε |x|·|g|."""
    return x.shape[1] * np.finfo(x.dtype).eps * (np.abs(x.astype(np.float64)) @ np.abs(gates.astype(np.float64)).T)
