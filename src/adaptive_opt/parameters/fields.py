"""What parameters are made of: kinds of numbers, and sections without unknown keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Beta", "Count", "NonNegative", "Positive", "Share", "Strict", "Whole"]

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Strict(BaseModel):
    """Unknown keys are faults; infinities too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
