"""The sections on the optimizer step: loss and its presets, AdamW."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cero_rl.config.base import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)

PRESETS: dict[str, dict[str, object]] = {
    "grpo": {
        "advantage": "std",
        "aggregation": "group_mean",
        "clip_high": 0.2,
        "zero_variance": "keep",
    },
    "dr_grpo": {
        "advantage": "center",
        "aggregation": "constant",
        "clip_high": 0.2,
        "zero_variance": "keep",
    },
    "dapo": {
        "advantage": "std",
        "aggregation": "token_mean",
        "clip_high": 0.28,
        "zero_variance": "drop",
    },
    "rloo": {  # a response is one action: the sum over its tokens, here over a constant length
        "advantage": "rloo",
        "aggregation": "constant",
        "clip_high": 0.2,
        "zero_variance": "keep",
    },
    "reinforce_pp": {  # REINFORCE++, arXiv 2501.03262
        "advantage": "whiten",
        "aggregation": "token_mean",
        "zero_variance": "keep",
        "kl_in": "reward",
        "kl_estimator": "k1",
    },
    "reinforce_pp_baseline": {
        "advantage": "whiten_group",
        "aggregation": "token_mean",
        "zero_variance": "keep",
        "kl_estimator": "k2",
    },
    "gspo": {
        "loss": "gspo",
        "advantage": "std",
        "aggregation": "seq_mean",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "zero_variance": "keep",
    },
    "cispo": {  # no lower bound; the largest weight is that of arXiv 2510.13786
        "loss": "cispo",
        "advantage": "std",
        "aggregation": "token_mean",
        "clip_low": 1.0,
        "clip_high": 4.0,
        "zero_variance": "keep",
    },
}
AdvantageName = Literal["std", "center", "rloo", "maxrl", "batch_std", "whiten", "whiten_group"]
_MASK_BOUNDS = {"token": (0.5, 2.0), "sequence": (0.5, 2.0), "geometric": (0.999, 1.001)}


class LearnerConfig(Section):
    """Loss and step. `algorithm` fills `loss`, `advantage`, `aggregation`, `clip_low`, `clip_high`,
    `kl_in`, `kl_estimator`, `zero_variance` where they are not given (docs/objectives.md)."""

    algorithm: Literal[
        "grpo",
        "dr_grpo",
        "dapo",
        "rloo",
        "reinforce_pp",
        "reinforce_pp_baseline",
        "gspo",
        "cispo",
    ] = Field(default="grpo", description="preset of the keys named above")
    loss: Literal["ppo", "gspo", "cispo"] = Field(
        default="ppo",
        description="clipped surrogate of each token's ratio (ppo), of the response's geometric "
        "mean (gspo), or the log-probability weighted by the clipped ratio (cispo)",
    )
    advantage: AdvantageName = Field(
        default="std",
        description="how rewards become advantages: less the group's mean (center), and divided by "
        "its standard deviation (std), its mean (maxrl), or the root mean square over the step's "
        "rollouts (batch_std); rloo: against the mean of the others of the group; whiten: less the "
        "mean and divided by the standard deviation over the step's response tokens, whiten_group: "
        "the same of what is less the group's mean",
    )
    advantage_ddof: Literal[0, 1] = Field(
        default=1,
        description="advantage std: the group's deviation is over n - advantage_ddof; with 1 a "
        "group of n weighs sqrt((n-1)/n), .71 at n=2 and .97 at n=16, with 0 all weigh alike",
    )
    group_weight: Literal["none", "sqrt_size", "size"] = Field(
        default="none",
        description="factor of a group's advantages: its rollouts with a reward or their square "
        "root, over the mean of that over the step's groups (baseline group)",
    )
    baseline: Literal["group", "posterior"] = Field(
        default="group",
        description="what a reward is measured against: the mean of its group, or a leave-one-out "
        "mean of its group shrunk toward what earlier rollouts of the prompt say, with which "
        "groups of one and groups whose rewards are equal teach too (docs/critic.md)",
    )
    baseline_strength: PositiveFloat | None = Field(
        default=None,
        description="baseline posterior: rollouts that what is known before counts for; None: from "
        "the evidence",
    )
    baseline_half_life: PositiveFloat | None = Field(
        default=None,
        description="baseline posterior: updates at the full learning rate after which a prompt's "
        "evidence counts half; None: from the evidence",
    )
    min_advantage: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="baseline posterior: rollouts whose reward is no further from its baseline are "
        "not forwarded",
    )
    advantage_over: Literal["kept", "all"] = Field(
        default="kept",
        description="whose mean and deviation an advantage is measured by: the rollouts of the "
        "group that train, or all of them that have a reward, also those that the allocator or "
        "scheduler.keep_rule keeps out (Reinforce-Ada's global statistics)",
    )
    positive_weight: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="factor of advantages above 0: less than 1 reinforces right answers less than "
        "it discourages wrong ones, which keeps entropy and pass@k (arXiv 2506.01347); with "
        "entropy_target the smallest factor",
    )
    entropy_target: PositiveFloat | None = Field(
        default=None,
        description="nats a token: where the entropy of the tokens that train is below it, the "
        "factor of advantages above 0 moves from 1 toward positive_weight (docs/coverage.md)",
    )
    aggregation: Literal["token_mean", "seq_mean", "group_mean", "prompt_mean", "constant"] = Field(
        default="group_mean",
        description="the loss is a mean over: all tokens; rollouts (of the mean over their "
        "tokens); prompts (of the mean over their rollouts of the mean over their tokens: "
        "every prompt weighs alike, whatever the size of its group); prompts (of the mean over "
        "all their tokens); rollouts (of the sum over their tokens over "
        "rollout.max_response_tokens)",
    )
    advantage_eps: PositiveFloat = Field(
        default=1e-6, description="added to the standard deviation"
    )
    clip_low: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.2, description="ratios below 1 - clip_low are clipped; 1: none"
    )
    clip_high: NonNegativeFloat = Field(
        default=0.2, description="ratios above 1 + clip_high are clipped"
    )
    dual_clip: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="loss ppo: the surrogate of a negative advantage is cut at this ratio too (3)",
    )
    kl_coefficient: NonNegativeFloat = Field(
        default=0.0,
        description="weight of KL(policy || start model); at 0 no reference model is held",
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        default="k3", description="per-token estimate of that KL"
    )
    kl_in: Literal["loss", "reward"] = Field(
        default="loss",
        description="a term of the loss, or taken from the reward of each token, so that a token's "
        "advantage holds the KL of all that follow it (REINFORCE++)",
    )
    truncated: Literal["train", "mask"] = Field(
        default="train",
        description="rollouts cut at the length limit: train with the reward they got, or are left "
        "out of the loss and its denominator; advantage_over says whether the others are still "
        "measured against them",
    )
    zero_variance: Literal["drop", "keep"] = Field(
        default="keep", description="does the loss denominator count groups without signal?"
    )
    importance_sampling: Literal["auto", "none", "truncate", "mask"] = Field(
        default="auto",
        description="weight pi_learner / pi_sampler of each token, cut off at importance_cap, "
        "or set to 0 outside [importance_floor, importance_cap]; auto: truncate where "
        "the sampler's log-probs may differ (vllm, bfloat16, overlap), else none",
    )
    importance_level: Literal["token", "sequence", "geometric"] = Field(
        default="token",
        description="of that weight: each token's own ratio, or the product over its response, or "
        "their geometric mean",
    )
    importance_cap: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        default=2.0, description="largest weight"
    )
    importance_floor: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="smallest weight that mask keeps"
    )
    importance_mask: Literal["none", "token", "sequence", "geometric", "kpop"] = Field(
        default="none",
        description="beside the weight: leave out tokens, or responses by their product or their "
        "geometric mean, whose ratio is outside importance_mask_range; kpop: tokens whose binary "
        "KL divergence, in either direction, is above kpop_threshold",
    )
    importance_mask_range: tuple[PositiveFloat, PositiveFloat] | None = Field(
        default=None,
        description="smallest and largest ratio that importance_mask keeps; None: 0.5 and 2, of a "
        "geometric mean 0.999 and 1.001",
    )
    kpop_threshold: PositiveFloat = Field(
        default=0.1, description="largest divergence that importance_mask kpop keeps, in nats"
    )
    max_micro_batch_tokens: PositiveInt = Field(
        default=16384,
        description="packed tokens of one forward and backward pass on a rank, or on a block of "
        "zero.sequence_parallel ranks",
    )
    shared_prefix: Literal[True, False, "auto"] = Field(
        default="auto",
        description="process the prompt of a group once, in forward and backward, not with every "
        "response; auto: on a CPU, groups whose prompt has 32 tokens or more and that save a tenth "
        "of their tokens (docs/shared-prefix.md)",
    )
    rollouts_per_step: PositiveInt | None = Field(
        default=None, description="rollouts of one optimizer step; None: the whole round"
    )
    live_signal_per_step: PositiveFloat | None = Field(
        default=None,
        description="squared advantages (before scaling) of one optimizer step, as expected of a "
        "round's groups: a round is cut into steps of equal signal, of at most rollouts_per_step "
        "rollouts; None: steps are of rollouts (docs/critic.md)",
    )
    updates_per_batch: PositiveInt = Field(
        default=1, description="passes over one batch of rollouts"
    )
    old_logps: Literal["learner", "sampler"] = Field(
        default="learner",
        description="log-probs that the clipped ratio is measured against: the learner's own, "
        "which cost a forward pass where a batch has several passes or the KL is in the reward, "
        "or those that the rollouts came with; then the ratio holds what importance_sampling "
        "weighs, and the clip bounds it",
    )
    max_nonfinite_steps: PositiveInt = Field(
        default=3, description="skipped steps in a row that end the run (exit 7)"
    )

    @property
    def importance_mask_bounds(self) -> tuple[float, float]:
        """Of the ratios that importance_mask keeps."""
        return self.importance_mask_range or _MASK_BOUNDS[self.importance_mask]

    @property
    def cuts_rounds(self) -> bool:
        """May a round be more than one optimizer step?"""
        return self.rollouts_per_step is not None or self.live_signal_per_step is not None

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: object) -> object:
        if isinstance(data, dict):
            preset = dict(PRESETS.get(str(data.get("algorithm", "grpo")), {}))
            if data.get("baseline") == "posterior":
                preset["advantage"] = "batch_std"
            return {**preset, **data}
        return data

    @model_validator(mode="after")
    def _objective_fits(self) -> LearnerConfig:
        if self.dual_clip is not None and self.loss != "ppo":
            raise ValueError(
                f"dual_clip: {self.dual_clip} with loss: {self.loss}, which has no second clip; "
                "leave it out, or set loss: ppo"
            )
        if self.dual_clip is not None and self.dual_clip < 1 + self.clip_high:
            raise ValueError(
                f"dual_clip: {self.dual_clip} is below 1 + clip_high = {1 + self.clip_high}; "
                "raise it (3 is usual)"
            )
        if self.advantage_ddof == 0 and self.advantage != "std":
            raise ValueError(
                f"advantage_ddof: 0 with advantage: {self.advantage}, which divides by no group's "
                "deviation; leave it out, or set advantage: std"
            )
        if self.group_weight != "none" and self.baseline == "posterior":
            raise ValueError(
                f"group_weight: {self.group_weight} with baseline: posterior, which weighs "
                "rollouts and not groups; leave it out, or set baseline: group"
            )
        masked = self.importance_sampling == "mask" or self.importance_mask != "none"
        if self.old_logps == "sampler" and masked:
            raise ValueError(
                "old_logps: sampler with a mask by pi_learner / pi_sampler, which is the clipped "
                "ratio then; leave importance_mask out and importance_sampling at auto, or set "
                "old_logps: learner"
            )
        bounds = self.importance_mask_range
        if bounds is not None and not bounds[0] <= 1 <= bounds[1]:
            raise ValueError(
                f"importance_mask_range: got {list(bounds)}; wanted two ratios around 1, such as "
                "[0.5, 2.0]"
            )
        if bounds is not None and self.importance_mask in ("none", "kpop"):
            raise ValueError(
                f"importance_mask_range: given with importance_mask: {self.importance_mask}, "
                "which has no range; set importance_mask: token, sequence or geometric"
            )
        return self

    @model_validator(mode="after")
    def _baseline_fits(self) -> LearnerConfig:
        if self.baseline == "posterior" and self.advantage not in ("center", "batch_std"):
            raise ValueError(
                f"baseline: posterior with advantage: {self.advantage}, which divides by what a "
                "single group shows; set advantage: batch_std or center"
            )
        given = [
            name
            for name in ("baseline_strength", "baseline_half_life", "min_advantage")
            if getattr(self, name)
        ]
        if self.baseline == "group" and given:
            raise ValueError(f"{given[0]} belongs to baseline: posterior; set it, or leave it out")
        if self.entropy_target is not None and self.positive_weight == 1.0:
            raise ValueError(
                "entropy_target moves a factor between positive_weight and 1, and positive_weight "
                "is 1; set positive_weight below 1 (0.3), or leave entropy_target out"
            )
        return self


class OptimizerConfig(Section):
    """AdamW."""

    learning_rate: PositiveFloat = Field(default=1e-6, description="after the warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="linear, cosine: down to 0 where the budget ends, with the rollouts spent",
    )
    warmup_steps: NonNegativeInt = Field(
        default=0, description="optimizer steps of a linear rise from 0"
    )
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="of all parameters alike, norms and biases too"
    )
    max_grad_norm: PositiveFloat = Field(
        default=1.0, description="the global gradient is scaled down to this norm"
    )
