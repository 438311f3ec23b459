"""Tests of an accelerator: skipped where JAX has none, unless they are tried on a CPU that imitates its precision."""

import pytest
from tf32 import emulated_tf32

from fixntk._checks import default_platform


@pytest.fixture(scope="module", autouse=True)
def _accelerator(request):
    if default_platform() != "cpu":
        yield
    elif request.config.getoption("gpu_tests_on_cpu"):
        with emulated_tf32():
            yield
    else:
        pytest.skip("JAX has no accelerator")
