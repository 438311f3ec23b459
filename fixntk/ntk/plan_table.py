"""Plans of empirical kernels as tables that people read: how each parameter is treated, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from fixntk._tiling import bytes_in_words
from fixntk.ntk.plan import Request, as_shapes, cached_plan, split_request
from fixntk.ntk.selection import paths_of
from fixntk.ntk.tiles import bytes_needed

_HEADINGS = ("parameter", "shape", "how it is treated", "operations", "numbers an example")


class ParameterPlan(NamedTuple):
    """How one parameter adds to an empirical kernel.

    Attributes
    ----------
    path
        Its place in the pytree of parameters, such as ``"layers/2/kernel"``; ``"params"`` for an array alone.
    shape
        Its shape.
    way
        How its inner products are computed, in words: through the matrix product, convolution or look-up by which it
        enters, through its Jacobian, or not at all.
    flops
        Operations of these for all pairs of examples, in addition to the passes through the network.
    entries
        Numbers that are kept for each example.
    """

    path: str
    shape: tuple[int, ...]
    way: str
    flops: float
    entries: int


class NTKPlan(NamedTuple):
    """How an empirical kernel would be computed; its ``repr`` is a table.

    Attributes
    ----------
    method
        ``"structured"``, ``"jacobian"`` or ``"ntvp"``.
    flops
        Operations in all, by count.
    num_bytes
        Estimate of the memory that is needed at once, in bytes.
    batch_size
        Number of examples of a tile.
    parameters
        A plan for each leaf of the parameters.
    """

    method: str
    flops: float
    num_bytes: int
    batch_size: int
    parameters: tuple[ParameterPlan, ...]

    def __repr__(self) -> str:
        head = (
            f"NTKPlan({self.method}: {self.flops:.2g} operations, {bytes_in_words(self.num_bytes)}, tiles of"
            f" {self.batch_size} examples)"
        )
        rows = [
            (each.path, "×".join(map(str, each.shape)) or "1", each.way, f"{each.flops:.2g}", f"{each.entries:,}")
            for each in self.parameters
        ]
        return "\n".join([head, *align_columns([_HEADINGS, *rows], num_left=3)])


def align_columns(rows: Sequence[Sequence[str]], *, num_left: int) -> list[str]:
    """Lines of a table; the first ``num_left`` columns begin at the left, and numbers end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if k < num_left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def plan_of(request: Request, params: Any, x1: Any, x2: Any) -> NTKPlan:
    """The plan of a request, for all of the parts in which it is computed."""
    plans = [
        (part, cached_plan(part, as_shapes((params, x1, x2)))) for part, _ in split_request(request, params, x1, x2)
    ]
    shares = {share.leaf: share for _, plan in plans for share in plan.method.shares}
    parameters = []
    for leaf, (path, value) in enumerate(zip(paths_of(params), jax.tree.leaves(params), strict=True)):
        share = shares.get(leaf)
        unused = "does not enter" if request.groups[leaf] >= 0 else "not selected"
        costs = (share.way, share.flops, share.entries) if share else (unused, 0.0, 0)
        # A single array has no path.
        parameters.append(ParameterPlan(path or "params", value.shape, *costs))
    return NTKPlan(
        method=plans[0][1].method.name,
        flops=sum(plan.method.flops for _, plan in plans),
        num_bytes=math.ceil(max(bytes_needed(part, plan, x1, x2) for part, plan in plans)),
        batch_size=min(plan.tile for _, plan in plans),
        parameters=tuple(parameters),
    )
