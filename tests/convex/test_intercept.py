"""The intercept: it minimises the loss of given outputs."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROGRAMS, program_of


@pytest.mark.parametrize("case", ["intercept", "logistic_all", "softmax_all", "hinge_all", "huber_all"])
def test_intercept_is_the_best(rng, case):
    program = program_of(PROGRAMS[case])
    fitted = 3 * jnp.asarray(rng.standard_normal(program.targets.shape))
    fit = program.datafit.fit(fitted)
    residual_sums = jnp.sum(fit.residual, axis=0)
    np.testing.assert_allclose(residual_sums, 0, atol=1e-13 * float(jnp.sum(jnp.abs(fit.residual))))
    weights = 1.0 if program.sample_weight is None else program.sample_weight
    for step in 1e-3 * rng.standard_normal((20, fit.intercept.size)):
        moved = program.loss.values(fitted + fit.intercept + step, program.targets)
        assert float(jnp.sum(weights * moved)) >= float(fit.loss) - 1e-12
