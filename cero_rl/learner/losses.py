"""Policy losses on packed tokens [T]: pure functions, no model, no ranks.

Clipped surrogate (PPO, arXiv 1707.06347) with separate lower and upper clip range (DAPO, arXiv
2503.14476), per-token weights that carry the aggregation, and the k1, k2, k3 estimators of
KL(policy || reference) (Schulman, "Approximating KL divergence"). Masked positions are selected
away, never multiplied by 0, so a NaN there cannot reach the loss or its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cero_rl.config.learner import LearnerConfig
from cero_rl.learner.mismatch import histogram, importance_weights
from cero_rl.types import MicroBatch

# beyond it exp() is kept finite and has no gradient: one odd token must not make inf * 0 = NaN of a
# step
_MAX_LOG_RATIO = 20.0
METRIC_NAMES = (
    "tokens",
    "kl",
    "entropy",
    "clip_low",
    "clip_high",
    "gap_abs",
    "log_ratio",
    "weight",
    "cut",
)


@dataclass(frozen=True)
class LossTerms:
    """loss_sum: weighted sum over this micro-batch, to be divided by the global denominator.
    metric_sums: [len(METRIC_NAMES)].

    ratio_counts: f64[HISTOGRAM_BINS] of log(pi_learner / pi_sampler), see mismatch.histogram.
    """

    loss_sum: Tensor
    metric_sums: Tensor
    largest_logp_gap: Tensor
    ratio_counts: Tensor


def kl_estimate(logp: Tensor, logp_reference: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(policy || reference) from samples of the policy, [T].

    k1 is unbiased as a value, but its gradient through logp has expectation 0; k2 is biased as a
    value, but its gradient is that of the KL on policy; k3 is unbiased and never negative, but
    its on-policy gradient is that of the reverse divergence, KL(reference || policy), equal to
    the wanted one only near the reference. Raises ValueError for another name.
    """
    difference = logp - logp_reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference**2
    if estimator == "k3":
        difference = difference.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
        return torch.expm1(-difference) + difference
    raise ValueError(f"kl_estimator: got {estimator!r}, wanted 'k1', 'k2' or 'k3'")


def policy_loss(
    logp: Tensor, entropy: Tensor, micro: MicroBatch, config: LearnerConfig
) -> LossTerms:
    """logp f32[T] with gradient, entropy f32[T]. Without micro.logp_old the step is on-policy
    and the ratio is exactly 1.

    The surrogate, not the KL term, is weighted by pi_old / pi_sampler where
    learner.importance_sampling asks for it.
    """
    mask = micro.loss_mask
    zero = torch.zeros((), device=logp.device)
    now = torch.where(mask, logp, zero)
    old = now.detach() if micro.logp_old is None else torch.where(mask, micro.logp_old, zero)
    advantage = torch.where(mask, micro.token_adv, zero)
    ratio = torch.exp((now - old).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    correction = importance_weights(old, micro.logp_behavior, mask, micro.cu_seqlens, config)
    token_loss = (
        -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage) * correction.weight
    )
    kl = torch.zeros_like(now)
    if config.kl_coefficient > 0 and micro.logp_reference is not None:
        kl = kl_estimate(now, torch.where(mask, micro.logp_reference, zero), config.kl_estimator)
        token_loss = token_loss + config.kl_coefficient * kl
    loss_sum = torch.where(mask, token_loss * micro.seq_weight, zero).sum()
    with torch.no_grad():
        gap = torch.where(mask, (now - micro.logp_behavior).abs(), zero)
        sums = torch.stack(
            [
                mask.sum().float(),
                torch.where(mask, kl, zero).sum(),
                torch.where(mask, entropy, zero).sum(),
                (mask & (ratio < low) & (advantage < 0)).sum().float(),
                (mask & (ratio > high) & (advantage > 0)).sum().float(),
                gap.sum(),
                correction.logs.sum(),
                torch.where(mask, correction.weight, zero).sum(),
                correction.cut.sum().float(),
            ]
        )
    return LossTerms(
        loss_sum, sums, gap.max() if gap.numel() else zero, histogram(correction.logs, mask)
    )


def reduce_metrics(sums: Sequence[float], *, maximum: float) -> dict[str, float]:
    """Sums over all ranks and micro-batches (order of METRIC_NAMES) -> means per trained
    response token."""
    total = dict(zip(METRIC_NAMES, sums))
    tokens = max(total["tokens"], 1.0)
    return {
        "kl": total["kl"] / tokens,
        "entropy": total["entropy"] / tokens,
        "clip_ratio/low_mean": total["clip_low"] / tokens,
        "clip_ratio/high_mean": total["clip_high"] / tokens,
        "clip_ratio/region_mean": (total["clip_low"] + total["clip_high"]) / tokens,
        "mismatch/logp_abs_mean": total["gap_abs"] / tokens,
        "mismatch/logp_abs_max": maximum,
        # k1 estimate of KL(sampler || learner): the tokens are the sampler's
        "mismatch/kl": -total["log_ratio"] / tokens,
        "mismatch/weight_mean": total["weight"] / tokens,
        "mismatch/cut_fraction": total["cut"] / tokens,
        "trained_tokens": total["tokens"],
    }
