"""Gap-safe screening: only groups that are zero at the optimum are screened out; the rule by NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PROGRAMS, program_of, random_problem

import fixntk as fx
from fixntk.convex.program import group_shape_of
from fixntk.convex.screening import group_sizes


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95), closeness=st.sampled_from([1e-1, 1e-3, 1e-6]))
def test_screening_never_drops_an_active_group(seed, share, closeness):
    program = random_problem(seed, share=share)
    optimum = fx.solve(program, method="newton", tol=1e-12)
    active = np.asarray(optimum.kernel_weights) > 1e-7 * float(jnp.max(optimum.kernel_weights))
    early = np.asarray(optimum.weights) * (1 + closeness * np.random.default_rng(seed).standard_normal((20, 1, 1)))
    for weights in (np.zeros(group_shape_of(program)), early):
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
    np.testing.assert_allclose(group_sizes.__wrapped__(program), frobenius, rtol=1e-12)


@pytest.mark.parametrize("case", ["sample_weight", "logistic", "huber_all"])
def test_screened_groups_are_zero_at_the_optimum_that_is_found_without_screening(case):
    program = program_of(PROGRAMS[case], share=0.5)
    norms = np.linalg.norm(fx.solve(program, method="fista", tol=1e-11).weights, axis=(1, 2))
    counts = []
    for tol in (1e-2, 1e-5, 1e-8):
        early = fx.solve(program, method="fista", tol=tol).weights
        screened = np.asarray(fx.gap_safe(program, early))
        assert np.all(norms[screened] <= 1e-8 * norms.max())
        counts.append(int(screened.sum()))
    # The nearer the optimum, the more groups are known to be zero; active ones never are.
    assert counts == sorted(counts)
    assert 0 < counts[-1] < 20


@pytest.mark.parametrize(("case", "steepest"), [("squared", 1.0), ("sample_weight", 1.0), ("logistic", 0.25)])
def test_screening_is_its_rule_by_numpy(rng, case, steepest):
    program = program_of(PROGRAMS[case], share=0.6)
    masks, x = np.asarray(program.masks, float), np.asarray(program.x)
    optimum = np.asarray(fx.solve(program, method="fista", tol=1e-8).weights)
    weights = optimum + 1e-3 * np.abs(optimum).max() * rng.standard_normal(optimum.shape)
    theta, gap = np.asarray(program.dual_point(weights)), float(program.gap(weights))
    heaviest = 1.0 if program.sample_weight is None else float(program.sample_weight.max())
    groups = [mask[:, None] * x for mask in masks.T]
    reached = np.array([np.linalg.norm(group.T @ theta) for group in groups])
    radius = np.sqrt(2 * steepest * heaviest * gap) * np.array([np.linalg.norm(group, 2) for group in groups])
    expected = reached + radius < float(program.reg)
    assert 0 < expected.sum() < 20
    # Without the radius, or with one twice as large, the rule would be another one.
    assert np.any(expected != (reached < float(program.reg)))
    assert np.any(expected != (reached + 2 * radius < float(program.reg)))
    np.testing.assert_array_equal(fx.gap_safe(program, weights), expected)
