"""Scored groups -> the batch that trains, with its advantages; what a keep rule leaves out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cero_rl.config import Config
from cero_rl.distributed.block import Block
from cero_rl.distributed.group import Group
from cero_rl.learner.packing import pack_rollouts
from cero_rl.ops import group_advantage_tokens, op_device
from cero_rl.ops.advantage import Norm
from cero_rl.rollout.collector import Rollouts
from cero_rl.rollout.truncation import without_cut
from cero_rl.scheduler.critic import Prediction, leave_one_out
from cero_rl.scheduler.sizes import Samples
from cero_rl.types import RolloutBatch, RolloutGroup

Keep = Callable[[Samples], npt.NDArray[np.bool_]]
Rewards = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TrainingBatch:
    """This rank's part of what one optimizer step learns from."""

    packed: RolloutBatch  # rollouts with a reward that the scheduler keeps
    advantages: Tensor  # f32[R]
    signal: Tensor  # bool[R] rollouts whose advantage is not 0, or not taken for it
    kept: Sequence[Rewards] = ()  # [G] rewards of this rank's groups, nan for what does not train
    # f32[T] the advantages over the packed tokens, where the fused op made both; on its device
    token_adv: Tensor | None = None


def of_block(batch: TrainingBatch, block: Block, device: torch.device) -> TrainingBatch:
    """The batches of a block's ranks as one, in their order, on each of them; groups stay whole. A
    collective of the block where it has several ranks; `device` is what they speak on."""
    if block.size == 1:
        return batch

    def joined(values: Tensor) -> Tensor:
        return torch.cat(block.gather(values, device))

    def edges(offsets: Tensor) -> Tensor:
        sums = joined(torch.diff(offsets)).cumsum(0)
        return torch.nn.functional.pad(sums, (1, 0)).to(offsets.dtype)

    own = batch.packed
    packed = RolloutBatch(
        tokens=joined(own.tokens),
        cu_seqlens=edges(own.cu_seqlens),
        prompt_lengths=joined(own.prompt_lengths),
        loss_mask=joined(own.loss_mask),
        logp_behavior=joined(own.logp_behavior),
        rewards=joined(own.rewards),
        group_offsets=edges(own.group_offsets),
        prompt_ids=joined(own.prompt_ids),
    )
    spread = None if batch.token_adv is None else joined(batch.token_adv)
    return TrainingBatch(packed, joined(batch.advantages), joined(batch.signal), (), spread)


def share_with_signal(batch: TrainingBatch, group: Group) -> float:
    """Of the step's rollouts on all ranks, those that are forwarded. A collective."""
    mine = [float(batch.signal.sum()), float(batch.signal.numel())]
    some, of = group.all_sum(mine)
    return some / of if of else 0.0


def make_batch(
    rollouts: Rollouts,
    keep: Keep,
    config: Config,
    group: Group,
    predicted: Prediction | None = None,
    positive_weight: float | None = None,
) -> TrainingBatch:
    """Pack what trains, and its advantages: from the groups alone by the native op, or with what
    the critic `predicted` of them; those above 0 times positive_weight (None: the configuration's).
    A collective where learner.advantage looks at the whole step, or learner.group_weight does."""
    asked = dict(zip(rollouts.prompt_ids.tolist(), rollouts.requested.tolist()))
    own = np.array([asked[g.prompt_id] for g in rollouts.groups], dtype=np.int64)
    kept = kept_rewards(rollouts.groups, rollouts.rewards, keep, own)
    mask = config.learner.truncated == "mask"
    kept = [without_cut(k, g, leave_out=mask) for k, g in zip(kept, rollouts.groups)]
    packed = pack_rollouts(rollouts.groups, kept)
    measured = packed
    if config.learner.advantage_over == "all":
        measured = pack_rollouts(rollouts.groups, rollouts.rewards)
    token_adv = None
    if predicted is None:
        advantages, signal, token_adv = _against_groups(measured, config, group)
    else:
        advantages, signal = _against_posterior(measured, predicted, config)
    before = advantages
    if measured is not packed:
        trains = [~np.isnan(k[~np.isnan(r)]) for k, r in zip(kept, rollouts.rewards)]
        chosen = torch.from_numpy(np.concatenate([np.zeros(0, bool), *trains]))
        advantages, signal = advantages[chosen], signal[chosen]
    if config.learner.advantage == "batch_std":
        advantages = _by_root_mean_square(advantages, group)
    if config.learner.advantage in ("whiten", "whiten_group"):
        signal = torch.ones_like(signal)  # also a group of one, or of equal rewards
        if config.learner.kl_in == "loss" or not config.learner.kl_coefficient:
            advantages = _whitened(advantages, response_tokens(packed), group)
    weight = config.learner.positive_weight if positive_weight is None else positive_weight
    if weight < 1.0:
        advantages = torch.where(advantages > 0, weight * advantages, advantages)
    if advantages is not before:  # something came between
        token_adv = None
    return TrainingBatch(packed, advantages, signal, kept, token_adv)


def _against_groups(
    batch: RolloutBatch, config: Config, group: Group
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(advantages f32[R], signal bool[R], the advantages over the tokens f32[T]) by the fused op,
    where the learner computes: a group is measured by itself; under whiten by nothing yet."""
    learner = config.learner
    sizes = torch.diff(batch.group_offsets.long())
    weight = _group_weight(sizes, learner.group_weight, group)
    if learner.advantage == "whiten":
        advantages = batch.rewards.clone()
        if weight is not None:
            advantages *= torch.repeat_interleave(weight, sizes)
        return advantages, torch.ones_like(advantages, dtype=torch.bool), None
    norm: Norm = "center"
    if learner.advantage not in ("batch_std", "whiten_group"):
        norm = learner.advantage
    device = op_device(group.device)
    stats = group_advantage_tokens(
        batch.rewards.to(device),
        batch.group_offsets.to(device),
        batch.cu_seqlens.to(device),
        batch.loss_mask.to(device),
        norm=norm,
        eps=learner.advantage_eps,
        ddof=learner.advantage_ddof,
        group_weight=None if weight is None else weight.to(device),
    )
    signal = torch.repeat_interleave(stats.live.cpu(), sizes)
    return stats.adv.cpu(), signal, stats.token_adv


def _group_weight(sizes: Tensor, kind: str, group: Group) -> Tensor | None:
    """f32[G] of rollouts i64[G], its mean over the step's groups with a rollout 1. A collective
    where there is one."""
    if kind == "none":
        return None
    weight = sizes.double() if kind == "size" else sizes.double().sqrt()
    total, groups = group.all_sum([float(weight.sum()), float((sizes > 0).sum())])
    return (weight / (total / groups if total else 1.0)).float()


def response_tokens(batch: RolloutBatch) -> Tensor:
    """i64[R] of each rollout."""
    before = torch.nn.functional.pad(batch.loss_mask.long().cumsum(0), (1, 0))
    return torch.diff(before[batch.cu_seqlens.long()])


def _whitened(advantages: Tensor, tokens: Tensor, group: Group) -> Tensor:
    """Less the mean and divided by the standard deviation (of n - 1) over the response tokens
    i64[R] of all ranks' rollouts (REINFORCE++, arXiv 2501.03262). A collective."""
    values, weight = advantages.double(), tokens.double()
    count, total = group.all_sum([float(weight.sum()), float((weight * values).sum())])
    centred = values - total / max(count, 1.0)
    (squares,) = group.all_sum([float((weight * centred**2).sum())])
    if not squares:
        return torch.zeros_like(advantages)
    return (centred / (squares / max(count - 1.0, 1.0)) ** 0.5).float()


def _against_posterior(
    batch: RolloutBatch, predicted: Prediction, config: Config
) -> tuple[Tensor, Tensor]:
    """(advantages f32[R], signal bool[R]): less the leave-one-out baseline of the critic."""
    low, high = config.reward.sum_limits  # the critic knows what is mapped from it to [0, 1]
    rewards = (batch.rewards.numpy().astype(np.float64) - low) / (high - low)
    offsets = batch.group_offsets.numpy().astype(np.int64)
    mean, strength = predicted.rows(batch.prompt_ids.numpy())
    advantages = rewards - leave_one_out(rewards, offsets, mean, strength)
    signal = np.abs(advantages) > config.learner.min_advantage
    advantages = advantages * (high - low)
    return torch.from_numpy(advantages.astype(np.float32)), torch.from_numpy(signal)


def _by_root_mean_square(advantages: Tensor, group: Group) -> Tensor:
    """Over all rollouts of the step, those of other ranks included; all 0 stay 0. A collective."""
    squares = float((advantages.double() ** 2).sum())
    squares, count = group.all_sum([squares, float(advantages.numel())])
    return advantages / (squares / count) ** 0.5 if squares else advantages


def kept_rewards(
    groups: Sequence[RolloutGroup],
    rewards: Sequence[Rewards],
    keep: Keep,
    asked: npt.NDArray[np.int64] | None = None,
) -> list[Rewards]:
    """The rewards with nan where the scheduler keeps a rollout out of training. asked i64[G]:
    rollouts that the round gave each group, those without a reward included."""
    known = [~np.isnan(r) for r in rewards]
    lengths = [
        len(c.token_ids)
        for g, k in zip(groups, known)
        for c, there in zip(g.completions, k)
        if there
    ]
    offsets = np.cumsum([0, *(int(k.sum()) for k in known)])
    flat = np.zeros(0)
    if rewards:
        flat = np.concatenate([r[k] for r, k in zip(rewards, known)]).astype(np.float64)
    ids = np.array([g.prompt_id for g in groups], dtype=np.int64)
    lengths = np.array(lengths, dtype=np.int64)
    samples = Samples(ids, flat, offsets.astype(np.int64), lengths, asked)
    mask = keep(samples)
    kept = []
    for values, there, (first, last) in zip(rewards, known, pairwise(offsets)):
        trained = values.copy()
        trained[np.flatnonzero(there)[~mask[first:last]]] = np.nan
        kept.append(trained)
    return kept
