"""Layers that act on each position by itself: activations, normalisation, dropout.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fixntk._checks import check_scalar
from fixntk._numerics import safe_sqrt
from fixntk.ntk.activations import as_activation
from fixntk.ntk.covariances import Covariances, Pairs, haversines_from_moments
from fixntk.ntk.gaussians import Gaussians
from fixntk.ntk.layers.layer import STATIC, Layer, check_gaussian, check_numbers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Activate(Layer):
    """An elementwise activation; a layer with random weights must precede it.

    Attributes
    ----------
    activation
        A name, an activation of :mod:`fixntk.ntk.activations`, or a function (by quadrature unless it is a known one).

    See docs/mathematics.md, M13.
    """

    activation: Any = field(default="relu", metadata=STATIC)

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", as_activation(self.activation))

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the activation."""
        check_gaussian(covariances, f"Activate({self.activation.name!r})")
        # The mean of φ(u) is not zero in general, even if that of u is.
        return covariances.map(self._activate_pairs, is_gaussian=False, centred=(False,) * len(covariances.centred))

    def apply(self, params: Any, x: Array, *, key: Array | None = None) -> Array:
        """The activation of every entry."""
        del params, key
        if self.activation.function is None:
            raise ValueError(f"activation {self.activation.name!r} has no function, only a kernel")
        return self.activation.function(x)

    def _activate_pairs(self, pairs: Pairs) -> Pairs:
        gaussians = pairs.gaussians()
        covariance, derivatives = self.activation.moments(gaussians)
        variance1, variance2 = (self._variance(variance) for variance in (pairs.variance1, pairs.variance2))
        # An angle from second moments has half of the digits near zero, which is all that there is without a formula.
        if self.activation.haversines is None:
            haversines = haversines_from_moments(variance1, variance2, covariance)
        else:
            haversines = self.activation.haversines(gaussians)
        # Weights before the activation act through it: the chain rule gives Θ the factor E[φ'(u)φ'(v)].
        return Pairs(variance1, variance2, covariance, *haversines, pairs.ntk * derivatives)

    def _variance(self, variance: Array) -> Array:
        std = safe_sqrt(variance)
        # A value and itself have the angle zero: haversine 0, havercosine 1.
        return self.activation.moments(Gaussians(std, std, variance, jnp.zeros_like(std), jnp.ones_like(std)))[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerNorm(Layer):
    """Layer normalisation over the channels, without trained scale or offset; random weights must precede it.

    Attributes
    ----------
    eps
        Added to the variance under the root. Zeros stay zeros when it is 0.

    See docs/mathematics.md, M13.
    """

    eps: Any = 1e-12

    def __post_init__(self) -> None:
        check_scalar("eps", self.eps)

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the normalisation."""
        check_gaussian(covariances, "LayerNorm")
        return covariances.map(self._normalise_pairs)

    def apply(self, params: Any, x: Array, *, key: Array | None = None) -> Array:
        """Entries less their mean over the channels, divided by their standard deviation."""
        del params, key
        check_numbers(self)
        rest = x - jnp.mean(x, axis=-1, keepdims=True)
        square = jnp.mean(rest**2, axis=-1, keepdims=True) + self.eps
        # The inner choice keeps the derivative finite where the outer one discards the quotient.
        return jnp.where(square > 0, rest / jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    def _normalise_pairs(self, pairs: Pairs) -> Pairs:
        # With many channels their mean square is the variance, so that both inputs are divided by a constant; weights
        # before the layer act through it, and Θ is divided by both.
        sums = (variance + self.eps for variance in (pairs.variance1, pairs.variance2))
        factor1, factor2 = (jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1.0), 0.0) for total in sums)
        factor = jnp.sqrt(factor1) * jnp.sqrt(factor2)
        return replace(
            pairs,
            variance1=pairs.variance1 * factor1,
            variance2=pairs.variance2 * factor2,
            covariance=pairs.covariance * factor,
            ntk=pairs.ntk * factor,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dropout(Layer):
    """Dropout with an independent mask for each example and position; random weights must precede it.

    The kernels are those of training, expectations over the masks. Without ``x2`` an input and itself have the same
    mask; two rows of ``x1``, or a row of ``x1`` and one of ``x2``, have different ones even if they are equal. For
    evaluation leave the layer out.

    Attributes
    ----------
    keep
        Probability that an entry is kept (and then divided by it); neural-tangents' ``rate``.

    See docs/mathematics.md, M13.
    """

    keep: Any = 0.5

    def __post_init__(self) -> None:
        check_scalar("keep", self.keep)
        if isinstance(self.keep, int | float) and not 0 < self.keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, got {self.keep}")

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after dropout."""
        if not covariances.has_weights:
            raise ValueError("Dropout of the inputs has no kernel of infinite width: put Dense or Conv before it")
        none = jnp.zeros((1, 1), bool)
        same = none if covariances.same is None else covariances.same
        num_axes = covariances.num_positions
        ones = (1,) * num_axes

        if covariances.has_all_positions:
            # Masks are drawn for each position, so that a position shares its mask with itself alone.
            is_same_position = jnp.eye(math.prod(covariances.positions), dtype=bool).reshape(covariances.positions * 2)
            ones *= 2
        else:
            is_same_position = jnp.ones((1,) * num_axes, bool)

        def drop(pairs: Pairs, same: Array) -> Pairs:
            has_one_mask = same.reshape(*same.shape, *ones) & is_same_position
            # Kept entries are divided by keep: under one mask the expected product is keep / keep², under two it is
            # unchanged.
            factor = jnp.where(has_one_mask, 1 / self.keep, 1.0).astype(pairs.ntk.dtype)
            # Independent masks lower the correlation by the factor keep: 1 − keep cos θ without a difference.
            keep = jnp.where(has_one_mask, 1.0, self.keep).astype(pairs.ntk.dtype)
            haversine, havercosine = (keep * share + (1 - keep) / 2 for share in (pairs.haversine, pairs.havercosine))
            return Pairs(
                pairs.variance1 / self.keep,
                pairs.variance2 / self.keep,
                pairs.covariance * factor,
                haversine,
                havercosine,
                pairs.ntk * factor,
            )

        # The pairs of an input with itself always have the same mask.
        own1, own2 = (None if own is None else drop(own, ~none) for own in (covariances.own1, covariances.own2))
        return replace(covariances, pairs=drop(covariances.pairs, same), own1=own1, own2=own2, is_gaussian=False)

    def apply(self, params: Any, x: Array, *, key: Array | None = None) -> Array:
        """Entries divided by ``keep`` or set to zero; all entries as they are without a key."""
        del params
        if key is None:
            return x
        return jnp.where(jax.random.bernoulli(key, self.keep, x.shape), x / self.keep, 0.0)
