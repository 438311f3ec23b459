"""Gates drawn from the data: through training rows, between rows of different targets, around given gates.

Each sampler is called with ``(key, num_gates, x, y=None)`` and returns (P, d) gates for ``activation_masks(x, gates)``.
A constant column of x that is not zero is its bias column: with one, hyperplanes need not pass through the origin of
the other columns. Rows of zeros, such as padding, do not count.

See docs/mathematics.md, M1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Key

from fixntk._checks import as_matrix, as_positive_int, as_real_array, check_same_columns, check_same_rows, is_traced
from fixntk._numerics import eps_of, matmul
from fixntk.gates.masks import sample_gates

Sampler = Callable[..., Float[Array, "P d"]]

# Singular values below this multiple of the largest, in units of the dtype's resolution and the size, count as zero.
_RANK_MULTIPLE = 10.0


def gaussian(
    key: Key[Array, ""],
    num_gates: int,
    x: ArrayLike,
    y: ArrayLike | None = None,  # noqa: ARG001  # Samplers are called alike.
    *,
    bias_scale: float = 1.0,
) -> Float[Array, "P d"]:
    """Gates N(0, I), with ``bias_scale`` as the standard deviation of the bias column's entry.

    Among many standardised columns a hyperplane of N(0, I) passes near the centre of the data: its distance to it goes
    as 1/√d. A larger scale spreads the hyperplanes over the data.

    Parameters
    ----------
    key
        JAX random key.
    num_gates
        P.
    x
        (n, d) inputs, of which only the dtype, the width and the bias column matter.
    y
        Not used.
    bias_scale
        Positive.

    Raises
    ------
    ValueError
        If ``num_gates`` is below 1, x is not a finite matrix, or ``bias_scale`` is not positive.

    See docs/mathematics.md, M1 and M3.
    """
    x = as_matrix("x", x)
    if not bias_scale > 0:
        raise ValueError(f"bias_scale must be positive, got {bias_scale}")
    gates = sample_gates(key, num_gates, x.shape[1], dtype=x.dtype)
    scales = jnp.where(_bias_level(x) != 0, jnp.asarray(bias_scale, x.dtype), jnp.ones((), x.dtype))
    return gates * scales[None, :]


def through_points(
    key: Key[Array, ""],
    num_gates: int,
    x: ArrayLike,
    y: ArrayLike | None = None,  # noqa: ARG001  # Samplers are called alike.
) -> Float[Array, "P d"]:
    """Gates whose hyperplanes pass through d − 1 random rows each (fewer where x has fewer rows).

    On which side of its own hyperplane such a row lies is decided by rounding.

    Parameters
    ----------
    key, num_gates
        As for :func:`gaussian`.
    x
        (n, d) inputs.
    y
        Not used.

    Raises
    ------
    ValueError
        If ``num_gates`` is below 1 or x is not a finite matrix.

    References
    ----------
    Pilanci, "From Complexity to Clarity: Analytical Expressions of Deep Neural Network Weights via Clifford's Geometric
    Algebra and Convexity", 2024: optimal gates of a ReLU network are orthogonal to d − 1 training rows.

    See docs/mathematics.md, M1.
    """
    x, num_gates = as_matrix("x", x), as_positive_int("num_gates", num_gates)
    num_rows, num_features = x.shape
    count = min(num_features - 1, num_rows)

    def sample(key: Array) -> Array:
        choice, direction = jax.random.split(key)
        rows = x[jax.random.choice(choice, num_rows, (count,), replace=False)]
        normal = jax.random.normal(direction, (num_features,), x.dtype)
        return _reject_span(rows, normal) if count else normal

    return normalise(jax.vmap(sample)(jax.random.split(key, num_gates)))


def between_classes(
    key: Key[Array, ""], num_gates: int, x: ArrayLike, y: ArrayLike | None = None
) -> Float[Array, "P d"]:
    """Gates halfway between two random rows of different classes.

    Parameters
    ----------
    key, num_gates
        As for :func:`gaussian`.
    x
        (n, d) inputs. With a bias column the hyperplane is the perpendicular bisector of the two rows; without, it
        bisects the angle between them at the origin.
    y
        (n,) classes as numbers.

    Raises
    ------
    ValueError
        If ``num_gates`` is below 1, x is not a finite matrix, y is missing, has other rows, or has one class only.

    See docs/mathematics.md, M1.
    """
    x, y = _as_targets(x, y)
    return _bisect_pairs(key, as_positive_int("num_gates", num_gates), x, lambda i: y != y[i])


def between_targets(
    key: Key[Array, ""], num_gates: int, x: ArrayLike, y: ArrayLike | None = None
) -> Float[Array, "P d"]:
    """Gates halfway between two rows, the second drawn in proportion to the difference of their targets.

    Parameters
    ----------
    key, num_gates, x
        As for :func:`between_classes`.
    y
        (n,) numbers.

    Raises
    ------
    ValueError
        As for :func:`between_classes`; also if all targets are the same.

    See docs/mathematics.md, M1 and M11.
    """
    x, y = _as_targets(x, y)
    values = y.astype(x.dtype)
    return _bisect_pairs(key, as_positive_int("num_gates", num_gates), x, lambda i: jnp.abs(values - values[i]))


def around_gates(
    key: Key[Array, ""],
    num_gates: int,
    x: ArrayLike,
    y: ArrayLike | None = None,  # noqa: ARG001  # Samplers are called alike.
    *,
    gates: ArrayLike,
    spread: float = 0.1,
) -> Float[Array, "P d"]:
    """Gates near random ones of given gates.

    Parameters
    ----------
    key, num_gates
        As for :func:`gaussian`.
    x
        (n, d) inputs, of which only the dtype and the width matter.
    y
        Not used.
    gates
        (Q, d), such as those that a solution uses.
    spread
        Length of the typical change of a gate of length one.

    Raises
    ------
    ValueError
        If ``num_gates`` is below 1, x or ``gates`` is not a finite matrix, their columns differ, or ``spread`` is not
        positive.

    See docs/mathematics.md, M1 and M11.
    """
    x, centres = as_matrix("x", x), as_matrix("gates", gates)
    check_same_columns("x", x, "gates", centres)
    if not spread > 0:
        raise ValueError(f"spread must be positive, got {spread}")
    choice, direction = jax.random.split(key)
    shape = as_positive_int("num_gates", num_gates), x.shape[1]
    chosen = normalise(centres.astype(x.dtype))[jax.random.choice(choice, centres.shape[0], shape[:1])]
    return normalise(chosen + spread / shape[1] ** 0.5 * jax.random.normal(direction, shape, x.dtype))


SAMPLERS: dict[str, Sampler] = {
    "gaussian": gaussian,
    "through_points": through_points,
    "between_classes": between_classes,
    "between_targets": between_targets,
}
"""The samplers that need nothing but the data, by name."""


def _as_targets(x: ArrayLike, y: ArrayLike | None) -> tuple[Array, Array]:
    if y is None:
        raise ValueError("y must be given: this sampler draws gates between rows of different targets")
    x, y = as_matrix("x", x), as_real_array("y", y)
    if y.ndim != 1:
        raise ValueError(f"y must have shape (n,), got {y.shape}")
    check_same_rows("x", x, "y", y)
    if not is_traced(y) and bool(jnp.all(y == y[0])):
        raise ValueError(f"y must hold at least two different values, got {y[0]} alone")
    return x, y


def _bias_level(x: Float[Array, "n d"]) -> Float[Array, " d"]:
    """The value of the bias column, zero elsewhere: the first that is constant and not zero, zero rows aside."""
    is_padding = jnp.all(x == 0, axis=1)
    level = x[jnp.argmin(is_padding)]
    is_constant = jnp.all((x == level[None, :]) | is_padding[:, None], axis=0) & (level != 0)
    return jnp.where(is_constant & (jnp.cumsum(is_constant) == 1), level, 0.0)


def _reject_span(rows: Float[Array, "k d"], vector: Float[Array, " d"]) -> Float[Array, " d"]:
    """The part of a vector that is orthogonal to rows, which may be dependent."""
    _, values, basis = jnp.linalg.svd(rows, full_matrices=False)
    cutoff = _RANK_MULTIPLE * max(rows.shape) * eps_of(rows) * values[0]
    basis = jnp.where((values > cutoff)[:, None], basis, 0.0)
    # Twice, as one projection leaves a rounding error of the vector's size times eps.
    for _ in range(2):
        vector = vector - matmul(basis.T, matmul(basis, vector))
    return vector


def normalise(gates: Float[Array, "P d"]) -> Float[Array, "P d"]:
    """The gates at unit length; those of zero stay zero."""
    lengths = jnp.linalg.norm(gates, axis=1, keepdims=True)
    return gates / jnp.where(lengths > 0, lengths, 1.0)


def _bisect_pairs(
    key: Array, num_gates: int, x: Float[Array, "n d"], chances_from: Callable[[Array], Array]
) -> Float[Array, "P d"]:
    """Gates halfway between a random row i and one that is drawn with ``chances_from(i)``, (n,) and not negative."""
    level = _bias_level(x)
    has_bias = jnp.any(level != 0)
    units = normalise(x)
    # One draw for all gates: random numbers take longer to compile than all else here.
    choice, direction = jax.random.split(key)
    draws = jax.random.uniform(choice, (2, num_gates), x.dtype)
    others = jax.random.normal(direction, (num_gates, x.shape[1]), x.dtype)

    def bisect(draw: Array, other: Array) -> Array:
        i = jnp.minimum((draw[0] * x.shape[0]).astype(jnp.int32), x.shape[0] - 1)
        # By inversion: the first row at which the sum of the chances passes a random share of their total.
        sums = jnp.cumsum(chances_from(i).astype(x.dtype))
        j = jnp.minimum(jnp.sum(sums <= draw[1] * sums[-1], dtype=jnp.int32), x.shape[0] - 1)
        # The bisector u·(x − (x_i + x_j)/2) = 0 with u = x_i − x_j, its constant on the bias column.
        normal = x[i] - x[j]
        constant = -0.5 * jnp.sum(normal * (x[i] + x[j])) / jnp.where(has_bias, jnp.sum(level), 1.0)
        gate = jnp.where(has_bias, jnp.where(level != 0, constant, normal), units[i] - units[j])
        # Nothing lies halfway between two rows of one direction.
        return jnp.where(jnp.any(gate != 0), gate, other)

    return normalise(jax.vmap(bisect)(draws.T, others))
