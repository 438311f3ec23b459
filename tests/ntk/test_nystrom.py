"""Nyström approximations against the whole kernel, and landmarks against a plain pivoted Cholesky factorisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk._tiling import OutOfMemoryError
from fixntk.ntk.nystrom import _draw

KEY = jax.random.key(0)


def rows(count, dim=3, seed=0, dtype="float64"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, dim)), dtype)


def mlp(a, b):
    return fx.mlp_kernel(a, b, depth=2, activation="erf").ntk


def network(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


def empirical(a, b):
    params = [rows(3, 8, seed=5), rows(8, 1, seed=6)]
    return fx.empirical_ntk(network, params, a, b, trace_axes=(1,))


def with_masks(count):
    """Pairs of masks and rows, and the masked Gram kernel of given weights on them."""
    x, weights = rows(count), jnp.asarray(np.random.default_rng(1).random(12))
    pairs = {"masks": x @ rows(12, seed=2).T >= 0, "x": x}

    def kernel(a, b):
        return fx.masked_gram(weights, a["masks"], a["x"], b["masks"], b["x"])

    return kernel, pairs


KERNELS = {
    "gated_relu_ntk": (fx.gated_relu_ntk, rows(150)),
    "mlp_kernel": (mlp, rows(150)),
    "empirical_ntk": (empirical, rows(150)),
    "masked_gram": with_masks(150),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("tol", [0.3, 0.03])
def test_the_rest_of_the_kernel_is_definite_and_its_trace_bounds_its_norm(name, tol):
    kernel, x = KERNELS[name]
    found = fx.nystrom(kernel, x, key=KEY, tol=tol)
    whole = np.asarray(kernel(x, x))
    rest = whole - np.asarray(found.factor @ found.factor.T)
    spectrum = np.linalg.eigvalsh((rest + rest.T) / 2)
    assert spectrum[0] >= -1e-11 * np.trace(whole)
    assert spectrum[-1] <= found.trace_bound
    assert np.linalg.norm(rest) <= found.trace_bound
    np.testing.assert_allclose(found.trace_bound, np.trace(rest), rtol=1e-8, atol=1e-10 * np.trace(whole))
    np.testing.assert_allclose(found.residual, np.diag(rest), atol=1e-10)
    np.testing.assert_allclose(found.diagonal, np.diag(whole), atol=1e-12)
    assert found.converged
    assert found.trace_bound <= tol * np.trace(whole)


def test_it_is_the_nystrom_formula_of_its_landmarks():
    x = rows(120)
    found = fx.nystrom(fx.gated_relu_ntk, x, key=KEY, tol=0.1)
    whole = np.asarray(fx.gated_relu_ntk(x))
    chosen = found.indices
    assert len(set(chosen.tolist())) == found.rank < 120
    expected = whole[:, chosen] @ np.linalg.solve(whole[np.ix_(chosen, chosen)], whole[chosen])
    np.testing.assert_allclose(found.factor @ found.factor.T, expected, atol=1e-10)
    np.testing.assert_array_equal(found.landmarks, x[chosen])
    np.testing.assert_allclose(found.triangle @ found.triangle.T, whole[np.ix_(chosen, chosen)], atol=1e-10)


def test_features_of_new_rows_follow_the_formula_and_those_of_old_ones_are_the_factor():
    x, new = rows(120), rows(17, seed=3)
    found = fx.nystrom(fx.gated_relu_ntk, x, key=KEY, tol=0.1, batch_size=50)
    np.testing.assert_allclose(found.features(x), found.factor, atol=1e-10)
    whole, between = np.asarray(fx.gated_relu_ntk(x)), np.asarray(fx.gated_relu_ntk(new, x))
    chosen = found.indices
    expected = between[:, chosen] @ np.linalg.solve(whole[np.ix_(chosen, chosen)], whole[chosen])
    np.testing.assert_allclose(found.features(new) @ found.factor.T, expected, atol=1e-10)
    seen = between[:, chosen] @ np.linalg.solve(whole[np.ix_(chosen, chosen)], between[:, chosen].T)
    np.testing.assert_allclose(found.residual_at(new), np.diag(fx.gated_relu_ntk(new)) - np.diag(seen), atol=1e-10)


def test_the_rank_doubles_until_the_tolerance():
    x, seen = rows(400, dim=5), []

    def kernel(a, b):
        seen.append(b.shape[0])
        return fx.gated_relu_ntk(a, b)

    found = fx.nystrom(kernel, x, key=KEY, tol=0.03, diagonal=lambda x: jnp.sum(x**2, axis=1) / 2)
    assert seen == [32, 32, 64, 128]
    assert found.rank == 256


@pytest.mark.parametrize("tile", [7, 100, 5000])
def test_tiles_change_nothing(tile):
    x = rows(100)
    one, other = (fx.nystrom(fx.gated_relu_ntk, x, key=KEY, tol=0.1, batch_size=b) for b in (tile, None))
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_allclose(one.factor, other.factor, atol=1e-12)


def test_a_kernel_of_small_rank_is_exact_at_that_rank():
    x = rows(200, dim=6)
    found = fx.nystrom(lambda a, b: a @ b.T, x, key=KEY, tol=1e-12)
    assert found.rank == 6
    np.testing.assert_allclose(found.factor @ found.factor.T, x @ x.T, atol=1e-11)
    # Rows that are copies of others are no landmarks.
    copies = jnp.concatenate([x[:5]] * 10)
    assert fx.nystrom(fx.gated_relu_ntk, copies, key=KEY, tol=1e-12).rank == 5


def test_rows_are_drawn_in_proportion_to_what_is_left():
    residual = jnp.asarray([4.0, 0.0, 1.0, 3.0])
    draws = jax.vmap(lambda key: _draw(key, residual, 1)[0])(jax.random.split(KEY, 4000))
    shares = np.bincount(draws, minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.5, 0.0, 0.125, 0.375], atol=0.03)


def test_random_pivots_are_near_the_best_approximation_of_their_rank():
    # Chen et al. (2023): a rank of r / ε + r log(1 / (ε η)) brings the expected trace to (1 + ε) of the best of rank r.
    x = rows(500, dim=2)
    whole = np.asarray(fx.gated_relu_ntk(x))
    found = fx.nystrom(fx.gated_relu_ntk, x, key=KEY, tol=0.01)
    best = np.sort(np.linalg.eigvalsh(whole))[: -found.rank // 3].sum()
    assert found.trace_bound <= 3 * best


def test_the_zero_kernel_has_rank_zero():
    found = fx.nystrom(lambda a, b: jnp.zeros((len(a), len(b))), rows(9), key=KEY)
    assert found.rank == 0
    assert found.converged
    assert found.features(rows(4)).shape == (4, 0)
    assert "rank 0" in repr(found)


def test_the_dtype_is_that_of_the_kernel(dtype):
    found = fx.nystrom(fx.gated_relu_ntk, rows(80, dtype=dtype), key=KEY, tol=0.05)
    assert found.factor.dtype == dtype
    whole = np.asarray(fx.gated_relu_ntk(rows(80)))
    rest = whole - np.asarray(found.factor, float) @ np.asarray(found.factor, float).T
    assert np.linalg.norm(rest, 2) <= found.trace_bound


def test_an_early_end_warns_and_says_why():
    with pytest.warns(fx.ConvergenceWarning, match=r"stopped at max_rank=20 with 0\.\d+ of the trace left"):
        found = fx.nystrom(fx.gated_relu_ntk, rows(100), key=KEY, max_rank=20)
    assert found.rank == 20
    assert not found.converged


def test_a_factor_without_room_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr("fixntk._tiling._free_of_machine", lambda: 0)
    kernel = lambda a, b: jnp.exp(-((a - b.T) ** 2))  # noqa: E731
    with pytest.raises(
        OutOfMemoryError, match=r"the Nyström factor of 20000 rows and rank 32 needs .*smaller max_rank"
    ):
        fx.nystrom(kernel, rows(20_000, dim=1), key=KEY, diagonal=lambda x: jnp.ones(len(x)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tol": 0.0}, "tol must be between 0 and 1, got 0"),
        ({"tol": 1.5}, "tol must be between 0 and 1"),
        ({"max_rank": 0}, "max_rank must be at least 1"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"x": {"a": jnp.ones((3, 2)), "b": jnp.ones((4, 2))}}, "same number of rows"),
        ({"x": jnp.ones((0, 2))}, "at least one"),
        ({"kernel": lambda a, b: a @ b.T + jnp.nan}, "must be finite"),
        ({"kernel": lambda a, b: -a @ b.T}, "finite and not negative"),
        (
            {"kernel": lambda a, _: a[:, 0], "diagonal": lambda x: jnp.ones(len(x))},
            r"must give shape \(30, 30\)",
        ),
        ({"diagonal": lambda x: x}, r"diagonal must give shape \(30,\), got \(30, 3\)"),
    ],
)
def test_bad_input_is_named(options, message):
    arguments = {"kernel": fx.gated_relu_ntk, "x": rows(30), "key": KEY} | options
    with pytest.raises(ValueError, match=message):
        fx.nystrom(**arguments)


def test_it_refuses_a_trace():
    with pytest.raises(ValueError, match="not under jit or vmap"):
        jax.jit(lambda x: fx.nystrom(fx.gated_relu_ntk, x, key=KEY).factor)(rows(30))


@pytest.mark.wrong_types
def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="kernel must be a function of two sets of rows, got float"):
        fx.nystrom(1.0, rows(30), key=KEY)
    with pytest.raises(TypeError, match="tol must be a number, got str"):
        fx.nystrom(fx.gated_relu_ntk, rows(30), key=KEY, tol="small")
    with pytest.raises(TypeError, match="approximation must be a Nystrom"):
        fx.nystrom_ridge(rows(3), rows(3)[:, 0], reg=1.0)
