"""Ragged rollouts -> packed batch -> micro-batches by token budget, as many on every rank.

In: groups of completions with their rewards. Out: `RolloutBatch`, then `StepPlan`. Nothing is ever
shaped [G, n, L]. The aggregation is carried by a weight per token and one global denominator, so
how tokens fall into micro-batches and ranks does not change the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cero_rl.config.learner import LearnerConfig
from cero_rl.distributed.block import Block
from cero_rl.distributed.group import Group
from cero_rl.learner.sharing import Segments, parts_of, segments_of, tokens_of
from cero_rl.ops import op_device, token_advantage
from cero_rl.types import MicroBatch, RolloutBatch, RolloutGroup, StepPlan

_Ints = npt.NDArray[np.int64]
_ALONE = Block()


def pack_rollouts(
    groups: Sequence[RolloutGroup], rewards: Sequence[npt.NDArray[np.float32]]
) -> RolloutBatch:
    """Pack every completion that has a reward (f32[n] a group); nan is missing, so a group may
    shrink to one rollout or none.

    Raises ValueError where rewards and completions do not match, and for an empty prompt (nothing
    predicts its first token).
    """
    tokens, masks, logps, values = [], [], [], []
    lengths, offsets, prompts = [0], [0], []
    for group, group_rewards in zip(groups, rewards, strict=True):
        if len(group.completions) != len(group_rewards):
            raise ValueError(
                f"prompt {group.prompt_id}: {len(group.completions)} completions but "
                f"{len(group_rewards)} rewards"
            )
        if len(group.prompt_tokens) == 0:
            raise ValueError(
                f"prompt {group.prompt_id}: got 0 prompt tokens, wanted at least one; give "
                "it a beginning-of-sequence token"
            )
        for completion, reward in zip(group.completions, group_rewards.tolist()):
            if np.isnan(reward):
                continue
            prompt, response = group.prompt_tokens, completion.token_ids
            tokens.append(np.concatenate([prompt, response]))
            masks.append(np.concatenate([np.zeros(len(prompt), np.bool_), completion.trains]))
            logps.append(
                np.concatenate([np.zeros(len(prompt), np.float32), completion.logp_behavior])
            )
            lengths.append(len(prompt) + len(response))
            prompts.append(len(prompt))
            values.append(reward)
        offsets.append(len(values))

    def joined(parts: list[np.ndarray], dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(
            np.concatenate([*parts, np.empty(0, dtype)]).astype(dtype, copy=False)
        )

    return RolloutBatch(
        tokens=joined(tokens, np.int64),
        cu_seqlens=torch.from_numpy(np.cumsum(lengths).astype(np.int32)),
        prompt_lengths=torch.tensor(prompts, dtype=torch.int32),
        loss_mask=joined(masks, np.bool_),
        logp_behavior=joined(logps, np.float32),
        rewards=torch.tensor(values, dtype=torch.float32),
        group_offsets=torch.tensor(offsets, dtype=torch.int32),
        prompt_ids=torch.tensor([g.prompt_id for g in groups], dtype=torch.int64),
    )


def _weights(
    trained: _Ints,
    group_of: _Ints,
    counted: npt.NDArray[np.bool_],
    aggregation: str,
    constant: int,
) -> tuple[np.ndarray, float]:
    """(weight of each token that trains by rollout f64[R], this rank's share of the denominator).
    trained i64[R]: how many of a rollout's tokens do, those that were sampled.

    The loss is the mean over: token_mean, all tokens; seq_mean, all rollouts, of the mean over
    their tokens; group_mean, prompts, of the mean over their rollouts of the mean over their tokens
    (GRPO, arXiv 2402.03300, equation 3); prompt_mean, prompts, of the mean over all their tokens;
    constant, all rollouts, of the sum over their tokens divided by `constant`.
    """
    rollouts_of_group = np.bincount(
        group_of, weights=counted, minlength=int(group_of.max(initial=-1)) + 1
    )
    if aggregation == "token_mean":
        return np.ones(len(trained)), float(trained[counted].sum())
    if aggregation == "seq_mean":
        return 1.0 / np.maximum(trained, 1), float(counted.sum())
    if aggregation == "group_mean":
        by_rollout = 1.0 / np.maximum(trained, 1)
        weight = by_rollout / np.maximum(rollouts_of_group[group_of], 1)
        return weight, float((rollouts_of_group > 0).sum())
    if aggregation == "constant":
        return np.ones(len(trained)), float(counted.sum()) * constant
    if aggregation == "prompt_mean":
        per_group = np.bincount(
            group_of, weights=trained, minlength=int(group_of.max(initial=-1)) + 1
        )
        return 1.0 / np.maximum(per_group[group_of], 1), float((rollouts_of_group > 0).sum())
    raise ValueError(
        f"learner.aggregation: got {aggregation!r}, wanted token_mean, seq_mean, "
        "group_mean, prompt_mean or constant"
    )


def split_by_tokens(lengths: _Ints, max_tokens: int) -> list[_Ints]:
    """Indices of sequences, longest first, cut into runs of at most `max_tokens` tokens; a longer
    sequence goes alone."""
    order = np.argsort(-lengths, kind="stable")
    cuts, size = [0], 0
    for position, length in enumerate(lengths[order].tolist()):
        if size and size + length > max_tokens:
            cuts.append(position)
            size = 0
        size += length
    return [order[a:b] for a, b in pairwise([*cuts, len(order)]) if b > a]


@dataclass(frozen=True)
class _Staged:
    """What micro-batches are cut from, brought to the learner's device once a step; [T] each."""

    tokens: Tensor
    loss_mask: Tensor
    logp_behavior: Tensor
    token_adv: Tensor

    @classmethod
    def of(
        cls, batch: RolloutBatch, adv: Tensor, token_adv: Tensor | None, device: torch.device
    ) -> _Staged:
        """adv f32[R] is spread over the tokens unless it comes spread already."""
        if token_adv is None:
            at = op_device(device)
            token_adv = token_advantage(adv.to(at), batch.cu_seqlens.to(at), batch.loss_mask.to(at))
        return cls(
            batch.tokens.to(device),
            batch.loss_mask.to(device),
            batch.logp_behavior.to(device),
            token_adv.to(device),
        )


def _micro_batch(
    batch: RolloutBatch,
    staged: _Staged,
    segments: Segments,
    weight: np.ndarray,
    chunks: int,
    device: torch.device,
    block: Block,
) -> MicroBatch:
    lengths = segments.end - segments.start
    within = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])
    source = torch.from_numpy(within + np.repeat(segments.start, lengths))
    owner = torch.from_numpy(np.repeat(segments.rollout, lengths))
    mask = batch.loss_mask[source]
    cu_seqlens, seq_rollout, seq_parent = (
        torch.from_numpy(x.astype(np.int32))
        for x in (np.cumsum([0, *lengths]), segments.rollout, segments.parent)
    )
    shares = bool((segments.parent != np.arange(len(lengths))).any())
    there = source.to(device)
    return MicroBatch(
        tokens=staged.tokens[there],
        positions=torch.from_numpy(within + np.repeat(segments.position, lengths)).to(device),
        cu_seqlens=cu_seqlens.to(device),
        seq_rollout=seq_rollout.to(device),
        loss_mask=staged.loss_mask[there],
        logp_behavior=staged.logp_behavior[there],
        token_adv=staged.token_adv[there],
        seq_weight=torch.where(mask, torch.from_numpy(weight.astype(np.float32))[owner], 0.0).to(
            device
        ),
        head_chunks=chunks,
        is_dummy=False,
        trained_tokens=int(mask.sum()),
        max_seqlen_tokens=int(lengths.max()),
        seq_parent=seq_parent.to(device) if shares else None,
        cut=block.cut_of(mask),
    )


def _dummy(chunks: int, device: torch.device, block: Block = _ALONE) -> MicroBatch:
    """Two tokens, no loss: keeps this rank in step with the others' collectives."""
    zeros = torch.zeros(2, device=device)
    return MicroBatch(
        tokens=torch.zeros(2, dtype=torch.int64, device=device),
        positions=torch.arange(2, device=device),
        cu_seqlens=torch.tensor([0, 2], dtype=torch.int32, device=device),
        seq_rollout=torch.zeros(1, dtype=torch.int32, device=device),
        loss_mask=torch.zeros(2, dtype=torch.bool, device=device),
        logp_behavior=zeros,
        token_adv=zeros,
        seq_weight=zeros,
        head_chunks=chunks,
        is_dummy=True,
        trained_tokens=0,
        max_seqlen_tokens=2,
        cut=block.cut_of(torch.zeros(2, dtype=torch.bool)),
    )


def build_step_plan(
    batch: RolloutBatch,
    adv: Tensor,
    signal: Tensor,
    *,
    config: LearnerConfig,
    max_response_tokens: int,
    head_chunk_tokens: int,
    group: Group,
    longest_shared: int = 0,
    block: Block = _ALONE,
    token_adv: Tensor | None = None,
) -> StepPlan:
    """Micro-batches of one optimizer step from advantages adv f32[R] and signal bool[R]. A
    collective.

    Rollouts without signal (of "dead" groups): under zero_variance "keep" the denominator counts
    them, under "drop" it does not. Their policy gradient is exactly 0, or, below min_advantage,
    taken for it, so they are forwarded only where a KL term gives them one. A plan without
    micro-batches means that no rank has anything to learn from: all skip the step together.

    longest_shared: tokens of the longest sequence behind a shared prompt; 0: none is shared.
    block: the ranks that cut each micro-batch between them. They are given the same batch, and
    their group counts it once.
    token_adv: f32[T] adv over the packed tokens, where the fused op made it; else it is made here.
    """
    offsets = batch.group_offsets.numpy().astype(np.int64)
    group_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    lengths = np.diff(batch.cu_seqlens.numpy()).astype(np.int64)
    trained = (
        np.add.reduceat(
            np.append(batch.loss_mask.numpy(), False).astype(np.int64),
            batch.cu_seqlens[:-1].numpy(),
        )
        if len(lengths)
        else lengths
    )
    alive = signal.cpu().numpy()
    keep = config.zero_variance == "keep"
    counted = np.ones_like(alive) if keep else alive
    forwarded = np.flatnonzero((counted if config.kl_coefficient > 0 else alive) & (trained > 0))
    weight, share = _weights(trained, group_of, counted, config.aggregation, max_response_tokens)

    prompt = batch.prompt_lengths.numpy().astype(np.int64)
    response = lengths - prompt
    parts = parts_of(
        forwarded,
        group_of,
        prompt,
        response,
        longest_shared=longest_shared,
        if_worth=config.shared_prefix == "auto",
        max_tokens=config.max_micro_batch_tokens,
    )
    sizes = np.array([tokens_of(part, prompt, response) for part in parts], dtype=np.int64)
    runs = [
        [parts[i] for i in run] for run in split_by_tokens(sizes, config.max_micro_batch_tokens)
    ]
    # Of the run and not of the step: another number of calls of the head breaks ZeRO-3's record of
    # what is gathered when.
    most = max(config.max_micro_batch_tokens, max_response_tokens)
    head_chunks = -(-most // (head_chunk_tokens * block.size))
    count = group.all_max(len(runs))
    denominator = group.all_sum([share])[0]
    starts = batch.cu_seqlens[:-1].numpy().astype(np.int64)
    staged = _Staged.of(batch, adv, token_adv, group.device)
    micro_batches = [
        _micro_batch(
            batch,
            staged,
            segments_of(run, starts, prompt, response),
            weight,
            head_chunks,
            group.device,
            block,
        )
        for run in runs
    ]
    micro_batches += [_dummy(head_chunks, group.device, block)] * (count - len(runs))
    return StepPlan(tuple(micro_batches), denominator)
