"""Fixtures shared by all tests; float64 is on, and tests of float32 ask for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)

# What rounding leaves of identities between arrays of a few hundred entries.
TOLERANCE = {jnp.dtype("float64"): 1e-10, jnp.dtype("float32"): 2e-5}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return jnp.dtype(request.param)


@pytest.fixture
def tolerance(dtype):
    return TOLERANCE[dtype]
