"""The records that travel between stages of one round, and the shape legend they share.

Legend: P pool prompts, G groups, R rollouts, S packed sequences on this rank, T packed tokens. A
*prompt id* inside a run is the prompt's index in the pool (0..P-1); the content hash that
survives runs lives on `Prompt.key`. Every record is frozen and checked once, when it is built.
torch is needed for annotations only, so the scheduler and the configuration can use this module
without importing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length"]
# mean |log-prob difference| of sampler and learner over a prompt's tokens at temperature 1, nats:
# what no healthy pair exceeds
PARITY_BOUNDS = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.05}


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one round spends, and on which prompts; the same on every rank.

    An Allocation with no entries is a round that executes nothing (it is counted, and it makes
    no policy update).
    """

    round: int
    prompt_ids: npt.NDArray[np.int64]  # [G] distinct pool indices, in execution order
    rollouts: npt.NDArray[np.int32]  # [G] group sizes, every entry >= 1

    def __post_init__(self) -> None:
        _check(
            self.prompt_ids.ndim == 1 and self.prompt_ids.shape == self.rollouts.shape,
            f"Allocation: prompt_ids {self.prompt_ids.shape} and rollouts "
            f"{self.rollouts.shape} must be equal 1-d shapes",
        )
        _check(
            bool((self.rollouts >= 1).all()), "Allocation: every group needs at least one rollout"
        )

    @property
    def total_rollouts(self) -> int:
        return int(self.rollouts.sum(dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Step:
    """The part of a round's Allocation that one optimizer step learns from: its groups
    first : last."""

    allocation: Allocation
    first: int
    last: int

    @property
    def round(self) -> int:
        return self.allocation.round

    @property
    def prompt_ids(self) -> npt.NDArray[np.int64]:
        """[G] in the Allocation's order."""
        return self.allocation.prompt_ids[self.first : self.last]

    @property
    def rollouts(self) -> npt.NDArray[np.int32]:
        """[G] group sizes."""
        return self.allocation.rollouts[self.first : self.last]

    @property
    def ends_round(self) -> bool:
        return self.last == len(self.allocation.prompt_ids)

    @property
    def is_whole_round(self) -> bool:
        return self.first == 0 and self.ends_round


@dataclass(frozen=True, slots=True)
class Episode:
    """What an environment made of a completion of several turns."""

    reward: float | None  # None: the environment has no reward of its own; nan: missing
    turns: int  # answers that were sampled
    last_reply: str  # text of the last of them
    stop: str  # why it ended: a stop condition's name, max_turns, max_tokens, or done
    metrics: Mapping[str, float] = field(default_factory=dict)  # the environment's own
    failure: str = ""  # why the reward is missing, in words
    timed_out: bool = False  # the failure was the end of its time


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response: tokens, the behaviour policy's log-probabilities of exactly those
    tokens, and why it ended. With an environment it is a whole episode: what was sampled and what
    the environment answered, in turn."""

    # [n], the end-of-sequence token included when finish_reason is "stop"
    token_ids: npt.NDArray[np.int64]
    # [n], nats, at temperature 1 of the sampling distribution; 0 where not sampled
    logp_behavior: npt.NDArray[np.float32]
    text: str  # decoded, special tokens removed
    finish_reason: FinishReason
    policy_version: int  # optimizer steps the sampling weights had seen
    sampled: npt.NDArray[np.bool_] | None = None  # [n] which tokens were; None: all
    episode: Episode | None = None

    def __post_init__(self) -> None:
        _check(
            self.token_ids.shape == self.logp_behavior.shape,
            f"Completion: {self.token_ids.shape} tokens but {self.logp_behavior.shape} log-probs",
        )
        _check(
            self.sampled is None or self.sampled.shape == self.token_ids.shape,
            f"Completion: {self.token_ids.shape} tokens but another mask of what was sampled",
        )

    @property
    def trains(self) -> npt.NDArray[np.bool_]:
        """bool[n] tokens that the policy sampled: they alone are in the loss."""
        if self.sampled is None:
            return np.ones(self.token_ids.shape, dtype=np.bool_)
        return self.sampled


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """All completions of one prompt in one round; never split over ranks before its advantage is
    known."""

    prompt_id: int
    prompt_tokens: npt.NDArray[np.int64]  # [m]
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """This rank's scored rollouts, packed and ragged. Rollouts whose reward is missing are not
    in it."""

    tokens: Tensor  # i64[T] prompt then response, sequence after sequence
    cu_seqlens: Tensor  # i32[R+1]
    prompt_lengths: Tensor  # i32[R]
    loss_mask: Tensor  # bool[T] True on sampled tokens
    logp_behavior: Tensor  # f32[T] 0 on the others
    rewards: Tensor  # f32[R]
    group_offsets: Tensor  # i32[G+1] rollouts of group j are group_offsets[j]:group_offsets[j+1]
    prompt_ids: Tensor  # i64[G]

    def __post_init__(self) -> None:
        total, rollouts, groups = (
            self.tokens.shape[0],
            self.rewards.shape[0],
            self.prompt_ids.shape[0],
        )
        _check(
            self.loss_mask.shape == (total,) and self.logp_behavior.shape == (total,),
            "RolloutBatch: ragged [T] fields",
        )
        _check(
            self.cu_seqlens.shape == (rollouts + 1,),
            f"RolloutBatch: cu_seqlens wants [{rollouts + 1}]",
        )
        _check(
            self.prompt_lengths.shape == (rollouts,),
            f"RolloutBatch: prompt_lengths wants [{rollouts}]",
        )
        _check(
            self.group_offsets.shape == (groups + 1,),
            f"RolloutBatch: group_offsets wants [{groups + 1}]",
        )

    @property
    def num_rollouts(self) -> int:
        return int(self.rewards.shape[0])


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward/backward of the learner. A dummy keeps ranks in step under ZeRO-3 and carries
    no loss.

    A sequence is a segment of its own, or continues the segment of its group's prompt, its parent,
    which stands before all of the group's: positions restart at 0 in each segment that continues
    none. Entry t of a [T] field belongs to token t; the model predicts it from t-1, a segment's
    first token from its parent's last.
    """

    tokens: Tensor  # i64[T]
    positions: Tensor  # i64[T]
    cu_seqlens: Tensor  # i32[S+1]
    # i32[S] index into RolloutBatch.rewards (all 0 in a dummy; of a shared prompt: its first)
    seq_rollout: Tensor
    loss_mask: Tensor  # bool[T]
    logp_behavior: Tensor  # f32[T]
    token_adv: Tensor  # f32[T]
    seq_weight: Tensor  # f32[T] aggregation weight of each token before the global denominator
    head_chunks: int  # calls of the vocabulary projection, the same on every rank
    is_dummy: bool
    # Known on the host, so that nobody waits for the device to learn the shape of a tensor:
    trained_tokens: int  # that are True in loss_mask
    max_seqlen_tokens: int
    # f32[T] learner's log-probs before the first step; None: detached current ones
    logp_old: Tensor | None = None
    logp_reference: Tensor | None = None  # f32[T] None when the KL coefficient is 0
    seq_parent: Tensor | None = None  # i32[S] own index: continues none; None: no prompt is shared
    # [N] trained tokens that each slice predicts, of a pack that a block of ranks holds between
    # them; the ranks of a block have the same micro-batch. None: a rank holds it alone
    cut: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The micro-batches of one optimizer step: as many on every rank, one global denominator."""

    micro_batches: tuple[MicroBatch, ...]
    denominator: float  # global; loss = sum over ranks and tokens of weight*loss / denominator
