"""The KL term in the reward: an advantage for each token, from what follows it.

REINFORCE++ (arXiv 2501.03262) takes beta * KL from the reward of each token, with KL the estimate
at that token under the weights that sampled it: a token's return is the response's reward less the
penalties of the tokens from it on. Under `whiten` and `whiten_group` the returns are then whitened
over all response tokens of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cero_rl.config.learner import LearnerConfig
from cero_rl.distributed.group import Group
from cero_rl.learner.losses import kl_estimate
from cero_rl.types import MicroBatch


def sums_to_the_end(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """f64[T]: of each token, the sum over its sequence from it on."""
    totals = torch.nn.functional.pad(values.double().cumsum(0), (1, 0))
    lengths = torch.diff(cu_seqlens.long()).to(values.device)
    ends = torch.repeat_interleave(totals[cu_seqlens[1:].long()], lengths)
    return ends - totals[:-1]


def with_kl_in_reward(
    micro_batches: Sequence[MicroBatch], config: LearnerConfig, group: Group
) -> list[MicroBatch]:
    """token_adv of every micro-batch less beta times the KL from each token on, and whitened where
    learner.advantage asks for it. Needs logp_old and logp_reference. A collective then."""
    returns = [_returns(micro, config) for micro in micro_batches]
    if config.advantage in ("whiten", "whiten_group"):
        masks = [micro.loss_mask for micro in micro_batches]
        mine = [r[m] for r, m in zip(returns, masks)]
        count, total = group.all_sum(
            [float(sum(len(r) for r in mine)), float(sum(r.sum() for r in mine))]
        )
        mean = total / max(count, 1.0)
        (squares,) = group.all_sum([float(sum(((r - mean) ** 2).sum() for r in mine))])
        scale = (squares / max(count - 1.0, 1.0)) ** -0.5 if squares else 0.0
        returns = [(r - mean) * scale for r in returns]
    return [
        replace(micro, token_adv=torch.where(micro.loss_mask, r, 0.0).float())
        for micro, r in zip(micro_batches, returns)
    ]


def _returns(micro: MicroBatch, config: LearnerConfig) -> Tensor:
    """f64[T]; 0 on tokens outside of the loss."""
    assert micro.logp_old is not None
    assert micro.logp_reference is not None
    mask, zero = micro.loss_mask, torch.zeros((), device=micro.loss_mask.device)
    old, reference = (torch.where(mask, x, zero) for x in (micro.logp_old, micro.logp_reference))
    kl = torch.where(mask, kl_estimate(old, reference, config.kl_estimator), zero)
    penalty = config.kl_coefficient * sums_to_the_end(kl, micro.cu_seqlens)
    return torch.where(mask, micro.token_adv.double() - penalty, zero.double())
