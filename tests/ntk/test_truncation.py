"""What a series omits at the deviations that occur in a network, against sums over a fine grid."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermeval
from scipy.special import factorial

import fixntk as fx
from fixntk.ntk.layers import Activate, Conv, Dense, GlobalAveragePool, Residual, Serial
from fixntk.ntk.quadrature import elementwise
from fixntk.ntk.truncation import _truncated_shares, warn_if_truncated

GRID = np.linspace(-12, 12, 40_001)
DENSITY = np.exp(-(GRID**2) / 2) / np.sqrt(2 * np.pi) * (GRID[1] - GRID[0])
FEW = Activate(elementwise(jnp.tanh, 6))
MANY = Activate(elementwise(jnp.arctan, 40))


def share(function, std, num_terms):
    """1 − Σ_k a_k² / E[φ²] of the first terms."""
    values = function(std * GRID)
    polynomials = [hermeval(GRID, np.eye(k + 1)[k]) / np.sqrt(factorial(k)) for k in range(num_terms)]
    kept = sum((DENSITY @ (values * polynomial)) ** 2 for polynomial in polynomials)
    return 1 - kept / (DENSITY @ values**2)


def tanh_share(std):
    """The larger one of the function and of its derivative."""
    return max(share(np.tanh, std, 6), share(lambda u: 1 / np.cosh(u) ** 2, std, 6))


def test_the_share_is_that_at_the_deviations_of_each_layer(rng):
    x = rng.standard_normal((5, 3))
    x[0] = 0.0
    network = Serial(Dense(w_std=0.4, b_std=0.3), FEW, Dense(w_std=0.9), FEW, Dense())
    first = np.sqrt(0.16 * 0.5 * np.sum(x**2, axis=1) + 0.09)
    # The variance after tanh is a second moment of it.
    second = np.array([0.9 * np.sqrt(DENSITY @ np.tanh(std * GRID) ** 2) for std in first])
    expected = max(map(tanh_share, [*first, *second]))
    for tile in (2, 5):
        shares = _truncated_shares((network, 0.5), jnp.asarray(x), None, tile)
        np.testing.assert_allclose(shares["tanh"], expected, rtol=0.05)
    # The first layer, which has the largest deviation, alone; the second one where its weights are large.
    assert max(map(tanh_share, first)) == expected
    wide = Serial(Dense(w_std=0.1), FEW, Dense(w_std=6.0), FEW, Dense())
    std = 6 * np.sqrt(DENSITY @ np.tanh(0.1 * np.sqrt(0.5) * np.linalg.norm(x, axis=1).max() * GRID) ** 2)
    shares = _truncated_shares((wide, 0.5), jnp.asarray(x), None, 5)
    np.testing.assert_allclose(shares["tanh"], tanh_share(std), rtol=0.05)


def test_the_series_that_omits_too_much_is_named_with_its_share_and_no_other(rng):
    x = jnp.asarray(rng.standard_normal((3, 3)))
    network = Serial(Dense(w_std=0.5), FEW, Dense(w_std=0.3), MANY, Dense())
    with pytest.warns(UserWarning, match="series of activation") as told:
        warn_if_truncated(network, 1 / 3, [(x, None)], 8)
    (message,) = [str(warning.message) for warning in told]
    largest = max(tanh_share(0.5 * np.linalg.norm(row) / np.sqrt(3)) for row in x)
    assert f"activation tanh leaves out a share of {largest:.0e} of its" in message


def test_each_input_counts_and_closed_forms_say_nothing(rng):
    small, large = 1e-3 * jnp.asarray(rng.standard_normal((3, 2))), 10 * jnp.ones((1, 2))
    network = Serial(Dense(), FEW, Dense())
    closed = Serial(Dense(), Activate("relu"), Dense(), Activate("erf"), Dense())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_truncated(network, 0.5, [(small, None)], 8)
        warn_if_truncated(closed, 0.5, [(large, None)], 8)
    for inputs in ([(large, None), (small, None)], [(small, None), (large, None)]):
        with pytest.warns(UserWarning, match="tanh"):
            warn_if_truncated(network, 0.5, inputs, 8)


def test_a_slow_series_is_told(rng):
    x = rng.standard_normal((5, 3))
    fx.mlp_kernel(x, depth=2, activation=jnp.tanh)
    with pytest.warns(UserWarning, match="the series of activation tanh leaves out a share of 2e-01"):
        fx.mlp_kernel(x, depth=2, activation=jnp.tanh, w_std=10.0)
    network = Serial(Conv((2,)), Residual(Serial(Activate(jnp.tanh), Conv((2,)))), GlobalAveragePool(), Dense())
    fx.network_kernel(network, x[:, :, None], batch_size=2)
    with pytest.warns(UserWarning, match="the series of activation tanh"):
        fx.network_kernel(network, x[:1, :, None], 100 * x[:, :, None], batch_size=2)
