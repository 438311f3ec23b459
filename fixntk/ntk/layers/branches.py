"""Layers made of layers: one after the other, and branches that are added, multiplied or concatenated.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from fixntk._checks import as_positive_int
from fixntk.ntk.covariances import Covariances, Pairs, add_pairs, average_pairs
from fixntk.ntk.layers.elementwise import Activate
from fixntk.ntk.layers.layer import DEFAULT_WIDTH, Layer
from fixntk.ntk.layers.weights import Dense

_Layers = TypeVar("_Layers", bound="_Several")


class _Several(tuple, Layer):
    """A tuple of layers."""

    takes_pattern: ClassVar[bool] = True

    def __new__(cls: type[_Layers], *layers: Any) -> _Layers:
        """Put layers together."""
        for layer in layers:
            if isinstance(layer, type) or not callable(layer):
                raise TypeError(f"{cls.__name__} takes layers such as Dense(), got {layer!r}")
        return super().__new__(cls, layers)

    def _split(self, key: Array) -> Array:
        """A key for each layer."""
        return jax.random.split(key, max(1, len(self)))[: len(self)]


class Serial(_Several):
    """Layers one after the other.

    See docs/mathematics.md, M13.
    """

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the last layer."""
        for layer in self:
            covariances = layer(covariances)
        return covariances

    def init(self, key: Array, shape: tuple[int, ...], width: int = DEFAULT_WIDTH) -> tuple[Any, ...]:
        """A tuple of each layer's parameters."""
        params = []
        for layer, layer_key in zip(self, self._split(key), strict=True):
            params.append(layer.init(layer_key, shape, width))
            shape = layer.output_shape(params[-1], shape)
        return tuple(params)

    def output_shape(self, params: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for one example of a shape."""
        for layer, layer_params in zip(self, params, strict=True):
            shape = layer.output_shape(layer_params, shape)
        return shape

    def apply(
        self, params: tuple[Any, ...], x: Array, *, key: Array | None = None, pattern: Array | None = None
    ) -> Array:
        """Outputs of the last layer."""
        for number, (layer, layer_params) in enumerate(zip(self, params, strict=True)):
            x = layer.apply(layer_params, x, **_options(layer, key, number, pattern))
        return x


class _Branches(_Several):
    """Branches that begin with the same values and are fused at their ends."""

    def init(self, key: Array, shape: tuple[int, ...], width: int = DEFAULT_WIDTH) -> tuple[Any, ...]:
        """A tuple of each branch's parameters."""
        return tuple(
            layer.init(layer_key, shape, own_width)
            for layer, own_width, layer_key in zip(self, self._widths(width), self._split(key), strict=True)
        )

    def output_shape(self, params: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for one example of a shape."""
        shapes = [layer.output_shape(layer_params, shape) for layer, layer_params in zip(self, params, strict=True)]
        outputs = [jax.ShapeDtypeStruct((1, *each), jnp.result_type(float)) for each in shapes]
        return jax.eval_shape(self._fuse, outputs).shape[1:]

    def apply(
        self, params: tuple[Any, ...], x: Array, *, key: Array | None = None, pattern: Array | None = None
    ) -> Array:
        """The branches' outputs, fused."""
        return self._fuse(
            [
                layer.apply(layer_params, x, **_options(layer, key, number, pattern))
                for number, (layer, layer_params) in enumerate(zip(self, params, strict=True))
            ]
        )

    def _widths(self, width: int) -> tuple[int, ...]:
        """The width of each branch."""
        return (width,) * len(self)

    def _fuse(self, outputs: list[Array]) -> Array:
        raise NotImplementedError

    def _run(self, covariances: Covariances) -> list[Covariances]:
        """Covariances at the ends of the branches."""
        name = type(self).__name__
        if not self:
            raise ValueError(f"{name} has no branches")
        # A new flag for this branch: nothing in it is centred yet.
        start = replace(covariances, centred=(*covariances.centred, False))
        ends = [layer(start) for layer in self]
        positions = [end.positions for end in ends]
        if len(set(positions)) > 1:
            raise ValueError(f"the branches of a {name} differ in their positions: {' and '.join(map(str, positions))}")
        return ends

    def _check_independent(self, ends: list[Covariances]) -> None:
        """Raise ValueError if products of two branches do not have the mean zero."""
        # Branches share their start, given which their weights are independent. So the expected product of two branches
        # is that of their conditional means, which vanishes if one of the means does.
        if sum(not end.centred[-1] for end in ends) > 1:
            raise ValueError(
                f"all branches of a {type(self).__name__} but one must end with Dense or Conv, with at most additions, "
                "pooling or normalisation after it: it has no closed form otherwise"
            )

    def _fuse_entries(
        self,
        covariances: Covariances,
        fuse_two: Callable[[Pairs, Pairs], Pairs],
        centred: Callable[[Any], bool],
        *,
        keeps_gaussian: bool,
    ) -> Covariances:
        """Covariances of independent branches that are fused entry by entry, two at a time."""
        ends = self._run(covariances)
        self._check_independent(ends)
        return _join(
            ends,
            lambda pairs: reduce(fuse_two, pairs),
            centred,
            keeps_gaussian=keeps_gaussian,
            # The branches share their number of channels; None if no branch states it.
            num_channels=next((end.num_channels for end in ends if end.num_channels is not None), None),
        )


def _join(
    ends: list[Covariances],
    fuse: Callable[[list[Pairs]], Pairs],
    centred: Callable[[Any], bool],
    *,
    keeps_gaussian: bool,
    num_channels: int | None,
) -> Covariances:
    """Fuse the pairs of the branches, and drop the flag that was added at their start."""

    def fuse_own(owns: list[Pairs | None]) -> Pairs | None:
        known = [own for own in owns if own is not None]
        # A layer such as Flatten in a branch has dropped its pairs of different positions.
        return fuse(known) if len(known) == len(owns) else None

    return replace(
        ends[0],
        pairs=fuse([end.pairs for end in ends]),
        own1=fuse_own([end.own1 for end in ends]),
        own2=fuse_own([end.own2 for end in ends]),
        # A single branch stays what it is.
        is_gaussian=all(end.is_gaussian for end in ends) and (keeps_gaussian or len(ends) == 1),
        num_channels=num_channels,
        has_weights=any(end.has_weights for end in ends),
        centred=tuple(map(centred, zip(*(end.centred[:-1] for end in ends), strict=True))),
    )


class Sum(_Branches):
    """The sum of branches, all of which but one end with random weights: neural-tangents' FanOut and FanInSum.

    See docs/mathematics.md, M13.
    """

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances of the sum."""
        # A sum has mean zero if all of its terms have.
        return self._fuse_entries(covariances, add_pairs, all, keeps_gaussian=True)

    def _fuse(self, outputs: list[Array]) -> Array:
        return reduce(operator.add, outputs)


class Product(_Branches):
    """The product of branches entry by entry, all of which but one end with random weights (FanInProd).

    See docs/mathematics.md, M13.
    """

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances of the product."""
        # A product of independent factors has mean zero if one of them has.
        return self._fuse_entries(covariances, _multiply_pairs, any, keeps_gaussian=False)

    def _fuse(self, outputs: list[Array]) -> Array:
        return reduce(operator.mul, outputs)


def _multiply_pairs(pairs1: Pairs, pairs2: Pairs) -> Pairs:
    """Products of independent values; correlations are multiplied, without cancellation at small angles."""
    # With h = (1 − c)/2 and g = (1 + c)/2 of the correlations c: (1 − c₁c₂)/2 = h₁g₂ + g₁h₂, and Θ by the product rule.
    return Pairs(
        pairs1.variance1 * pairs2.variance1,
        pairs1.variance2 * pairs2.variance2,
        pairs1.covariance * pairs2.covariance,
        pairs1.haversine * pairs2.havercosine + pairs1.havercosine * pairs2.haversine,
        pairs1.haversine * pairs2.haversine + pairs1.havercosine * pairs2.havercosine,
        pairs1.ntk * pairs2.covariance + pairs1.covariance * pairs2.ntk,
    )


class Concatenate(_Branches):
    """The channels of all branches, one branch's after the other's (FanInConcat along the channels).

    Parameters
    ----------
    *layers
        The branches.
    shares
        Numbers of channels relative to each other; equal when None. ``init`` multiplies its width by them; widths of
        layers and inputs have to agree with them.

    See docs/mathematics.md, M13.
    """

    shares: tuple[int, ...]

    def __new__(cls, *layers: Any, shares: tuple[int, ...] | None = None) -> Concatenate:
        """Put branches together."""
        branches = super().__new__(cls, *layers)
        numbers = (1,) * len(layers) if shares is None else tuple(as_positive_int("shares", share) for share in shares)
        if len(numbers) != len(layers):
            raise ValueError(f"shares must have one number for each of the {len(layers)} branches, got {shares}")
        branches.shares = numbers
        return branches

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances of the channels of all branches: means weighted by the shares."""
        ends = self._run(covariances)

        def fuse(pairs: list[Pairs]) -> Pairs:
            def stack(*arrays: Array) -> Array:
                return jnp.stack(jnp.broadcast_arrays(*arrays), axis=-1)

            def mean(array: Array, *_: tuple[int, ...]) -> Array:
                shares = jnp.asarray(self.shares, array.dtype)
                shares = jnp.expand_dims(shares / jnp.sum(shares), tuple(range(array.ndim - 1)))
                return jnp.sum(array * shares, axis=-1)

            # Branches along a last axis are averaged as positions are elsewhere; there are no axes of positions to
            # average over.
            return average_pairs(jax.tree.map(stack, *pairs), mean, ((), ()))

        widths = [end.num_channels for end in ends]
        known = [width for width in widths if width is not None]
        # The number of channels is known only if every branch states its own.
        total = sum(known) if len(known) == len(widths) else None
        return _join(ends, fuse, all, keeps_gaussian=False, num_channels=total)

    def _widths(self, width: int) -> tuple[int, ...]:
        return tuple(width * share for share in self.shares)

    def _fuse(self, outputs: list[Array]) -> Array:
        return jnp.concatenate(outputs, axis=-1)


def _register(kind: type[_Several]) -> None:
    """Make a tuple of layers a pytree, which JAX may rebuild with leaves of any type."""

    def build(_: None, layers: Any) -> Any:
        # Not the constructor, whose check would refuse the placeholders that JAX puts in the place of layers.
        return tuple.__new__(kind, layers)

    jax.tree_util.register_pytree_node(kind, lambda layers: (tuple(layers), None), build)


def _rebuild_concatenation(shares: tuple[int, ...], layers: Any) -> Concatenate:
    built = tuple.__new__(Concatenate, layers)
    built.shares = shares
    return built


for _kind in (Serial, Sum, Product):
    _register(_kind)
jax.tree_util.register_pytree_node(Concatenate, lambda layers: (tuple(layers), layers.shares), _rebuild_concatenation)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Residual(Layer):
    """The sum of a branch and a shortcut, one of which ends with random weights.

    Attributes
    ----------
    branch
        A layer, such as a :class:`Serial`.
    shortcut
        A layer; the inputs themselves when it is an empty Serial.

    See docs/mathematics.md, M13.
    """

    takes_pattern: ClassVar[bool] = True

    branch: Any
    shortcut: Any = field(default_factory=Serial)

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances of the sum."""
        return self._sum(covariances)

    def init(self, key: Array, shape: tuple[int, ...], width: int = DEFAULT_WIDTH) -> tuple[Any, ...]:
        """Parameters of the branch and of the shortcut."""
        return self._sum.init(key, shape, width)

    def output_shape(self, params: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for one example of a shape."""
        return self._sum.output_shape(params, shape)

    def apply(
        self, params: tuple[Any, ...], x: Array, *, key: Array | None = None, pattern: Array | None = None
    ) -> Array:
        """The sum."""
        return self._sum.apply(params, x, key=key, pattern=pattern)

    @property
    def _sum(self) -> Sum:
        return Sum(self.branch, self.shortcut)


def mlp(depth: int, activation: Any = "relu", w_std: Any = 1.0, b_std: Any = 0.0) -> Serial:
    """A fully connected network: ``depth`` hidden layers, each Dense and activation, and a Dense readout.

    Raises
    ------
    ValueError, TypeError
        If ``depth`` is not a positive integer, or another argument is not what its layer takes.

    See docs/mathematics.md, M13.
    """
    dense = Dense(w_std, b_std)
    # A layer describes weights and does not hold them, so that one Dense can stand in several places.
    hidden: list[Layer] = [dense, Activate(activation)]
    return Serial(*hidden * as_positive_int("depth", depth), dense)


def _options(layer: Any, key: Array | None, number: int, pattern: Array | None) -> dict[str, Array | None]:
    """Keyword arguments of ``apply`` of a layer that is one of several."""
    own_key = None if key is None else jax.random.fold_in(key, number)
    return {"key": own_key} | ({"pattern": pattern} if layer.takes_pattern else {})
