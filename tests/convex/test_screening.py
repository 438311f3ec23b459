"""Gap-safe screening: only groups that are zero at the optimum are screened out."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import random_problem

import fixntk as fx
from fixntk.convex.screening import group_sizes


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95), closeness=st.sampled_from([1e-1, 1e-3, 1e-6]))
def test_screening_never_drops_an_active_group(seed, share, closeness):
    program = random_problem(seed, share=share)
    optimum = fx.solve(program, method="newton", tol=1e-12)
    active = np.asarray(optimum.kernel_weights) > 1e-7 * float(jnp.max(optimum.kernel_weights))
    early = np.asarray(optimum.weights) * (1 + closeness * np.random.default_rng(seed).standard_normal((20, 1, 1)))
    for weights in (np.zeros(program.group_shape), early):
        assert not np.any(np.asarray(fx.gap_safe(program, weights)) & active)


def test_screening_in_float32_drops_no_active_group():
    for seed in range(10):
        wide = random_problem(seed, share=0.3)
        narrow = fx.ConvexProgram(wide.x.astype("float32"), wide.y.astype("float32"), wide.masks, wide.reg)
        optimum = fx.solve(wide, tol=1e-13)
        screened = np.asarray(fx.gap_safe(narrow, optimum.weights))
        assert not np.any(screened & (np.asarray(optimum.kernel_weights) > 0))
        assert np.any(screened)


def test_screening_drops_most_groups_near_the_optimum():
    program = random_problem(2, share=0.5)
    optimum = fx.solve(program, method="newton", tol=1e-12)
    assert int(fx.gap_safe(program, optimum.weights).sum()) >= 10


def test_group_sizes_are_spectral_norms_or_above(monkeypatch):
    program = random_problem(3)
    masks, x = np.asarray(program.masks), np.asarray(program.x)
    expected = [np.linalg.norm(masks[:, [p]] * x, 2) for p in range(20)]
    np.testing.assert_allclose(group_sizes(program), expected, rtol=1e-10)
    monkeypatch.setattr("fixntk.convex.screening._MAX_NUMBERS", 1)
    frobenius = [np.linalg.norm(masks[:, [p]] * x) for p in range(20)]
    np.testing.assert_allclose(group_sizes(program), frobenius, rtol=1e-12)
