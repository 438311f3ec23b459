"""Gaussian moments of activations: E[φ(u)φ(v)] and E[φ'(u)φ'(v)] of two Gaussian variables, in closed form.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fixntk.ntk.gaussians import Activation, Gaussians, Haversines, Moments
from fixntk.ntk.kinked_activations import ab_relu, leaky_relu, rectified_monomial, steps
from fixntk.ntk.quadrature import elementwise
from fixntk.ntk.smooth_activations import (
    GELU,
    cos,
    erf,
    exp,
    exp_normalized,
    gabor,
    gaussian,
    hermite,
    monomial,
    polynomial,
    rbf,
    sigmoid_like,
    sin,
)

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Gaussians",
    "Haversines",
    "Moments",
    "ab_relu",
    "as_activation",
    "cos",
    "elementwise",
    "erf",
    "exp",
    "exp_normalized",
    "gabor",
    "gaussian",
    "hermite",
    "leaky_relu",
    "monomial",
    "polynomial",
    "rbf",
    "rectified_monomial",
    "sigmoid_like",
    "sin",
]

ACTIVATIONS: dict[str, Activation] = {
    "relu": replace(leaky_relu(0.0), name="relu"),
    "leaky_relu": replace(leaky_relu(), name="leaky_relu"),
    "abs": replace(leaky_relu(-1.0), name="abs"),
    "erf": replace(erf(), name="erf"),
    "gelu": GELU,
    "sin": replace(sin(), name="sin"),
    "cos": replace(cos(), name="cos"),
    "sign": steps(0.0, 2.0),
    "step": steps(0.5, 1.0),
    "gaussian": replace(gaussian(), name="gaussian"),
    "gabor": gabor(),
    "rbf": replace(rbf(), name="rbf"),
    "sigmoid_like": replace(sigmoid_like(), name="sigmoid_like"),
    "identity": Activation(
        "identity",
        lambda pair: (pair.covariance, jnp.ones_like(pair.covariance)),
        lambda pair: (pair.haversine, pair.havercosine),
        function=lambda x: x,
    ),
}

# jax.nn.gelu is not here: its default is an approximation by tanh, which has no closed form.
_KNOWN_FUNCTIONS: dict[Any, Activation] = {
    jax.nn.relu: ACTIVATIONS["relu"],
    jax.nn.leaky_relu: ACTIVATIONS["leaky_relu"],
    jax.nn.identity: ACTIVATIONS["identity"],
    jax.scipy.special.erf: ACTIVATIONS["erf"],
    jax.lax.erf: ACTIVATIONS["erf"],
    jnp.abs: ACTIVATIONS["abs"],
    jnp.absolute: ACTIVATIONS["abs"],
    jax.lax.abs: ACTIVATIONS["abs"],
    jnp.sin: ACTIVATIONS["sin"],
    jax.lax.sin: ACTIVATIONS["sin"],
    jnp.cos: ACTIVATIONS["cos"],
    jax.lax.cos: ACTIVATIONS["cos"],
    jnp.sign: ACTIVATIONS["sign"],
    jax.lax.sign: ACTIVATIONS["sign"],
    jnp.exp: exp(),
    jax.lax.exp: exp(),
}


def as_activation(activation: str | Activation | Callable[[Array], Array]) -> Activation:
    """Return an activation by its name, unchanged, or from a function: in closed form if known, else by quadrature.

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If it is neither a name, nor an :class:`Activation`, nor callable.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            names = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation must be one of {names}, a function or an Activation, got {activation!r}")
        return ACTIVATIONS[activation]
    try:
        known = _KNOWN_FUNCTIONS.get(activation)
    except TypeError as error:
        raise TypeError(f"activation must be hashable to be compiled once, got {activation!r}") from error
    return elementwise(activation) if known is None else known
