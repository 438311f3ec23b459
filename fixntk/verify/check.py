"""The claims behind fixntk, each a function of the data that yields what was measured and whether it holds.

A claim that needs a package which is not installed says so and is counted as not checked. Everything is in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from fixntk._warnings import ConvergenceWarning
from fixntk.convex import ConvexProgram, Solution, solve
from fixntk.convex.relu import solve_relu
from fixntk.gates.arrangements import cover_count, distinct_hyperplanes, enumerate_arrangements
from fixntk.gates.masks import Arrangements, activation_masks, sample_gates
from fixntk.gates.solid_angles import arrangement_weights
from fixntk.gram import MaskedGram, masked_gram
from fixntk.networks.models import GatedReLUNetwork
from fixntk.ntk import empirical_ntk, gated_relu_ntk, mlp_kernel
from fixntk.training import network_objective, train

_MAX_CELLS = 50_000
_NUM_GATES = 200
_NUM_NETWORK_GATES = 50


@dataclass(frozen=True)
class Check:
    """One claim and whether it holds here.

    Attributes
    ----------
    number
        Its number in docs/mathematics.md.
    data
        Name of the data that it was checked on.
    claim
        In words.
    figure
        What was measured, None where it was not checked.
    tolerance
        What the figure is compared with, in words.
    holds
        Whether it is within; None where it was not checked.
    note
        Why not, or what else is worth knowing.
    """

    number: str
    data: str
    claim: str
    figure: float | None
    tolerance: str
    holds: bool | None
    note: str = ""


@dataclass(frozen=True)
class Data:
    """Inputs (n, d), the last column a bias or not, and targets (n,) or (n, c), in float64."""

    name: str
    x: Array
    y: Array


def run_checks(data_sets: list[Data]) -> Iterator[Check]:
    """All checks on all data sets, as they are finished."""
    for data in data_sets:
        arrangements, weights, exact = _masks_and_weights(data)
        yield from _guarded(check_masked_gram, data, arrangements)
        yield from _guarded(check_solid_angles, data, arrangements, weights, exact)
        yield from _guarded(check_sampling_rate, data)
        yield from _guarded(check_neural_tangents, data)
        yield from _guarded(check_analytic, data)
        yield from _guarded(check_empirical, data)
        yield from _guarded(check_solvers, data, arrangements, weights, exact)
        yield from _guarded(check_networks, data)
        yield from _guarded(check_training, data)


def check_masked_gram(data: Data, arrangements: Arrangements) -> Iterator[Check]:
    """K(η) is the weighted sum of the gates' Gram matrices, dense and matrix-free (M2)."""
    masks, x = np.asarray(arrangements.masks)[:, :_NUM_GATES], np.asarray(data.x)
    weights = np.asarray(np.random.default_rng(1).uniform(size=masks.shape[1]))
    expected = np.zeros((x.shape[0], x.shape[0]))
    for weight, mask in zip(weights, masks.T.astype(float), strict=True):
        expected += weight * np.outer(mask, mask) * (x @ x.T)
    dense = masked_gram(weights, masks, x)
    yield _below("M2", data, "masked Gram = Σ_p η_p D_p X Xᵀ D_p, summed one by one", _distance(dense, expected), 1e-12)
    vector = np.random.default_rng(2).standard_normal(x.shape[0])
    product = MaskedGram(weights, masks, x) @ vector
    yield _below(
        "M2",
        data,
        "its matrix-free product with a vector is the dense one",
        _distance(product, expected @ vector),
        1e-12,
    )


def check_solid_angles(data: Data, arrangements: Arrangements, weights: Array, exact: bool) -> Iterator[Check]:
    """The NTK is the masked Gram kernel with the solid angles as weights (M3, M4)."""
    ntk = gated_relu_ntk(data.x)
    rank = distinct_hyperplanes(np.asarray(data.x)).normals.shape[1]
    if exact:
        num_cells = arrangements.masks.shape[1]
        yield _below(
            "M4", data, f"the solid angles of all {num_cells} cells sum to 1", abs(float(weights.sum()) - 1), 1e-10
        )
        kernel = masked_gram(weights, arrangements.masks, data.x)
        claim = f"NTK = masked Gram with exact solid angles (rank {rank})"
        yield _below("M3", data, claim, _distance(kernel, ntk), 1e-10)
        return
    # One number per random direction and gate, so that its standard error is known.
    directions = jax.random.normal(jax.random.key(5), (data.x.shape[0], 8), data.x.dtype)
    masks = activation_masks(data.x, sample_gates(jax.random.key(6), 20_000, data.x.shape[1], dtype=data.x.dtype))
    samples = jnp.stack([jnp.sum((masks.T @ (data.x * v[:, None])) ** 2, axis=1) for v in directions.T])
    errors = jnp.std(samples, axis=1) / np.sqrt(samples.shape[1])
    exact_forms = jnp.einsum("nk,nm,mk->k", directions, ntk, directions)
    figure = float(jnp.max(jnp.abs(jnp.mean(samples, axis=1) - exact_forms) / errors))
    claim = f"NTK = masked Gram of 20,000 random gates (rank {rank}), in standard errors, 8 quadratic forms"
    yield _below("M3", data, claim, figure, 4)


def check_sampling_rate(data: Data) -> Iterator[Check]:
    """The NTK of m sampled gates converges at rate m^{-1/2} (M3)."""
    ntk = gated_relu_ntk(data.x)

    def distance(num_gates: int, seed: int) -> float:
        gates = sample_gates(jax.random.key(seed), num_gates, data.x.shape[1], dtype=data.x.dtype)
        kernel = masked_gram(jnp.full(num_gates, 1 / num_gates), activation_masks(data.x, gates), data.x)
        return _distance(kernel, ntk)

    slope = _fitted_slope(distance, [2**k for k in range(5, 13)], repeats=16)
    yield _near("M3", data, "sampled gates converge to the NTK: slope of log error over log m", slope, -0.5, 0.1)


def check_neural_tangents(data: Data) -> Iterator[Check]:
    """The NTK against neural-tangents', analytic and empirical (M3)."""
    claims = (
        "NTK = d·(ntk − nngp) of neural-tangents' Dense–Relu–Dense, off the diagonal",
        "its empirical NTK of a gated network of width 512 = masked Gram of the same gates",
        "its empirical NTK of gated networks converges: slope of log error over log width",
    )
    try:
        from fixntk.ntk.neural_tangents_compat import import_neural_tangents

        nt = import_neural_tangents()
    except ImportError as error:
        for claim in claims:
            yield Check("M3", data.name, claim, None, "", None, str(error))
        return
    x, ntk = data.x, gated_relu_ntk(data.x)

    def dense() -> tuple[Callable, Callable, Callable]:
        return nt.stax.Dense(1, W_std=1.0, b_std=None)

    kernel = nt.stax.serial(dense(), nt.stax.Relu(), dense())[2](x, None, ("nngp", "ntk"))
    figure = _distance_between_ordinary(x, x.shape[1] * (kernel.ntk - kernel.nngp), ntk)
    yield _below("M3", data, claims[0], figure, 1e-8)

    def gates_of(num_gates: int, seed: Array | int) -> Array:
        return sample_gates(jax.random.key(seed), num_gates, x.shape[1], dtype=x.dtype)

    @partial(jax.jit, static_argnames="num_gates")
    def empirical(num_gates: int, seed: Array | int) -> Array:
        gates = gates_of(num_gates, seed)
        signs = jnp.where(jax.random.bernoulli(jax.random.key(seed + 1), shape=(num_gates,)), 1.0, -1.0)

        def network(weights: Array, inputs: Array) -> Array:
            return (activation_masks(inputs, gates) * (inputs @ weights.T)) @ signs[:, None] / np.sqrt(num_gates)

        implementation = nt.NtkImplementation.JACOBIAN_CONTRACTION
        kernel_fn = nt.empirical_ntk_fn(network, trace_axes=(1,), implementation=implementation)
        return kernel_fn(x, None, jnp.zeros((num_gates, x.shape[1])))

    same = masked_gram(jnp.full(512, 1 / 512), activation_masks(x, gates_of(512, 0)), x)
    yield _below("M3", data, claims[1], _distance(empirical(512, 0), same), 1e-10)
    slope = _fitted_slope(lambda width, seed: _distance(empirical(width, seed), ntk), [16, 64, 256, 1024], repeats=16)
    yield _near("M3", data, claims[2], slope, -0.5, 0.15)


def check_analytic(data: Data) -> Iterator[Check]:
    """Kernels of deep networks in closed form, by quadrature, and neural-tangents' (M13)."""
    x, ntk = data.x, gated_relu_ntk(data.x)
    two_layers = mlp_kernel(x, depth=1)
    claim = "ReLU, one hidden layer: d·(ntk − nngp) = the gated network's NTK"
    yield _below("M13", data, claim, _distance(x.shape[1] * (two_layers.ntk - two_layers.nngp), ntk), 1e-12)

    # Far out the quadrature would need more terms.
    scale = 1 / jnp.max(jnp.sum(x**2, axis=1))
    closed, quadrature = (
        mlp_kernel(x, depth=2, activation=gelu, w_std=1.2, b_std=0.1, input_scale=scale).ntk
        for gelu in ("gelu", _exact_gelu)
    )
    claim = "GELU, two hidden layers: closed form = Gauss–Hermite quadrature"
    yield _below("M13", data, claim, _distance(closed, quadrature), 1e-9)

    claim = "ReLU, three hidden layers: NTK = neural-tangents', off the diagonal"
    try:
        from fixntk.ntk.neural_tangents_compat import import_neural_tangents

        stax = import_neural_tangents().stax
    except ImportError as error:
        yield Check("M13", data.name, claim, None, "", None, str(error))
        return
    dense = stax.Dense(1, W_std=1.4, b_std=0.1)
    theirs = stax.serial(*[dense, stax.Relu()] * 3, dense)[2](x, None, "ntk")
    ours = mlp_kernel(x, depth=3, w_std=1.4, b_std=0.1).ntk
    yield _below("M13", data, claim, _distance_between_ordinary(x, ours, theirs), 1e-9)


def _exact_gelu(values: Array) -> Array:
    return jax.nn.gelu(values, approximate=False)


def check_empirical(data: Data) -> Iterator[Check]:
    """The empirical NTK against Jacobians, neural-tangents' and the analytic one (M3, M14)."""
    x, ntk = data.x, gated_relu_ntk(data.x)
    keys = jax.random.split(jax.random.key(7), 3)
    shapes = ((x.shape[1], 16), (16,), (16, 2))
    params = [jax.random.normal(key, shape, x.dtype) for key, shape in zip(keys, shapes, strict=True)]

    def network(params: list[Array], inputs: Array) -> Array:
        return jax.nn.gelu(inputs @ params[0] + params[1]) @ params[2]

    structured = empirical_ntk(network, params, x, method="structured")
    leaves = jax.tree.leaves(jax.jit(jax.jacobian(network))(params, x))
    jacobian = jnp.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)
    expected = jnp.einsum("iop,jqp->ijoq", jacobian, jacobian)
    claim = "structured empirical NTK of a two-layer network = its Jacobians multiplied"
    yield _below("M14", data, claim, _distance(structured, expected), 1e-10)

    claim = "the same = neural-tangents' empirical NTK"
    try:
        from fixntk.ntk.neural_tangents_compat import import_neural_tangents

        nt = import_neural_tangents()
        implementation = nt.NtkImplementation.JACOBIAN_CONTRACTION
        theirs = nt.empirical_ntk_fn(network, trace_axes=(), implementation=implementation)(x, None, params)
        yield _below("M14", data, claim, _distance(structured, theirs), 1e-10)
    except ImportError as error:
        yield Check("M14", data.name, claim, None, "", None, str(error))

    @partial(jax.jit, static_argnames="width")
    def gated(width: int, seed: Array | int) -> Array:
        gates = sample_gates(jax.random.key(seed), width, x.shape[1], dtype=x.dtype)

        def gated_network(weights: Array, inputs: Array) -> Array:
            return jnp.sum(activation_masks(inputs, gates) * (inputs @ weights), axis=1, keepdims=True) / np.sqrt(width)

        return empirical_ntk(gated_network, jnp.zeros((x.shape[1], width)), x, outputs="trace")

    slope = _fitted_slope(lambda width, seed: _distance(gated(width, seed), ntk), [16, 64, 256, 1024], repeats=16)
    claim = "empirical NTK of gated networks converges to the analytic: slope of log error over log width"
    yield _near("M14", data, claim, slope, -0.5, 0.15)


def check_solvers(data: Data, arrangements: Arrangements, weights: Array, exact: bool) -> Iterator[Check]:
    """IRLS from the NTK to the optimum, FISTA, CVXPY, and what the NTK leaves (M5, M6, M7)."""
    masks, x, y = arrangements.masks, data.x, data.y
    largest = ConvexProgram(x, y, masks, 1.0).max_reg()
    program = ConvexProgram(x, y, masks, 0.05 * largest)
    scale = float(program.primal_at_zero())

    start = solve_quietly(program, method="irls", init=weights, max_iter=0)
    ntk = np.asarray(gated_relu_ntk(x) if exact else masked_gram(weights, masks, x))
    ridge = ntk @ np.linalg.solve(ntk + float(program.reg) * np.eye(x.shape[0]), np.asarray(program.targets))
    name = "the closed-form NTK" if exact else "the NTK of the same gates"
    claim = f"IRLS starts at kernel ridge regression with {name}: its outputs"
    yield _below("M6", data, claim, _distance(program.fitted(start.weights), ridge), 1e-9)

    path = solve_quietly(program, method="irls", init=weights, tol=1e-9, max_iter=3000)
    objective = np.asarray(path.history.objective)
    rise = float(np.max(np.diff(objective) / objective[:-1], initial=-np.inf))
    yield _below("M6", data, "IRLS never raises the ε-smoothed objective: largest relative rise", rise, 1e-10)

    fista = solve_quietly(program, method="fista", tol=1e-9, max_iter=50_000)
    yield _below("M7", data, "FISTA's certificate: relative gap", float(fista.relative_gap), 1e-9)
    yield _below("M7", data, "IRLS's certificate: relative gap", float(path.relative_gap), 1e-3)
    difference = abs(float(path.primal - fista.primal)) / scale
    yield _below("M6", data, "IRLS's limit is FISTA's optimum, as a share of ½‖Y‖²", difference, 1e-4)

    newton = solve_quietly(program, method="newton", tol=1e-10)
    yield _below("M8", data, "Newton's certificate: relative gap", float(newton.relative_gap), 1e-10)
    difference = abs(float(newton.primal - fista.primal)) / scale
    yield _below("M8", data, "Newton's optimum is FISTA's, as a share of ½‖Y‖²", difference, 2e-9)

    yield from _against_cvxpy(data, masks)

    ntk_objective, optimum = float(program.best_scale(weights).objective), float(fista.primal)
    left = ntk_objective - optimum
    note = f"NTK {ntk_objective:.6g}, optimum {optimum:.6g}: {left / ntk_objective:.1%} left on the table"
    holds = ntk_objective >= float(fista.dual) - 1e-12 * scale
    yield Check("M5", data.name, "J(NTK at its best scale) − optimum", left, "≥ 0", holds, note)
    kernel_value = float(program.kernel_objective(fista.kernel_weights))
    yield _below(
        "M5", data, "J(η*) = P(W*), as a share of ½‖Y‖²", abs(kernel_value - float(fista.primal)) / scale, 1e-7
    )


def _network_program(data: Data) -> tuple[ConvexProgram, Array]:
    """A program of sampled gates, of which no row is on the boundary, and of one target."""
    gates = sample_gates(jax.random.key(4), _NUM_NETWORK_GATES, data.x.shape[1], dtype=data.x.dtype)
    y = data.y if data.y.ndim == 1 else data.y[:, 0]
    program = ConvexProgram(data.x, y, activation_masks(data.x, gates), 1.0)
    return program.with_reg(0.05 * program.max_reg()), gates


def check_networks(data: Data) -> Iterator[Check]:
    """Convex weights are networks, gated and ReLU, with the objectives that the programs say (M10)."""
    program, gates = _network_program(data)
    x, y, scale = data.x, program.y, float(program.primal_at_zero())
    gated = solve_quietly(program, method="newton", tol=1e-10)
    network = gated.to_network(gates)
    objective = float(network_objective(network, x, y, program.reg))
    claim = "the gated network's objective = the convex program's, as a share of ½‖Y‖²"
    yield _below("M10", data, claim, abs(objective - float(gated.primal)) / scale, 1e-9)

    solution = solve_relu(program, gates, tol=1e-6)
    yield _below("M10", data, "the ReLU program's certificate: relative gap", solution.relative_gap, 1e-6)
    relu_objective = float(network_objective(solution.to_network(), x, y, program.reg))
    claim = "the ReLU network's objective = its program's, as a share of ½‖Y‖²"
    yield _below("M10", data, claim, abs(relu_objective - solution.primal) / scale, 1e-9)

    decomposed = network.to_relu(x)
    claim = "the cone decomposition's outputs = the gated network's"
    yield _below("M10", data, claim, _distance(decomposed(x), network(x)), 1e-8)
    value = float(network_objective(decomposed, x, y, program.reg))
    least = min(solution.primal - float(gated.dual), value - solution.dual)
    note = f"{float(gated.primal):.6g}, {solution.primal:.6g}, {value:.6g}"
    claim = "gated optimum ≤ ReLU optimum ≤ cone decomposition: the lesser difference"
    yield Check("M10", data.name, claim, least, "≥ 0", least >= 0, note)


def check_training(data: Data) -> Iterator[Check]:
    """A network trained by gradient descent comes near to the certified bound and never below it (M10)."""
    program, gates = _network_program(data)
    bound = float(solve_quietly(program, method="newton", tol=1e-8).dual)
    keys = jax.random.split(jax.random.key(5), 4)
    networks = jax.vmap(lambda key: GatedReLUNetwork.sample(key, 2 * _NUM_NETWORK_GATES, data.x.shape[1], gates=gates))(
        keys
    )
    training = train(networks, data.x, program.y, optax.adam(1e-2), reg=program.reg, num_steps=3000)
    lowest = float(np.min(training.history.objective))
    note = f"the best of 4 networks ends {lowest / bound - 1:.1e} above"
    claim = "Adam's objective − the certified bound"
    yield Check("M10", data.name, claim, lowest - bound, "≥ 0", lowest >= bound, note)


def _against_cvxpy(data: Data, masks: Array) -> Iterator[Check]:
    claims = (
        "FISTA's optimum = CVXPY's",
        "IRLS's limit = CVXPY's optimum",
        "the certified bounds enclose CVXPY's optimum",
    )
    try:
        import cvxpy  # noqa: F401
    except ImportError:
        for claim in claims:
            yield Check("M7", data.name, claim, None, "", None, "cvxpy is not installed: pip install cvxpy clarabel")
        return
    rows, gates = min(data.x.shape[0], 30), min(masks.shape[1], 40)
    x, y, masks = data.x[:rows], data.y[:rows], masks[:rows, :gates]
    program = ConvexProgram(x, y, masks, 0.1 * ConvexProgram(x, y, masks, 1.0).max_reg())
    scale = float(program.primal_at_zero())
    optimum = optimum_by_cvxpy(program, tol=1e-9)
    fista = solve_quietly(program, method="fista", tol=1e-10, max_iter=100_000)
    irls = solve_quietly(program, method="irls", tol=1e-8, max_iter=5000)
    note = f"on {rows} rows and {gates} masks, as a share of ½‖Y‖²"
    yield _below("M7", data, claims[0], abs(float(fista.primal) - optimum) / scale, 1e-7, note)
    yield _below("M6", data, claims[1], abs(float(irls.primal) - optimum) / scale, 1e-5, note)
    outside = max(float(fista.dual) - optimum, optimum - float(fista.primal)) / scale
    yield _below("M7", data, claims[2], outside, 1e-8, note)


def optimum_by_cvxpy(program: ConvexProgram, *, tol: float) -> float:
    """The optimum of a program of the squared loss and the plain group norm, by CVXPY and Clarabel.

    Raises
    ------
    ModuleNotFoundError
        Without CVXPY.
    """
    import cvxpy

    variables = [cvxpy.Variable(program.group_shape[1:]) for _ in range(program.num_gates)]
    x, masks = np.asarray(program.x), np.asarray(program.masks, float)
    fitted = sum((masks[:, [p]] * x) @ w for p, w in enumerate(variables))
    penalty = sum(cvxpy.norm(w, "fro") for w in variables)
    loss = 0.5 * cvxpy.sum_squares(fitted - np.asarray(program.targets))
    problem = cvxpy.Problem(cvxpy.Minimize(loss + float(program.reg) * penalty))
    return float(problem.solve(solver=cvxpy.CLARABEL, tol_gap_rel=tol, tol_gap_abs=tol, tol_feas=tol))


def solve_quietly(program: ConvexProgram, *, method: str, **options: Any) -> Solution:
    """Solve without the warning of an early stop: the checks look at the gap themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return solve(program, method=method, **options)


def _masks_and_weights(data: Data) -> tuple[Arrangements, Array, bool]:
    """All masks with exact weights where the rank allows, otherwise sampled gates with a share each."""
    planes = distinct_hyperplanes(np.asarray(data.x))
    num_planes, rank = planes.normals.shape
    if rank <= 3 and cover_count(num_planes, rank) <= _MAX_CELLS:
        arrangements = enumerate_arrangements(data.x)
        return arrangements, arrangement_weights(data.x, arrangements)[0], True
    gates = sample_gates(jax.random.key(3), _NUM_GATES, data.x.shape[1], dtype=data.x.dtype)
    weights = jnp.full(_NUM_GATES, 1 / _NUM_GATES)
    return Arrangements(activation_masks(data.x, gates), gates), weights, False


def _guarded(check: Callable[..., Iterator[Check]], data: Data, *arguments: object) -> Iterator[Check]:
    """Turn an exception inside a check into a failed row, so that the others still run."""
    try:
        yield from check(data, *arguments)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        yield Check("", data.name, check.__doc__ or check.__name__, None, "", False, f"{type(error).__name__}: {error}")


def _below(number: str, data: Data, claim: str, figure: float, tolerance: float, note: str = "") -> Check:
    return Check(number, data.name, claim, figure, f"≤ {tolerance:g}", bool(figure <= tolerance), note)


def _near(number: str, data: Data, claim: str, figure: float, expected: float, tolerance: float) -> Check:
    holds = bool(abs(figure - expected) <= tolerance)
    return Check(number, data.name, claim, figure, f"{expected:g} ± {tolerance:g}", holds)


def _distance(actual: Array, expected: Array | np.ndarray) -> float:
    """Distance in the Frobenius norm relative to the expected array's."""
    return float(np.linalg.norm(np.asarray(actual) - np.asarray(expected)) / np.linalg.norm(np.asarray(expected)))


def _distance_between_ordinary(x: Array, actual: Array, expected: Array) -> float:
    """The same without pairs near angles 0 and π, where neural-tangents' arccos loses half of the digits."""
    lengths = jnp.linalg.norm(x, axis=1)
    ordinary = np.abs(x @ x.T) < (1 - 1e-6) * np.outer(lengths, lengths)
    return _distance(jnp.where(ordinary, actual, expected), expected)


def _fitted_slope(distance: Callable[[int, int], float], sizes: list[int], repeats: int) -> float:
    """Slope of the log root mean square distance over the log size."""
    means = [np.sqrt(np.mean([distance(size, 100 * size + seed) ** 2 for seed in range(repeats)])) for size in sizes]
    return float(np.polyfit(np.log(sizes), np.log(means), 1)[0])
