"""Results for several λ: what a path of solutions and one of discoveries have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float


@runtime_checkable
class HasConverged(Protocol):
    """A result that says whether it reached its tolerance."""

    @property
    def converged(self) -> Any:
        """Whether it did."""


Result = TypeVar("Result", bound=HasConverged)
# Not typing.Self: beartype refuses it in methods of classes that are not decorated themselves.
_SameResults = TypeVar("_SameResults", bound="ResultsByReg[Any]")


class ResultsByReg(Sequence[Result]):
    """Results for several λ, a sequence.

    Attributes
    ----------
    regs
        (k,) λ of each.
    """

    _noun: ClassVar[str] = "results"

    def __init__(self, results: Sequence[Result], regs: ArrayLike) -> None:
        self._results = tuple(results)
        self.regs: Float[np.ndarray, " k"] = np.asarray(regs, float)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self: _SameResults, index: slice) -> _SameResults: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(self._results[index], self.regs[index])
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        num_converged = sum(bool(result.converged) for result in self)
        regs = f"{self.regs.max():.3g} to {self.regs.min():.3g}" if len(self) else "none"
        return f"{type(self).__name__}({len(self)} {self._noun}, λ {regs}, {num_converged} converged)"
