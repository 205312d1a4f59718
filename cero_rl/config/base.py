"""What every section of the configuration is made of: bounded numbers and the strict base model."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_MOST = 2**53  # beyond it, floats cannot count
PositiveInt = Annotated[int, Field(ge=1, le=_MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# A wait that the operating system can be asked for: at most 31 years.
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Temperature = Annotated[float, Field(ge=1e-6, le=1e3, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values cannot change after
    validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
