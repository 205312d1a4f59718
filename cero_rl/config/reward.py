"""The section on rewards: which functions score a response, and what the posterior reads of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cero_rl.config.base import PositiveFloat, PositiveInt, Seconds, Section
from cero_rl.config.paths import PathText

EXTRA = "extra"  # reward/extra/KEY is a metric of its own
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Range = tuple[FiniteFloat, FiniteFloat]
Kwargs = dict[str, bool | int | float | str | list[Any] | dict[str, Any]]


class RewardPart(Section):
    """One of several reward functions."""

    function: PathText = Field(
        description="exact | math | reasoning_gym | path/to/file.py:function"
    )
    name: str | None = Field(
        default=None,
        description="in the metrics (reward/NAME/mean) and for reward.evidence; None: the "
        "function's own",
    )
    weight: FiniteFloat = Field(
        default=1.0,
        description="factor in the sum that trains; below 0 a punishment, at 0 only logged",
    )
    kwargs: Kwargs = Field(default={}, description="further arguments of a function of yours")
    range: Range | None = Field(
        default=None,
        description="lowest and highest score; None: reward.range, or [0, 1] where the evidence "
        "needs to know",
    )

    @model_validator(mode="after")
    def _fits(self) -> RewardPart:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.label) or self.label == EXTRA:
            raise ValueError(
                f"name: got {self.label[:80]!r}, wanted letters, digits, '.', '_' or '-', and not "
                f"{EXTRA}"
            )
        _refuse_kwargs_of_a_verifier(self.function, self.kwargs)
        _refuse_empty(self.range)
        return self

    @property
    def label(self) -> str:
        return self.function.rpartition(":")[2] if self.name is None else self.name


class RewardConfig(Section):
    """`function` alone, or several `functions` with weights."""

    function: PathText = Field(
        default="exact", description="exact | math | reasoning_gym | path/to/file.py:function"
    )
    functions: tuple[RewardPart, ...] = Field(
        default=(),
        description="several instead of `function`: the sum of weight times score trains",
    )
    evidence: str | None = Field(
        default=None,
        description="name of the function of `functions` whose score alone the posterior and the "
        "evaluation read; None: the weighted sum",
    )
    range: Range | None = Field(
        default=None,
        description="lowest and highest score of a function of yours or an environment, mapped to "
        "0 and 1 for the posterior and the evaluation; what trains keeps its scale. None: [0, 1]",
    )
    threshold: FiniteFloat | None = Field(
        default=None,
        description="instead: an evidence score above it counts as 1 to the posterior and the "
        "evaluation, any other as 0; then no range is needed",
    )
    answer_tags: bool = Field(
        default=False,
        description="exact, math and reasoning_gym read the last `<answer>` and nothing else; "
        "without one there is no answer",
    )
    thinking: Literal["keep", "strip", "required"] = Field(
        default="keep",
        description="strip: exact, math and reasoning_gym read what follows the last `</think>`, "
        "and no answer in a thought that was not ended; required: no `</think>` is none either",
    )
    kwargs: Kwargs = Field(
        default={},
        description="further arguments of a function of yours, by name; they stand before a column "
        "of that name",
    )
    workers: PositiveInt = Field(
        default=2, description="processes on each rank; killed and replaced when a reward hangs"
    )
    timeout_seconds: Seconds = Field(
        default=5.0, description="for one response; beyond it the reward is missing, never 0"
    )
    memory_limit_mb: PositiveInt = Field(default=2048, description="address space of one worker")
    max_chars: PositiveInt = Field(
        default=16384,
        description="exact, math and reasoning_gym read the last characters of a longer response, "
        "where the answer stands; a function of yours gets all of it",
    )
    overlong_buffer_tokens: PositiveInt | None = Field(
        default=None,
        description="soft overlong punishment (DAPO): the reward that trains falls linearly over "
        "the last so many tokens before rollout.max_response_tokens; the posterior and the "
        "evaluation see the reward without it. None: none",
    )
    overlong_penalty: PositiveFloat = Field(
        default=1.0, description="what it has fallen by at the limit"
    )
    success_threshold: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5,
        description="a reward above it is a right answer in evaluation (avg@k, pass@k); the "
        "posterior learns from the reward itself, a half counting half",
    )
    max_missing_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="a larger share of missing rewards ends the run, saved (exit 5)",
    )
    missing_window_rollouts: PositiveInt = Field(
        default=128,
        description="of the newest steps that hold so many rollouts between them",
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> RewardConfig:
        _refuse_empty(self.range)
        if not self.functions:
            _refuse_kwargs_of_a_verifier(self.function, self.kwargs)
            if self.evidence is not None:
                raise ValueError(
                    f"evidence: got {self.evidence!r:.80} without functions; leave it out, or list "
                    "the functions"
                )
        else:
            self._several_fit()
        built_in = any(not is_plugin(part.function) for part in self.parts)
        if not built_in and (self.answer_tags or self.thinking != "keep"):
            key = "answer_tags" if self.answer_tags else "thinking"
            raise ValueError(
                f"{key}: got it with no built-in verifier (exact, math, reasoning_gym); a function "
                "of yours gets the whole response, leave it out"
            )
        return self

    def _several_fit(self) -> None:
        if self.function != RewardConfig.model_fields["function"].default:
            raise ValueError(
                f"function: got {self.function} beside functions; put it into that list, or leave "
                "one of the two out"
            )
        if self.kwargs:
            raise ValueError(
                f"kwargs: got {', '.join(self.kwargs)} beside functions; give them to the function "
                "in the list that they belong to"
            )
        names = [part.label for part in self.functions]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"functions: two are named {twice[0]!r}; give each a name of its own")
        if self.evidence is not None and self.evidence not in names:
            raise ValueError(f"evidence: got {self.evidence!r}, wanted one of {', '.join(names)}")
        if not any(part.weight for part in self.functions):
            raise ValueError("functions: all weights are 0, so nothing trains; set one")

    @property
    def parts(self) -> tuple[RewardPart, ...]:
        """The functions, also where there is one."""
        if self.functions:
            return self.functions
        return (RewardPart.model_construct(function=self.function, kwargs=self.kwargs),)

    @property
    def has_parts(self) -> bool:
        """May there be metrics of single functions, or of their dicts?"""
        return bool(self.functions) or is_plugin(self.function)

    def limits_of(self, part: RewardPart) -> tuple[float, float] | None:
        """Lowest and highest score of a function of `parts`; None: any finite number."""
        declared = part.range or (
            self.range if is_plugin(part.function) or not self.functions else None
        )
        if declared is not None:
            return declared
        is_read = self.evidence in (None, part.label) and self.threshold is None
        return (0.0, 1.0) if is_read or not is_plugin(part.function) else None

    @property
    def evidence_is_affine(self) -> bool:
        """Is the evidence the reward that trains, mapped from `sum_limits` to [0, 1]?"""
        return self.threshold is None and self.evidence is None

    @property
    def trains_evidence(self) -> bool:
        """Is the reward that trains, soft punishment aside, what the posterior reads?"""
        if not self.evidence_is_affine:
            return False
        low, high = self.sum_limits
        return math.isclose(low, 0, abs_tol=1e-6) and math.isclose(high, 1, abs_tol=1e-6)

    @property
    def sum_limits(self) -> tuple[float, float]:
        """Of the weighted sum, where all that is in it has limits."""
        if not self.functions:
            return self.range or (0.0, 1.0)
        ends = [
            (part.weight * low, part.weight * high)
            for part in self.functions
            for low, high in [self.limits_of(part) or (0.0, 1.0)]
        ]
        return sum(min(end) for end in ends), sum(max(end) for end in ends)


def is_plugin(function: str) -> bool:
    """Is it a user's file?"""
    return function.rpartition(":")[0].endswith(".py")


def _refuse_kwargs_of_a_verifier(function: str, kwargs: Mapping[str, Any]) -> None:
    if kwargs and not is_plugin(function):
        raise ValueError(
            f"kwargs: got {', '.join(kwargs)} with function: {function}, which takes "
            "none; leave them out, or set function: path/to/file.py:function"
        )


def _refuse_empty(limits: tuple[float, float] | None) -> None:
    if limits is not None and limits[0] >= limits[1]:
        low, high = limits
        raise ValueError(f"range: got [{low:g}, {high:g}], wanted the lowest score, then a higher")
