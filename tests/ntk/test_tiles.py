"""Empirical kernels tile by tile, compiled and traced, against plain Jacobians of all examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_empirical import PARAMS, X1, X2
from test_empirical import network as straight
from test_structure import jacobian_ntk

from fixntk._tiling import OutOfMemoryError
from fixntk.ntk.plan import Request
from fixntk.ntk.tiles import compiled_kernels, traced_kernels


def network(params, x):
    """Without a function of its own after the last layer, the kernel would be symmetric in its outputs."""
    return jnp.sin(straight(params, x))


# Leaves b, v and w: the second is a constant.
GROUPS = (1, -1, 0)


def request_of(traced=(), diagonal=(), batch_size=None):
    return Request(network, traced, diagonal, GROUPS, "structured", batch_size, None)


def of_leaf(name, x1, x2):
    """(n1, n2, 2, 3, 2, 3): the outputs of the first example, then of the second."""
    flat = jacobian_ntk(lambda p, x: network({**PARAMS, name: p}, x).reshape(x.shape[0], -1), PARAMS[name], x1, x2)
    return flat.reshape(*flat.shape[:2], 2, 3, 2, 3)


@pytest.mark.parametrize("batch_size", [2, 6, 7])
@pytest.mark.parametrize("x2", [X2, None], ids=["between", "symmetric"])
def test_tiles_of_any_size_are_the_kernels_of_each_group(batch_size, x2):
    request = request_of(diagonal=(2,), batch_size=batch_size)
    columns = X1 if x2 is None else x2
    expected = [jnp.einsum("ijaobo->ijabo", of_leaf(name, X1, columns)) for name in ("w", "b")]
    on_device = compiled_kernels(request, PARAMS, X1, x2, True)
    on_host = compiled_kernels(request, PARAMS, X1, x2, False)
    in_a_program = jax.jit(lambda p, x: traced_kernels(request, p, x, x2))(PARAMS, X1)
    for kernels in (on_device, on_host, in_a_program):
        assert len(kernels) == 2
        for kernel, wanted in zip(kernels, expected, strict=True):
            np.testing.assert_allclose(kernel, wanted, rtol=1e-12, atol=1e-13)
    assert all(isinstance(kernel, np.ndarray) for kernel in on_host)


@pytest.mark.parametrize("batch_size", [3, 7])
def test_paired_rows_are_the_diagonal_of_the_kernel_and_their_trace_its_mean(batch_size):
    x2 = X1[::-1] + 0.3
    for name, group in (("w", 0), ("b", 1)):
        diagonal = jnp.einsum("iiaobq->iaobq", of_leaf(name, X1, x2)).transpose(0, 1, 3, 2, 4)
        for traced, expected in (((), diagonal), ((0,), jnp.mean(diagonal, axis=0))):
            request = request_of(traced, () if traced else (0,), batch_size)
            for kernels in (
                compiled_kernels(request, PARAMS, X1, x2, True),
                traced_kernels(request, PARAMS, X1, x2),
            ):
                np.testing.assert_allclose(kernels[group], expected, rtol=1e-12, atol=1e-13)


def test_a_kernel_that_does_not_fit_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr("fixntk._tiling._free_of_machine", lambda: 2**10)
    many = jnp.zeros((100_000, 4))
    for batch_size in (2, 100_000):
        with pytest.raises(OutOfMemoryError, match=r"the empirical NTK of 100000×5 examples needs .* lower batch_size"):
            compiled_kernels(request_of(batch_size=batch_size), PARAMS, many, X2, True)
