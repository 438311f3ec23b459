"""Neural tangent kernels in closed form (M3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_matrix, check_kernel_fits, check_same_columns


def gated_relu_ntk(x1: ArrayLike, x2: ArrayLike | None = None) -> Float[Array, "n1 n2"]:
    r"""NTK of the gated-ReLU network of infinite width: k(x, x') = x·x' (π − θ) / (2π), θ the angle between them (M3).

    The network is :math:`f(x) = m^{-1/2} \sum_j v_j 1\{g_j·x ≥ 0\} w_j·x` with gates from N(0, I) and v = ±1 fixed
    and w trained; a bias is a column of ones in x. The values are exact to rounding at parallel points (x·x'/2),
    opposite points (0) and x = 0 (0). Gradients are finite everywhere; where the kernel has a kink (parallel and
    opposite points, x = 0) they are the mean of the one-sided ones.

    Parameters
    ----------
    x1
        (n1, d) inputs. No unit.
    x2
        (n2, d) inputs; x1 when None.

    Returns
    -------
    (n1, n2), of the inputs' dtype.

    Raises
    ------
    ValueError
        If an argument is not a finite, non-empty matrix, the numbers of columns differ, or the result would not fit
        into the device's memory.

    References
    ----------
    Dwaraknath, Ergen and Pilanci, "Fixing the NTK", NeurIPS 2023; docs/mathematics.md, M3.
    """
    x1 = as_matrix("x1", x1)
    x2 = x1 if x2 is None else as_matrix("x2", x2)
    check_same_columns("x1", x1, "x2", x2)
    check_kernel_fits(x1, x2, "pass x1 in blocks of rows")
    return _gated_relu_ntk(x1, x2)


@jax.jit
def _gated_relu_ntk(x1: Array, x2: Array) -> Array:
    products = jnp.matmul(x1, x2.T, precision=lax.Precision.HIGHEST)
    return products * (0.5 - pairwise_angles(x1, x2) / (2 * jnp.pi))


def pairwise_angles(x1: Array, x2: Array) -> Float[Array, "n1 n2"]:
    """Angles θ in [0, π] between the rows of x1 and x2, π/2 to a zero row.

    θ = 2 atan2(‖u − v‖, ‖u + v‖) of the unit vectors keeps full precision at every angle, where arccos(u·v) loses half
    of the digits near 0 and π. The differences are taken explicitly: from a Gram matrix they would lose as many.
    """
    units1, units2 = _unit_rows(x1), _unit_rows(x2)

    def row_angles(unit: Array) -> Array:
        difference, total = _lengths(units2 - unit), _lengths(units2 + unit)
        # Two zero rows have both lengths zero, where atan2 has no gradient.
        undefined = (difference == 0) & (total == 0)
        return 2 * jnp.arctan2(jnp.where(undefined, 1.0, difference), jnp.where(undefined, 1.0, total))

    return lax.map(row_angles, units1, batch_size=min(64, max(1, units1.shape[0])))


def _unit_rows(x: Array) -> Array:
    # Scaling by the largest entry first keeps squares of large and small entries in range.
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    scaled = x / lax.stop_gradient(jnp.where(largest > 0, largest, 1.0))
    lengths = _lengths(scaled)[:, None]
    return jnp.where(lengths > 0, scaled / jnp.where(lengths > 0, lengths, 1.0), 0.0)


def _lengths(rows: Array) -> Array:
    """Euclidean norms along the last axis, with gradient zero at zero."""
    squares = jnp.sum(rows**2, axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
