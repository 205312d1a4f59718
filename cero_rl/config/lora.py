"""The LoRA section of the configuration: how large the trained matrices are, where they sit, how
the sampler gets them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from cero_rl.config.base import PositiveFloat, Section


class LoraConfig(Section):
    """Train small matrices beside frozen weights, W + scaling B A (arXiv 2106.09685). Dropout is
    left out: it would make the learner another policy than the one that sampled."""

    rank: Annotated[int, Field(ge=0, le=512)] = Field(
        default=0, description="of the matrices; 0: no LoRA, all weights are trained"
    )
    alpha: PositiveFloat | None = Field(
        default=None, description="scaling is alpha / rank; None: twice the rank"
    )
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear",
        description="linear layers by the end of their names, e.g. [q_proj, v_proj]; "
        "all-linear: all but the head",
    )
    rank_stabilized: bool = Field(
        default=False, description="scaling is alpha / sqrt(rank) (arXiv 2312.03732)"
    )
    sync: Literal["adapter", "merged"] = Field(
        default="adapter",
        description="adapter: the sampler gets the matrices alone and adds their product "
        "itself; merged: it gets W + scaling B A, rounded to model.dtype",
    )

    @field_validator("targets")
    @classmethod
    def _names(
        cls, targets: Literal["all-linear"] | tuple[str, ...]
    ) -> Literal["all-linear"] | tuple[str, ...]:
        if isinstance(targets, tuple) and (not targets or len(set(targets)) < len(targets)):
            raise ValueError(
                f"got {list(targets)}; wanted names of layers, each once, e.g. [q_proj, "
                "v_proj], or all-linear"
            )
        return targets

    @property
    def scaling(self) -> float:
        """What B A is multiplied with."""
        alpha = self.alpha_value
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    @property
    def alpha_value(self) -> float:
        return self.alpha if self.alpha is not None else 2.0 * self.rank

    @property
    def adapter_only(self) -> bool:
        """Is the sampler given the adapter, and not whole weights?"""
        return self.rank > 0 and self.sync == "adapter"
