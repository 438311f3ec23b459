"""Settings of the experiments: the base class of every ``Config``, and the types of keys that several of them have."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

NonEmpty = Annotated[tuple[T, ...], Field(min_length=1)]
NonNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
TwoOrMore = Annotated[int, Field(ge=2)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(gt=0, lt=1)]
# Relative gaps below this cannot be certified in float32.
Float32Gap = Annotated[float, Field(ge=1e-5, lt=1)]


class Settings(BaseModel):
    """Settings that cannot be changed, know their keys, and take a value only if it has the right type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
