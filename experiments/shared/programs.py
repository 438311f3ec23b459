"""Convex programs whose λ is given as a share of λ_max, so that settings fit data of any scale."""

from __future__ import annotations

from jax.typing import ArrayLike

from fixntk import ConvexProgram


def program_at_share(x: ArrayLike, y: ArrayLike, masks: ArrayLike, reg_share: float) -> ConvexProgram:
    """The program with λ = ``reg_share`` λ_max, where λ_max is the smallest λ whose optimum is zero."""
    program = ConvexProgram(x, y, masks, 1.0)
    return program.with_reg(reg_share * program.max_reg())
