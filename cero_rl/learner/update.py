"""Optimizer steps on one collected batch: plan, forward, backward, step, with all ranks in
lockstep.

DeepSpeed averages gradients over ranks, so the local loss is sum(local) * world_size / global
denominator and is not scaled again. A gradient that is not finite on any rank makes ZeRO skip the
step on all; a batch without a live group is skipped before it starts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from cero_rl.config import Config
from cero_rl.distributed.group import Group
from cero_rl.job import faults
from cero_rl.learner.losses import METRIC_NAMES, policy_loss, reduce_metrics
from cero_rl.learner.mismatch import HISTOGRAM_BINS, ratio_quantiles
from cero_rl.learner.packing import build_step_plan
from cero_rl.learner.schedule import learning_rate_at
from cero_rl.models.logprob import head_chunk_tokens
from cero_rl.rollout.collector import Collected
from cero_rl.types import MicroBatch
from cero_rl.zero.policy import Policy, forward_micro


@dataclass(frozen=True)
class UpdateResult:
    """applied: at least one optimizer step changed the weights. nonfinite_updates: steps that all
    ranks skipped for a bad gradient."""

    applied: bool
    nonfinite_updates: int
    metrics: dict[str, float]


@torch.no_grad()
def _with_fixed_logps(
    micro: MicroBatch, policy: Policy, reference: Any, *, old: bool
) -> MicroBatch:
    if old:
        micro = replace(micro, logp_old=policy.logps(micro, with_entropy=False)[0])
    if reference is not None:
        micro = replace(
            micro, logp_reference=forward_micro(reference, micro, with_entropy=False)[0]
        )
    return micro


def optimize(
    policy: Policy,
    reference: Any,
    collected: Collected,
    config: Config,
    group: Group,
    updates_before: int,
) -> UpdateResult:
    """learner.updates_per_batch steps over one batch. A collective; the metrics are means over all
    ranks' tokens."""
    plan = build_step_plan(
        collected.batch,
        collected.advantages,
        collected.live,
        config=config.learner,
        max_response_tokens=config.rollout.max_response_tokens,
        all_sum=group.all_sum,
        all_max=group.all_max,
        head_chunk_tokens=head_chunk_tokens(policy.causal_lm.config.vocab_size),
        device=group.device,
    )
    passes = config.learner.updates_per_batch
    if not plan.micro_batches:
        empty = reduce_metrics([0.0] * len(METRIC_NAMES), maximum=0.0) | ratio_quantiles([0.0])
        return UpdateResult(
            False,
            0,
            {
                **empty,
                "loss": 0.0,
                "grad_norm": 0.0,
                "learning_rate": 0.0,
                "skipped_updates": passes,
            },
        )
    policy.train(False)
    micro_batches = [
        _with_fixed_logps(m, policy, reference, old=passes > 1) for m in plan.micro_batches
    ]
    policy.train(True)
    totals, ratio_counts = (
        torch.zeros(len(METRIC_NAMES), dtype=torch.float64),
        torch.zeros(HISTOGRAM_BINS, dtype=torch.float64),
    )
    loss_sum, largest_gap, applied, bad, norm, rate = 0.0, 0.0, False, 0, 0.0, 0.0
    for index in range(passes):
        for micro in micro_batches:
            logp, entropy = policy.logps(micro, with_entropy=True)
            terms = policy_loss(logp, entropy, micro, config.learner)
            loss = faults.poison_gradient(
                "learner.gradient", faults.poison("learner.loss", terms.loss_sum)
            )
            faults.point("learner.backward")
            policy.backward(loss * (group.world_size / plan.denominator))
            loss_sum += float(terms.loss_sum.detach())
            if index == 0:  # later passes are no longer on the sampler's weights
                totals += terms.metric_sums.double().cpu()
                ratio_counts += terms.ratio_counts
                largest_gap = max(largest_gap, float(terms.largest_logp_gap))
        rate = learning_rate_at(updates_before + index, config.optimizer, config.planned_steps)
        faults.point("learner.before_step")
        outcome = policy.step(rate)
        faults.point("learner.after_step")
        applied |= outcome.applied
        bad += not outcome.applied
        norm = outcome.grad_norm
    summed = group.all_sum([loss_sum, *totals.tolist(), *ratio_counts.tolist()])
    loss, sums, counts = (
        summed[0],
        summed[1 : 1 + len(METRIC_NAMES)],
        summed[1 + len(METRIC_NAMES) :],
    )
    metrics = reduce_metrics(sums, maximum=group.all_max_float(largest_gap)) | ratio_quantiles(
        counts
    )
    metrics |= {
        "loss": loss / plan.denominator / passes,
        "grad_norm": norm,
        "learning_rate": rate,
        "skipped_updates": bad,
        "micro_batches": len(plan.micro_batches),
    }
    return UpdateResult(applied, bad, metrics)
