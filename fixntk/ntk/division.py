"""Parameters that the network divides itself: one vector in which the matrices and biases of all layers lie together.

Such a leaf enters in as many ways as it has parts, so that one bias would cost the Jacobian of the whole. A network in
its parts, each a leaf of its own, is the same function, and the Jacobian of the leaf is that of its parts side by side.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from fixntk.ntk.pairwise import Network, Pairwise, Share
from fixntk.ntk.structure import Path, aval, bind_equation, called_jaxpr, evaluate

# Most parts of all leaves together. Each is looked for in the network, and has a product of its own in the program.
_MAX_PARTS = 1000


class Division(NamedTuple):
    """A network in parts of its leaves.

    Attributes
    ----------
    network
        The network as a function of the parts, each of which has the group of its leaf.
    cuts
        For each leaf the places between its parts along its first axis, with both ends; none for a leaf left whole.
    """

    network: Network
    cuts: tuple[tuple[int, ...], ...]

    def divide(self, leaves: Sequence[Array]) -> list[Array]:
        """The parts of all leaves, in their order."""
        return [part for leaf, places in zip(leaves, self.cuts, strict=True) for part in _divide(leaf, places)]

    def of_leaves(self, method: Pairwise) -> Pairwise:
        """A method for the parts, as one for the leaves."""
        owners = _owners(self.cuts)
        shares = []
        for leaf in dict.fromkeys(owners[share.leaf] for share in method.shares):
            own = [share for share in method.shares if owners[share.leaf] == leaf]
            ways = sorted((share.way for share in own), key=lambda way: "Jacobian" in way)
            counted = "; ".join(f"{ways.count(way)} by {way}" for way in dict.fromkeys(ways))
            way = f"in parts, {counted}" if self.cuts[leaf] else ways[0]
            shares.append(Share(leaf, way, sum(share.flops for share in own), sum(share.entries for share in own)))
        return method._replace(
            shares=tuple(shares),
            features=lambda leaves, inputs: method.features(self.divide(leaves), inputs),
            kernels=lambda leaves, one, two: method.kernels(self.divide(leaves), one, two),
        )


def divide_leaves(network: Network, chosen: Iterable[int]) -> Division | None:
    """The network in parts of the chosen leaves, None if it takes slices of none of them."""
    closed, num_leaves = network.closed, len(network.leaves)
    ends: dict[int, set[int]] = {leaf: set() for leaf in chosen if network.leaves[leaf].shape}
    _collect_ends(closed.jaxpr, {closed.jaxpr.invars[leaf]: leaf for leaf in ends}, ends)
    for leaf, places in ends.items():
        places |= {0, network.leaves[leaf].shape[0]}
    cuts = tuple(tuple(sorted(places)) if len(places := ends.get(k, set())) > 2 else () for k in range(num_leaves))
    if not any(cuts) or sum(map(len, cuts)) > _MAX_PARTS:
        return None

    def apply(parts: Sequence[Array], inputs: Sequence[Any]) -> list[Any]:
        left = iter(parts)
        leaves = [_Parts(tuple(next(left) for _ in places[1:]), places) if places else next(left) for places in cuts]
        return list(map(_whole, evaluate(closed.jaxpr, closed.consts, [*leaves, *inputs], _outputs_of)))

    arguments = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type) for v in closed.jaxpr.invars
    ]
    parts = [part for leaf, places in zip(arguments, cuts, strict=False) for part in _shapes(leaf, places)]
    groups = tuple(network.groups[leaf] for leaf in _owners(cuts))
    traced = jax.make_jaxpr(apply)(parts, arguments[num_leaves:])
    return Division(network._replace(closed=traced, leaves=tuple(parts), groups=groups), cuts)


@dataclass(frozen=True)
class _Parts:
    """A leaf in parts along its first axis, which begin and end at the cuts."""

    parts: tuple[Array, ...]
    cuts: tuple[int, ...]

    def between(self, start: int, stop: int) -> Array:
        """The entries between two cuts."""
        own = [part for part, cut in zip(self.parts, self.cuts, strict=False) if start <= cut < stop]
        if not own:
            return self.parts[0][:0]
        return own[0] if len(own) == 1 else jnp.concatenate(own)


def _whole(value: Any) -> Any:
    return value.between(value.cuts[0], value.cuts[-1]) if isinstance(value, _Parts) else value


def _owners(cuts: Sequence[Sequence[int]]) -> list[int]:
    """The leaf of each part."""
    return [leaf for leaf, places in enumerate(cuts) for _ in range(max(1, len(places) - 1))]


def _shapes(leaf: jax.ShapeDtypeStruct, cuts: Sequence[int]) -> list[jax.ShapeDtypeStruct]:
    return [leaf.update(shape=(stop - start, *leaf.shape[1:])) for start, stop in pairwise(cuts)] if cuts else [leaf]


def _divide(leaf: Array, cuts: Sequence[int]) -> list[Array]:
    return [leaf[start:stop] for start, stop in pairwise(cuts)] if cuts else [leaf]


def _collect_ends(jaxpr: Jaxpr, leaves: dict[Var, int], ends: dict[int, set[int]]) -> None:
    """Note where slices of leaves begin and end along their first axis, in calls too."""
    for equation in jaxpr.eqns:
        own = [None if isinstance(atom, Literal) else leaves.get(atom) for atom in equation.invars]
        inner = called_jaxpr(equation)
        if inner is not None:
            within = {v: leaf for v, leaf in zip(inner.jaxpr.invars, own, strict=True) if leaf is not None}
            _collect_ends(inner.jaxpr, within, ends)
        elif own and own[0] is not None:
            ends[own[0]].update(place for ends_of_slice in _slices(equation) for place in ends_of_slice)


def _slices(equation: JaxprEqn) -> list[tuple[int, int]]:
    """Where the slices that an equation takes of its operand along the first axis begin and end."""
    params = equation.params
    if equation.primitive.name == "slice":
        return [(params["start_indices"][0], params["limit_indices"][0])]
    if equation.primitive.name == "split" and params["axis"] == 0:
        return list(pairwise(accumulate(params["sizes"], initial=0)))
    return []


def _outputs_of(jaxpr: Jaxpr, equation: JaxprEqn, path: Path, operands: list[Any]) -> Sequence[Any]:
    """Outputs of an equation some of whose operands are leaves in parts, which only slices leave in parts."""
    if not any(isinstance(operand, _Parts) for operand in operands):
        return bind_equation(jaxpr, equation, operands)
    inner = called_jaxpr(equation)
    if inner is not None:
        return evaluate(inner.jaxpr, inner.consts, operands, _outputs_of, path)
    slices = _slices(equation)
    if not slices:
        return bind_equation(jaxpr, equation, list(map(_whole, operands)))
    taken = [operands[0].between(start, stop) for start, stop in slices]
    if equation.primitive.name == "split" or taken[0].shape == aval(equation.outvars[0]).shape:
        return taken
    # What the slice takes of the other axes, and its strides.
    params = equation.params
    limits = (taken[0].shape[0], *params["limit_indices"][1:])
    return [lax.slice(taken[0], (0, *params["start_indices"][1:]), limits, params["strides"])]
