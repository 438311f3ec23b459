"""The certificate."""

import numpy as np
import pytest
from problems import PROGRAMS, program_of


@pytest.mark.parametrize("case", PROGRAMS)
def test_certificate_is_primal_minus_dual(rng, case):
    program = program_of(PROGRAMS[case])
    for scale in np.geomspace(1e-5, 1, 6):
        weights = scale * rng.standard_normal(program.group_shape)
        gap = float(program.gap(weights))
        dual = float(program.dual(program.dual_point(weights)))
        assert np.isfinite(dual)
        np.testing.assert_allclose(gap, float(program.primal(weights)) - dual, rtol=1e-7)


@pytest.mark.parametrize("case", PROGRAMS)
def test_zero_is_optimal_exactly_from_max_reg_on(case):
    zero = np.zeros(program_of(PROGRAMS[case]).group_shape)
    above, below = program_of(PROGRAMS[case], share=1 + 1e-9), program_of(PROGRAMS[case], share=0.99)
    assert float(above.gap(zero)) < 1e-10
    assert float(below.gap(zero)) > 1e-6
