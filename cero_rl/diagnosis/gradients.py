"""Scored groups -> what their gradients add up to, a group at a time, through `make_batch`,
`build_step_plan` and `policy_loss` of the learner, so that the estimator is the one that trains.

A step's gradient is sum_i s_i / sum_i d_i, with s_i the gradient of group i's weighted losses and
d_i its part of the loss's denominator. Here g_i = -s_i / mean(d), so that the mean of the g_i is
the step's direction of ascent. At the sampler's own weights every ratio is 1; the KL term is left
out.

No more than `MEMORY_BYTES` of gradients are held, whatever the number of groups: sums of `BLOCKS`
blocks of groups and means of `FOLDS` folds of held-out prompts. A model too large for that is
seen through a `Sketch`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cero_rl.config import Config
from cero_rl.config.learner import LearnerConfig
from cero_rl.diagnosis.looks import Looks, Rewards, Tell
from cero_rl.diagnosis.sketch import Sketch, gram
from cero_rl.diagnosis.statistics import Floats, Ids, Values
from cero_rl.distributed.group import Group
from cero_rl.learner.batch import Keep, TrainingBatch, make_batch
from cero_rl.learner.losses import policy_loss
from cero_rl.learner.packing import build_step_plan
from cero_rl.models.attention import attention_of, longest_shared
from cero_rl.models.load import load_model
from cero_rl.models.logprob import PolicyModule, forward_micro, head_chunk_tokens
from cero_rl.models.lora import add_adapter
from cero_rl.rewards.base import RewardCounts
from cero_rl.rollout.collector import Rollouts
from cero_rl.rollout.counts import GroupCounts
from cero_rl.scheduler.critic import PosteriorCritic
from cero_rl.types import Allocation, RolloutBatch, RolloutGroup, Step

BLOCKS, FOLDS = 32, 16
MEMORY_BYTES = 2**28
_TELL_EVERY = 128


class Gradients:
    """The model, its trained parameters, and the gradients of a batch's loss with respect to
    them."""

    def __init__(self, config: Config, path: str, device: torch.device) -> None:
        """With the weights at `path`; with LoRA an adapter as at the start is put into them."""
        causal_lm = load_model(path, config.model.dtype, attention_of(config))
        if config.lora.rank:
            add_adapter(causal_lm, config)
        self._setup(causal_lm.to(device), config)

    @classmethod
    def of_model(cls, causal_lm: Any, config: Config) -> Gradients:
        """Of a model that is there already."""
        self = cls.__new__(cls)
        self._setup(causal_lm, config)
        return self

    def _setup(self, causal_lm: Any, config: Config) -> None:
        self._module = PolicyModule(causal_lm, temperature=config.rollout.temperature).eval()
        self._parameters = [p for p in causal_lm.parameters() if p.requires_grad]
        self._config = config
        self._group = Group.alone(str(causal_lm.device))
        self._head_chunk = head_chunk_tokens(causal_lm.config.vocab_size)
        self._longest_shared = longest_shared(
            causal_lm.config, config.learner.shared_prefix, causal_lm.device
        )
        self.dimension = sum(p.numel() for p in self._parameters)
        self.device = causal_lm.device

    def ascent(
        self, packed: RolloutBatch, advantages: Tensor, signal: Tensor, learner: LearnerConfig
    ) -> tuple[Tensor | None, float]:
        """(-s f32[D], None where it is 0; d): gradient and denominator of a batch's summed loss."""
        plan = build_step_plan(
            packed,
            advantages,
            signal,
            config=learner,
            max_response_tokens=self._config.rollout.max_response_tokens,
            head_chunk_tokens=self._head_chunk,
            group=self._group,
            longest_shared=self._longest_shared,
        )
        if not plan.micro_batches:
            return None, plan.denominator
        for micro in plan.micro_batches:
            logp = forward_micro(self._module, micro, with_entropy=False)[0]
            (-policy_loss(logp, torch.zeros_like(logp), micro, learner).loss_sum).backward()
        parts = []
        for parameter in self._parameters:
            grad = parameter.grad
            parts.append((torch.zeros_like(parameter) if grad is None else grad).flatten().float())
            parameter.grad = None
        return torch.cat(parts), plan.denominator


def as_rollouts(groups: Sequence[RolloutGroup], rewards: Sequence[Rewards]) -> Rollouts:
    """Groups by hand as a step's rollouts, of distinct prompts."""
    sizes = np.array([len(g.completions) for g in groups], dtype=np.int64)
    ids = np.array([g.prompt_id for g in groups], dtype=np.int64)
    counts = GroupCounts.zeros(len(groups))
    for j, (group, values) in enumerate(zip(groups, rewards)):
        counts.count(j, group, values, values)
    scored = int(counts.trials.sum())
    step = Step(Allocation(0, ids, np.maximum(sizes, 1).astype(np.int32)), 0, len(groups))
    missing = RewardCounts(scored, 0, int(sizes.sum()) - scored)
    return Rollouts(step, list(groups), list(rewards), 1, ids, sizes, counts, missing, None)


def group_of(batch: TrainingBatch, j: int) -> tuple[RolloutBatch, Tensor, Tensor]:
    """(packed, advantages f32[R], signal bool[R]) of one group of a batch."""
    packed = batch.packed
    first, last = int(packed.group_offsets[j]), int(packed.group_offsets[j + 1])
    start, end = int(packed.cu_seqlens[first]), int(packed.cu_seqlens[last])
    alone = RolloutBatch(
        tokens=packed.tokens[start:end],
        cu_seqlens=packed.cu_seqlens[first : last + 1] - start,
        prompt_lengths=packed.prompt_lengths[first:last],
        loss_mask=packed.loss_mask[start:end],
        logp_behavior=packed.logp_behavior[start:end],
        rewards=packed.rewards[first:last],
        group_offsets=torch.tensor([0, last - first], dtype=torch.int32),
        prompt_ids=packed.prompt_ids[j : j + 1],
    )
    return alone, batch.advantages[first:last], batch.signal[first:last]


@dataclass(frozen=True)
class Estimator:
    """What makes advantages of a step's rollouts, besides the learner's settings."""

    keep: Keep
    step_groups: int
    critic: PosteriorCritic | None = None


@dataclass(frozen=True)
class HeldoutGradient:
    """The gradient of the held-out prompts' expected reward, in folds."""

    folds: Tensor  # f32[K, d] mean over a fold's prompts, sketched
    share: Floats  # f64[K] prompts of each


@dataclass(frozen=True)
class PoolGradient:
    """What N groups of the pool add up to, each as one step would see it."""

    gram: Floats  # f64[B, B] inner products of the blocks' sums
    block_squares: Floats  # f64[B]
    block_groups: Ids  # i64[B]
    squares: Floats  # f64[N] squared norm of each group's gradient
    taught: npt.NDArray[np.bool_]  # [N] groups with a gradient
    values: Values | None  # None without a held-out gradient


def sketch_for(dimension: int, seed: int, device: torch.device) -> Sketch:
    """The longest sketch whose sums stay within `MEMORY_BYTES`; exact where the gradient fits."""
    fits = MEMORY_BYTES // (4 * (BLOCKS + FOLDS))
    size = dimension if dimension <= fits else 2 ** (fits.bit_length() - 1)
    return Sketch(dimension, size, seed, device)


def heldout_gradient(
    gradients: Gradients, looks: Looks, sketch: Sketch, config: Config, tell: Tell
) -> HeldoutGradient | None:
    """Of the mean over prompts of the expected reward at the sampler's temperature: leave-one-out
    advantages and sums over tokens, without bias (Kool et al., 2019), whatever the run trains with.
    None where no group is live."""
    learner = LearnerConfig(
        algorithm="rloo", max_micro_batch_tokens=config.learner.max_micro_batch_tokens
    )
    config = config.model_copy(update={"learner": learner})
    # of a mean over rollouts, each divided by this constant
    unit = float(config.rollout.max_response_tokens)
    count = min(FOLDS, len(looks))
    means, share, any_live = [], [], False
    for fold in range(count):
        rows = range(fold, len(looks), count)
        groups, rewards = [looks.groups[i] for i in rows], [looks.rewards[i] for i in rows]
        batch = make_batch(as_rollouts(groups, rewards), _keep_all, config, Group.alone())
        ascent, denominator = gradients.ascent(
            batch.packed, batch.advantages, batch.signal, learner
        )
        any_live |= ascent is not None
        mean = torch.zeros(sketch.size, device=gradients.device)
        means.append(mean if ascent is None else sketch(ascent) * (unit / denominator))
        share.append(len(groups))
        tell(f"held-out gradient: {sum(share)} of {len(looks)} prompts")
    return HeldoutGradient(torch.stack(means), np.array(share, float)) if any_live else None


def _keep_all(samples: Any) -> npt.NDArray[np.bool_]:
    return np.ones(samples.rewards.shape, dtype=bool)


def pool_gradient(
    gradients: Gradients,
    looks: Looks,
    heldout: HeldoutGradient | None,
    sketch: Sketch,
    estimator: Estimator,
    config: Config,
    tell: Tell,
) -> PoolGradient:
    """Of the first looks, in batches as a step has them. Blocks are of every B-th group, so looks
    must stand in random order."""
    learner = config.learner.model_copy(update={"kl_coefficient": 0.0})
    count, blocks = len(looks), min(BLOCKS, len(looks))
    sums = torch.zeros(blocks, sketch.size, device=gradients.device)
    squares, parts, taught = np.zeros(count), np.zeros(count), np.zeros(count, dtype=bool)
    products = np.zeros((count, 0 if heldout is None else len(heldout.folds)))
    groups, rewards = looks.trained()
    batches = _in_steps(groups, rewards, estimator, config)
    for i, (batch, j) in enumerate(batches):
        if (i + 1) % _TELL_EVERY == 0 or i + 1 == count:
            tell(f"gradients: {i + 1} of {count} groups")
        ascent, parts[i] = gradients.ascent(*group_of(batch, j), learner)
        if ascent is None:
            continue
        taught[i] = True
        short = sketch(ascent)
        sums[i % blocks] += short
        squares[i] = float(short.double().square().sum())
        if heldout is not None:
            products[i] = (heldout.folds @ short).double().cpu().numpy()
    scale = parts.mean() or 1.0
    products, squares = products / scale, squares / scale**2
    block = np.arange(count) % blocks
    return PoolGradient(
        gram(sums, sums).numpy() / scale**2,
        np.bincount(block, weights=squares, minlength=blocks).astype(np.float64),
        np.bincount(block, minlength=blocks).astype(np.int64),
        squares,
        taught,
        None if heldout is None else Values(products, heldout.share),
    )


def _in_steps(
    groups: Sequence[RolloutGroup],
    rewards: Sequence[Rewards],
    estimator: Estimator,
    config: Config,
) -> Iterator[tuple[TrainingBatch, int]]:
    """(batch, its group j) of each group in turn. The critic predicts a step's groups before it
    learns from them, as in a run."""
    critic = estimator.critic
    for start in range(0, len(groups), estimator.step_groups):
        part = slice(start, start + estimator.step_groups)
        rollouts = as_rollouts(groups[part], rewards[part])
        predicted = None
        if critic is not None:
            sums = rollouts.counts.reward_sums(rollouts.prompt_ids)
            predicted = critic.predict(sums)
            critic.observe(sums, predicted)
        batch = make_batch(rollouts, estimator.keep, config, Group.alone(), predicted)
        for j in range(len(batch.packed.prompt_ids)):
            yield batch, j
