"""Optimizer steps on one batch: plan, forward, backward, step, with all ranks in lockstep; and when
a run has diverged.

DeepSpeed averages gradients over ranks, so the local loss is sum(local) * world_size / global
denominator and is not scaled again. Under sequence parallelism too: the ranks of a block bring the
same loss, each the gradient of its own slice, which add up to that loss's; what is counted is
counted once a block. A gradient that is not finite on any rank makes ZeRO skip the
step on all; a batch without a live group is skipped before it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from cero_rl.config import Config
from cero_rl.distributed.block import Block, OncePerBlock
from cero_rl.distributed.group import Group
from cero_rl.errors import DivergedError, EngineError
from cero_rl.job import faults
from cero_rl.learner.batch import TrainingBatch, of_block
from cero_rl.learner.losses import METRIC_NAMES, policy_loss, reduce_metrics
from cero_rl.learner.mismatch import HISTOGRAM_BINS, ratio_quantiles
from cero_rl.learner.packing import build_step_plan
from cero_rl.learner.returns import with_kl_in_reward
from cero_rl.models.attention import longest_shared
from cero_rl.models.logprob import forward_micro, head_chunk_tokens
from cero_rl.types import MicroBatch, StepPlan
from cero_rl.zero.policy import Policy

Clock = Callable[[str], AbstractContextManager[None]]  # times a phase by its name


@dataclass(frozen=True)
class UpdateResult:
    """What one batch did to the weights."""

    applied: bool  # at least one optimizer step changed them
    nonfinite_updates: int  # steps that all ranks skipped for a bad gradient
    mean_logp_gap: float  # mean |log-prob difference| of sampler and learner, in nats
    path: float  # sum of the learning rates of the steps that were taken
    metrics: dict[str, float]
    tokens: float = 0.0  # prompt and response, through forward and backward pass on all ranks
    squares: float = 0.0  # of the lengths of their sequences, summed


class _Sums:
    """Of the passes over a batch, on this rank. What a micro-batch adds stays on the device: to
    read a number there is to wait for all that was asked of it."""

    def __init__(self, device: torch.device) -> None:
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.loss = zeros()
        self.terms = zeros(len(METRIC_NAMES))
        self.ratios = zeros(HISTOGRAM_BINS)
        self.largest_gap = zeros()
        self.applied = False
        self.bad = 0
        self.grad_norm = 0.0
        self.learning_rate = 0.0
        self.path = 0.0


class Learner:
    """The policy under ZeRO, its frozen reference if there is one, and its optimizer steps."""

    def __init__(self, policy: Policy, reference: Any, config: Config, group: Group) -> None:
        self._policy = policy
        self._reference = reference
        self._config = config
        self._block: Block = policy.block
        self._group = group if self._block.size == 1 else OncePerBlock.of(group, self._block)
        model, wanted = policy.causal_lm.config, config.learner.shared_prefix
        self._head_chunk = head_chunk_tokens(model.vocab_size)
        if self._block.size > 1:
            wanted = False
        self._longest_shared = longest_shared(model, wanted, group.device)

    def update(
        self, batch: TrainingBatch, rates: Sequence[float], clock: Clock = nullcontext
    ) -> UpdateResult:
        """One optimizer step over the batch for each learning rate. A collective; the metrics are
        means over all ranks' tokens. `clock` is told of the steps alone as `optimizer`."""
        batch = of_block(batch, self._block, self._group.device)
        plan = build_step_plan(
            batch.packed,
            batch.advantages,
            batch.signal,
            config=self._config.learner,
            max_response_tokens=self._config.rollout.max_response_tokens,
            head_chunk_tokens=self._head_chunk,
            group=self._group,
            longest_shared=self._longest_shared,
            block=self._block,
            token_adv=batch.token_adv,
        )
        if not plan.micro_batches:
            return _nothing_to_learn(rates)
        self._policy.train(False)
        learner = self._config.learner
        old = len(rates) > 1 or (self._reference is not None and learner.kl_in == "reward")
        micro_batches = [self._with_fixed_logps(m, old=old) for m in plan.micro_batches]
        if self._reference is not None and learner.kl_in == "reward":
            micro_batches = with_kl_in_reward(micro_batches, learner, self._group)
        self._policy.train(True)
        sums = _Sums(self._group.device)
        for index, rate in enumerate(rates):
            for micro in micro_batches:
                self._backward(micro, plan.denominator, sums, first_pass=index == 0)
            with clock("optimizer"):
                self._step(rate, sums)
        return self._result(plan, len(rates), sums)

    @torch.no_grad()
    def _with_fixed_logps(self, micro: MicroBatch, *, old: bool) -> MicroBatch:
        if self._config.learner.old_logps == "sampler":
            micro = replace(micro, logp_old=micro.logp_behavior)
        elif old:
            micro = replace(micro, logp_old=self._policy.logps(micro, with_entropy=False)[0])
        if self._reference is not None:
            reference = forward_micro(self._reference, micro, with_entropy=False)[0]
            micro = replace(micro, logp_reference=reference)
        return micro

    def _backward(
        self, micro: MicroBatch, denominator: float, sums: _Sums, *, first_pass: bool
    ) -> None:
        logp, entropy = self._policy.logps(micro, with_entropy=True)
        terms = policy_loss(logp, entropy, micro, self._config.learner)
        loss = faults.poison("learner.loss", terms.loss_sum)
        loss = faults.poison_gradient("learner.gradient", loss)
        faults.point("learner.backward")
        self._policy.backward(loss * (self._group.world_size / denominator))
        sums.loss += terms.loss_sum.detach()
        if first_pass:  # later passes are no longer on the sampler's weights
            sums.terms += terms.metric_sums.double()
            sums.ratios += terms.ratio_counts
            sums.largest_gap = torch.maximum(sums.largest_gap, terms.largest_logp_gap.double())

    def _step(self, rate: float, sums: _Sums) -> None:
        sums.learning_rate = rate
        faults.point("learner.before_step")
        outcome = self._policy.step(rate)
        faults.point("learner.after_step")
        sums.applied |= outcome.applied
        sums.bad += not outcome.applied
        sums.path += rate if outcome.applied else 0.0
        sums.grad_norm = outcome.grad_norm

    def _result(self, plan: StepPlan, passes: int, sums: _Sums) -> UpdateResult:
        """The sums of all ranks as means. A collective."""
        mine = [float(sums.loss), *_sizes(plan), *sums.terms.tolist(), *sums.ratios.tolist()]
        loss, tokens, squares, *rest = self._group.all_sum(mine)
        largest_gap = self._group.all_max_float(float(sums.largest_gap))
        terms = rest[: len(METRIC_NAMES)]
        metrics = reduce_metrics(terms, maximum=largest_gap)
        metrics |= ratio_quantiles(rest[len(METRIC_NAMES) :])
        total = dict(zip(METRIC_NAMES, terms))
        gap = total["gap_abs"] / max(total["tokens"], 1.0)
        metrics |= {
            "loss": loss / plan.denominator / passes,
            "grad_norm": sums.grad_norm,
            "learning_rate": sums.learning_rate,
            "skipped_updates": sums.bad,
            "micro_batches": len(plan.micro_batches),
        }
        return UpdateResult(
            sums.applied, sums.bad, gap, sums.path, metrics, passes * tokens, passes * squares
        )


def _sizes(plan: StepPlan) -> tuple[float, float]:
    """(tokens, squared lengths) of this rank's micro-batches, by the mean length of each: they hold
    sequences of similar length, and no tensor is waited for."""
    sizes = [(len(m.tokens), len(m.seq_rollout)) for m in plan.micro_batches if not m.is_dummy]
    return sum(t for t, _ in sizes), sum(t * t / s for t, s in sizes)


def _nothing_to_learn(rates: Sequence[float]) -> UpdateResult:
    """No live group on any rank: all skip together."""
    metrics = reduce_metrics([0.0] * len(METRIC_NAMES), maximum=0.0) | ratio_quantiles([0.0])
    metrics |= {
        "loss": 0.0,
        "grad_norm": 0.0,
        "learning_rate": rates[-1],
        "skipped_updates": len(rates),
        "micro_batches": 0,
    }
    return UpdateResult(False, 0, 0.0, 0.0, metrics)


def refuse_divergence(update: UpdateResult, bad_before: int, config: Config) -> int:
    """How many optimizer steps in a row had a bad gradient, `bad_before` of them earlier.

    Raises DivergedError for too many of them, EngineError if the sampler does not hold the
    learner's weights. The same on every rank.
    """
    bad = 0 if update.applied else bad_before + update.nonfinite_updates
    limit = config.learner.max_nonfinite_steps
    if bad >= limit:
        raise DivergedError(
            f"{bad} optimizer steps in a row had a non-finite loss or gradient "
            f"(learner.max_nonfinite_steps = {limit}); lower optimizer.learning_rate, and resume "
            "from the last checkpoint"
        )
    bound = config.parity_bound
    # rollouts from older weights differ, as they should
    if update.mean_logp_gap > bound and not config.rollout.overlap:
        raise EngineError(
            f"sampler and learner disagree: mean |log-prob difference| {update.mean_logp_gap:.3g} "
            f"on fresh samples, bound {bound} for {config.model.dtype}; the sampler's weights are "
            "not the learner's"
        )
    return bad
