"""Losses of a convex program: values, residuals, curvatures, conjugates, and divergences for certificates.

With outputs f and targets y of one row, the conjugate is ℓ*(−θ; y) = sup_f −⟨θ, f⟩ − ℓ(f; y), and the dual objective
is −Σ_i ℓ*(−Θ_i; Y_i)::

    loss            ℓ(f; y)                                ℓ*(−θ; y)                                 finite for
    squared         ½‖y − f‖²                              ½‖θ‖² − ⟨θ, y⟩                            all θ
    huber(δ)        ½(y − f)² or δ(|y − f| − δ/2)          ½θ² − θy                                  |θ| ≤ δ
    logistic        log(1 + exp(−yf))                      q log q + (1 − q) log(1 − q), q = yθ      0 ≤ q ≤ 1
    squared_hinge   ½ max(1 − yf, 0)²                      ½q² − q, q = yθ                           q ≥ 0
    softmax         log Σ_k exp(f_k) − ⟨y, f⟩              Σ_k q_k log q_k, q = y − θ                q ≥ 0, Σ_k θ_k = 0

Certificates need ℓ(f) + ℓ*(−sr) + s⟨r, f⟩ at the residual r = −∇ℓ(f), scaled by 0 ≤ s ≤ 1 into the dual's feasible set.
It goes to zero like (1 − s)², while its three terms do not: each loss has it in a form where nothing cancels.

See docs/mathematics.md, M7.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from fixntk._checks import as_float_array, as_real_array, is_traced, to_device
from fixntk._numerics import eps_of


@dataclass(frozen=True, repr=False)
class Loss:
    """A convex loss, row by row, of outputs F and targets Y, both (n, c).

    Attributes
    ----------
    name
        For messages.
    steepest
        Largest second derivative.
    encode
        From the user's targets to numbers, (n,) or (n, c); raises an error that says why they do not fit.
    values
        (n,) losses ℓ(F_i; Y_i).
    residuals
        (n, c) residuals R, the negative gradients by F.
    divergences
        (n,) ℓ(F) + ℓ*(−sR) + s⟨R, F⟩ ≥ 0 for 0 ≤ s ≤ 1, without cancellation; zero at s = 1.
    conjugates
        (n,) ℓ*(−Θ), ∞ outside of its domain.
    curvatures
        (n,) multiples of I that are used for the Hessians in F by Newton's method, at least as large as these.

    See docs/mathematics.md, M7.
    """

    name: str
    steepest: float
    encode: Callable[[Any], Array]
    values: Callable[[Array, Array], Array]
    residuals: Callable[[Array, Array], Array]
    divergences: Callable[[Array, Array, Array], Array]
    conjugates: Callable[[Array, Array], Array]
    curvatures: Callable[[Array, Array], Array]

    def __repr__(self) -> str:
        return f"Loss({self.name})"

    def __reduce__(self) -> tuple[Callable[..., Loss], tuple[Any, ...]]:
        # Losses of the library are pickled by name, as lambdas cannot be.
        if self.name in LOSSES or _HUBER.fullmatch(self.name):
            return as_loss, (self.name,)
        return Loss, tuple(getattr(self, field.name) for field in fields(self))


_HUBER = re.compile(r"huber\((.+)\)")

# Arguments up to this size are given to the series of the entropy.
_SERIES_RADIUS = 0.1
# Power at which the series ends: 0.1 to this power is below the resolution of float64.
_SERIES_END = 18
# Stands for log 0, so that 0 · log 0 is 0.
_LEAST_LOGARITHM = -1e30
# Largest number of classes of labels that several processes have parts of.
_MAX_LABELS = 10_000
# Multiple of the dtype's resolution by which a point on the boundary of a conjugate's domain may be outside.
_BOUNDARY_MULTIPLE = 100


def _as_numbers(y: Any) -> Array:
    return as_float_array("y", y, (1, 2))


def _half_squares(rows: Array) -> Float[Array, " n"]:
    """½‖·‖² of each row."""
    return 0.5 * jnp.sum(rows**2, axis=1)


# The divergence is ½‖f − y‖² + ½s²‖r‖² − s⟨r, y⟩ + s⟨r, f⟩ with r = y − f, a multiple of ½‖r‖².
_SQUARED = Loss(
    name="squared",
    steepest=1.0,
    encode=_as_numbers,
    values=lambda outputs, targets: _half_squares(targets - outputs),
    residuals=lambda outputs, targets: targets - outputs,
    divergences=lambda outputs, targets, scale: (1 - scale) ** 2 * _half_squares(targets - outputs),
    conjugates=lambda theta, targets: _half_squares(theta) - jnp.sum(theta * targets, axis=1),
    curvatures=lambda outputs, _: jnp.ones_like(outputs[:, 0]),
)


@cache
def huber(delta: float = 1.0) -> Loss:
    r"""Huber's loss: ½r² for \|r\| ≤ ``delta``, beyond it delta (\|r\| − delta/2), of each error r.

    Targets are numbers. Each output has its own loss; the loss of a row is their sum.

    Raises
    ------
    ValueError
        If ``delta`` is not positive and finite.

    See docs/mathematics.md, M7.
    """
    delta = float(delta)
    if not 0 < delta < math.inf:
        raise ValueError(f"delta must be positive and finite, got {delta}")

    def residuals(outputs: Array, targets: Array) -> Array:
        return jnp.clip(targets - outputs, -delta, delta)

    def excess(outputs: Array, targets: Array) -> Array:
        """|r| times the part of the error that is clipped, summed over outputs: ℓ(f) = ½‖r‖² + excess."""
        error = targets - outputs
        return jnp.sum(delta * jnp.maximum(jnp.abs(error) - delta, 0), axis=1)

    def conjugates(theta: Array, targets: Array) -> Array:
        # A residual of delta is inside of the domain, up to rounding.
        inside = jnp.max(jnp.abs(theta), axis=1) <= delta * (1 + _BOUNDARY_MULTIPLE * eps_of(theta))
        return jnp.where(inside, _SQUARED.conjugates(theta, targets), jnp.inf)

    def curvatures(outputs: Array, targets: Array) -> Array:
        # One for the row if any of its errors is in the quadratic part.
        smallest = jnp.min(jnp.abs(targets - outputs), axis=1)
        return (smallest < delta).astype(outputs.dtype)

    return Loss(
        name=f"huber({delta!r})",
        steepest=1.0,
        encode=_as_numbers,
        values=lambda outputs, targets: _half_squares(residuals(outputs, targets)) + excess(outputs, targets),
        residuals=residuals,
        divergences=lambda outputs, targets, scale: (
            (1 - scale) ** 2 * _half_squares(residuals(outputs, targets)) + (1 - scale) * excess(outputs, targets)
        ),
        conjugates=conjugates,
        curvatures=curvatures,
    )


def _as_signs(y: Any) -> Array:
    """Labels of two classes as ±1, from ±1, from 0 and 1, or from bools."""
    _refuse_text(y)
    given = as_real_array("y", y)
    if is_traced(given):
        return as_float_array("y", given, (1,))
    signs = as_float_array("y", _on_host(given), (1,))
    labels = _labels_of(given)
    if set(labels.tolist()) == {-1, 1}:
        return signs
    if set(labels.tolist()) == {0, 1}:
        return to_device(2 * _on_host(signs) - 1)
    raise ValueError(f"y must hold both labels -1 and 1, or 0 and 1, for this loss, got {_list(labels)}")


def _as_one_hot(y: Any) -> Array:
    """Classes as one-hot rows, from these or from integers 0, …, c − 1."""
    _refuse_text(y)
    given = as_real_array("y", y)
    values = as_float_array("y", given if is_traced(given) else _on_host(given), (1, 2))
    if values.ndim == 2:
        if values.shape[1] < 2:
            raise ValueError("y must have a column for each of two classes or more, or be (n,) classes, for softmax")
        if not is_traced(values) and not bool(jnp.all((values == 0) | (values == 1)) & jnp.all(values.sum(1) == 1)):
            raise ValueError(
                "y must have a single 1 in each row and zeros elsewhere, or be (n,) classes, for softmax, got "
                f"{_list(_labels_of(values))}"
            )
        return values
    if is_traced(values):
        raise ValueError("y must be one-hot, (n, c), where it is traced: the number of classes is not known")
    labels = _labels_of(given)
    if not np.array_equal(labels, np.arange(labels.size)) or labels.size < 2:
        raise ValueError(f"y must hold classes 0, 1, …, c − 1, each at least once, for softmax, got {_list(labels)}")
    if not given.is_fully_addressable:
        return jax.nn.one_hot(given.astype(int), labels.size, dtype=values.dtype)
    return to_device(np.eye(labels.size, dtype=values.dtype)[np.asarray(given).astype(int)])


def _on_host(array: Array) -> Array | np.ndarray:
    """The array in NumPy, which needs no compiling; as it is where other processes have rows of it."""
    return np.asarray(array) if array.is_fully_addressable else array


def _labels_of(y: Array) -> np.ndarray:
    """The distinct entries in order; of rows of other processes too, the smallest of very many."""
    return np.unique(np.asarray(y if y.is_fully_addressable else _smallest_labels(y)))


@jax.jit
def _smallest_labels(y: Array) -> Array:
    return jnp.unique(y, size=_MAX_LABELS)


def _refuse_text(y: Any) -> None:
    if isinstance(y, Array):
        return
    labels = np.asarray(y)
    if labels.dtype.kind in "SU" or any(isinstance(label, str) for label in labels.ravel() if labels.dtype == object):
        raise TypeError(
            f"y must hold numbers for this loss, got {_list(np.unique(labels.astype(str)))}: encode the classes as "
            "0, 1, …, or use an estimator"
        )


def _list(labels: np.ndarray) -> str:
    """The first ten labels for a message."""
    shown = ", ".join(repr(str(label)) if labels.dtype.kind == "U" else f"{label:g}" for label in labels[:10])
    return f"labels {shown}{', …' if labels.size > 10 else ''}"


def _relative_entropy(log_share: Array, scale: Array | float) -> Float[Array, " n"]:
    """KL(q ‖ p) of two distributions, where p gives the true class e^log_share and q = (1 − scale)·truth + scale·p.

    This is the divergence of the logistic loss and of the softmax: p are the model's probabilities, and the scaled
    residual s(truth − p) has the conjugate's argument truth − s(truth − p) = q. It is evaluated as
    Σ_k p_k φ(q_k / p_k − 1) with φ(t) = (1 + t) log(1 + t) − t, a sum of terms that are not negative. For every false
    class q_k / p_k = s, so that these are one term.
    """
    share = jnp.exp(log_share)
    rest, less = -jnp.expm1(log_share), 1 - scale
    gain = less * rest  # of the true class, q − p
    safe = jnp.where(share > 0, share, 1.0)
    # For q near p the series; elsewhere q log(q/p) − (q − p) from logarithms, as p may underflow.
    near = gain <= _SERIES_RADIUS * share
    ratio = jnp.where(near, gain / safe, 0.0)
    total = share + gain
    far = total * (jnp.log(jnp.where(total > 0, total, 1.0)) - jnp.maximum(log_share, _LEAST_LOGARITHM)) - gain
    return rest * _entropy(-less) + jnp.where(near, share * _entropy(ratio), far)


def _entropy(t: Array | float) -> Array:
    """φ(t) = (1 + t) log(1 + t) − t for t ≥ −1, near 0 by its series Σ_k (−t)^k / (k (k − 1)) from k = 2 on."""
    terms = [(-1) ** k / (k * (k - 1)) for k in range(2, _SERIES_END)]
    small = jnp.abs(t) <= _SERIES_RADIUS
    series = jnp.zeros_like(t)
    for term in reversed(terms):
        series = series * jnp.where(small, t, 0.0) + term
    other = jnp.where(small, 1.0, t)
    return jnp.where(small, t**2 * series, jax.scipy.special.xlog1py(1 + other, other) - other)


def _negative_entropy(shares: Array) -> Float[Array, " n"]:
    """Σ_k q_k log q_k of each row, ∞ where a share is negative beyond rounding error."""
    inside = jnp.min(shares, axis=1) >= -_BOUNDARY_MULTIPLE * eps_of(shares)
    shares = jnp.maximum(shares, 0)
    return jnp.where(inside, jnp.sum(jax.scipy.special.xlogy(shares, shares), axis=1), jnp.inf)


def _margins(outputs: Array, targets: Array) -> Float[Array, " n"]:
    """Margins y f, for labels ±1."""
    return (outputs * targets)[:, 0]


def _logistic_conjugates(theta: Array, targets: Array) -> Array:
    share = _margins(theta, targets)
    return _negative_entropy(jnp.stack([share, 1 - share], axis=1))


def _logistic_curvatures(outputs: Array, targets: Array) -> Array:
    # The product of both probabilities; targets give only their shape and dtype.
    return jax.nn.sigmoid(outputs[:, 0]) * jax.nn.sigmoid(-outputs[:, 0]) + 0 * targets[:, 0]


_LOGISTIC = Loss(
    name="logistic",
    steepest=0.25,
    encode=_as_signs,
    values=lambda outputs, targets: jax.nn.softplus(-_margins(outputs, targets)),
    residuals=lambda outputs, targets: targets * jax.nn.sigmoid(-outputs * targets),
    divergences=lambda outputs, targets, scale: _relative_entropy(-jax.nn.softplus(-_margins(outputs, targets)), scale),
    conjugates=_logistic_conjugates,
    curvatures=_logistic_curvatures,
)


def _log_shares(outputs: Array, targets: Array) -> Float[Array, " n"]:
    """Logarithm of the true class's probability, for each row."""
    return jnp.sum(jax.nn.log_softmax(outputs, axis=1) * targets, axis=1)


def _softmax_conjugates(theta: Array, targets: Array) -> Array:
    # Residuals of the softmax sum to zero over the classes.
    balanced = jnp.abs(jnp.sum(theta, axis=1)) <= _BOUNDARY_MULTIPLE * eps_of(theta)
    return jnp.where(balanced, _negative_entropy(targets - theta), jnp.inf)


def _softmax_curvatures(outputs: Array, _: Array) -> Array:
    # A bound on the largest eigenvalue of diag(p) − ppᵀ, by Gershgorin's circles, which is never above ½.
    shares = jax.nn.softmax(outputs, axis=1)
    return jnp.minimum(2 * jnp.max(shares * (1 - shares), axis=1), 0.5)


_SOFTMAX = Loss(
    name="softmax",
    steepest=0.5,
    encode=_as_one_hot,
    values=lambda outputs, targets: -_log_shares(outputs, targets),
    residuals=lambda outputs, targets: targets - jax.nn.softmax(outputs, axis=1),
    divergences=lambda outputs, targets, scale: _relative_entropy(_log_shares(outputs, targets), scale),
    conjugates=_softmax_conjugates,
    curvatures=_softmax_curvatures,
)


def _shortfalls(outputs: Array, targets: Array) -> Float[Array, " n"]:
    """By how much each margin is below 1."""
    return jnp.maximum(1 - _margins(outputs, targets), 0)


def _hinge_conjugates(theta: Array, targets: Array) -> Array:
    share = _margins(theta, targets)
    return jnp.where(share >= 0, 0.5 * share**2 - share, jnp.inf)


_SQUARED_HINGE = Loss(
    name="squared_hinge",
    steepest=1.0,
    encode=_as_signs,
    values=lambda outputs, targets: 0.5 * _shortfalls(outputs, targets) ** 2,
    residuals=lambda outputs, targets: targets * _shortfalls(outputs, targets)[:, None],
    divergences=lambda outputs, targets, scale: 0.5 * (1 - scale) ** 2 * _shortfalls(outputs, targets) ** 2,
    conjugates=_hinge_conjugates,
    curvatures=lambda outputs, targets: (_margins(outputs, targets) < 1).astype(outputs.dtype),
)

LOSSES: dict[str, Loss] = {
    "squared": _SQUARED,
    "logistic": _LOGISTIC,
    "softmax": _SOFTMAX,
    "squared_hinge": _SQUARED_HINGE,
    "huber": huber(),
}


def as_loss(loss: str | Loss) -> Loss:
    """A loss from its name, ``"huber(0.5)"`` being :func:`huber` of 0.5, or itself.

    Raises
    ------
    ValueError
        If the name is unknown.

    See docs/mathematics.md, M7.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str) and (made := _HUBER.fullmatch(loss)):
        return huber(float(made[1]))
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, or a Loss, got {loss!r}")
    return LOSSES[loss]
