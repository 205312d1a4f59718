"""The scheduler's section of the configuration: which allocator, its sizes and its options."""

from __future__ import annotations

import difflib
import math
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from cero_rl.config.base import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from cero_rl.config.paths import PathText
from cero_rl.config.presets import PresetName
from cero_rl.scheduler.options import CeroOptions, DirectionName, PlanName
from cero_rl.scheduler.registry import ALLOCATORS
from cero_rl.scheduler.rivals.keep import KeepName
from cero_rl.scheduler.utility import UtilityName
from cero_rl.scheduler.value import ValueName

NAMES = tuple(name for name, each in ALLOCATORS.items() if not each.kind.simulation_only)
CERO_FAMILY = tuple(name for name in NAMES if ALLOCATORS[name].is_cero)
WAVE_SCHEDULERS = tuple(name for name in NAMES if ALLOCATORS[name].kind.waves)
_CERO_DEFAULTS = {field.name: field.default for field in fields(CeroOptions)}


def _known(name: str) -> str:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"got {name[:80]!r}; {hint}wanted one of {', '.join(NAMES)}")
    return name


SchedulerName = Annotated[
    str, AfterValidator(_known), WithJsonSchema({"enum": list(NAMES), "type": "string"})
]


def _cero_option(name: str, about: str) -> Any:
    """A key that is an option of CERO: the record knows its default."""
    default = _CERO_DEFAULTS[name]
    assert default is not MISSING
    return Field(default=default, description=about)


class SchedulerConfig(Section):
    """The allocator. Sizes are rollouts; a unit is `rollouts_per_unit` rollouts of one prompt.

    The keys from `utility` to `warm_start` belong to cero, random_matched and fixed_price; their
    meaning, ablation and losses are in docs/scheduler.md. With another name they are ignored, so
    that a recipe's twin differs in the name alone. `options` are those of the other allocators, in
    docs/scheduler-rivals.md.
    """

    preset: PresetName = Field(
        default="published",
        description="keys that are not given: published, the papers' method; cero_plus, one "
        "posterior as critic and as allocator, also in section learner (docs/critic.md)",
    )
    name: SchedulerName = Field(default="cero", description="uniform is GRPO's allocation")
    rounds: PositiveInt = Field(
        description="scheduling decisions of the run; a round is worked off in one or more "
        "optimizer steps"
    )
    rollouts_per_unit: PositiveInt = Field(
        default=8, description="allocation unit; 1 needs learner.baseline: posterior"
    )
    max_units_per_prompt: PositiveInt = Field(
        default=1, description="most units of one prompt in a round: the largest group"
    )
    capacity_rollouts: PositiveInt | None = Field(
        default=None, description="most rollouts of one round; None: budget / rounds"
    )
    saturation: PositiveFloat = Field(
        default=1.0, description="how fast a prompt is worn out at its fair share of the budget"
    )
    prior: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(1.0, 1.0), description="Beta pseudo-counts (right, wrong) of a prompt"
    )
    pass_rate_column: str | None = Field(
        default=None, description="column of measured pass rates in [0, 1]: a prior per prompt"
    )
    pass_rate_strength: PositiveFloat = Field(
        default=4.0, description="rollouts that a measured pass rate counts for"
    )
    forgetting: Fraction = Field(
        default=1.0, description="evidence fades toward the prior by this factor a round; 1: never"
    )
    step_scale: PositiveFloat = Field(
        default=1.0, description="dual step in units of the published 1/sqrt(rounds)"
    )
    price_init: Annotated[float, Field(ge=0, le=1)] = _cero_option(
        "price_init", "first price of a unit of budget"
    )
    spend_down: bool = Field(
        default=True,
        description="spend the budget exactly: late rounds are filled by rank, whatever the price",
    )
    utility: UtilityName = _cero_option("utility", "family of U")
    value: ValueName = _cero_option("value", "worth of a rollout")
    pass_k: PositiveInt = _cero_option("pass_k", "the k of value: pass_at_k")
    weights_column: str | None = Field(
        default=None,
        description="column of fixed weights in [0, 1] that multiply the worth of a prompt's "
        "rollouts: what is known beforehand, or an upper bound of what could be",
    )
    wear_column: str | None = Field(
        default=None,
        description="column that says how many times as fast a prompt is worn out as saturation "
        "has it, in [0.01, 100]; e.g. the reverse of its family's transfer to held-out prompts",
    )
    labels_column: str | None = Field(
        default=None, description="column that groups prompts into families, for value: progress"
    )
    plan: PlanName = _cero_option("plan", "how a round is chosen")
    cap_shares: PositiveFloat | None = _cero_option(
        "cap_shares", "cap of a prompt's supporting exposure, in fair shares"
    )
    proximal: NonNegativeFloat = _cero_option(
        "proximal", "curvature of the round problem: group sizes of their own; 0: off"
    )
    explore_units: NonNegativeInt = _cero_option(
        "explore_units", "most units of a prompt never seen; 0: off"
    )
    token_costs: bool = _cero_option("token_costs", "margins per expected response token")
    refit_prior_every: NonNegativeInt = _cero_option(
        "refit_prior_every", "rounds between empirical-Bayes fits of the prior; 0: off"
    )
    cell_columns: tuple[str, ...] = Field(
        default=(),
        description="columns whose combined values make cells: prompts that resemble each other "
        "and share a prior",
    )
    cell_length_bins: NonNegativeInt = Field(
        default=0, description="cells by prompt length too, in this many quantiles; 0: off"
    )
    cell_prior: bool = _cero_option(
        "cell_prior", "with cells, refit_prior_every fits each cell's prior, not the pool's"
    )
    cell_memory_rounds: PositiveFloat | None = _cero_option(
        "cell_memory_rounds",
        "rounds that a cell's success rate is averaged over; None: a fifth of the run",
    )
    direction: DirectionName = _cero_option(
        "direction",
        "a factor on the worth of each cell; first_looks: what training on it brings prompts that "
        "were never trained on",
    )
    direction_floor: Annotated[float, Field(ge=0, le=1)] = _cero_option(
        "direction_floor", "its smallest value"
    )
    direction_ucb: NonNegativeFloat = _cero_option(
        "direction_ucb", "standard errors that a cell is given in advance"
    )
    direction_memory_rounds: PositiveFloat | None = _cero_option(
        "direction_memory_rounds", "rounds that it is fitted over; None: two thirds of the run"
    )
    probe_share: Annotated[float, Field(ge=0, le=0.25)] = _cero_option(
        "probe_share",
        "of each cell's prompts, and of the budget: looked at in turn and never trained on, for "
        "direction",
    )
    explore_share: Annotated[float, Field(ge=0, le=0.5)] = _cero_option(
        "explore_share", "of the budget: for the prompts looked at longest ago, against starvation"
    )
    streaming: bool = _cero_option(
        "streaming",
        "posterior and duals learn after every optimizer step of a round that "
        "learner.rollouts_per_step or live_signal_per_step cuts",
    )
    warm_start: PathText | None = Field(
        default=None, description="posterior.parquet of an earlier run: begin with its evidence"
    )
    options: dict[str, bool | int | float | str | None] = Field(
        default={}, description="of the allocators outside CERO's family"
    )
    truncated: Literal["auto", "counted", "censored"] = Field(
        default="auto",
        description="rollouts cut at the length limit, to the posterior: trials with the reward "
        "they got, or no evidence, right or wrong; auto: censored where learner.truncated masks "
        "them, since what does not train has no worth to learn",
    )
    keep_rule: KeepName | None = Field(default=None, description="which rollouts of a group train")
    keep_share: Fraction = Field(
        default=0.5, description="share of a group that keep_rule lets through"
    )

    @field_validator("options")
    @classmethod
    def _finite(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}: got {value}; wanted a finite number")
        return options

    @model_validator(mode="after")
    def _options_fit_the_name(self) -> SchedulerConfig:
        if self.name in CERO_FAMILY and self.options:
            raise ValueError(
                f"scheduler {self.name!r} takes its options as keys of this section, not "
                "under options"
            )
        if (self.value == "progress") != (self.labels_column is not None):
            raise ValueError("value: progress and labels_column go together; give both or neither")
        return self

    @property
    def has_cells(self) -> bool:
        return bool(self.cell_columns) or self.cell_length_bins > 1

    def cero_options(self, **given: Any) -> CeroOptions:
        """The record from the keys of this section and what other sections and the data say."""
        own = self.model_dump(include=set(_CERO_DEFAULTS))
        return CeroOptions(**own, **given)
