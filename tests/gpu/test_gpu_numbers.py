"""Numbers of kernels and solutions on an accelerator, against float64 NumPy on the host."""

import pytest
from device_checks import KERNELS, SOLVES, TOLERANCE, disagreement_of_vmap, solution_errors

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("check", KERNELS, ids=lambda check: check.__name__)
def test_kernels_have_the_numbers_of_float64(check):
    assert check(700) < TOLERANCE


@pytest.mark.parametrize(("method", "loss"), SOLVES)
def test_certificates_objectives_and_predictions_are_those_of_float64(method, loss):
    assert max(solution_errors(method, loss, 1000)) < TOLERANCE


def test_many_values_of_lambda_at_once_agree_with_one_after_another():
    # Each step factorises a matrix, by which rounding errors of the last grow.
    assert disagreement_of_vmap(300) < 1e-4
