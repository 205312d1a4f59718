"""Correction for a sampler that computes log-probabilities with other code than the learner, as
vLLM does: pure functions on [T].

Tokens come from the sampler's distribution b, the gradient is that of the learner's p: without a
weight p/b the estimate is biased, and a run can drift and collapse ("Your efficient RL framework
secretly brings you off-policy RL training", Yao et al., 2025). The weight is bounded: truncated
from above (truncated importance sampling, Ionides 2008), or set to 0 outside a range (masked, as
IcePop does, arXiv 2510.18855), for each token, for the whole response or for its geometric mean.
Beside the weight a second mask may leave out tokens or responses: by ratio, or by the binary
divergence of KPop (Guo et al., 2026). Weights carry no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from cero_rl.config.learner import LearnerConfig

_MAX_LOG = 20.0  # exp() stays finite
_LEAST_CHANCE = 1e-6  # what a probability is kept from 0 and 1 by in the binary divergence
HISTOGRAM_BINS = 513
_STRETCH = 1e-6  # log-ratios below it fall into the middle bin
QUANTILES = (0.01, 0.5, 0.99)
_CPU = torch.device("cpu")


def log_ratio(logp_learner: Tensor, logp_behavior: Tensor, mask: Tensor) -> Tensor:
    """log(p/b) of each response token, f32[T]; 0 where the mask is False, whatever stands there."""
    return torch.where(
        mask, logp_learner.detach() - logp_behavior, torch.zeros((), device=mask.device)
    )


def _owner(cu_seqlens: Tensor, values: Tensor) -> tuple[Tensor, int]:
    """(which sequence each token of values [T] belongs to i64[T], how many there are)."""
    token = torch.arange(len(values), device=values.device)
    return torch.searchsorted(cu_seqlens, token, right=True) - 1, len(cu_seqlens) - 1


def sequence_sums(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[T] with the sum of a token's sequence at each of its tokens. Sequence s is
    cu_seqlens[s]:cu_seqlens[s+1]."""
    owner, sequences = _owner(cu_seqlens, values)
    sums = torch.zeros(sequences, dtype=torch.float64, device=values.device).index_add_(
        0, owner, values.double()
    )
    return sums[owner].to(values.dtype)


def sequence_means(values: Tensor, mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[T] with the mean over the response tokens of a token's sequence. values hold 0 where mask
    is False; 0 for a sequence without a response."""
    owner, sequences = _owner(cu_seqlens, values)
    stacked = torch.stack([values.double(), mask.double()], dim=1)
    sums = torch.zeros((sequences, 2), dtype=torch.float64, device=values.device)
    sums.index_add_(0, owner, stacked)
    return (sums[:, 0] / sums[:, 1].clamp(min=1.0))[owner].to(values.dtype)


@dataclass(frozen=True)
class Correction:
    """weight f32[T], 1 where there is nothing to correct; cut bool[T]: tokens whose weight is not
    p/b; logs f32[T]: log(p/b) by token."""

    weight: Tensor
    cut: Tensor
    logs: Tensor


def importance_weights(
    logp_learner: Tensor,
    logp_behavior: Tensor,
    mask: Tensor,
    cu_seqlens: Tensor,
    config: LearnerConfig,
) -> Correction:
    """Weights of the tokens of packed sequences; all 1 without a correction ("auto" is resolved
    before, and counts as none here).

    truncate: min(p/b, cap). mask: p/b inside [floor, cap], else 0. At level "sequence" p/b is the
    product over the response, at "geometric" the mean over its tokens, in logarithms. What
    config.importance_mask leaves out has weight 0.
    """
    logs = log_ratio(logp_learner, logp_behavior, mask)
    correction = _weights(logs, mask, cu_seqlens, config)
    if config.importance_mask == "none":
        return correction
    if config.importance_mask == "kpop":
        outside = _binary_divergence(logp_learner, logp_behavior, mask) > config.kpop_threshold
    else:
        low, high = config.importance_mask_bounds
        ratio = _ratios(logs, mask, cu_seqlens, config.importance_mask)
        outside = (ratio < low) | (ratio > high)
    outside &= mask
    weight = correction.weight.masked_fill(outside, 0.0)
    return Correction(weight, correction.cut | outside, logs)


def _ratios(logs: Tensor, mask: Tensor, cu_seqlens: Tensor, level: str) -> Tensor:
    """p/b f32[T] by token, or of the token's response: its product or its geometric mean."""
    if level == "sequence":
        logs = sequence_sums(logs, cu_seqlens)
    elif level == "geometric":
        logs = sequence_means(logs, mask, cu_seqlens)
    return torch.exp(logs.clamp(-_MAX_LOG, _MAX_LOG))


def _binary_divergence(logp_learner: Tensor, logp_behavior: Tensor, mask: Tensor) -> Tensor:
    """f64[T] the larger of KL(p || b) and KL(b || p), of the token sampled against all others; 0
    where the mask is False."""
    zero = torch.zeros((), dtype=torch.float64, device=mask.device)
    p, b = (
        torch.where(mask, logp.detach().double(), zero)
        .exp()
        .clamp(_LEAST_CHANCE, 1.0 - _LEAST_CHANCE)
        for logp in (logp_learner, logp_behavior)
    )
    token, others = torch.log(p / b), torch.log((1.0 - p) / (1.0 - b))
    forward, backward = p * token + (1.0 - p) * others, -b * token - (1.0 - b) * others
    return torch.maximum(forward, backward)


def _weights(logs: Tensor, mask: Tensor, cu_seqlens: Tensor, config: LearnerConfig) -> Correction:
    if config.importance_sampling in ("none", "auto"):
        return Correction(torch.ones_like(logs), torch.zeros_like(mask), logs)
    ratio = _ratios(logs, mask, cu_seqlens, config.importance_level)
    if config.importance_sampling == "truncate":
        cut = mask & (ratio > config.importance_cap)
        weight = ratio.clamp(max=config.importance_cap)
    else:
        cut = mask & ((ratio < config.importance_floor) | (ratio > config.importance_cap))
        weight = ratio.masked_fill(cut, 0.0)
    return Correction(weight.masked_fill(~mask, 1.0), cut, logs)


@cache
def _edges(device: torch.device = _CPU) -> Tensor:
    """Bin edges f64[HISTOGRAM_BINS + 1] of log-ratios, fine at 0 and wide far out: sinh-spaced up
    to +-_MAX_LOG."""
    top = torch.asinh(torch.tensor(_MAX_LOG / _STRETCH, dtype=torch.float64))
    linear = torch.linspace(-1.0, 1.0, HISTOGRAM_BINS + 1, dtype=torch.float64)
    return (torch.sinh(linear * top) * _STRETCH).to(device)


def histogram(logs: Tensor, mask: Tensor) -> Tensor:
    """Counts f64[HISTOGRAM_BINS] of the response tokens' log-ratios; histograms of micro-batches
    and ranks add up."""
    values = logs.double().clamp(-_MAX_LOG, _MAX_LOG)
    bins = torch.bucketize(values, _edges(logs.device)[1:-1])
    counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.float64, device=logs.device)
    return counts.index_add_(0, bins, mask.double())  # whole numbers: exact in any order


def ratio_quantiles(counts: Sequence[float]) -> dict[str, float]:
    """Quantiles of p/b from a summed histogram, to half a bin (about 4 % of the log-ratio); 1 when
    it is empty."""
    total = torch.tensor(list(counts), dtype=torch.float64)
    if not float(total.sum()):
        return {f"mismatch/ratio_q{round(q * 100):02d}": 1.0 for q in QUANTILES}
    share = total.cumsum(0) / total.sum()
    edges = _edges()
    centers = (edges[1:] + edges[:-1]) / 2
    return {
        f"mismatch/ratio_q{round(q * 100):02d}": float(
            centers[int(torch.searchsorted(share, q))].exp()
        )
        for q in QUANTILES
    }
