"""What methods of the empirical NTK have in common: a traced network, and features and kernels of its examples.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from fixntk._numerics import at_least_float32
from fixntk.ntk.contraction import OutputAxes


class Network(NamedTuple):
    """A network traced for one example: its jaxpr in (*leaves, *inputs), and the group of each leaf.

    A leaf of group −1 is a constant.
    """

    closed: ClosedJaxpr
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    axes: OutputAxes
    groups: tuple[int, ...]

    @property
    def num_groups(self) -> int:
        """Number of kernels to compute."""
        return max(self.groups) + 1

    @property
    def output(self) -> Any:
        """Shape and dtype of the output of one example."""
        return self.closed.jaxpr.outvars[0].aval

    @property
    def kernel_dtype(self) -> Any:
        """Dtype of the kernels: the output's, float32 at least."""
        return at_least_float32(self.output.dtype)

    def apply(self, leaves: Sequence[Array], inputs: Sequence[Array]) -> Array:
        """Output of one example."""
        return jaxpr_as_fun(self.closed)(*leaves, *inputs)[0]

    def basis(self) -> Array:
        """One cotangent for each output."""
        count = self.axes.num_outputs
        return jnp.eye(count, dtype=self.output.dtype).reshape(count, *self.axes.sizes)


class Share(NamedTuple):
    """What one leaf adds to a kernel's work.

    Attributes
    ----------
    leaf
        Its number.
    way
        How its inner products are computed, in words.
    flops
        Operations of these for all pairs of examples, without the passes through the network that all leaves share.
    entries
        Numbers that are kept for each example.
    """

    leaf: int
    way: str
    flops: float
    entries: int


class Pairwise(NamedTuple):
    """A method: ``features(leaves, inputs)`` of an example, ``kernels(leaves, features1, features2)`` of a pair.

    The kernels are a tuple, one for each group of leaves. ``flops`` counts the operations for the numbers of examples
    that the method was made for, the bytes are those that an example and a pair of examples take while computed.
    """

    name: str
    shares: tuple[Share, ...]
    features: Callable[[Sequence[Array], Sequence[Array]], Any]
    kernels: Callable[[Sequence[Array], Any, Any], tuple[Array, ...]]
    flops: float
    example_bytes: int
    pair_bytes: int
