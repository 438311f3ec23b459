"""Share of a second moment that the series of an activation omits in a network, and the warning about it."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fixntk.ntk.angles import as_rows
from fixntk.ntk.covariances import Covariances, covariances_of_inputs
from fixntk.ntk.layers.elementwise import Activate
from fixntk.ntk.layers.layer import as_scalars, layers_of, needs_all_positions

# Largest fraction of a second moment that a series may omit without a warning.
_LARGEST_SHARE = 1e-4


def warn_if_truncated(network: Any, input_scale: Any, inputs: list[tuple[Array, Array | None]], tile: int) -> None:
    """Warn if the series of an activation converges slowly at a standard deviation that occurs in the network."""
    if not any(layer.activation.truncation for layer in layers_of(Activate, network)):
        return
    for x, pattern in inputs:
        for name, share in _truncated_shares((network, input_scale), x, pattern, tile).items():
            if share > _LARGEST_SHARE:
                warnings.warn(
                    f"the series of activation {name} leaves out a share of {float(share):.0e} of its second moment or "
                    "its derivative's: kernels of similar inputs are too small by up to as much. Give more terms, "
                    "elementwise(…, num_terms=…), an activation in closed form, or smaller w_std and inputs.",
                    stacklevel=4,
                )


@partial(jax.jit, static_argnums=3)
def _truncated_shares(parameters: tuple[Any, Any], x: Array, pattern: Array | None, tile: int) -> dict[str, Array]:
    """Largest share of a second moment that the series of each activation omits, over all inputs and layers."""
    network, input_scale = as_scalars(*parameters, x.dtype)

    def shares_of_one(example: tuple[Array, Array | None]) -> dict[str, Array]:
        x, pattern = example
        shares: dict[str, list[Array]] = {}

        # The standard deviations that occur are known inside the network only. So the network is run with each
        # activation wrapped by a function that notes the share omitted at the present one.
        def add_watch(layer: Any) -> Any:
            if not isinstance(layer, Activate) or layer.activation.truncation is None:
                return layer

            def watch(covariances: Covariances) -> Covariances:
                std1 = covariances.pairs.gaussians().std1
                shares.setdefault(layer.activation.name, []).extend(layer.activation.truncation(std1))
                return layer(covariances)

            return watch

        watching = jax.tree.map(add_watch, network, is_leaf=lambda layer: isinstance(layer, Activate))
        # One example, paired with itself, is enough: standard deviations belong to single inputs.
        row = as_rows(x[None], jnp.zeros(1, int))._replace(pattern=None if pattern is None else pattern[None])
        watching(covariances_of_inputs(row, row, input_scale, needs_all_positions(network)))
        return {name: jnp.max(jnp.stack([jnp.max(share) for share in found])) for name, found in shares.items()}

    return jax.tree.map(jnp.max, jax.lax.map(shares_of_one, (x, pattern), batch_size=tile))
