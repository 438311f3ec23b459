"""What is checked on an accelerator holds on a CPU, also where products are in a GPU's default precision, TF32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_checks import KERNELS, SOLVES, TOLERANCE, largest_error, normal, solution_errors
from tf32 import emulated_tf32

# Number of rows at which they are tried here.
_NUM_ROWS = 100


@pytest.fixture(scope="module", autouse=True)
def _in_tf32():
    with emulated_tf32():
        yield


def product_error(precision):
    a, b = normal(0, 50, 60), normal(1, 60, 70)
    return largest_error(jnp.matmul(a, b, precision=precision), np.asarray(a, float) @ np.asarray(b, float))


def test_a_product_that_does_not_ask_for_full_precision_fails_the_tolerance_by_far():
    assert product_error(None) > 20 * TOLERANCE
    with jax.default_matmul_precision("highest"):
        assert product_error(None) < TOLERANCE / 5
    assert product_error("highest") < TOLERANCE / 5


@pytest.mark.parametrize("check", KERNELS, ids=lambda check: check.__name__)
def test_kernels_have_the_numbers_of_float64_where_products_are_in_tf32_by_default(check):
    assert check(_NUM_ROWS) < TOLERANCE


@pytest.mark.parametrize(("method", "loss"), SOLVES)
def test_certificates_are_those_of_float64_where_products_are_in_tf32_by_default(method, loss):
    assert max(solution_errors(method, loss, _NUM_ROWS)) < TOLERANCE
