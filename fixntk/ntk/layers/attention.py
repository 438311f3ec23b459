"""Self-attention between all positions of an input.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fixntk._checks import as_positive_int, check_scalar
from fixntk._numerics import einsum, matmul, safe_sqrt
from fixntk.ntk.covariances import Covariances, from_moments
from fixntk.ntk.layers.graphs import flatten_nodes, has_nodes, patterns_of
from fixntk.ntk.layers.layer import DEFAULT_WIDTH, STATIC, Layer, check_numbers, check_positions, draw_normal

# The functions of scores that give the weights of attention.
_MECHANISMS: dict[str, Callable[[Array], Array]] = {
    "softmax": jax.nn.softmax,
    "identity": lambda scores: scores,
    "abs": jnp.abs,
    "relu": jax.nn.relu,
}
# The score of a position that is not there: its softmax is zero, and that of an input without positions no NaN.
_LEAST_SCORE = -1e30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SelfAttention(Layer):
    """Self-attention in which queries are keys, and scores are divided by the number of channels of a key.

    With many channels the scores become the covariances between positions, so that the kernel has a closed form
    (neural-tangents' GlobalSelfAttention with linear_scaling).

    Attributes
    ----------
    w_std
        Standard deviation of the weights of the values times that of the output's.
    b_std
        Standard deviation of the biases; 0 or None for none.
    score_std
        Standard deviation of the weights of the keys times that of the queries'.
    mechanism
        What is done to the scores: "softmax", "identity", "abs" or "relu".
    position_std
        Standard deviation of the random embeddings that are added to each position, before keys and queries.
    position_decay
        Covariance of the embeddings of two positions as a JAX function of their squared distance; without one,
        embeddings of different positions are independent.
    values_with_positions
        Whether embeddings are added before the values too.
    num_heads, width
        Number of heads, and of channels of keys, values and outputs, of the layer of finite width.
    masked
        Whether positions that an input lacks get no attention: those that are false in its mask, as for
        :class:`MaskedAveragePool`. Outputs at them are not zero.

    References
    ----------
    Hron, Bahri, Sohl-Dickstein and Novak, "Infinite attention: NNGP and NTK for deep attention networks", ICML 2020.

    See docs/mathematics.md, M13.
    """

    mixes_positions: ClassVar[bool] = True
    takes_pattern: ClassVar[bool] = True

    w_std: Any = 1.0
    b_std: Any = 0.0
    score_std: Any = 1.0
    mechanism: str = field(default="softmax", metadata=STATIC)
    position_std: Any = 0.0
    position_decay: Callable[[Array], Array] | None = field(default=None, metadata=STATIC)
    values_with_positions: bool = field(default=False, metadata=STATIC)
    num_heads: int = field(default=8, metadata=STATIC)
    width: int | None = field(default=None, metadata=STATIC)
    masked: bool = field(default=False, metadata=STATIC)

    def __post_init__(self) -> None:
        for name in ("w_std", "b_std", "score_std", "position_std"):
            if getattr(self, name) is None and name == "b_std":
                object.__setattr__(self, name, 0.0)
            check_scalar(name, getattr(self, name))
        if self.mechanism not in _MECHANISMS:
            raise ValueError(f"mechanism must be one of {', '.join(_MECHANISMS)}, got {self.mechanism!r}")
        for name in ("num_heads", "width"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_positive_int(name, getattr(self, name)))

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer."""
        check_positions(covariances, "SelfAttention")
        own1, own2 = covariances.own1, covariances.own2
        if own1 is None or own2 is None:
            raise ValueError("SelfAttention after a Flatten has no positions")
        positions = covariances.positions
        size = math.prod(positions)
        embedding = self.position_std**2 * self._position_covariance(positions, own1.covariance.dtype)

        def flat(array: Array) -> Array:
            return array.reshape(*array.shape[:2], size, size)

        is_there: tuple[Array | None, Array | None] = (None, None)
        if self.masked:
            patterns = patterns_of(covariances, "SelfAttention", "masks", "positions")
            # The own covariances have the axes (n1, 1, S, S) and (1, n2, S, S), the last one that of the keys.
            is_there = has_nodes(patterns[0])[:, None, None], has_nodes(patterns[1])[None, :, None]
        # The scores are constants in the limit, so that keys and queries have no part in the NTK.
        weights = {
            side: self._attention(flat(own.covariance) + embedding[None, None], is_there[side - 1])
            for side, own in ((1, own1), (2, own2))
        }

        def attend(array: Array, side1: int, side2: int) -> Array:
            # The weights of attention G mix the values' covariances as a fixed linear map of positions does, G Σ Gᵀ.
            source = flat(array) + embedding[None, None] if self.values_with_positions else flat(array)
            means = matmul(matmul(weights[side1], source), jnp.swapaxes(weights[side2], -1, -2))
            return (self.w_std**2 * means + self.b_std**2).reshape(*means.shape[:2], *positions, *positions)

        def attend_ntk(ntk: Array, covariance: Array, side1: int, side2: int) -> Array:
            # The weights of the values and those of the output add the covariance each, the biases theirs once.
            return attend(ntk, side1, side2) + 2 * (covariance - self.b_std**2)

        return replace(
            from_moments(covariances, attend, attend_ntk),
            is_gaussian=True,
            has_weights=True,
            num_channels=self.width,
            centred=(True,) * len(covariances.centred),
        )

    def init(self, key: Array, shape: tuple[int, ...], width: int = DEFAULT_WIDTH) -> dict[str, Array]:
        """Keys, values, output (heads, inputs, outputs), biases (width,) and embeddings (positions, channels)."""
        check_numbers(self)
        width, channels = self.width or width, shape[-1]
        shapes = {
            "keys": (self.num_heads, channels, width),
            "values": (self.num_heads, channels, width),
            "output": (self.num_heads, width, width),
            "biases": (width,),
            "embeddings": (math.prod(shape[:-1]), channels),
        }
        return draw_normal(self, key, shapes)

    def output_shape(self, params: dict[str, Array], shape: tuple[int, ...]) -> tuple[int, ...]:
        """The positions and the width."""
        return (*shape[:-1], params["biases"].shape[0])

    def apply(
        self, params: dict[str, Array], x: Array, *, key: Array | None = None, pattern: Array | None = None
    ) -> Array:
        """Outputs (n, positions …, width), of masked attention by masks (n, positions …)."""
        del key
        positions, channels = x.shape[1:-1], x.shape[-1]
        x = jnp.asarray(x, jnp.promote_types(x.dtype, params["keys"].dtype))
        is_there = None
        if self.masked:
            is_there = has_nodes(flatten_nodes(x, pattern, "SelfAttention", "masks")[1])[:, None, None]
        inputs = x.reshape(x.shape[0], -1, channels)
        covariance = self._position_covariance(positions, x.dtype)
        # A covariance that decays slowly is singular up to rounding; its root by eigenvalues needs no jitter.
        eigenvalues, vectors = jnp.linalg.eigh(covariance)
        root = vectors * safe_sqrt(eigenvalues)[None, :]
        # Embeddings of independent entries, multiplied by the root, have the covariance root · rootᵀ between positions.
        embedded = inputs + self.position_std * matmul(root, params["embeddings"])[None]
        keys = einsum("nsc,hck->nhsk", embedded, params["keys"]) / math.sqrt(channels)
        values = einsum("nsc,hcv->nhsv", embedded if self.values_with_positions else inputs, params["values"])
        # Queries are keys. Divided by their number of channels, not its root, inner products tend to the covariance.
        scores = einsum("nhsk,nhtk->nhst", keys, keys) / keys.shape[-1]
        heads = einsum("nhst,nhtv->nhsv", self._attention(scores, is_there), values)
        # The fan-in of the values is the number of channels, that of the output heads × width.
        scale = self.w_std / math.sqrt(channels * heads.shape[1] * heads.shape[-1])
        outputs = scale * einsum("nhsv,hvo->nso", heads, params["output"]) + self.b_std * params["biases"][None, None]
        return outputs.reshape(x.shape[0], *positions, -1)

    def _attention(self, covariances: Array, is_there: Array | None) -> Array:
        """The weights G (…, S, S) of attention to the positions of the last axis, none to those that are not there."""
        scores = self.score_std * covariances
        if is_there is None:
            return _MECHANISMS[self.mechanism](scores)
        return jnp.where(is_there, _MECHANISMS[self.mechanism](jnp.where(is_there, scores, _LEAST_SCORE)), 0.0)

    def _position_covariance(self, positions: tuple[int, ...], dtype: Any) -> Array:
        """(S, S) covariances of the embeddings of positions, for ``position_std`` 1."""
        places = np.stack(np.meshgrid(*map(np.arange, positions), indexing="ij"), axis=-1).reshape(-1, len(positions))
        squares = jnp.asarray(np.sum((places[:, None] - places[None]) ** 2, axis=-1), dtype)
        if self.position_decay is None:
            return jnp.where(squares == 0, 1.0, 0.0).astype(dtype)
        return self.position_decay(squares)
