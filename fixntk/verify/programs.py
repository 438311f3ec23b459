"""Claims about convex programs: their solvers, certificates and kernels, and the networks that they describe."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float

from fixntk.convex import ConvexProgram, Solution, solve_quietly
from fixntk.convex.program import program_at_share
from fixntk.convex.relu import solve_relu
from fixntk.gates.masks import activation_masks, sample_gates
from fixntk.networks.models import GatedReLUNetwork
from fixntk.training import network_objective, train
from fixntk.verify.check import Check, Data, check_at_most, check_not_negative, relative_distance, skipped_check
from fixntk.verify.kernels import WeightedGates, ntk_of

# λ/λ_max of the programs.
_REG_SHARE = 0.05
# λ/λ_max of the program that CVXPY solves as well.
_REG_SHARE_FOR_CVXPY = 0.1
# Largest number of rows of that program, such that CVXPY takes seconds.
_MAX_ROWS_FOR_CVXPY = 30
# Largest number of gates of that program.
_MAX_GATES_FOR_CVXPY = 40
# Number of gates of the network that is compared with its convex program.
_NUM_NETWORK_GATES = 50
# Number of networks that are trained, from different initial weights.
_NUM_TRAINED_NETWORKS = 4
# Number of gradient steps of each.
_NUM_TRAINING_STEPS = 3000


def check_solvers(data: Data, gates: WeightedGates) -> Iterator[Check]:
    """IRLS goes from the NTK to the optimum, which FISTA, Newton's method and CVXPY find as well.

    See docs/mathematics.md, M5, M6, M7 and M8.
    """
    masks, weights = gates.arrangements.masks, gates.weights
    program = program_at_share(data.x, data.y, masks, _REG_SHARE)
    half_squares = _half_squares(data.y)

    ntk, ntk_name = ntk_of(data, gates)
    start = solve_quietly(program, method="irls", init=weights, max_iter=0)
    targets = np.asarray(data.y).reshape(len(data.y), -1)
    ridge = np.asarray(ntk) @ np.linalg.solve(np.asarray(ntk) + float(program.reg) * np.eye(len(targets)), targets)
    outputs = jnp.einsum("np,nd,pdc->nc", masks.astype(data.x.dtype), data.x, start.weights)
    claim = f"IRLS starts at kernel ridge regression with {ntk_name}: its outputs"
    yield check_at_most("M6", data, claim, relative_distance(outputs, ridge), 1e-9)

    irls = solve_quietly(program, method="irls", init=weights, tol=1e-9, max_iter=3000)
    objective = np.asarray(irls.history.objective)
    rise = float(np.max(np.diff(objective) / objective[:-1], initial=-np.inf))
    yield check_at_most("M6", data, "IRLS never raises the ε-smoothed objective: largest relative rise", rise, 1e-10)

    fista = solve_quietly(program, method="fista", tol=1e-9, max_iter=50_000)
    yield check_at_most("M7", data, "FISTA's certificate: relative gap", float(fista.relative_gap), 1e-9)
    yield check_at_most("M7", data, "IRLS's certificate: relative gap", float(irls.relative_gap), 1e-3)
    difference = abs(float(irls.primal - fista.primal)) / half_squares
    yield check_at_most("M6", data, "IRLS's limit is FISTA's optimum, as a share of ½‖Y‖²", difference, 1e-4)

    newton = solve_quietly(program, method="newton", tol=1e-10)
    yield check_at_most("M8", data, "Newton's certificate: relative gap", float(newton.relative_gap), 1e-10)
    difference = abs(float(newton.primal - fista.primal)) / half_squares
    yield check_at_most("M8", data, "Newton's optimum is FISTA's, as a share of ½‖Y‖²", difference, 2e-9)

    yield from check_cvxpy(data, masks)
    yield from _check_kernel_form(data, program, weights, fista)


def _check_kernel_form(
    data: Data, program: ConvexProgram, ntk_weights: Float[Array, " P"], optimum: Solution
) -> Iterator[Check]:
    """The program's optimum is that over kernels, so the NTK cannot be below it."""
    half_squares = _half_squares(data.y)
    ntk_objective, primal = float(program.best_scale(ntk_weights).objective), float(optimum.primal)
    excess = ntk_objective - primal
    note = f"NTK {ntk_objective:.6g}, optimum {primal:.6g}: the optimum is {excess / ntk_objective:.1%} lower"
    # The dual bound holds for any weights that the solver returns. The slack covers rounding errors of both objectives.
    holds = ntk_objective >= float(optimum.dual) - 1e-12 * half_squares
    yield Check("M5", data.name, "J(NTK at its best scale) − optimum", excess, "≥ 0", holds, note)
    kernel_objective = float(program.kernel_objective(optimum.kernel_weights))
    difference = abs(kernel_objective - primal) / half_squares
    yield check_at_most("M5", data, "J(η*) = P(W*), as a share of ½‖Y‖²", difference, 1e-7)


def check_cvxpy(data: Data, masks: Bool[Array, "n P"]) -> Iterator[Check]:
    """The optimum is CVXPY's, on a part of the rows and masks.

    See docs/mathematics.md, M6 and M7.
    """
    claims = (
        "FISTA's optimum = CVXPY's",
        "IRLS's limit = CVXPY's optimum",
        "the certified bounds enclose CVXPY's optimum",
    )
    try:
        import cvxpy  # noqa: F401
    except ImportError:
        reason = "cvxpy is not installed: pip install cvxpy clarabel"
        yield from (skipped_check("M7", data, claim, reason) for claim in claims)
        return
    num_rows, num_gates = min(data.x.shape[0], _MAX_ROWS_FOR_CVXPY), min(masks.shape[1], _MAX_GATES_FOR_CVXPY)
    x, y, masks = data.x[:num_rows], data.y[:num_rows], masks[:num_rows, :num_gates]
    program = program_at_share(x, y, masks, _REG_SHARE_FOR_CVXPY)
    half_squares = _half_squares(y)
    optimum = optimum_by_cvxpy(program, tol=1e-9)
    fista = solve_quietly(program, method="fista", tol=1e-10, max_iter=100_000)
    irls = solve_quietly(program, method="irls", tol=1e-8, max_iter=5000)
    note = f"on {num_rows} rows and {num_gates} masks, as a share of ½‖Y‖²"
    yield check_at_most("M7", data, claims[0], abs(float(fista.primal) - optimum) / half_squares, 1e-7, note)
    yield check_at_most("M6", data, claims[1], abs(float(irls.primal) - optimum) / half_squares, 1e-5, note)
    outside = max(float(fista.dual) - optimum, optimum - float(fista.primal)) / half_squares
    yield check_at_most("M7", data, claims[2], outside, 1e-8, note)


def check_networks(data: Data) -> Iterator[Check]:
    """Convex weights are networks, gated and ReLU, with the objectives that the programs say.

    See docs/mathematics.md, M10.
    """
    program, gates = _network_program(data)
    x, y, half_squares = data.x, program.y, _half_squares(program.y)
    gated = solve_quietly(program, method="newton", tol=1e-10)
    network = gated.to_network(gates)
    objective = float(network_objective(network, x, y, program.reg))
    claim = "the gated network's objective = the convex program's, as a share of ½‖Y‖²"
    yield check_at_most("M10", data, claim, abs(objective - float(gated.primal)) / half_squares, 1e-9)

    relu = solve_relu(program, gates, tol=1e-6)
    yield check_at_most("M10", data, "the ReLU program's certificate: relative gap", relu.relative_gap, 1e-6)
    relu_objective = float(network_objective(relu.to_network(), x, y, program.reg))
    claim = "the ReLU network's objective = its program's, as a share of ½‖Y‖²"
    yield check_at_most("M10", data, claim, abs(relu_objective - relu.primal) / half_squares, 1e-9)

    decomposed = network.to_relu(x)
    claim = "the cone decomposition's outputs = the gated network's"
    yield check_at_most("M10", data, claim, relative_distance(decomposed(x), network(x)), 1e-8)
    value = float(network_objective(decomposed, x, y, program.reg))
    lesser = min(relu.primal - float(gated.dual), value - relu.dual)
    note = f"{float(gated.primal):.6g}, {relu.primal:.6g}, {value:.6g}"
    claim = "gated optimum ≤ ReLU optimum ≤ cone decomposition: the lesser difference"
    yield check_not_negative("M10", data, claim, lesser, note)


def check_training(data: Data) -> Iterator[Check]:
    """A network trained by gradient descent ends near the certified bound and never below it.

    See docs/mathematics.md, M10.
    """
    program, gates = _network_program(data)
    bound = float(solve_quietly(program, method="newton", tol=1e-8).dual)
    keys = jax.random.split(jax.random.key(5), _NUM_TRAINED_NETWORKS)
    # Each gate has two neurons.
    width, num_features = 2 * _NUM_NETWORK_GATES, data.x.shape[1]
    networks = jax.vmap(lambda key: GatedReLUNetwork.sample(key, width, num_features, gates=gates))(keys)
    optimizer = optax.adam(1e-2)
    training = train(networks, data.x, program.y, optimizer, reg=program.reg, num_steps=_NUM_TRAINING_STEPS)
    lowest = float(np.min(training.history.objective))
    note = f"the best of {_NUM_TRAINED_NETWORKS} networks ends {lowest / bound - 1:.1e} above"
    yield check_not_negative("M10", data, "Adam's objective − the certified bound", lowest - bound, note)


def optimum_by_cvxpy(program: ConvexProgram, *, tol: float) -> float:
    """The optimum of a program of the squared loss and the plain group norm, by CVXPY and Clarabel.

    Raises
    ------
    ModuleNotFoundError
        Without CVXPY.
    """
    import cvxpy

    x, masks, y = np.asarray(program.x), np.asarray(program.masks, float), np.asarray(program.y)
    targets = y.reshape(len(y), -1)
    variables = [cvxpy.Variable((x.shape[1], targets.shape[1])) for _ in range(masks.shape[1])]
    outputs = sum((masks[:, [p]] * x) @ w for p, w in enumerate(variables))
    penalty = sum(cvxpy.norm(w, "fro") for w in variables)
    loss = 0.5 * cvxpy.sum_squares(outputs - targets)
    problem = cvxpy.Problem(cvxpy.Minimize(loss + float(program.reg) * penalty))
    return float(problem.solve(solver=cvxpy.CLARABEL, tol_gap_rel=tol, tol_gap_abs=tol, tol_feas=tol))


def _network_program(data: Data) -> tuple[ConvexProgram, Float[Array, "P d"]]:
    """A program of one target and of sampled gates, for which no row lies on a boundary."""
    gates = sample_gates(jax.random.key(4), _NUM_NETWORK_GATES, data.x.shape[1], dtype=data.x.dtype)
    y = data.y if data.y.ndim == 1 else data.y[:, 0]
    return program_at_share(data.x, y, activation_masks(data.x, gates), _REG_SHARE), gates


def _half_squares(y: Array) -> float:
    """½‖Y‖², the objective of zero weights."""
    return 0.5 * float(jnp.sum(y**2))
