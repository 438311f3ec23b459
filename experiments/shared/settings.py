"""Settings of the experiments: the base class of every ``Config``, and the types of keys that several of them have."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

T = TypeVar("T")

# Largest integer that JAX's default dtype can hold.
_MAX_INT = 2**31 - 1
# Largest number of values in a list, most of which give a task or more each.
MAX_VALUES = 100
# Largest number of repetitions, each of which is a task or more.
_MAX_SEEDS = 1_000


def check_unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """Raise ValueError if a value is there twice; return the values."""
    if twice := next((value for k, value in enumerate(values) if value in values[:k]), None):
        raise ValueError(f"{twice!r} is given twice")
    return values


NonEmpty = Annotated[tuple[T, ...], Field(min_length=1, max_length=MAX_VALUES), AfterValidator(check_unique)]
NonNegative = Annotated[int, Field(ge=0, le=_MAX_INT)]
Positive = Annotated[int, Field(ge=1, le=_MAX_INT)]
TwoOrMore = Annotated[int, Field(ge=2, le=_MAX_INT)]
NumSeeds = Annotated[int, Field(ge=1, le=_MAX_SEEDS)]
TwoOrMoreSeeds = Annotated[int, Field(ge=2, le=_MAX_SEEDS)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(gt=0, lt=1)]
# Relative gaps below this cannot be certified in float32.
Float32Gap = Annotated[float, Field(ge=1e-5, lt=1)]


class Settings(BaseModel):
    """Settings that cannot be changed, know their keys, and take a value if it is finite and has the right type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
