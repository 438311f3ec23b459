"""Numbers of JAX's default device against float64 NumPy on the host, as functions of a size.

Each check returns the largest error, as a share of the largest entry. In full float32 it is some 1e-7, in TF32 more
than 1e-4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fixntk as fx

# Largest error that rounding in float32 explains.
TOLERANCE = 5e-6
# Rows with a unit this near to its kink are left out: rounding decides on which side they are.
_MARGIN = 1e-5
# Step of the differences in float64. Away from kinks, outputs are linear in each single parameter.
_STEP = 1e-6


def largest_error(found, expected):
    expected = np.asarray(expected)
    assert found.dtype == jnp.float32
    assert found.shape == expected.shape
    return float(np.abs(np.asarray(found, float) - expected).max() / np.abs(expected).max())


def normal(seed, *shape):
    """Random numbers of float32 on the default device."""
    return jax.device_put(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def on_host(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, float), tree)


def masked_operands(num_rows, num_features=40, num_gates=300):
    x, gates = normal(0, num_rows, num_features), normal(1, num_gates, num_features)
    return jnp.abs(normal(2, num_gates)), fx.activation_masks(x, gates), x


def masked_kernel(weights, masks, x):
    weights, masks, x = on_host((weights, masks, x))
    return (masks * weights) @ masks.T * (x @ x.T)


def activation_masks(num_rows):
    """Here an error is the share of masks that differ where the inner product is not within rounding of zero."""
    x, gates = normal(0, num_rows, 40), normal(1, 300, 40)
    products = on_host(x) @ on_host(gates).T
    is_clear = np.abs(products) > _MARGIN
    assert is_clear.mean() > 0.99
    return float(np.mean((np.asarray(fx.activation_masks(x, gates)) != (products >= 0))[is_clear]))


def masked_gram(num_rows):
    operands = masked_operands(num_rows)
    return largest_error(fx.masked_gram(*operands), masked_kernel(*operands))


def masked_gram_of_packed_masks(num_rows):
    weights, masks, x = masked_operands(num_rows)
    return largest_error(fx.masked_gram(weights, fx.pack_masks(masks), x), masked_kernel(weights, masks, x))


def masked_gram_product(num_rows):
    operands, vectors = masked_operands(num_rows), normal(3, num_rows, 3)
    return largest_error(fx.MaskedGram(*operands) @ vectors, masked_kernel(*operands) @ on_host(vectors))


def arc_cosine(covariance, variances):
    """E[ReLU(u) ReLU(v)] and P[u, v > 0] of Gaussians."""
    lengths = np.sqrt(np.outer(variances, variances))
    angle = np.arccos(np.clip(covariance / lengths, -1, 1))
    return lengths * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi), (np.pi - angle) / (2 * np.pi)


def gated_relu_ntk(num_rows):
    x = normal(0, num_rows, 40)
    products = on_host(x) @ on_host(x).T
    return largest_error(fx.gated_relu_ntk(x), products * arc_cosine(products, np.diagonal(products))[1])


def mlp_kernel(num_rows):
    x = normal(0, num_rows, 40)
    kernel = fx.mlp_kernel(x, depth=3, w_std=1.4, b_std=0.1)
    nngp = 0.01 + 1.96 * on_host(x) @ on_host(x).T / 40
    ntk = nngp
    for _ in range(3):
        moments, shares = arc_cosine(nngp, np.diagonal(nngp))
        nngp = 0.01 + 1.96 * moments
        ntk = nngp + 1.96 * shares * ntk
    return max(largest_error(kernel.nngp, nngp), largest_error(kernel.ntk, ntk))


def mlp(params, x):
    """A ReLU network (n, 3), of NumPy or JAX arrays."""
    for weights in params[:-1]:
        x = x @ weights
        x = x * (x > 0)
    return x @ params[-1]


def convolve(x, kernel):
    """A convolution (n, h, w, c) of stride 1 without padding, in JAX."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)


def convolve_on_host(x, kernel):
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel, optimize=True)


def cnn(params, x, convolve=convolve):
    """Two convolutions with ReLU, a mean over positions, and a readout (n, 3)."""
    for kernel in params[:-1]:
        x = convolve(x, kernel)
        x = x * (x > 0)
    return x.mean((1, 2)) @ params[-1]


def jacobian_by_differences(f, params, x):
    """(n, o, p) derivatives of the outputs of f(params, x) by all parameters, in float64 NumPy."""
    params = [leaf.copy() for leaf in params]
    columns = []
    for leaf in params:
        for place in np.ndindex(leaf.shape):
            value = leaf[place]
            leaf[place] = value + _STEP
            above = f(params, x)
            leaf[place] = value - _STEP
            columns.append((above - f(params, x)) / (2 * _STEP))
            leaf[place] = value
    return np.stack(columns, axis=-1)


def smallest_hidden(hidden, params, x):
    """(n,) the smallest |pre-activation| of each row; ``hidden`` are functions from weights and inputs to these."""
    smallest = np.full(len(x), np.inf)
    for weights in params[:-1]:
        x = hidden(x, weights)
        smallest = np.minimum(smallest, np.abs(x).reshape(len(x), -1).min(axis=1))
        x = x * (x > 0)
    return smallest


def empirical_kernel_error(f, f_on_host, hidden, params, x):
    kept = smallest_hidden(hidden, on_host(params), on_host(x)) > _MARGIN
    assert kept.mean() > 0.5
    x = x[kept]
    jacobian = jacobian_by_differences(f_on_host, on_host(params), on_host(x))
    found = fx.empirical_ntk(f, params, x)
    traced = fx.empirical_ntk(f, params, x, outputs="trace")
    return max(
        largest_error(found, np.einsum("iap,jbp->ijab", jacobian, jacobian, optimize=True)),
        largest_error(traced, np.einsum("iap,jap->ij", jacobian, jacobian, optimize=True) / 3),
    )


def empirical_ntk_of_mlp(num_rows):
    shapes = ((12, 24), (24, 24), (24, 3))
    params = [normal(k, *shape) / shape[0] ** 0.5 for k, shape in enumerate(shapes)]
    return empirical_kernel_error(mlp, mlp, np.matmul, params, normal(5, num_rows // 5, 12))


def empirical_ntk_of_cnn(num_rows):
    shapes = ((3, 3, 2, 6), (3, 3, 6, 4), (4, 3))
    params = [normal(k, *shape) / np.prod(shape[:-1]).item() ** 0.5 for k, shape in enumerate(shapes)]

    def f_on_host(params, x):
        return cnn(params, x, convolve_on_host)

    return empirical_kernel_error(cnn, f_on_host, convolve_on_host, params, normal(5, num_rows // 10, 8, 8, 2))


KERNELS = (
    activation_masks,
    masked_gram,
    masked_gram_of_packed_masks,
    masked_gram_product,
    gated_relu_ntk,
    mlp_kernel,
    empirical_ntk_of_mlp,
    empirical_ntk_of_cnn,
)


def teacher(num_rows, num_features=20, num_gates=200, loss="squared", share=0.1):
    """A program of float32 at a share of λ_max, targets of a network of five neurons with noise, and its gates."""
    rng = np.random.default_rng(0)
    x, gates = (rng.standard_normal((count, num_features)).astype(np.float32) for count in (num_rows, num_gates))
    neurons = rng.standard_normal((2, 5, num_features))
    y = np.sum((x @ neurons[0].T >= 0) * (x @ neurons[1].T), axis=1) + 0.1 * rng.standard_normal(num_rows)
    y = ((y - y.mean()) / y.std() if loss == "squared" else np.sign(y)).astype(np.float32)
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 1.0, loss)
    return program.with_reg(share * program.max_reg()), gates


class Certificate:
    """The certificate of (P, d) weights in float64 NumPy, for the squared and the logistic loss."""

    def __init__(self, program, weights):
        masks, x, y, weights = on_host((program.masks, program.x, program.y, weights))
        reg = float(program.reg)
        self.outputs = np.sum((masks @ weights) * x, axis=1)
        if program.loss.name == "squared":
            residual = y - self.outputs
            loss, at_zero = 0.5 * residual @ residual, 0.5 * y @ y
        else:
            residual = y / (1 + np.exp(y * self.outputs))
            loss, at_zero = np.sum(np.logaddexp(0, -y * self.outputs)), y.size * np.log(2)
        theta = residual * min(1.0, reg / np.linalg.norm(masks.T @ (x * residual[:, None]), axis=1).max())
        if program.loss.name == "squared":
            dual = y @ theta - 0.5 * theta @ theta
        else:
            q = y * theta
            dual = -np.sum(q * np.log(q) + (1 - q) * np.log(1 - q))
        self.primal = loss + reg * np.linalg.norm(weights, axis=1).sum()
        self.gap = (self.primal - dual) / at_zero


class SolutionErrors(NamedTuple):
    """Errors of a solution: of its relative gap, absolute; of its objective and its predictions, relative."""

    gap: float
    primal: float
    outputs: float


def solution_errors(method, loss, num_rows):
    program, gates = teacher(num_rows, loss=loss)
    solution = fx.solve(program, method=method, tol=1e-3)
    assert bool(solution.converged)
    expected = Certificate(program, solution.weights[:, :, 0])
    # The certificate that the solution says to have, not only a small number.
    assert 1e-6 < expected.gap < 1e-3
    return SolutionErrors(
        float(abs(float(solution.relative_gap) - expected.gap)),
        float(abs(float(solution.primal) / expected.primal - 1)),
        largest_error(solution.predict(program.x, gates), expected.outputs),
    )


SOLVES = [(method, "squared") for method in ("newton", "fista", "irls", "anderson")]
SOLVES += [("newton", "logistic"), ("fista", "logistic")]


def disagreement_of_vmap(num_rows, num_regs=32, num_steps=20):
    """Of reweighting for many λ at once with one λ after another, in weights and objectives."""
    program, _ = teacher(num_rows)
    regs = program.reg * jnp.logspace(0.5, -1, num_regs, dtype=jnp.float32)

    def reweight(reg):
        # No tolerance that is reached before: all make the same number of steps.
        return fx.solve(program.with_reg(reg), method="irls", tol=1e-6, max_iter=num_steps)

    at_once = jax.vmap(reweight)(regs)
    one_by_one = [jax.jit(reweight)(reg) for reg in regs]
    assert all(int(each.iterations) == num_steps for each in one_by_one)
    return max(
        max(largest_error(at_once.weights[k], each.weights), largest_error(at_once.primal[k], each.primal))
        for k, each in enumerate(one_by_one)
    )
