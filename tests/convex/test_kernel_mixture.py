"""Weights of kernels: stationary points of the criteria, optima of the convex program, and a planted kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx

CRITERIA = {"leave_one_out": fx.leave_one_out_error, "kare": fx.kernel_alignment_risk}


def gaussian(x, others, width):
    return np.exp(-np.sum((x[:, None] - others) ** 2, axis=-1) / (2 * width**2))


def kernels_between(x, others):
    """The second kernel sees the first feature, of which the targets are made; the others see the other features."""
    wide, other = gaussian(x[:, :1], others[:, :1], 1.0), gaussian(x[:, 1:], others[:, 1:], 1.0)
    return np.stack([other, wide, 9.0 * x[:, 1:] @ others[:, 1:].T])


@pytest.fixture
def data(rng):
    x, x_new = rng.standard_normal((60, 3)), rng.standard_normal((400, 3))
    y, y_new = (np.sin(2 * rows[:, 0]) + 0.1 * rng.standard_normal(len(rows)) for rows in (x, x_new))
    return x, y, x_new, y_new


@pytest.mark.parametrize("criterion", CRITERIA)
def test_learnt_weights_are_a_minimum_below_the_sum_of_the_kernels(data, rng, criterion):
    x, y, _, _ = data
    kernels, measure = kernels_between(x, x), CRITERIA[criterion]
    found = fx.mix_kernels(kernels, y, criterion=criterion)
    assert found.converged
    assert np.isnan(found.relative_gap)
    weights = np.asarray(found.kernel_weights)
    np.testing.assert_allclose(found.value, measure(kernels, y, weights, found.reg), rtol=1e-9)
    of_sum = [float(measure(kernels, y, np.full(3, scale), found.reg)) for scale in np.geomspace(1e-5, 1e5, 400)]
    assert min(of_sum) * 0.999 < found.value_of_sum <= min(of_sum) * (1 + 1e-9)
    assert found.value < 0.9 * found.value_of_sum
    for _ in range(50):
        near = weights * np.exp(0.3 * rng.standard_normal(3))
        assert measure(kernels, y, near, found.reg) >= found.value * (1 - 1e-9)
    gradient = jax.grad(lambda logs: jnp.log(measure(kernels, y, jnp.exp(logs), found.reg)))(np.log(weights))
    assert np.max(np.abs(gradient)) < 1e-4


@pytest.mark.parametrize("criterion", [*CRITERIA, "objective"])
def test_the_kernel_that_the_targets_are_made_of_gets_the_weight(data, criterion):
    x, y, x_new, y_new = data
    kernels, between = kernels_between(x, x), kernels_between(x_new, x)
    found = fx.mix_kernels(kernels, y, criterion=criterion)
    shares = np.asarray(found.kernel_weights) * np.trace(kernels, axis1=1, axis2=2)
    assert shares[1] > 0.8 * np.sum(shares)
    kernel = np.tensordot(found.kernel_weights, kernels, 1)
    solved = np.linalg.solve(kernel + float(found.reg) * np.eye(60), y)
    np.testing.assert_allclose(found.dual_weights[:, 0], solved, rtol=1e-7, atol=1e-9)
    expected = np.tensordot(found.kernel_weights, between, 1) @ solved
    np.testing.assert_allclose(found.predict(between), expected, rtol=1e-7, atol=1e-7)
    assert np.mean((found.predict(between) - y_new) ** 2) < 0.03


def test_the_objective_is_that_of_the_certified_program(data):
    x, y, _, _ = data
    kernels = kernels_between(x, x)
    traces = np.trace(kernels, axis1=1, axis2=2) / 60
    found = fx.mix_kernels(kernels, y, criterion="objective", reg=0.2)
    solution = fx.solve_kernels(kernels, y, 0.2, penalty_weights=np.sqrt(traces))
    np.testing.assert_allclose(found.kernel_weights, solution.kernel_weights, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.value, solution.primal, rtol=1e-9)
    assert found.relative_gap < 1e-6
    assert found.value < found.value_of_sum
    assert found.reg == 0.2
    # Without a λ it is the one whose weights have the least leave-one-out error.
    chosen = fx.mix_kernels(kernels, y, criterion="objective")
    error = fx.leave_one_out_error(kernels, y, chosen.kernel_weights, chosen.reg)
    for factor in (0.1, 10.0):
        other = fx.mix_kernels(kernels, y, criterion="objective", reg=factor * chosen.reg)
        assert fx.leave_one_out_error(kernels, y, other.kernel_weights, other.reg) >= error


def test_scales_of_kernels_and_the_unit_of_reg_do_not_matter(data):
    x, y, x_new, _ = data
    kernels, between = kernels_between(x, x), kernels_between(x_new, x)
    scales = np.array([1e-3, 1.0, 1e4])[:, None, None]
    plain = fx.mix_kernels(kernels, np.stack([y, -2 * y], axis=1))
    scaled = fx.mix_kernels(scales * kernels, np.stack([y, -2 * y], axis=1), reg=7.0)
    assert scaled.reg == 7.0
    np.testing.assert_allclose(scaled.predict(scales * between), plain.predict(between), atol=1e-3)
    assert plain.predict(between).shape == (400, 2)
    np.testing.assert_allclose(plain.predict(between)[:, 1], -2 * plain.predict(between)[:, 0], rtol=1e-7, atol=1e-8)


def test_float32_kernels_of_low_rank(data):
    x, y, _, _ = data
    kernels = kernels_between(x, x).astype(np.float32)
    for criterion in (*CRITERIA, "objective"):
        found = fx.mix_kernels(kernels[2:], y.astype(np.float32), criterion=criterion)
        assert found.kernel_weights.dtype == found.dual_weights.dtype == jnp.float32
        assert np.isfinite(found.value)


def test_a_search_that_stops_early_warns(data):
    x, y, _, _ = data
    with pytest.warns(fx.ConvergenceWarning, match="the weights by leave_one_out have not converged"):
        fx.mix_kernels(kernels_between(x, x), y, max_iter=1)


@pytest.mark.wrong_types
def test_wrong_arguments_are_refused(data):
    x, y, _, _ = data
    kernels = kernels_between(x, x)
    with pytest.raises(ValueError, match="criterion must be one of 'leave_one_out', 'kare', 'objective', got 'loo'"):
        fx.mix_kernels(kernels, y, criterion="loo")
    with pytest.raises(ValueError, match="reg must be positive"):
        fx.mix_kernels(kernels, y, reg=-1.0)
    with pytest.raises(ValueError, match="kernels must have positive traces"):
        fx.mix_kernels(0 * kernels, y)
    with pytest.raises(ValueError, match=r"kernels\[1\] must be positive semi-definite"):
        fx.mix_kernels(kernels * np.array([1, -1, 1])[:, None, None], y)
    with pytest.raises(ValueError, match="y must not be zero"):
        fx.mix_kernels(kernels, 0 * y)
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda k: fx.mix_kernels(k, y).value)(kernels)
    found = fx.mix_kernels(kernels, y)
    with pytest.raises(ValueError, match=r"kernels must have shape \(3, 60, 60\)"):
        found.predict(kernels[:2])
    assert repr(found).startswith("KernelMixture(leave_one_out 0.")
