"""Policy losses on packed tokens [T]: pure functions, no model, no ranks.

A surrogate of `LOSSES`, per-token weights that carry the aggregation, and the k1, k2, k3 estimators
of KL(policy || reference) (Schulman, "Approximating KL divergence"). A new surrogate is a function
and its line in `LOSSES`. Masked positions are selected away, never multiplied by 0, so a NaN there
cannot reach the loss or its gradient.

With r = pi / pi_old of a token, A its advantage and l, h the clip range:

    ppo    -min(r A, clip(r, 1-l, 1+h) A)       arXiv 1707.06347; l and h apart: DAPO, 2503.14476
           dual_clip c, where A < 0: no more than -c A (arXiv 1912.09729)
    gspo   the same with r of a whole response: exp(mean of log r over its tokens), whose gradient
           flows through each token alike (arXiv 2507.18071, the form for tokens)
    cispo  -sg(clip(r, 1-l, 1+h)) A log pi      arXiv 2506.13585: no token loses its gradient
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cero_rl.config.learner import LearnerConfig
from cero_rl.learner.mismatch import histogram, importance_weights, sequence_means
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
    "clip_dual",
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


@dataclass(frozen=True)
class TokenTerms:
    """What a surrogate is computed from; masked tokens hold 0."""

    logp: Tensor  # f32[T] with gradient
    logp_old: Tensor  # f32[T]
    advantage: Tensor  # f32[T]
    mask: Tensor  # bool[T]
    cu_seqlens: Tensor  # i32[S+1]

    @property
    def log_ratio(self) -> Tensor:
        return self.logp - self.logp_old


@dataclass(frozen=True)
class Surrogate:
    """loss f32[T]; below, above, dual bool[T]: tokens that the clip range, its lower or upper end,
    or the second clip decides."""

    loss: Tensor
    below: Tensor
    above: Tensor
    dual: Tensor


def _clipped(log_ratio: Tensor, terms: TokenTerms, config: LearnerConfig) -> Surrogate:
    advantage = terms.advantage
    ratio = torch.exp(log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    gain = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    dual = torch.zeros_like(terms.mask)
    if config.dual_clip is not None:
        dual = (advantage < 0) & (ratio > config.dual_clip)
        gain = torch.where(dual, config.dual_clip * advantage, gain)
    below = (ratio < low) & (advantage < 0)
    above = (ratio > high) & (advantage > 0)
    return Surrogate(-gain, below, above, dual)


def ppo(terms: TokenTerms, config: LearnerConfig) -> Surrogate:
    """Each token's own ratio, clipped on the side where its advantage pushes."""
    return _clipped(terms.log_ratio, terms, config)


def gspo(terms: TokenTerms, config: LearnerConfig) -> Surrogate:
    """The ratio of the response, the geometric mean over its tokens, for each of them."""
    of_response = sequence_means(terms.log_ratio.detach(), terms.mask, terms.cu_seqlens)
    return _clipped(of_response + (terms.logp - terms.logp.detach()), terms, config)


def cispo(terms: TokenTerms, config: LearnerConfig) -> Surrogate:
    """The log-probability's gradient, weighted by the clipped ratio, which has none."""
    log_ratio = terms.log_ratio.detach().clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = torch.exp(log_ratio)
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    loss = -ratio.clamp(low, high) * terms.advantage * terms.logp
    return Surrogate(loss, ratio < low, ratio > high, torch.zeros_like(terms.mask))


LOSSES: dict[str, Callable[[TokenTerms, LearnerConfig], Surrogate]] = {
    "ppo": ppo,
    "gspo": gspo,
    "cispo": cispo,
}


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
    learner.importance_sampling asks for it. With learner.old_logps "sampler" pi_old is pi_sampler:
    the weight is 1, and the mismatch is told of the policy as it is.
    """
    mask = micro.loss_mask
    zero = torch.zeros((), device=logp.device)
    now = torch.where(mask, logp, zero)
    old = now.detach() if micro.logp_old is None else torch.where(mask, micro.logp_old, zero)
    advantage = torch.where(mask, micro.token_adv, zero)
    terms = TokenTerms(now, old, advantage, mask, micro.cu_seqlens)
    surrogate = LOSSES[config.loss](terms, config)
    of_sampler = config.old_logps == "sampler"
    learner = now.detach() if of_sampler else old
    correction = importance_weights(learner, micro.logp_behavior, mask, micro.cu_seqlens, config)
    weight = torch.ones_like(now) if of_sampler else correction.weight
    token_loss = surrogate.loss * weight
    kl = torch.zeros_like(now)
    if config.kl_coefficient > 0 and micro.logp_reference is not None:
        kl = kl_estimate(now, torch.where(mask, micro.logp_reference, zero), config.kl_estimator)
        if config.kl_in == "loss":
            token_loss = token_loss + config.kl_coefficient * kl
    loss_sum = torch.where(mask, token_loss * micro.seq_weight, zero).sum()
    with torch.no_grad():
        gap = torch.where(mask, (now - micro.logp_behavior).abs(), zero)
        sums = torch.stack(
            [
                mask.sum().float(),
                torch.where(mask, kl, zero).sum(),
                torch.where(mask, entropy, zero).sum(),
                (mask & surrogate.below).sum().float(),
                (mask & surrogate.above).sum().float(),
                (mask & surrogate.dual).sum().float(),
                gap.sum(),
                correction.logs.sum(),
                torch.where(mask, weight, zero).sum(),
                correction.cut.sum().float() * (not of_sampler),
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
        "clip_ratio/dual_mean": total["clip_dual"] / tokens,
        "mismatch/logp_abs_mean": total["gap_abs"] / tokens,
        "mismatch/logp_abs_max": maximum,
        # k1 estimate of KL(sampler || learner): the tokens are the sampler's
        "mismatch/kl": -total["log_ratio"] / tokens,
        "mismatch/weight_mean": total["weight"] / tokens,
        "mismatch/cut_fraction": total["cut"] / tokens,
        "trained_tokens": total["tokens"],
    }
