"""What every section of the configuration is made of: bounded numbers and the strict base model."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

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

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """pydantic takes true for 1."""
        if isinstance(value, bool) and info.field_name is not None:
            kinds = kinds_of(cls.model_fields[info.field_name].annotation)
            of_words = [type(word) for kind in kinds for word in typing.get_args(kind)]
            if bool not in kinds and {int, float} & {*of_words, *kinds}:
                raise ValueError(f"got {str(value).lower()}; wanted a number")
        return value


def refuse_own_keys(given: Mapping[str, Any], own: Mapping[str, str]) -> None:
    """For keys that another library is given as they are: raises ValueError for one that this
    project sets itself. own: each of these, with what to do instead."""
    for key in given:
        if key in own:
            raise ValueError(f"{key} is not handed on; {own[key]}")


def kinds_of(annotation: Any) -> list[Any]:
    """The types that a field of this annotation may hold, without what is asked of them."""
    match typing.get_origin(annotation):
        case types.UnionType | typing.Union:
            return [kind for o in typing.get_args(annotation) for kind in kinds_of(o)]
        case typing.Annotated:
            return kinds_of(typing.get_args(annotation)[0])
        case _:
            return [annotation]
