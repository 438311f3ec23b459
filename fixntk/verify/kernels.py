"""Claims about kernels: masked Gram matrices, the NTK in closed form and its empirical estimates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from fixntk.gates.arrangements import distinct_hyperplanes, enumerate_arrangements
from fixntk.gates.cover import cover_count
from fixntk.gates.masks import Arrangements, activation_masks, sample_gates
from fixntk.gates.solid_angles import arrangement_weights
from fixntk.gram import MaskedGram, masked_gram
from fixntk.ntk import empirical_ntk, gated_relu_ntk, mlp_kernel
from fixntk.ntk.neural_tangents_compat import import_neural_tangents
from fixntk.verify.check import (
    Check,
    Data,
    check_at_most,
    check_near,
    relative_distance,
    skipped_check,
    slope_of_log_error,
)

# Largest number of arrangements to enumerate. Data with more of them get random gates instead.
_MAX_CELLS = 50_000
# Number of random gates for such data.
_NUM_WEIGHTED_GATES = 200
# Rank of the inputs up to which solid angles have a closed form.
_MAX_EXACT_RANK = 3
# Largest number of gates in the masked Gram matrix that is summed gate by gate.
_MAX_SUMMED_GATES = 200
# Number of random gates whose mean kernel estimates the NTK where solid angles have no closed form.
_NUM_RANDOM_GATES = 20_000
# Number of random directions v whose quadratic forms vᵀKv are compared there.
_NUM_QUADRATIC_FORMS = 8
# Numbers of sampled gates from which the rate of convergence to the NTK is estimated.
_NUMS_OF_GATES = [2**k for k in range(5, 13)]
# Widths of gated networks from which the rate of convergence of the empirical NTK is estimated.
_WIDTHS = [16, 64, 256, 1024]
# Number of seeds for each number of gates and each width.
_NUM_REPEATS = 16
# Width of the one network whose empirical NTK is compared entry by entry.
_SAME_GATES_WIDTH = 512


class WeightedGates(NamedTuple):
    """Gates, and the weights with which their masked Gram kernel is the NTK or estimates it.

    Attributes
    ----------
    arrangements
        Masks and gates.
    weights
        (P,) kernel weights.
    is_exact
        Whether these are all arrangements with their solid angles, so that the kernel is exactly the NTK.
    """

    arrangements: Arrangements
    weights: Float[Array, " P"]
    is_exact: bool


def weighted_gates(data: Data) -> WeightedGates:
    """All arrangements with their exact solid angles where there are few, otherwise random gates of equal weights."""
    planes = distinct_hyperplanes(np.asarray(data.x))
    num_planes, rank = planes.normals.shape
    if rank <= _MAX_EXACT_RANK and cover_count(num_planes, rank) <= _MAX_CELLS:
        arrangements = enumerate_arrangements(data.x)
        return WeightedGates(arrangements, arrangement_weights(data.x, arrangements)[0], True)
    gates = sample_gates(jax.random.key(3), _NUM_WEIGHTED_GATES, data.x.shape[1], dtype=data.x.dtype)
    weights = jnp.full(_NUM_WEIGHTED_GATES, 1 / _NUM_WEIGHTED_GATES)
    return WeightedGates(Arrangements(activation_masks(data.x, gates), gates), weights, False)


def ntk_of(data: Data, gates: WeightedGates) -> tuple[Float[Array, "n n"], str]:
    """The NTK of the data or of the gates alone, whichever has these weights, and its name in the table."""
    if gates.is_exact:
        return gated_relu_ntk(data.x), "the closed-form NTK"
    return masked_gram(gates.weights, gates.arrangements.masks, data.x), "the NTK of the same gates"


def check_masked_gram(data: Data, masks: Bool[Array, "n P"]) -> Iterator[Check]:
    """K(η) is the weighted sum of the gates' Gram matrices, dense and matrix-free.

    See docs/mathematics.md, M2.
    """
    summed, x = np.asarray(masks)[:, :_MAX_SUMMED_GATES], np.asarray(data.x)
    weights = np.asarray(np.random.default_rng(1).uniform(size=summed.shape[1]))
    expected = np.zeros((x.shape[0], x.shape[0]))
    for weight, mask in zip(weights, summed.T.astype(float), strict=True):
        expected += weight * np.outer(mask, mask) * (x @ x.T)
    dense = masked_gram(weights, summed, x)
    claim = "masked Gram = Σ_p η_p D_p X Xᵀ D_p, summed one by one"
    yield check_at_most("M2", data, claim, relative_distance(dense, expected), 1e-12)
    vector = np.random.default_rng(2).standard_normal(x.shape[0])
    product = MaskedGram(weights, summed, x) @ vector
    claim = "its matrix-free product with a vector is the dense one"
    yield check_at_most("M2", data, claim, relative_distance(product, expected @ vector), 1e-12)


def check_solid_angles(data: Data, arrangements: Arrangements, weights: Float[Array, " P"]) -> Iterator[Check]:
    """The NTK is the masked Gram kernel of all arrangements, with their exact solid angles as weights.

    See docs/mathematics.md, M3 and M4.
    """
    claim = f"the solid angles of all {arrangements.masks.shape[1]} cells sum to 1"
    yield check_at_most("M4", data, claim, abs(float(weights.sum()) - 1), 1e-10)
    kernel = masked_gram(weights, arrangements.masks, data.x)
    claim = f"NTK = masked Gram with exact solid angles (rank {_rank(data)})"
    yield check_at_most("M3", data, claim, relative_distance(kernel, gated_relu_ntk(data.x)), 1e-10)


def check_random_gates(data: Data) -> Iterator[Check]:
    """The NTK is the expected masked Gram kernel of random gates.

    Each quadratic form vᵀKv of a random direction v is a mean over gates, one number for each gate, so its standard
    error is known.

    See docs/mathematics.md, M3.
    """
    num_rows, num_features = data.x.shape
    directions = jax.random.normal(jax.random.key(5), (num_rows, _NUM_QUADRATIC_FORMS), data.x.dtype)
    gates = sample_gates(jax.random.key(6), _NUM_RANDOM_GATES, num_features, dtype=data.x.dtype)
    masks = activation_masks(data.x, gates)
    samples = jnp.stack([jnp.sum((masks.T @ (data.x * v[:, None])) ** 2, axis=1) for v in directions.T])
    standard_errors = jnp.std(samples, axis=1) / np.sqrt(samples.shape[1])
    expected = jnp.einsum("nk,nm,mk->k", directions, gated_relu_ntk(data.x), directions)
    figure = float(jnp.max(jnp.abs(jnp.mean(samples, axis=1) - expected) / standard_errors))
    claim = f"NTK = masked Gram of 20,000 random gates (rank {_rank(data)}), in standard errors, 8 quadratic forms"
    yield check_at_most("M3", data, claim, figure, 4)


def check_sampling_rate(data: Data) -> Iterator[Check]:
    """The NTK of m sampled gates converges at rate m^(−½).

    See docs/mathematics.md, M3.
    """
    ntk = gated_relu_ntk(data.x)

    def error(num_gates: int, seed: int) -> float:
        gates = sample_gates(jax.random.key(seed), num_gates, data.x.shape[1], dtype=data.x.dtype)
        kernel = masked_gram(jnp.full(num_gates, 1 / num_gates), activation_masks(data.x, gates), data.x)
        return relative_distance(kernel, ntk)

    slope = slope_of_log_error(error, _NUMS_OF_GATES, _NUM_REPEATS)
    claim = "sampled gates converge to the NTK: slope of log error over log m"
    yield check_near("M3", data, claim, slope, -0.5, 0.1)


def check_neural_tangents(data: Data) -> Iterator[Check]:
    """The NTK is neural-tangents', analytic and empirical.

    See docs/mathematics.md, M3.
    """
    claims = (
        "NTK = d·(ntk − nngp) of neural-tangents' Dense–Relu–Dense, off the diagonal",
        "its empirical NTK of a gated network of width 512 = masked Gram of the same gates",
        "its empirical NTK of gated networks converges: slope of log error over log width",
    )
    try:
        nt = import_neural_tangents()
    except ImportError as error:
        yield from (skipped_check("M3", data, claim, str(error)) for claim in claims)
        return
    x, ntk = data.x, gated_relu_ntk(data.x)

    def dense_layer() -> tuple[Callable, Callable, Callable]:
        return nt.stax.Dense(1, W_std=1.0, b_std=None)

    kernel = nt.stax.serial(dense_layer(), nt.stax.Relu(), dense_layer())[2](x, None, ("nngp", "ntk"))
    figure = _distance_off_the_diagonal(x, x.shape[1] * (kernel.ntk - kernel.nngp), ntk)
    yield check_at_most("M3", data, claims[0], figure, 1e-8)

    empirical = _empirical_ntk_by_neural_tangents(nt, x)
    width = _SAME_GATES_WIDTH
    gates = sample_gates(jax.random.key(0), width, x.shape[1], dtype=x.dtype)
    same_gates = masked_gram(jnp.full(width, 1 / width), activation_masks(x, gates), x)
    yield check_at_most("M3", data, claims[1], relative_distance(empirical(width, 0), same_gates), 1e-10)
    slope = slope_of_log_error(
        lambda width, seed: relative_distance(empirical(width, seed), ntk), _WIDTHS, _NUM_REPEATS
    )
    yield check_near("M3", data, claims[2], slope, -0.5, 0.15)


def _empirical_ntk_by_neural_tangents(nt: ModuleType, x: Float[Array, "n d"]) -> Callable[[int, int], Array]:
    """neural-tangents' empirical NTK of a gated network, as a function of its width and the seed of its gates."""

    @partial(jax.jit, static_argnames="num_gates")
    def kernel_of_gates(num_gates: int, seed: Any) -> Array:
        gates = sample_gates(jax.random.key(seed), num_gates, x.shape[1], dtype=x.dtype)
        signs = jnp.where(jax.random.bernoulli(jax.random.key(seed + 1), shape=(num_gates,)), 1.0, -1.0)

        def network(weights: Array, inputs: Array) -> Array:
            return (activation_masks(inputs, gates) * (inputs @ weights.T)) @ signs[:, None] / np.sqrt(num_gates)

        implementation = nt.NtkImplementation.JACOBIAN_CONTRACTION
        kernel_fn = nt.empirical_ntk_fn(network, trace_axes=(1,), implementation=implementation)
        return kernel_fn(x, None, jnp.zeros((num_gates, x.shape[1])))

    return kernel_of_gates


def check_analytic(data: Data) -> Iterator[Check]:
    """Kernels of deep networks in closed form are those by quadrature, and neural-tangents'.

    See docs/mathematics.md, M13.
    """
    x, ntk = data.x, gated_relu_ntk(data.x)
    two_layers = mlp_kernel(x, depth=1)
    figure = relative_distance(x.shape[1] * (two_layers.ntk - two_layers.nngp), ntk)
    claim = "ReLU, one hidden layer: d·(ntk − nngp) = the gated network's NTK"
    yield check_at_most("M13", data, claim, figure, 1e-12)

    # The quadrature would need more terms for longer inputs.
    scale = 1 / jnp.max(jnp.sum(x**2, axis=1))
    closed, quadrature = (
        mlp_kernel(x, depth=2, activation=gelu, w_std=1.2, b_std=0.1, input_scale=scale).ntk
        for gelu in ("gelu", _exact_gelu)
    )
    claim = "GELU, two hidden layers: closed form = Gauss–Hermite quadrature"
    yield check_at_most("M13", data, claim, relative_distance(closed, quadrature), 1e-9)

    claim = "ReLU, three hidden layers: NTK = neural-tangents', off the diagonal"
    try:
        stax = import_neural_tangents().stax
    except ImportError as error:
        yield skipped_check("M13", data, claim, str(error))
        return
    dense = stax.Dense(1, W_std=1.4, b_std=0.1)
    theirs = stax.serial(*[dense, stax.Relu()] * 3, dense)[2](x, None, "ntk")
    ours = mlp_kernel(x, depth=3, w_std=1.4, b_std=0.1).ntk
    yield check_at_most("M13", data, claim, _distance_off_the_diagonal(x, ours, theirs), 1e-9)


def _exact_gelu(values: Array) -> Array:
    return jax.nn.gelu(values, approximate=False)


def check_empirical(data: Data) -> Iterator[Check]:
    """The empirical NTK is the product of Jacobians, neural-tangents', and converges to the analytic one.

    See docs/mathematics.md, M3 and M14.
    """
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
    yield check_at_most("M14", data, claim, relative_distance(structured, expected), 1e-10)

    claim = "the same = neural-tangents' empirical NTK"
    try:
        nt = import_neural_tangents()
    except ImportError as error:
        yield skipped_check("M14", data, claim, str(error))
    else:
        implementation = nt.NtkImplementation.JACOBIAN_CONTRACTION
        theirs = nt.empirical_ntk_fn(network, trace_axes=(), implementation=implementation)(x, None, params)
        yield check_at_most("M14", data, claim, relative_distance(structured, theirs), 1e-10)

    @partial(jax.jit, static_argnames="width")
    def gated_ntk(width: int, seed: Any) -> Array:
        gates = sample_gates(jax.random.key(seed), width, x.shape[1], dtype=x.dtype)

        def gated_network(weights: Array, inputs: Array) -> Array:
            return jnp.sum(activation_masks(inputs, gates) * (inputs @ weights), axis=1, keepdims=True) / np.sqrt(width)

        return empirical_ntk(gated_network, jnp.zeros((x.shape[1], width)), x, outputs="trace")

    slope = slope_of_log_error(
        lambda width, seed: relative_distance(gated_ntk(width, seed), ntk), _WIDTHS, _NUM_REPEATS
    )
    claim = "empirical NTK of gated networks converges to the analytic: slope of log error over log width"
    yield check_near("M14", data, claim, slope, -0.5, 0.15)


def _rank(data: Data) -> int:
    """Rank of the inputs."""
    return distinct_hyperplanes(np.asarray(data.x)).normals.shape[1]


def _distance_off_the_diagonal(x: Float[Array, "n d"], actual: Array, expected: Array) -> float:
    """Relative distance without pairs of rows at angles near 0 or π, where neural-tangents loses half its digits."""
    lengths = jnp.linalg.norm(x, axis=1)
    is_ordinary = np.abs(x @ x.T) < (1 - 1e-6) * np.outer(lengths, lengths)
    return relative_distance(jnp.where(is_ordinary, actual, expected), expected)
